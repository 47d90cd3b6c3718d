"""The published data sets of persons, as they lie on a disk: files, identities, cameras.

No image is opened here. Every layout becomes the same four lists, ordered by name.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmmlib._check import check_choice, check_count
from mmmlib.reference.data._files import images_in, printable, say
from mmmlib.reference.data._table import SIDES

TESTED = ("query", "gallery")
SYSU_LISTS = {"train": 296, "val": 99, "test": 96}  # identities


class Photo(NamedTuple):
    """An image file, and what its place and its name say.

    Attributes:
        name: Its path below the data directory; the file name in the prepared layout.
        identity: Number of the person.
        camera: Number of the camera.
        path: Where it is.
    """

    name: str
    identity: int
    camera: int
    path: Path


class Tree(NamedTuple):
    """Where the images of a data set lie, before any is opened; each side ordered by name.

    Attributes:
        visible: Visible training images.
        infrared: Infrared training images.
        query: Infrared test images.
        gallery: Visible test images.
        layout: ``"official"`` or ``"prepared"``.
        faults: What contradicts itself in the tree, a sentence each.
        missing: Files that a list or a link leads to and that are not there, a sentence each.
    """

    visible: tuple[Photo, ...]
    infrared: tuple[Photo, ...]
    query: tuple[Photo, ...]
    gallery: tuple[Photo, ...]
    layout: str
    faults: tuple[str, ...]
    missing: tuple[str, ...]


def read_tree(name: str, data_dir: str | Path | None, *, trial: int = 1) -> Tree:
    """List the images of SYSU-MM01, RegDB or LLCM, in the official or the prepared layout.

    Args:
        name: ``"sysu"``, ``"regdb"`` or ``"llcm"``.
        data_dir: The directory that holds what the layout wants.
        trial: Which of the ten splits of RegDB.

    Returns:
        The four lists. Where both layouts are there, the official one is read.

    Raises:
        ValueError: If the name is unknown, or a list of the data set can't be read.
        FileNotFoundError: If no layout is there as a whole.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for part in ("cam1/0007", "cam2", "cam3", "cam4", "cam5", "cam6", "exp"):
        ...         (Path(folder) / part).mkdir(parents=True)
        ...     for split, person in (("train", 7), ("val", 8), ("test", 9)):
        ...         _ = (Path(folder) / "exp" / f"{split}_id.txt").write_text(f"{person}")
        ...     (Path(folder) / "cam1/0007/0001.jpg").touch()
        ...     tree = read_tree("sysu", folder)
        >>> [photo[:3] for photo in tree.visible], tree.faults[0]
        ([('cam1/0007/0001.jpg', 7, 1)], 'exp/train_id.txt names 1 identity, 296 are published')
    """
    check_choice("name", name, tuple(TREES))
    check_count("trial", trial)
    layout = TREES[name]
    root = None if data_dir is None else Path(data_dir)
    if root is None or not root.is_dir():
        raise FileNotFoundError(
            f"data_dir must be a directory, got {say(root)}; expected in it: {layout.wanted}"
        )
    if not _lacking(root, layout.marks):
        return layout.read(root, trial)
    if not _lacking(root, PREPARED):
        return _prepared(root, name, trial)
    lacking = ", ".join(_lacking(root, layout.marks))
    inner = [path for path in _folders(root) if not _lacking(path, layout.marks)]
    hint = f"; {say(inner[0])} holds it" if inner else ""
    raise FileNotFoundError(
        f"data_dir must hold {layout.wanted}, got {say(root)} without {lacking}{hint}"
    )


PREPARED = ("rgb_modify", "ir_modify")


def _lacking(root: Path, marks: Iterable[str]) -> list[str]:
    return [mark for mark in marks if not (root / mark).is_dir()]


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _tree(
    sides: dict[str, list[Photo]],
    layout: str,
    faults: Sequence[str],
    wanted: Mapping[str, Collection[int]] | None = None,
) -> Tree:
    """Order every side by name; note what is not there, and who is on both sides of the split."""
    found, missing, kept = list(faults), [], {}
    for side, photos in sides.items():
        unique = {photo.name: photo for photo in photos}
        kept[side] = tuple(sorted(photo for photo in unique.values() if photo.path.is_file()))
        gone = unique.keys() - {photo.name for photo in kept[side]}
        missing += [f"{SIDES[side]}: {printable(name)} is not there" for name in sorted(gone)]
    people = {side: {photo.identity for photo in photos} for side, photos in kept.items()}
    for side, everybody in (wanted or {}).items():
        absent = set(everybody) - people[side]
        if absent:
            found.append(f"{SIDES[side]}: no image of {_people(absent)}")
    both = (people["visible"] | people["infrared"]) & (people["query"] | people["gallery"])
    if both:
        found.append(f"{_people(both)} in training and in test")
    return Tree(**kept, layout=layout, faults=tuple(found), missing=tuple(missing))


def _people(numbers: Collection[int]) -> str:
    """Some identities in words, neighbours as a range."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{'identity' if len(numbers) == 1 else 'identities'} {said}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise FileNotFoundError(f"data_dir must hold {say(path)}: {error.strerror}") from error


