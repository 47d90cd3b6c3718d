"""A published method as data: which parts, with which weights, in which epochs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from mmmlib import matching
from mmmlib._types import ClusterMatch, SubPrototypes

if TYPE_CHECKING:
    from mmmlib.reference.train import Step

__all__ = ["RECIPES", "Part", "Recipe"]


class Part(NamedTuple):
    """One term of the objective.

    Attributes:
        loss: A name in ``mmmlib.reference.train.LOSSES``, or a function of the step.
        weight: Its factor.
        start: Share of the clustering epochs before it begins.
        ramp: Share of them over which its weight grows from 0.
        every: Only one epoch in so many ...
        parity: ... the one with this remainder.
    """

    loss: "str | Callable[[Step], Tensor]"
    weight: float = 1.0
    start: float = 0.0
    ramp: float = 0.0
    every: int = 1
    parity: int = 0

    def factor(self, epoch: int, epochs: int) -> float:
        """The weight in an epoch of so many; 0 while the part rests."""
        progress = epoch / epochs
        if progress < self.start or epoch % self.every != self.parity:
            return 0.0
        if not self.ramp:
            return self.weight
        return self.weight * min(1.0, (progress - self.start + 1 / epochs) / self.ramp)

    @property
    def name(self) -> str:
        """The name under which its value is logged."""
        return self.loss if isinstance(self.loss, str) else self.loss.__name__


class Recipe(NamedTuple):
    """A method.

    Attributes:
        parts: The terms of its objective.
        match: How visible and infrared clusters find one another, from their memories; None for
            a method that never matches (its labels are still joined for scoring).
        match_start: Share of the clustering epochs before clusters are matched.
        sampling: Once clusters are matched, ``"shared"`` draws from one label space of both and
            ``"matched"`` draws matched pairs of clusters; before, and with ``"separate"``, each
            modality is drawn alone.
        joint: Whether both modalities are clustered together as well (CMC).
        true_labels: Whether identities take the place of clusters (no method can have them).
        source: Where it was published.
    """

    parts: tuple[Part, ...]
    match: Callable[[SubPrototypes, SubPrototypes], ClusterMatch] | None = None
    match_start: float = 0.0
    sampling: Literal["separate", "shared", "matched"] = "separate"
    joint: bool = False
    true_labels: bool = False
    source: str = ""


INTRA = (Part("visible_nce"), Part("infrared_nce"))

ALONE = 0.3  # share of the clustering epochs in which each modality is still on its own
MMM = (
    "Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person "
    "Re-Identification. ECCV 2024"
)

RECIPES: dict[str, Recipe] = {
    "baseline": Recipe(
        parts=INTRA,
        source="Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022",
    ),
    "mmm": Recipe(
        parts=(
            *INTRA,
            Part("joint_nce"),
            Part("alignment_intra", weight=0.5),
            Part("alignment_inter", weight=0.05, start=15 / 80),
        ),
        match=matching.multi_memory_match,
        sampling="shared",
        joint=True,
        source=MMM,
    ),
    "mmm-shared": Recipe(
        parts=(
            *INTRA,
            Part("joint_nce", start=ALONE),
            Part("shared_nce", start=ALONE),
            Part("alignment_intra", weight=0.5, start=ALONE),
            Part("alignment_inter", weight=0.05, start=ALONE + (1 - ALONE) * 15 / 80),
        ),
        match=matching.multi_memory_match,
        match_start=ALONE,
        sampling="shared",
        joint=True,
        source=f"after {MMM}",
    ),
    "mbccm": Recipe(
        parts=(
            *INTRA,
            Part("agnostic_visible_nce", weight=0.9, start=0.5),
            Part("agnostic_infrared_nce", weight=0.9, start=0.5),
            Part("consistency", weight=0.5, start=0.5),
        ),
        match=matching.bilateral_match,
        match_start=0.5,
        sampling="matched",
        source="Cheng et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised "
        "Visible-Infrared Person ReID. ACM MM 2023",
    ),
    "oracle": Recipe(
        parts=(*INTRA, Part("joint_nce")),
        sampling="shared",
        joint=True,
        true_labels=True,
        source="training with the true labels",
    ),
}
