"""What is installed, and whether a data set is as it was published."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from mmmlib.reference.data import PUBLISHED, Count, count_photos, findings, load, read_tree
from mmmlib.reference.data._files import unreadable
from mmmlib.reference.data._table import SIDES
from mmmlib.reference.run import environment

__all__ = ["Examination", "examine", "surroundings"]


class Examination(NamedTuple):
    """What a data set holds, and what is wrong with it.

    Attributes:
        counts: A line for each side.
        findings: A sentence for each thing that is wrong; none if all is right.
    """

    counts: tuple[str, ...]
    findings: tuple[str, ...]


def examine(
    name: str, data_dir: str | Path | None, *, trial: int = 1, images: bool = False
) -> Examination:
    """Count a data set and compare it with what is published of it.

    Args:
        name: A key of ``DATA_SETS``. Of those that are not published there is only the count.
        data_dir: Where it lies.
        trial: Which of the ten splits of RegDB.
        images: Open every image, to find those that are broken.

    Returns:
        The counts and the findings.

    Example:
        >>> examine("synthetic", None).counts[0]
        'training, visible      24 identities     192 images  cameras 0'
    """
    if name not in PUBLISHED:
        return _examine_loaded(name, data_dir)
    tree = read_tree(name, data_dir, trial=trial)
    sides = {side: getattr(tree, side) for side in SIDES}
    found = findings(name, tree)
    if images:
        found += unreadable([photo.path for photos in sides.values() for photo in photos])
    n = sum(map(len, sides.values()))
    counts = [_line(side, count_photos(photos)) for side, photos in sides.items()]
    memory = f"{tree.layout} layout, {n * 3 * 288 * 144 / 1e9:.1f} GB in memory at 288 x 144"
    return Examination((*counts, memory), tuple(found))


def _examine_loaded(name: str, data_dir: str | Path | None) -> Examination:
    """The counts of what can only be loaded as a whole; what is broken refuses to load."""
    data = load(name, data_dir)
    counts = []
    for side in SIDES:
        images = getattr(data, side)
        if images is not None:
            known = [] if images.identities is None else images.identities.unique().tolist()
            cameras = tuple(images.cameras.unique().tolist())
            counts.append(_line(side, Count(len(known), len(images.names), cameras)))
    return Examination(tuple(counts), ())


def _line(side: str, count: Count) -> str:
    cameras = " ".join(map(str, count.cameras))
    return (
        f"{SIDES[side]:18} {count.identities:6,} identities {count.images:7,} images  "
        f"cameras {cameras}"
    ).rstrip()


def surroundings() -> dict[str, str]:
    """Name the machine and the versions of what is installed.

    Example:
        >>> surroundings()["faiss"] != ""
        True
    """
    found = {name: str(value) for name, value in environment().items()}
    faiss = [f"{name} {_version(name)}" for name in ("faiss-cpu", "faiss-gpu") if _version(name)]
    clash = "; two of them clash: keep one" if len(faiss) > 1 else ""
    return {**found, "faiss": (", ".join(faiss) or "not installed, and not needed") + clash}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
