"""Batches of images of paired clusters."""

from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from mmmlib._check import (
    check_count,
    check_flag,
    check_label_range,
    check_labels,
    check_room,
    check_values,
)
from mmmlib._types import ClusterMatch

__all__ = ["PairSampler"]


class PairSampler:
    """Batches of ``clusters`` times ``instances`` images of each modality, as index tensors.

    With a match, or with shared labels, position :math:`i` of the visible batch and position
    :math:`i` of the infrared batch are images of matched clusters. A one-to-one match draws pairs
    of clusters; any other match draws half of the clusters from the visible ones, each with a
    random infrared partner, and half from the infrared ones, each with a random visible partner.
    Without a match each modality draws its own clusters.

    No cluster (or pair, or cluster of a half) comes again before too few are left for a batch. A
    cluster with too few images repeats them, as evenly as possible.

    Args:
        visible_labels: Cluster of each visible image; -1 is never drawn.
        infrared_labels: Cluster of each infrared image; -1 is never drawn.
        match: Which clusters belong together.
        clusters: Clusters in a batch, of each modality.
        instances: Images of each cluster in a batch.
        cameras: Camera of each visible and of each infrared image. The images of a cluster come
            from its cameras in turn, in random order.
        generator: A CPU generator; every iteration goes on drawing from it.
        batches: Number of batches; None for so many that the modality with more clustered images
            fills them once (at least one).
        shared: The labels of both modalities are one label space: draw the labels that both have.

    Raises:
        ValueError: If there are fewer (matched) clusters than ``clusters``, or a label or camera
            is not valid.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> visible_labels = torch.tensor([0, 0, 1, 1, -1])
        >>> infrared_labels = torch.tensor([1, 0, 1])
        >>> sampler = PairSampler(visible_labels, infrared_labels, clusters=2, instances=2,
        ...                       generator=torch.Generator().manual_seed(0), shared=True)
        >>> [(visible_labels[visible], infrared_labels[infrared]) for visible, infrared in sampler]
        [(tensor([0, 0, 1, 1]), tensor([0, 0, 1, 1]))]

    References:
        Cheng, He, Wang, Zhang, Wang and Gao. Efficient Bilateral Cross-Modality Cluster Matching
        for Unsupervised Visible-Infrared Person ReID. ACM MM 2023 (half of the pairs from each
        side).
    """

    def __init__(
        self,
        visible_labels: Int[Tensor, "n_visible"],
        infrared_labels: Int[Tensor, "n_infrared"],
        match: ClusterMatch | None = None,
        *,
        clusters: int,
        instances: int,
        cameras: tuple[Int[Tensor, "n_visible"], Int[Tensor, "n_infrared"]] | None = None,
        generator: torch.Generator,
        batches: int | None = None,
        shared: bool = False,
    ) -> None:
        check_labels(visible_labels=visible_labels, infrared_labels=infrared_labels)
        check_count("clusters", clusters)
        check_count("instances", instances)
        if batches is not None:
            check_count("batches", batches, 0)
        _check_generator(generator)
        check_room("clusters and instances", clusters, instances)
        check_values(visible_labels=visible_labels, infrared_labels=infrared_labels)
        check_flag(shared=shared)
        if cameras is not None and (not isinstance(cameras, (tuple, list)) or len(cameras) != 2):
            raise TypeError(
                f"cameras must be a pair of tensors, visible and infrared, got {cameras!r:.60}"
            )
        visible_cameras, infrared_cameras = cameras or (None, None)
        self._visible = _Modality("visible", visible_labels, visible_cameras)
        self._infrared = _Modality("infrared", infrared_labels, infrared_cameras)
        self._matched = _matched(self._visible, self._infrared, match, shared)
        self._clusters, self._instances, self._generator = clusters, instances, generator
        _check_enough(self._visible, self._infrared, self._matched, clusters, shared)
        images = max(len(self._visible.images), len(self._infrared.images))
        self._batches = max(1, images // (clusters * instances)) if batches is None else batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[tuple[Int[Tensor, "images"], Int[Tensor, "images"]]]:
        for visible, infrared in islice(self._cluster_batches(), self._batches):
            yield (
                self._visible.draw(visible, self._instances, self._generator),
                self._infrared.draw(infrared, self._instances, self._generator),
            )

    def _cluster_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The clusters of endless batches."""
        if self._matched is None:
            return zip(
                self._deal(len(self._visible.counts), self._clusters),
                self._deal(len(self._infrared.counts), self._clusters),
                strict=True,
            )
        if _one_to_one(self._matched):
            visible, infrared = self._matched.nonzero().T
            dealt = self._deal(len(visible), self._clusters)
            return ((visible[pairs], infrared[pairs]) for pairs in dealt)
        return self._halves(self._matched)

    def _halves(self, matched: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        visible, infrared = (matched.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
        first = self._deal(len(visible), (self._clusters + 1) // 2)
        second = self._deal(len(infrared), self._clusters // 2)
        for left, right in zip(first, second, strict=True):
            left, right = visible[left], infrared[right]
            yield (
                torch.cat([left, self._partner(matched.T, right)]),
                torch.cat([self._partner(matched, left), right]),
            )

    def _partner(self, matched: Tensor, rows: Tensor) -> Tensor:
        """A random column that is matched with each row."""
        chance = torch.rand(len(rows), matched.shape[1], generator=self._generator)
        return torch.where(matched[rows], chance, -1.0).argmax(dim=1)

    def _deal(self, n: int, size: int) -> Iterator[Tensor]:
        """Endless hands of ``size <= n`` numbers below ``n``, shuffled when too few are left."""
        while True:
            deck = torch.randperm(n, generator=self._generator)
            for start in range(0, n - size + 1, max(size, 1)):
                yield deck[start : start + size]


class _Modality:
    """The images of each cluster; clusters are numbered by their rank among the labels."""

    def __init__(self, name: str, labels: Tensor, cameras: Tensor | None) -> None:
        if cameras is not None:
            check_labels(len(labels), **{f"cameras of the {name} images": cameras})
        self.device = labels.device
        labels = labels.cpu()
        cameras = torch.zeros_like(labels) if cameras is None else cameras.cpu()
        by_label = labels.argsort(stable=True)
        self.images = by_label[labels[by_label] >= 0]
        self.labels, self.counts = torch.unique_consecutive(labels[self.images], return_counts=True)
        self.starts = self.counts.cumsum(0) - self.counts
        self.cameras: Tensor = torch.unique(cameras[self.images], return_inverse=True)[1]

    def draw(self, clusters: Tensor, instances: int, generator: torch.Generator) -> Tensor:
        """Different images of each cluster, from its cameras in turn."""
        counts = self.counts[clusters]
        offsets = counts.cumsum(0) - counts
        n = int(counts.sum())
        cluster = torch.repeat_interleave(torch.arange(len(clusters)), counts)
        member = torch.arange(n) + (self.starts[clusters] - offsets)[cluster]
        shuffled = torch.randperm(n, generator=generator)
        cluster, member = cluster[shuffled], member[shuffled]

        n_cameras = int(self.cameras.max()) + 1
        camera = self.cameras[member]
        group = cluster * n_cameras + camera
        turn = torch.empty_like(group)
        turn[group.argsort(stable=True)] = torch.arange(n)  # place among all, by group
        sizes = torch.bincount(group, minlength=len(clusters) * n_cameras)
        turn = turn - (sizes.cumsum(0) - sizes)[group]
        place = torch.rand(len(clusters), n_cameras, generator=generator).argsort(dim=1)
        order = ((cluster * n + turn) * n_cameras + place[cluster, camera]).argsort()

        chosen = offsets[:, None] + torch.arange(instances) % counts[:, None]
        return self.images[member[order[chosen]]].flatten().to(self.device)


def _matched(
    visible: _Modality, infrared: _Modality, match: ClusterMatch | None, shared: bool
) -> Tensor | None:
    """Which of the clusters that have images belong together; None where that does not count."""
    if shared and match is not None:
        raise ValueError("shared must be False together with a match, got True")
    if shared:
        return torch.eq(visible.labels[:, None], infrared.labels)
    if match is None:
        return None
    if not isinstance(match, ClusterMatch):
        raise TypeError(f"match must be a ClusterMatch, got {type(match).__qualname__}")
    n_visible, n_infrared = match.matched.shape
    check_label_range("visible_labels", visible.labels, n_visible)
    check_label_range("infrared_labels", infrared.labels, n_infrared)
    return match.matched.cpu()[visible.labels][:, infrared.labels]


def _one_to_one(matched: Tensor) -> bool:
    return bool((matched.sum(dim=1) <= 1).all() and (matched.sum(dim=0) <= 1).all())


def _check_generator(generator: object) -> None:
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        kind = getattr(generator, "device", type(generator).__qualname__)
        raise TypeError(f"generator must be a torch.Generator on the CPU, got {kind}")


def _check_enough(
    visible: _Modality, infrared: _Modality, matched: Tensor | None, clusters: int, shared: bool
) -> None:
    """Refuse to draw more clusters than there are."""
    if matched is None:
        available = {
            side: len(modality.counts)
            for side, modality in (("visible", visible), ("infrared", infrared))
        }
    elif _one_to_one(matched):
        available = {"shared" if shared else "matched": int(matched.sum())}
    else:
        sides = [int(matched.any(dim=dim).sum()) for dim in (1, 0)]
        available = {"matched": min(2 * sides[0], 2 * sides[1] + 1)}
    kind = min(available, key=lambda name: available[name])
    if clusters > available[kind]:
        raise ValueError(
            f"clusters must be at most the number of {kind} clusters {available[kind]}, "
            f"got {clusters}"
        )
