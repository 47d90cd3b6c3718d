"""What the published data sets hold, and how a tree differs from it."""

from collections.abc import Collection
from typing import NamedTuple

from mmmlib.reference.data._table import SIDES
from mmmlib.reference.data._trees import Photo, Tree


class Count(NamedTuple):
    """How much a side of a data set holds.

    Attributes:
        identities: How many persons.
        images: How many images.
        cameras: Their numbers; empty where they are not published.
    """

    identities: int
    images: int
    cameras: tuple[int, ...]


# SYSU-MM01: Wu et al., ICCV 2017, and the counts every training log on it prints.
# RegDB: Nguyen et al., Sensors 2017, and the ten splits of Ye et al.; ten images of everybody in
# each modality. LLCM: Zhang and Wang, CVPR 2023; 46,767 images in all.
PUBLISHED: dict[str, dict[str, Count]] = {
    "sysu": {
        "visible": Count(395, 22258, (1, 2, 4, 5)),
        "infrared": Count(395, 11909, (3, 6)),
        "query": Count(96, 3803, (3, 6)),
        "gallery": Count(96, 6775, (1, 2, 4, 5)),
    },
    "regdb": {
        "visible": Count(206, 2060, (1,)),
        "infrared": Count(206, 2060, (2,)),
        "query": Count(206, 2060, (2,)),
        "gallery": Count(206, 2060, (1,)),
    },
    "llcm": {
        "visible": Count(713, 16946, ()),
        "infrared": Count(713, 13975, ()),
        "query": Count(351, 7166, (1, 2, 4, 5, 6, 7, 8, 9)),
        "gallery": Count(351, 8680, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    },
}


def count_photos(photos: Collection[Photo]) -> Count:
    """Count identities, images and cameras.

    Example:
        >>> from pathlib import Path
        >>> count_photos([Photo("a.jpg", 7, 3, Path("a.jpg")), Photo("b.jpg", 7, 1, Path("b.jpg"))])
        Count(identities=1, images=2, cameras=(1, 3))
    """
    people = {photo.identity for photo in photos}
    return Count(len(people), len(photos), tuple(sorted({photo.camera for photo in photos})))


def findings(name: str, tree: Tree) -> list[str]:
    """Say what a tree lacks and what it has too much, a sentence each; nothing if it is right.

    Args:
        name: ``"sysu"``, ``"regdb"`` or ``"llcm"``.
        tree: What ``read_tree`` found.

    Example:
        >>> empty = Tree((), (), (), (), "official", (), ())
        >>> findings("regdb", empty)[0]
        'training, visible: 0 identities, 206 are published: 206 missing'
    """
    found = list(tree.faults)
    for side, published in PUBLISHED[name].items():
        there = count_photos(getattr(tree, side))
        found += [f"{SIDES[side]}: {sentence}" for sentence in _compare(there, published)]
    return [*found, *tree.missing]


def _compare(there: Count, published: Count) -> list[str]:
    found = []
    for what in ("identities", "images"):
        here, wanted = getattr(there, what), getattr(published, what)
        if here != wanted:
            change = "missing" if here < wanted else "too many"
            found.append(
                f"{here:,} {what}, {wanted:,} are published: {abs(here - wanted):,} {change}"
            )
    lacking = sorted(set(published.cameras) - set(there.cameras))
    surplus = sorted(set(there.cameras) - set(published.cameras)) if published.cameras else []
    found += [f"no image of camera {camera}" for camera in lacking]
    found += [f"images of camera {camera}, which is not published" for camera in surplus]
    return found