def _numbers(path: Path) -> list[int]:
    """The identities of a list: whole numbers between commas."""
    words = re.split(r"[,\s]+", _text(path).strip(", \t\r\n"))
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise ValueError(f"data_dir must hold whole numbers in {say(path)}, got {wrong[0]!r}")
    return [int(word) for word in words]


def _lines(path: Path) -> list[tuple[str, str]]:
    """The images of a list, ``<path> <label>`` a line."""
    pairs = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if line.strip() and not (name and label.isdecimal()):
            raise ValueError(
                f"data_dir must hold '<path> <number>' in every line of {say(path)}, "
                f"got {line!r} in line {number}"
            )
        if name:
            pairs.append((name.strip().replace("\\", "/").removeprefix("./"), label))
    return pairs


def _by_camera(root: Path, cameras: dict[str, int], people: Iterable[int]) -> list[Photo]:
    """The images in ``<folder of the camera>/<four digits of the identity>/``."""
    return [
        Photo(f"{folder}/{person:04d}/{path.name}", person, camera, path)
        for folder, camera in cameras.items()
        for person in sorted(set(people))
        for path in images_in(root / folder / f"{person:04d}")
    ]


def _sysu(root: Path, trial: int) -> Tree:
    """``cam<1-6>/<identity>/<image>.jpg``; training is train_id.txt and val_id.txt together."""
    lists = {name: f"exp/{name}_id.txt" for name in SYSU_LISTS}
    people = {name: set(_numbers(root / file)) for name, file in lists.items()}
    faults = [
        f"{lists[name]} names {_count(len(people[name]), 'identity', 'identities')}, "
        f"{count} are published"
        for name, count in SYSU_LISTS.items()
        if len(people[name]) != count
    ]
    train = people["train"] | people["val"]
    visible = {f"cam{camera}": camera for camera in (1, 2, 4, 5)}
    infrared = {f"cam{camera}": camera for camera in (3, 6)}
    sides = {
        "visible": _by_camera(root, visible, train),
        "infrared": _by_camera(root, infrared, train),
        "query": _by_camera(root, infrared, people["test"]),
        "gallery": _by_camera(root, visible, people["test"]),
    }
    wanted = {side: people["test"] if side in TESTED else train for side in sides}
    return _tree(sides, "official", faults, wanted)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _regdb(root: Path, trial: int) -> Tree:
    """``idx/train_visible_<trial>.txt`` and so on: the folder of an image is its identity."""
    places = {
        "visible": ("train_visible", 1), "infrared": ("train_thermal", 2),
        "query": ("test_thermal", 2), "gallery": ("test_visible", 1),
    }  # fmt: skip
    sides: dict[str, list[Photo]] = {}
    labels: dict[tuple[str, str], int] = {}
    faults: dict[tuple[str, str], str] = {}
    for side, (word, camera) in places.items():
        path = root / "idx" / f"{word}_{trial}.txt"
        sides[side] = []
        for name, label in _lines(path):
            person = _folder_number(name, path)
            key = word[:5], label
            if labels.setdefault(key, person) != person:
                faults[key] = (
                    f"idx/{path.name}: label {label} is identity {person} in {printable(name)}, "
                    f"and identity {labels[key]} elsewhere"
                )
            sides[side].append(Photo(name, person, camera, root / name))
    return _tree(sides, "official", tuple(faults.values()))


