"""Every clusterer and matcher of the library, each under one name."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.association.generator import Scene
from mmmlib import matching
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.clustering import (
    camera_cluster,
    cluster_features,
    cross_modality_cluster,
    jaccard_graph,
    prototypes,
    relabel,
    sub_prototypes,
)

MEMORIES = (1, 2, 4, 8, 0)  # 0: every image is a memory of its own
BOUNDS = ("true", "random")


class Sizes(NamedTuple):
    """Neighbours of the clusterings: about as many as an identity has images."""

    k1: int = 12
    k2: int = 4
    joint_k1: int = 20
    joint_k2: int = 6
    joint_eps: float = 0.6


Labels = tuple[Tensor, Tensor]


def damaged(scene: Scene, sizes: Sizes) -> Labels:
    """The clusters of the generator."""
    return scene.visible.labels, scene.infrared.labels


def true(scene: Scene, sizes: Sizes) -> Labels:
    """The identities that occur in each modality."""
    first, second = (relabel(side.identities)[0][0] for side in scene)
    return first, second


def separate(scene: Scene, sizes: Sizes) -> Labels:
    """Each modality alone."""
    first, second = (cluster_features(side.features, k1=sizes.k1, k2=sizes.k2) for side in scene)
    return first, second


def cameras(scene: Scene, sizes: Sizes) -> Labels:
    """Each modality alone, inside the cameras and then across them (GUR)."""
    first, second = (
        camera_cluster(side.features, side.cameras, k1=sizes.k1 // 2, k2=sizes.k2 // 2)
        for side in scene
    )
    return first, second


def joint(scene: Scene, sizes: Sizes) -> Labels:
    """Both modalities at once (CMC): labels that need no match."""
    found = cross_modality_cluster(
        scene.visible.features, scene.infrared.features,
        k1=sizes.joint_k1, k2=sizes.joint_k2, eps=sizes.joint_eps,
    )  # fmt: skip
    return found.visible, found.infrared


CLUSTERERS: dict[str, Callable[[Scene, Sizes], Labels]] = {
    "damaged": damaged, "separate": separate, "cameras": cameras, "true": true, "joint": joint,
}  # fmt: skip


class Clusters:
    """What a matcher may ask for; made once."""

    def __init__(self, scene: Scene, labels: Labels, k1: int, seed: int) -> None:
        self.scene, self.labels, self.k1, self.seed = scene, labels, k1, seed
        self._memories: dict[int, tuple[SubPrototypes, SubPrototypes]] = {}

    @cached_property
    def prototypes(self) -> tuple[Tensor, Tensor]:
        """The mean of each cluster."""
        first, second = (
            prototypes(side.features, labels)
            for side, labels in zip(self.scene, self.labels, strict=True)
        )
        return first, second

    def memories(self, n: int) -> tuple[SubPrototypes, SubPrototypes]:
        """So many memories of each cluster; 0 for all its images."""
        if n not in self._memories:
            split = partial(sub_prototypes, memories=n) if n else every
            first, second = (
                split(side.features, labels)
                for side, labels in zip(self.scene, self.labels, strict=True)
            )
            self._memories[n] = first, second
        return self._memories[n]

    @cached_property
    def owners(self) -> tuple[Tensor, Tensor]:
        """The identity that most images of each cluster show."""
        first, second = (
            majority(side.identities, labels)
            for side, labels in zip(self.scene, self.labels, strict=True)
        )
        return first, second


def every(features: Tensor, labels: Tensor) -> SubPrototypes:
    """Every image as a memory of its cluster."""
    kept = labels >= 0
    order = labels[kept].argsort(stable=True)
    rows, label = features[kept][order], labels[kept][order]
    sizes = label.bincount()
    place = torch.arange(len(label)) - (sizes.cumsum(0) - sizes)[label]
    values = rows.new_zeros(len(sizes), int(sizes.max()), rows.shape[1])
    weights = rows.new_zeros(values.shape[:2])
    values[label, place], weights[label, place] = rows, 1 / sizes[label].float()
    return SubPrototypes(values, weights)


def majority(identities: Tensor, labels: Tensor) -> Tensor:
    """Among equals the lowest."""
    kept = labels >= 0
    n = int(identities.max()) + 1
    count = (labels[kept] * n + identities[kept]).bincount(minlength=n * (int(labels.max()) + 1))
    return count.view(-1, n).argmax(dim=1)


def _by_prototypes(match: Callable[..., ClusterMatch], clusters: Clusters) -> ClusterMatch:
    return match(*clusters.prototypes)


def _by_memories(n: int, clusters: Clusters, **options: str) -> ClusterMatch:
    return matching.multi_memory_match(*clusters.memories(n), **options)  # type: ignore[arg-type]


def _ours(clusters: Clusters) -> ClusterMatch:
    return matching.match_clusters(*clusters.memories(4))


def _one_to_one(visible: Tensor, infrared: Tensor) -> ClusterMatch:
    return matching.match_costs(1 - _cosine(visible, infrared), assignment="one_to_one")


def _cosine(visible: Tensor, infrared: Tensor) -> Tensor:
    unit = partial(torch.nn.functional.normalize, dim=1)
    return unit(visible.double()) @ unit(infrared.double()).T


def _votes(clusters: Clusters) -> ClusterMatch:
    (visible, infrared), (first, second) = clusters.scene, clusters.labels
    return matching.vote_labels(visible.features, first, infrared.features, second)


Transfer = Callable[[Clusters, int], Tensor]


def _transferred(transfer: Transfer, clusters: Clusters) -> ClusterMatch:
    """Labels taken over in both directions."""
    return matching.match_from_labels(
        *clusters.labels, to_infrared=transfer(clusters, 0), to_visible=transfer(clusters, 1)
    )


def _reverse(clusters: Clusters, side: int) -> Tensor:
    own = clusters.scene[side].features
    return matching.reverse_labels(own, clusters.labels[side], clusters.prototypes[1 - side])


def _unify(clusters: Clusters, side: int) -> Tensor:
    own, other = clusters.scene[side].features, clusters.scene[1 - side].features
    return matching.unify_labels(own, other, clusters.labels[1 - side], k=10, smooth=10)


def _rank(clusters: Clusters, side: int) -> Tensor:
    """Without a shallow space of their own, the features serve as both."""
    own, other = clusters.scene[side].features, clusters.scene[1 - side].features
    return matching.rank_labels(
        own, other, clusters.labels[1 - side], shallow=own, gallery_shallow=other, k=10
    )


def _propagate(clusters: Clusters, side: int) -> Tensor:
    own, other = clusters.scene[side].features, clusters.scene[1 - side].features
    plan = matching.transport_plan(
        2 - 2 * _cosine(own, other), regularisation=0.04, tolerance=0.05
    ).plan
    labels = clusters.labels[1 - side]
    return matching.propagate_labels(
        labels[plan.argmax(dim=1)], labels, plan,
        own_affinity=jaccard_graph(own, k1=clusters.k1, k2=4, max_distance=1.0),
        other_affinity=jaccard_graph(other, k1=clusters.k1, k2=4, max_distance=1.0),
    ).labels  # fmt: skip


def _true(clusters: Clusters) -> ClusterMatch:
    """All pairs of clusters whose images mostly show one identity."""
    cost = (clusters.owners[0][:, None] != clusters.owners[1]).double()
    matched = cost == 0
    some = matched.any(dim=1), matched.any(dim=0)
    partners = cost.argmin(dim=1).where(some[0], -1), cost.argmin(dim=0).where(some[1], -1)
    return ClusterMatch(*partners, matched, cost, 1 - cost)


def _random(clusters: Clusters) -> ClusterMatch:
    size = [int(labels.max()) + 1 for labels in clusters.labels]
    cost = torch.rand(size, generator=torch.Generator().manual_seed(clusters.seed))
    return matching.match_costs(cost, assignment="balanced")


MATCHERS: dict[str, Callable[[Clusters], ClusterMatch]] = {
    "match_clusters": _ours,
    "nearest": partial(_by_prototypes, matching.nearest_match),
    "mutual": partial(_by_prototypes, matching.mutual_match),
    "one to one": partial(_by_prototypes, _one_to_one),
    "progressive (PGM)": partial(_by_prototypes, matching.progressive_match),
    "bilateral (MBCCM)": partial(_by_prototypes, matching.bilateral_match),
    "transport (OTLA)": partial(_by_prototypes, matching.transport_match),
    "votes (ADCA)": _votes,
    "unify (GUR)": partial(_transferred, _unify),
    "rank (SDCL)": partial(_transferred, _rank),
    "reverse (HIL)": partial(_transferred, _reverse),
    "propagate (MULT)": partial(_transferred, _propagate),
    "MMM, as written": partial(_by_memories, 4, direction="visible", assignment="one_to_one"),
    "MMM, as released": partial(_by_memories, 4, direction="infrared", assignment="nearest"),
    **{f"memories {n or 'all'}": partial(_by_memories, n) for n in MEMORIES},
    **{
        f"memories 4, {rule}": partial(_by_memories, 4, assignment=rule)
        for rule in ("nearest", "mutual", "one_to_one", "progressive", "bilateral")
    },
    "memories 4, visible": partial(_by_memories, 4, direction="visible"),
    "memories 4, infrared": partial(_by_memories, 4, direction="infrared"),
    "true": _true,
    "random": _random,
}
