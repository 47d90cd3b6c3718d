"""The results that pass between modules: named tuples of tensors, saved through ``_asdict()``."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmmlib._check import (
    check_devices,
    check_features,
    check_label_range,
    check_labels,
    check_number,
    check_tensor,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = [
    "ClusterMatch",
    "CrossModalityClusters",
    "JaccardGraph",
    "Neighbors",
    "SubPrototypes",
    "TransportPlan",
]


class Neighbors(NamedTuple):
    """The nearest neighbours of every row, itself first.

    Attributes:
        indices: Row numbers, most similar first; among equals the lower number first.
        similarities: Cosine similarity to each of them.
    """

    indices: Int[Tensor, "n k"]
    similarities: Float[Tensor, "n k"]


class JaccardGraph(NamedTuple):
    """The k-reciprocal Jaccard distance as sparse rows; a pair not stored is farther apart.

    Attributes:
        indptr: Row ``i`` holds the entries ``indptr[i]`` to ``indptr[i + 1]``.
        indices: The other row of each stored pair, ascending within a row, itself included.
        distances: Their Jaccard distance; exactly 0 to itself, equal both ways.
        max_distance: Every pair with a distance up to this one is stored (pairs at distance 1
            never are).
    """

    indptr: Int[Tensor, "rows_plus_1"]
    indices: Int[Tensor, "pairs"]
    distances: Float[Tensor, "pairs"]
    max_distance: float

    def to_scipy(self) -> "csr_matrix":
        """The stored pairs as a SciPy matrix on the CPU; zeros are stored too."""
        from scipy.sparse import csr_matrix

        n = len(self.indptr) - 1
        parts = [part.cpu().numpy() for part in (self.distances, self.indices, self.indptr)]
        return csr_matrix(tuple(parts), shape=(n, n))

    def to_dense(self, *, max_bytes: int = 2**31) -> Float[Tensor, "n n"]:
        """The full matrix, 1 where no pair is stored.

        Args:
            max_bytes: Refuse to make a matrix larger than this.

        Returns:
            The matrix, on the device of the graph.

        Raises:
            ValueError: If the matrix would need more than ``max_bytes``.
        """
        check_number("max_bytes", max_bytes, 0, math.inf)
        n = len(self.indptr) - 1
        needed = n * n * self.distances.element_size()
        if needed > max_bytes:
            raise ValueError(
                f"max_bytes must be at least {needed} for a dense matrix of {n} rows, "
                f"got {max_bytes}"
            )
        rows = torch.repeat_interleave(
            torch.arange(n, device=self.indptr.device), self.indptr.diff()
        )
        dense = torch.ones(n, n, dtype=self.distances.dtype, device=self.distances.device)
        dense[rows, self.indices.long()] = self.distances
        return dense


class SubPrototypes(NamedTuple):
    """Several memories per cluster.

    Attributes:
        values: One row per memory; zeros where a memory is not real.
        weights: The share of the cluster's images behind each memory; 0 where it is not real.
    """

    values: Float[Tensor, "clusters memories dim"]
    weights: Float[Tensor, "clusters memories"]


class CrossModalityClusters(NamedTuple):
    """Clusters of both modalities together, in one label space.

    Attributes:
        visible: Label of each visible row, -1 for noise.
        infrared: Label of each infrared row, -1 for noise.
        n_clusters: How many clusters there are.
        in_both: Which of them hold rows of both modalities.
    """

    visible: Int[Tensor, "n_visible"]
    infrared: Int[Tensor, "n_infrared"]
    n_clusters: int
    in_both: Bool[Tensor, "clusters"]

    def paired(self) -> tuple[Int[Tensor, "n_visible"], Int[Tensor, "n_infrared"]]:
        """Labels of the clusters that hold both modalities, renumbered; -1 elsewhere."""
        number = torch.where(self.in_both, self.in_both.cumsum(0) - 1, -1)
        return map_labels(self.visible, number), map_labels(self.infrared, number)


class ClusterMatch(NamedTuple):
    """Which visible clusters and which infrared clusters belong together.

    Attributes:
        to_infrared: The partner of each visible cluster, -1 without one.
        to_visible: The partner of each infrared cluster, -1 without one.
        matched: All pairs, of which ``to_infrared`` and ``to_visible`` name the cheapest.
        cost: What was minimised; lower is closer.
        confidence: Trust in each pair, in [0, 1]; 1 where the matcher has no opinion.
    """

    to_infrared: Int[Tensor, "n_visible"]
    to_visible: Int[Tensor, "n_infrared"]
    matched: Bool[Tensor, "n_visible n_infrared"]
    cost: Float[Tensor, "n_visible n_infrared"]
    confidence: Float[Tensor, "n_visible n_infrared"]

    def to_infrared_labels(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Visible labels in the infrared label space; noise and unmatched clusters give -1.

        Args:
            labels: Visible cluster of each row, -1 for noise.

        Returns:
            The infrared cluster of each row, -1 where there is none.

        Raises:
            TypeError: If ``labels`` is not a tensor.
            ValueError: If ``labels`` are no int64 vector, or name a cluster that the match has not.

        Example:
            >>> from mmmlib.matching import match_costs
            >>> match = match_costs(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
            >>> match.to_infrared_labels(torch.tensor([0, 0, 1, -1]))
            tensor([ 1,  1,  0, -1])
        """
        return map_labels(labels, self.to_infrared)

    def to_visible_labels(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Infrared labels in the visible label space; noise and unmatched clusters give -1.

        Args:
            labels: Infrared cluster of each row, -1 for noise.

        Returns:
            The visible cluster of each row, -1 where there is none.

        Raises:
            TypeError: If ``labels`` is not a tensor.
            ValueError: If ``labels`` are no int64 vector, or name a cluster that the match has not.
        """
        return map_labels(labels, self.to_visible)

    def shared_labels(
        self,
        visible_labels: Int[Tensor, "n_v"],
        infrared_labels: Int[Tensor, "n_r"],
        *,
        join: Literal["cheapest", "components"] = "cheapest",
    ) -> tuple[Int[Tensor, "n_v"], Int[Tensor, "n_r"], int]:
        """One label space for both modalities.

        Args:
            visible_labels: Cluster of each visible row, -1 for noise.
            infrared_labels: Cluster of each infrared row, -1 for noise.
            join: With ``"cheapest"`` every cluster of the modality with more clusters joins its
                cheapest partner; with ``"components"`` everything that a chain of matched pairs
                connects is one label.

        Returns:
            Visible labels, infrared labels and the number of labels. A cluster without a partner
            keeps a label of its own.

        Raises:
            TypeError: If labels are not a tensor.
            ValueError: If labels name a cluster that the match has not, or ``join`` is unknown.

        Example:
            >>> from mmmlib.matching import match_costs
            >>> match = match_costs(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
            >>> match.shared_labels(torch.tensor([0, 1, -1]), torch.tensor([0, 1]))
            (tensor([ 1,  0, -1]), tensor([0, 1]), 2)
        """
        n_visible, n_infrared = self.matched.shape
        device = self.matched.device
        if join == "components":
            visible, infrared = _components(self.matched)
        elif join != "cheapest":
            raise ValueError(f"join must be 'cheapest' or 'components', got {join!r}")
        elif n_visible >= n_infrared:
            infrared = torch.arange(n_infrared, device=device)
            visible = _join_partner(self.to_infrared, n_infrared)
        else:
            visible = torch.arange(n_visible, device=device)
            infrared = _join_partner(self.to_visible, n_visible)
        n_labels = 1 + max(
            (int(side.max()) for side in (visible, infrared) if len(side)), default=-1
        )
        return (
            map_labels(visible_labels, visible, "visible_labels"),
            map_labels(infrared_labels, infrared, "infrared_labels"),
            n_labels,
        )

    def transfer(
        self, soft_labels: Float[Tensor, "n clusters"], *, to: Literal["infrared", "visible"]
    ) -> Float[Tensor, "n other_clusters"]:
        """Soft labels of one modality in the label space of the other.

        The mass of a cluster goes to its partners in proportion to their confidence; the mass of
        unmatched clusters is lost, so a row may sum to less than 1.

        Args:
            soft_labels: How far each row belongs to each cluster of its own modality.
            to: The modality whose clusters are asked for.

        Returns:
            How far each row belongs to each cluster of the other modality.

        Raises:
            TypeError: If ``soft_labels`` is not a tensor.
            ValueError: If it has another number of columns than the modality has clusters, or
                ``to`` is unknown.

        Example:
            >>> from mmmlib.matching import match_costs
            >>> match = match_costs(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
            >>> match.transfer(torch.tensor([[0.75, 0.25]]), to="infrared")
            tensor([[0.2500, 0.7500]])
        """
        if to not in ("infrared", "visible"):
            raise ValueError(f"to must be 'infrared' or 'visible', got {to!r}")
        check_tensor(soft_labels=soft_labels)
        check_devices(match=self.matched, soft_labels=soft_labels)
        share = self.matched * self.confidence
        share = share if to == "infrared" else share.T
        total = share.sum(dim=1, keepdim=True)
        share = share / torch.where(total > 0, total, 1.0)
        if soft_labels.ndim != 2 or soft_labels.shape[1] != len(share):
            raise ValueError(
                f"soft_labels must have {len(share)} columns, got shape {tuple(soft_labels.shape)}"
            )
        check_features(soft_labels=soft_labels)
        return soft_labels @ share.to(soft_labels.dtype)

    def pairs(self) -> Int[Tensor, "pairs 2"]:
        """All matched pairs as rows (visible cluster, infrared cluster)."""
        return self.matched.nonzero()

    def summary(self) -> str:
        """One line for a log: how many clusters have a partner, and at what cost."""
        n_visible, n_infrared = self.matched.shape
        line = (
            f"matched {int(self.matched.any(dim=1).sum())}/{n_visible} visible and "
            f"{int(self.matched.any(dim=0).sum())}/{n_infrared} infrared clusters, "
            f"{int(self.matched.sum())} pairs"
        )
        if self.matched.any():
            line += f", mean cost {self.cost[self.matched].double().mean().item():.4g}"
        return line


class TransportPlan(NamedTuple):
    """How much mass goes from which visible to which infrared cluster.

    Attributes:
        plan: The mass that each pair exchanges.
        visible_left: The mass of each visible cluster that stays behind.
        infrared_left: The mass that each infrared cluster does not receive.
        error: The share of the mass that is out of place at most.
        steps: How many times rows and columns were scaled.
        converged: Whether the error is within the tolerance, at the regularisation asked for.
    """

    plan: Float[Tensor, "n_visible n_infrared"]
    visible_left: Float[Tensor, "n_visible"]
    infrared_left: Float[Tensor, "n_infrared"]
    error: float
    steps: int
    converged: bool


def map_labels(labels: Tensor, number: Tensor, name: str = "labels") -> Tensor:
    """``number[labels]``, and -1 where the label is -1 (or, on a GPU, out of range)."""
    check_labels(None, **{name: labels})
    check_label_range(name, labels, len(number))
    check_devices(match=number, **{name: labels})
    known = (labels >= 0) & (labels < len(number))
    padded = torch.cat([number, number.new_full((1,), -1)])
    return padded[torch.where(known, labels, len(number))]


def _join_partner(partner: Tensor, n_others: int) -> Tensor:
    """The partner's label, or a new label for a cluster without one."""
    alone = partner < 0
    return torch.where(alone, n_others + alone.cumsum(0) - 1, partner)


def _components(matched: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n_visible, n_infrared = matched.shape
    n = n_visible + n_infrared
    visible, infrared = matched.cpu().numpy().nonzero()
    graph = coo_matrix(([1] * len(visible), (visible, infrared + n_visible)), shape=(n, n))
    label = torch.from_numpy(connected_components(graph, directed=False)[1]).to(
        matched.device, torch.int64
    )
    return label[:n_visible], label[n_visible:]