def _folder_number(name: str, path: Path) -> int:
    folder = Path(name).parent.name
    if not folder.isdecimal():
        raise ValueError(
            f"data_dir must hold '<modality>/<identity>/<image>' in {say(path)}, got {name!r}"
        )
    return int(folder)


IN_NAME = re.compile(r"(\d+)_c(\d+)_")  # identity and camera


def _llcm(root: Path, trial: int) -> Tree:
    """Training images by list, identity and camera from their names; test images by camera."""
    faults: list[str] = []
    test = _numbers(root / "idx" / "test_id.txt")
    sides = {
        side: _named(
            ((name, root / name) for name, _ in _lines(root / "idx" / f"train_{word}.txt")),
            f"idx/train_{word}.txt",
            faults,
        )
        for side, word in (("visible", "vis"), ("infrared", "nir"))
    }
    for side, word in (("query", "nir"), ("gallery", "vis")):
        cameras = {f"test_{word}/cam{camera}": camera for camera in range(1, 10)}
        sides[side] = _by_camera(root, cameras, test)
    return _tree(sides, "official", faults, dict.fromkeys(TESTED, test))


def _named(files: Iterable[tuple[str, Path]], place: str, faults: list[str]) -> list[Photo]:
    """The images whose file name begins with identity and camera; a fault for any other."""
    photos, strange = [], []
    for name, path in files:
        match = IN_NAME.match(path.name)
        if match:
            photos.append(Photo(name, int(match[1]), int(match[2]), path))
        else:
            strange.append(name)
    faults += [
        f"{place}: {printable(name)} does not begin with <identity>_c<camera>_" for name in strange
    ]
    return photos


def _prepared(root: Path, name: str, trial: int) -> Tree:
    """``{rgb,ir}_modify/{bounding_box_train,query,bounding_box_test}/<identity>_c<camera>_*``.

    Both test folders together are the test images: which of them is the query is for the protocol
    to say. RegDB has the trial between, and numbers training and test identities from 0 each.
    """
    faults: list[str] = []
    sides: dict[str, list[Photo]] = {}
    for (train, test), modality in ((("visible", "gallery"), "rgb"), (("infrared", "query"), "ir")):
        base = Path(f"{modality}_modify") / (str(trial) if name == "regdb" else "")
        for side, folders in (
            (train, ("bounding_box_train",)),
            (test, ("query", "bounding_box_test")),
        ):
            sides[side] = []
            for folder in folders:
                files = ((path.name, path) for path in images_in(root / base / folder))
                sides[side] += _named(files, (base / folder).as_posix(), faults)
    if name == "regdb":
        sides = {side: [_apart(photo, side) for photo in sides[side]] for side in sides}
    return _tree(sides, "prepared", faults)


def _apart(photo: Photo, side: str) -> Photo:
    """RegDB's test identities apart from those of the training, and a camera for each modality."""
    return photo._replace(
        identity=photo.identity + 1000 * (side in TESTED),
        camera=2 if side in ("infrared", "query") else 1,
    )


class Layout(NamedTuple):
    """How a data set lies on a disk as it is published."""

    marks: tuple[str, ...]  # the folders by which it is known
    wanted: str
    read: Callable[[Path, int], Tree]


def _layout(wanted: str, marks: Sequence[str], read: Callable[[Path, int], Tree]) -> Layout:
    return Layout(tuple(marks), f"{wanted}, or the prepared rgb_modify and ir_modify", read)


TREES = {
    "sysu": _layout("cam1 to cam6 and exp", [*(f"cam{i}" for i in range(1, 7)), "exp"], _sysu),
    "regdb": _layout("Visible, Thermal and idx", ["Visible", "Thermal", "idx"], _regdb),
    "llcm": _layout("idx, vis, nir, test_vis and test_nir", ["idx", "test_vis", "test_nir"], _llcm),
}
