"""What a protocol says: which gallery is searched, what a query skips, what a place is."""

import random
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmmlib._check import check_choice, check_count, check_labels, check_values

Protocol = Literal["plain", "regdb", "sysu-all", "sysu-indoor", "llcm"]
Skip = Literal["nothing", "overlapping-camera", "own-camera"]
Places = Literal["images", "identities"]

SKIPS = ("nothing", "overlapping-camera", "own-camera")
PLACES = ("images", "identities")
NO_CAMERA = np.iinfo(np.int64).min


class Rules(NamedTuple):
    """How one protocol ranks, and of which cameras it draws; no draw if None, () for all."""

    skip: Skip
    places: Places
    cameras: tuple[int, ...] | None = None


RULES: dict[str, Rules] = {
    "plain": Rules("nothing", "images"),
    "regdb": Rules("nothing", "images"),
    "sysu-all": Rules("overlapping-camera", "identities", (1, 2, 4, 5)),
    "sysu-indoor": Rules("overlapping-camera", "identities", (1, 2)),
    "llcm": Rules("own-camera", "identities", ()),
}
DRAWN = tuple(name for name, rules in RULES.items() if rules.cameras is not None)


class Side(NamedTuple):
    """Identity and camera of queries, or of gallery images."""

    identities: np.ndarray
    cameras: np.ndarray

    def rows(self, index: np.ndarray) -> "Side":
        """Some of them."""
        return Side(self.identities[index], self.cameras[index])


def check_rules(protocol: str, skip: str | None, places: str | None) -> Rules:
    """The rules of a protocol, with those given in their place."""
    check_choice("protocol", protocol, tuple(RULES))
    rules = RULES[protocol]
    if skip is not None:
        check_choice("skip", skip, SKIPS)
        rules = rules._replace(skip=skip)  # type: ignore[arg-type]
    if places is not None:
        check_choice("places", places, PLACES)
        rules = rules._replace(places=places)  # type: ignore[arg-type]
    return rules


def check_side(
    name: str, n: int, identities: Tensor, cameras: Tensor | None, protocol: str, rules: Rules
) -> Side:
    """Identities and cameras of one side, the latter only where the rules read them."""
    check_labels(n, **{f"{name}_identities": identities})
    check_values(**{f"{name}_identities": identities})
    if cameras is not None:
        check_labels(n, **{f"{name}_cameras": cameras})
        check_values(**{f"{name}_cameras": cameras})
    elif rules.cameras is not None or rules.skip != "nothing":
        reason = f"protocol {protocol!r}" if protocol in DRAWN else f"skip {rules.skip!r}"
        raise ValueError(f"{name}_cameras must be given for {reason}, got None")
    cameras = torch.zeros_like(identities) if cameras is None else cameras
    return Side(*(part.cpu().contiguous().numpy() for part in (identities, cameras)))


def skipped_camera(query: Side, skip: Skip) -> np.ndarray:
    """The camera whose images each query skips."""
    if skip == "own-camera":
        return query.cameras
    skipped = np.full(len(query.cameras), NO_CAMERA)
    if skip == "overlapping-camera":
        skipped[query.cameras == 3] = 2
    return skipped


def draw_gallery(
    identities: Int[Tensor, "n"],
    cameras: Int[Tensor, "n"],
    *,
    protocol: Literal["sysu-all", "sysu-indoor", "llcm"],
    trial: int,
    shots: int = 1,
) -> Int[Tensor, "drawn"]:
    """Draw the gallery of a trial: ``shots`` images of every identity and camera that has any.

    Identities are visited in ascending order, and the cameras of each in ascending order: 1, 2, 4
    and 5 for ``"sysu-all"``, 1 and 2 for ``"sysu-indoor"``, all for ``"llcm"``. One random stream,
    seeded with the trial, serves all of them, so a draw depends on everything before it. With rows
    in the order of their sorted paths, the draws are those of the published protocols.

    Args:
        identities: True identity of each image.
        cameras: Camera of each image, as the data set numbers it.
        protocol: Which cameras take part.
        trial: Number of the trial, and seed.
        shots: How many images to draw; all where there are fewer.

    Returns:
        Row numbers in the order drawn, on the device of ``identities``.

    Raises:
        ValueError: If shapes or data types are wrong.

    Example:
        >>> identities = torch.tensor([6, 6, 6, 6, 2, 2])
        >>> cameras = torch.tensor([1, 1, 1, 4, 2, 3])
        >>> draw_gallery(identities, cameras, protocol="sysu-all", trial=0)
        tensor([4, 1, 3])

    References:
        Wu et al. RGB-Infrared Cross-Modality Person Re-Identification. ICCV 2017.
    """
    check_choice("protocol", protocol, DRAWN)
    check_count("trial", trial, 0)
    check_count("shots", shots)
    check_labels(identities=identities)
    check_labels(len(identities), cameras=cameras)
    check_values(identities=identities, cameras=cameras)
    side = Side(identities.cpu().numpy(), cameras.cpu().numpy())
    drawn = draw(folders(side, RULES[protocol]), trial, shots)
    return torch.from_numpy(drawn).to(identities.device)


def folders(side: Side, rules: Rules) -> list[list[int]]:
    """Rows of every identity and camera that takes part, in the order in which they are drawn."""
    rows = np.lexsort((side.cameras, side.identities))
    if rules.cameras:
        rows = rows[np.isin(side.cameras[rows], rules.cameras)]
    changes = (np.diff(np.stack(side)[:, rows]) != 0).any(axis=0)
    return [part.tolist() for part in np.split(rows, np.flatnonzero(changes) + 1)]


def draw(images: list[list[int]], trial: int, shots: int) -> np.ndarray:
    """Some rows of every folder."""
    generator = random.Random(trial)
    drawn = [generator.sample(rows, min(shots, len(rows))) for rows in images]
    return np.array([row for rows in drawn for row in rows], dtype=np.int64)
