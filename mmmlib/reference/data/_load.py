"""The table of data sets, and the way to any of them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from mmmlib._check import check_choice, check_count
from mmmlib.evaluation import Protocol
from mmmlib.reference.data._files import read_images, say
from mmmlib.reference.data._folder import load_folder
from mmmlib.reference.data._people import load_people
from mmmlib.reference.data._published import findings
from mmmlib.reference.data._scenes import SCENES, load_scene
from mmmlib.reference.data._table import SIDES, DataSet, Images, Options
from mmmlib.reference.data._trees import TREES, Photo, read_tree


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    instances: int = 8,
    jitter: int | None = None,
    height: int = 288,
    width: int = 144,
    trial: int = 1,
    allow_incomplete: bool = False,
) -> DataSet:
    """Load a data set of the table by its name.

    Args:
        name: A key of ``DATA_SETS``. ``"hubble"`` needs scikit-image and no file, ``"landsat"`` a
            file, ``"people"`` and ``"synthetic"`` nothing, all others a directory.
        data_dir: Where it lies, if it lies in files.
        seed: Decides every random choice.
        instances: Images of each window of a scene in each modality, of each rendered person by
            each camera.
        jitter: How far a crop strays from its window, in pixels; None for the scene's default.
        height: Height to which images from files are resized.
        width: Width to which images from files are resized.
        trial: Which of the ten splits of RegDB.
        allow_incomplete: Take a published data set as it is, even if its counts are not those that
            are published.

    Returns:
        All images in memory, a byte a channel and pixel: SYSU-MM01 at 288 x 144 takes 5.6 GB (4.3
        for training). Training and test identities are disjoint, and crops of a training
        window share no pixel with crops of a test window.

    Raises:
        ValueError: If the name is unknown, or the files do not hold what they should: the message
            names the file, or what is missing.
        FileNotFoundError: If the files are not there.

    Example:
        >>> synthetic = load("synthetic", instances=4)
        >>> synthetic.visible.pixels.shape, synthetic.query.pixels.shape
        (torch.Size([96, 1, 24, 24]), torch.Size([64, 1, 24, 24]))
    """
    check_choice("name", name, tuple(DATA_SETS))
    check_count("instances", instances)
    check_count("height", height)
    check_count("width", width)
    check_count("trial", trial)
    path = None if data_dir is None else Path(data_dir)
    options = Options(seed, instances, jitter, height, width, trial, allow_incomplete)
    return DATA_SETS[name](path, options)


def _load_tree(name: str, data_dir: Path | None, options: Options) -> DataSet:
    """A published data set, if it holds what it should."""
    tree = read_tree(name, data_dir, trial=options.trial)
    found = findings(name, tree)
    if found and not options.allow_incomplete:
        more = f"; and {len(found) - SAID:,} more" if len(found) > SAID else ""
        raise ValueError(
            f"data_dir must hold {name} as it is published, got {say(data_dir)} with "
            f"{'; '.join(found[:SAID])}{more} (mmmlib doctor lists everything, "
            "--allow-incomplete takes it as it is)"
        )
    sides = {side: getattr(tree, side) for side in SIDES}
    empty = [SIDES[side] for side in ("visible", "infrared") if not sides[side]]
    if empty:
        raise ValueError(f"data_dir must hold images for {empty[0]}, got none in {say(data_dir)}")
    tested = bool(tree.query and tree.gallery)
    return DataSet(
        visible=_images(tree.visible, options),
        infrared=_images(tree.infrared, options),
        query=_images(tree.query, options) if tested else None,
        gallery=_images(tree.gallery, options) if tested else None,
        protocol=PROTOCOLS[name],
        name=name,
    )


def _images(photos: Sequence[Photo], options: Options) -> Images:
    pixels = read_images([photo.path for photo in photos], options.height, options.width)
    identities = torch.tensor([photo.identity for photo in photos], dtype=torch.int64)
    cameras = torch.tensor([photo.camera for photo in photos], dtype=torch.int64)
    return Images(pixels, identities, cameras, tuple(photo.name for photo in photos))


SAID = 3  # findings in the message that refuses a tree
PROTOCOLS: dict[str, Protocol] = {"sysu": "sysu-all", "regdb": "regdb", "llcm": "llcm"}

# What a name stands for. A line here, one in ``run.PRESETS`` and a row in docs/training.md.
DATA_SETS: dict[str, Callable[[Path | None, Options], DataSet]] = {
    **{name: partial(load_scene, name) for name in SCENES},
    "people": load_people,
    "folder": load_folder,
    **{name: partial(_load_tree, name) for name in TREES},
}
