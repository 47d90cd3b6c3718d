"""A published method as data: which parts, with which weights, in which epochs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from mmmlib import matching
from mmmlib._types import ClusterMatch

if TYPE_CHECKING:
    from mmmlib.reference.run import Settings
    from mmmlib.reference.train import Step

__all__ = ["RECIPES", "Part", "Recipe", "ablated"]


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
        match: How visible and infrared clusters find one another; None for a method that never
            matches (its labels are still joined for scoring).
        match_on: What ``match`` is given: the ``"memories"`` of the visible and of the infrared
            clusters, their ``"prototypes"``, or the ``"images"`` (visible features and labels,
            infrared features and labels).
        match_start: Share of the clustering epochs before clusters are matched.
        sampling: Once clusters are matched, ``"shared"`` draws from one label space of both and
            ``"matched"`` draws matched pairs of clusters; before, and with ``"separate"``, each
            modality is drawn alone.
        joint: Whether both modalities are clustered together as well (CMC).
        true_labels: Whether identities take the place of clusters (no method can have them).
        hybrid: Once clusters are matched, the share that a visible memory keeps of itself when it
            takes in the memory of its infrared partner; None leaves the memories apart.
        restart: Whether a second stage begins when clusters are first matched: the optimiser is
            new, and its rate is what it was at first.
        views: Visible views of each image in a batch, unless the settings say otherwise.
        color: Range of the changes of colour in the second view.
        linear: Probability of a linear transform in the first of two views.
        source: Where it was published.
    """

    parts: tuple[Part, ...]
    match: Callable[..., ClusterMatch] | None = None
    match_on: Literal["memories", "prototypes", "images"] = "memories"
    match_start: float = 0.0
    sampling: Literal["separate", "shared", "matched"] = "separate"
    joint: bool = False
    true_labels: bool = False
    hybrid: float | None = None
    restart: bool = False
    views: int = 1
    color: float = 0.0
    linear: float = 0.0
    source: str = ""

    def first_match(self, epochs: int) -> int:
        """The first of so many clustering epochs in which clusters are matched."""
        shares = (epoch / max(epochs, 1) for epoch in range(epochs))
        return sum(share < self.match_start for share in shares)


# Which parts of a recipe the flags of an ablation weigh; a weight of 0 leaves a part out.
WEIGHTS: dict[str, tuple[str, ...]] = {
    "lambda_intra": ("alignment_intra",),
    "lambda_inter": ("alignment_inter",),
    "alpha": ("agnostic_visible_nce", "agnostic_infrared_nce"),
    "beta": ("consistency",),
    "cross": ("cross_visible_nce", "cross_infrared_nce"),
}


def one_to_one(visible: Tensor, infrared: Tensor) -> ClusterMatch:
    """The least total cosine distance of the prototypes: what every matcher is held against."""
    return matching.match_costs(1 - visible @ infrared.T, assignment="one_to_one")


def ablated(recipe: Recipe, settings: "Settings") -> Recipe:
    """Change a recipe as the flags say: other weights, or no multi-memory matching.

    Args:
        recipe: A method.
        settings: Those of ``WEIGHTS`` replace weights; ``no_mmlm`` matches prototypes one to one.

    Raises:
        ValueError: If a flag has nothing to change in this recipe.

    Example:
        >>> from mmmlib.reference.run import Settings
        >>> changed = ablated(RECIPES["mmm"], Settings(lambda_inter=0.2))
        >>> [part.weight for part in changed.parts]
        [1.0, 1.0, 1.0, 0.5, 0.2]
    """
    for name, losses in WEIGHTS.items():
        weight = getattr(settings, name)
        if weight is None:
            continue
        if not any(part.loss in losses for part in recipe.parts):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be left out without {losses[0]}, got {weight:g}")
        recipe = recipe._replace(parts=_weighted(recipe.parts, losses, weight))
    if settings.no_mmlm and recipe.match is not matching.multi_memory_match:
        raise ValueError("--no-mmlm must be left out without multi-memory matching, got it")
    if settings.no_mmlm:
        return recipe._replace(match=one_to_one, match_on="prototypes")
    return recipe


def _weighted(parts: tuple[Part, ...], losses: tuple[str, ...], weight: float) -> tuple[Part, ...]:
    changed: list[Any] = [
        part._replace(weight=weight) if part.loss in losses else part for part in parts
    ]
    return tuple(changed)


INTRA = (Part("visible_nce"), Part("infrared_nce"))

HALF = 0.5  # of the clustering epochs: two stages of equal length
ALONE = 0.3  # share of the clustering epochs in which each modality is still on its own
MMM = (
    "Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person "
    "Re-Identification. ECCV 2024"
)
ADCA = (
    "Yang et al. Augmented Dual-Contrastive Aggregation Learning for Unsupervised "
    "Visible-Infrared Person Re-Identification. ACM MM 2022"
)

RECIPES: dict[str, Recipe] = {
    "baseline": Recipe(
        parts=INTRA,
        source="Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022",
    ),
    "adca": Recipe(
        parts=INTRA,
        match=matching.vote_labels,
        match_on="images",
        match_start=HALF,
        hybrid=0.1,
        restart=True,
        views=2,
        source=ADCA,
    ),
    "pgm": Recipe(
        parts=(
            *INTRA,
            Part("cross_visible_nce", weight=0.25, start=HALF, every=2, parity=1),
            Part("cross_infrared_nce", weight=0.25, start=HALF, every=2, parity=0),
        ),
        match=matching.progressive_match,
        match_on="prototypes",
        match_start=HALF,
        restart=True,
        views=2,
        color=0.5,
        source="Wu and Ye. Unsupervised Visible-Infrared Person Re-Identification via Progressive "
        "Graph Matching and Alternate Learning. CVPR 2023",
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
            Part("agnostic_visible_nce", weight=0.9, start=HALF),
            Part("agnostic_infrared_nce", weight=0.9, start=HALF),
            Part("consistency", weight=0.5, start=HALF),
        ),
        match=matching.bilateral_match,
        match_start=HALF,
        sampling="matched",
        linear=0.8,
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

# What did best in the trainings on record, matched by what did best in the study of association.
RECIPES["mmm-whitened"] = RECIPES["mmm-shared"]._replace(
    match=matching.match_clusters,
    source=f"after {MMM}; matched by mmmlib.matching.match_clusters",
)
# Another match in a method is one line: multi-memory matching in the place of ADCA's vote.
RECIPES["adca+mmm"] = RECIPES["adca"]._replace(
    match=matching.multi_memory_match,
    match_on="memories",
    source=f"{ADCA}; matched as in {MMM}",
)
