"""Retrieval protocols, and agreement of pseudo-labels with identities."""

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_count,
    check_features,
    check_finite,
    check_labels,
    check_tensor,
)
from mmmlib._kernels import in_threads
from mmmlib._rows import unit_rows

__all__ = [
    "AssociationReport",
    "Evaluation",
    "RankingMetrics",
    "association_report",
    "average_trials",
    "draw_gallery",
    "evaluate",
    "ranking_metrics",
]

Protocol = Literal["plain", "regdb", "sysu-all", "sysu-indoor", "llcm"]
DRAWN = ("sysu-all", "sysu-indoor", "llcm")
PROTOCOLS = ("plain", "regdb", *DRAWN)
CAMERAS = {"sysu-all": (1, 2, 4, 5), "sysu-indoor": (1, 2)}
NO_CAMERA = np.iinfo(np.int64).min
BLOCK = 2**22  # distances in memory at once

logger = logging.getLogger("mmmlib")


class RankingMetrics(NamedTuple):
    """How well queries find the gallery images of their identity.

    Attributes:
        cmc: Share of queries with a hit among the first 1, 2, ... places.
        mean_ap: Mean over queries of the average precision.
        mean_inp: Mean over queries of the inverse negative penalty: right images over the place
            of the last of them.
        n_queries: How many queries there were.
        n_valid: How many had a right image in the gallery; the means are over these.
        n_gallery: How many gallery images there were.
    """

    cmc: Float[Tensor, "max_rank"]
    mean_ap: float
    mean_inp: float
    n_queries: int
    n_valid: int
    n_gallery: int

    def rank(self, k: int) -> float:
        """Share of queries with a hit among the first ``k`` places.

        Raises:
            ValueError: If ``k`` is not a place of ``cmc``.
        """
        if not 1 <= k <= len(self.cmc):
            raise ValueError(f"k must be in [1, {len(self.cmc)}], got {k!r}")
        return self.cmc[k - 1].item()


class Evaluation(NamedTuple):
    """Means over trials, and standard deviations (of the trials at hand: 0 for one trial).

    Attributes:
        cmc: Mean of the trials' ``cmc``.
        rank_1: Mean of its first entry.
        mean_ap: Mean of the trials' ``mean_ap``.
        mean_inp: Mean of the trials' ``mean_inp``.
        cmc_std: Standard deviation of ``cmc``.
        rank_1_std: Standard deviation of ``rank_1``.
        mean_ap_std: Standard deviation of ``mean_ap``.
        mean_inp_std: Standard deviation of ``mean_inp``.
        trials: What each trial gave.
    """

    cmc: Float[Tensor, "max_rank"]
    rank_1: float
    mean_ap: float
    mean_inp: float
    cmc_std: Float[Tensor, "max_rank"]
    rank_1_std: float
    mean_ap_std: float
    mean_inp_std: float
    trials: tuple[RankingMetrics, ...]


class AssociationReport(NamedTuple):
    """Agreement of pseudo-labels with identities, inside and across the modalities.

    Attributes:
        ari_visible: Adjusted Rand index of the visible labels, all noise being one cluster.
        ari_visible_clustered: The same without noise.
        ari_infrared: Adjusted Rand index of the infrared labels, all noise being one cluster.
        ari_infrared_clustered: The same without noise.
        ari_all: Adjusted Rand index of both modalities together, all noise being one cluster.
        ari_all_clustered: The same without noise.
        nmi_all: Normalised mutual information of both together, all noise being one cluster.
        precision: Of the pairs (visible image, infrared image) with one label, the share with one
            identity.
        recall: Of the pairs with one identity, the share with one label.
        f1: Harmonic mean of the two.
        n_visible_clusters: How many clusters have a visible image.
        n_infrared_clusters: How many clusters have an infrared image.
        n_shared: How many clusters have both.
        visible_noise: Share of the visible images that are noise.
        infrared_noise: Share of the infrared images that are noise.
    """

    ari_visible: float
    ari_visible_clustered: float
    ari_infrared: float
    ari_infrared_clustered: float
    ari_all: float
    ari_all_clustered: float
    nmi_all: float
    precision: float
    recall: float
    f1: float
    n_visible_clusters: int
    n_infrared_clusters: int
    n_shared: int
    visible_noise: float
    infrared_noise: float


def ranking_metrics(
    distance: Float[Tensor, "queries gallery"],
    query_identities: Int[Tensor, "queries"],
    gallery_identities: Int[Tensor, "gallery"],
    *,
    query_cameras: Int[Tensor, "queries"] | None = None,
    gallery_cameras: Int[Tensor, "gallery"] | None = None,
    protocol: Protocol = "plain",
    max_rank: int = 20,
) -> RankingMetrics:
    r"""Measure a ranking: CMC, mean average precision and mean inverse negative penalty.

    The gallery is ranked by distance, among equals the image given first. With a query's
    :math:`R` right images at places :math:`p_1 < \dots < p_R`,

    .. math:: \mathrm{AP} = \frac{1}{R} \sum_{i=1}^{R} \frac{i}{p_i}, \qquad
              \mathrm{INP} = \frac{R}{p_R}.

    ======================== ==================================== ============================
    protocol                 gallery images that a query skips    places of the CMC are
    ======================== ==================================== ============================
    plain, regdb             none                                 images
    sysu-all, sysu-indoor    of camera 2, if it is of camera 3    identities, at the first image
    llcm                     of its own identity and camera       identities, at the first image
    ======================== ==================================== ============================

    Args:
        distance: Lower is closer; infinity is allowed.
        query_identities: True identity of each query; -1 is nobody, and never right.
        gallery_identities: True identity of each gallery image; -1 is nobody, and never right.
        query_cameras: Camera of each query, as the data set numbers it; for ``"sysu-*"`` and
            ``"llcm"``.
        gallery_cameras: Camera of each gallery image, likewise.
        protocol: The rule above. The gallery is taken as given: ``evaluate`` draws it.
        max_rank: Length of the CMC. Beyond the end of a short gallery it stays constant.

    Returns:
        The metrics, over the queries that have a right image left; zeros without any. The
        computation runs on the CPU, in blocks of queries; ``cmc`` is on the device of
        ``distance``.

    Raises:
        ValueError: If shapes or data types are wrong, a distance is NaN, or cameras are missing.

    Note:
        No gallery is sorted unless more than 64 of its images are right: places are counted.
        The released SYSU-MM01 code also adds queries without a right image to the CMC, and divides
        by the others; such a query adds zeros, so the numbers are the same.

    Example:
        >>> distance = torch.tensor([[0.1, 0.4, 0.2], [0.7, 0.6, 0.9]])
        >>> metrics = ranking_metrics(
        ...     distance, torch.tensor([8, 7]), torch.tensor([7, 8, 8]), max_rank=3
        ... )
        >>> metrics.cmc
        tensor([0., 1., 1.], dtype=torch.float64)
        >>> round(metrics.mean_ap, 4), round(metrics.mean_inp, 4)
        (0.5417, 0.5833)

    References:
        Wu et al. RGB-Infrared Cross-Modality Person Re-Identification. ICCV 2017.
        Ye et al. Deep Learning for Person Re-Identification: A Survey and Outlook. TPAMI 2021.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    check_count("max_rank", max_rank)
    _check_distance(distance)
    n_queries, n_gallery = distance.shape
    query = _side("query", n_queries, query_identities, query_cameras, protocol)
    gallery = _side("gallery", n_gallery, gallery_identities, gallery_cameras, protocol)
    search = _search(query, gallery, protocol)
    step = max(1, BLOCK // max(n_gallery, 1))
    for start in range(0, n_queries, step):
        block = distance[start : start + step].detach()
        block = block if block.dtype == torch.float64 else block.float()
        _score(search, start, block.cpu().contiguous().numpy())
    metrics = _metrics(search, max_rank, distance.device)
    _warn_left_out([metrics])
    return metrics


def evaluate(
    query: Float[Tensor, "queries dim"],
    gallery: Float[Tensor, "gallery dim"],
    query_identities: Int[Tensor, "queries"],
    gallery_identities: Int[Tensor, "gallery"],
    *,
    query_cameras: Int[Tensor, "queries"] | None = None,
    gallery_cameras: Int[Tensor, "gallery"] | None = None,
    protocol: Protocol = "plain",
    trials: int = 10,
    shots: int = 1,
    max_rank: int = 20,
) -> Evaluation:
    """Measure how well the features of queries find their identity in a gallery.

    Images are compared by cosine similarity and ranked as ``ranking_metrics`` describes.
    ``"plain"`` and ``"regdb"`` search the whole gallery once. ``"sysu-all"``, ``"sysu-indoor"``
    and ``"llcm"`` search, in each trial, the part of it that ``draw_gallery`` draws; every query is
    used in every trial. The modality searched with comes first: RegDB visible to thermal is
    ``evaluate(visible, thermal, ...)``. A number of the ten RegDB splits is the mean of ten
    models, each trained on its own split: collect them with ``average_trials``.

    Args:
        query: Features of the queries, of any norm.
        gallery: Features of all images that may be in a gallery, in the order of their sorted
            paths (a draw depends on it).
        query_identities: True identity of each query; -1 is nobody, and never right.
        gallery_identities: True identity of each gallery image; -1 is nobody, and never right.
        query_cameras: Camera of each query, as the data set numbers it; for ``"sysu-*"`` and
            ``"llcm"``.
        gallery_cameras: Camera of each gallery image, likewise.
        protocol: How the gallery is drawn and ranked.
        trials: How many galleries to draw; trial ``t`` has seed ``t``. Not used where the whole
            gallery is searched.
        shots: How many images of an identity and camera to draw; likewise.
        max_rank: Length of the CMC.

    Returns:
        Means and standard deviations over the trials, and every trial.

    Raises:
        ValueError: If shapes, data types or devices are wrong, a feature is not finite, or cameras
            are missing.

    Note:
        Similarities are summed in float64 and, unless features are float64, rounded to float32, so
        images with equal features tie on any device. They are formed on the device of the
        features, ranked on the CPU, in blocks of queries: memory does not grow with their number.
        For LLCM, published codes differ: here all images of one modality search a draw of the
        other, in both directions.

    Example:
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> gallery = torch.tensor([[2.0, 0.1], [0.1, 3.0], [0.2, 1.0]])
        >>> result = evaluate(query, gallery, torch.tensor([4, 9]), torch.tensor([4, 4, 9]))
        >>> result.rank_1, round(result.mean_ap, 4), len(result.trials)
        (0.5, 0.6667, 1)

    References:
        Wu et al. RGB-Infrared Cross-Modality Person Re-Identification. ICCV 2017.
        Nguyen et al. Person Recognition System Based on a Combination of Body Images from Visible
        Light and Thermal Cameras. Sensors 2017.
        Zhang and Wang. Diverse Embedding Expansion Network and Low-Light Cross-Modality Benchmark
        for Visible-Infrared Person Re-Identification. CVPR 2023.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    for name, count in (("trials", trials), ("shots", shots), ("max_rank", max_rank)):
        check_count(name, count)
    check_features(query=query, gallery=gallery)
    check_finite(query=query, gallery=gallery)
    searching = _side("query", len(query), query_identities, query_cameras, protocol)
    searched = _side("gallery", len(gallery), gallery_identities, gallery_cameras, protocol)
    if protocol in DRAWN:
        draws = [_draw(searched, protocol, trial, shots) for trial in range(trials)]
        drawn = np.unique(np.concatenate(draws))
        gallery, searched = gallery[torch.from_numpy(drawn)], searched.rows(drawn)
        columns = [np.searchsorted(drawn, draw) for draw in draws]
    else:
        columns = [np.arange(len(gallery))]
    searches = [_search(searching, searched.rows(column), protocol) for column in columns]
    for start, block in _distance_blocks(query, gallery):
        for search, column in zip(searches, columns, strict=True):
            _score(search, start, block.take(column, axis=1))
    metrics = [_metrics(search, max_rank, query.device) for search in searches]
    _warn_left_out(metrics)
    return average_trials(metrics)


def average_trials(trials: Sequence[RankingMetrics]) -> Evaluation:
    """Average the metrics of several galleries, splits or models.

    Args:
        trials: One entry a trial, each counting the same.

    Returns:
        Means and standard deviations, and the trials as given.

    Raises:
        ValueError: If there is no trial, or if ``cmc`` is not of one length.

    Example:
        >>> first = RankingMetrics(torch.tensor([0.2]), 0.1, 0.1, 5, 5, 9)
        >>> second = RankingMetrics(torch.tensor([0.4]), 0.3, 0.1, 5, 5, 9)
        >>> result = average_trials([first, second])
        >>> round(result.mean_ap, 3), round(result.mean_ap_std, 3)
        (0.2, 0.1)
    """
    lengths = sorted({len(trial.cmc) for trial in trials})
    if len(lengths) != 1:
        raise ValueError(f"trials must hold cmc of one length, got lengths {lengths}")
    cmc = torch.stack([trial.cmc.double() for trial in trials])
    others = cmc.new_tensor([(trial.mean_ap, trial.mean_inp) for trial in trials])
    table = torch.cat([cmc, others], dim=1)
    means = _Means.from_row(table.mean(dim=0))
    spread = _Means.from_row(table.std(dim=0, correction=0))
    return Evaluation(*means, *spread, tuple(trials))


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
    side = _Side(identities.cpu().numpy(), cameras.cpu().numpy())
    return torch.from_numpy(_draw(side, protocol, trial, shots)).to(identities.device)


def association_report(
    visible_labels: Int[Tensor, "n_visible"],
    infrared_labels: Int[Tensor, "n_infrared"],
    visible_identities: Int[Tensor, "n_visible"],
    infrared_identities: Int[Tensor, "n_infrared"],
) -> AssociationReport:
    """Compare pseudo-labels of both modalities, in one label space, with the true identities.

    The adjusted Rand index and the mutual information (over the mean of both entropies) judge the
    partition; precision, recall and F1 judge the association: over all pairs of a visible and an
    infrared image, one label should mean one identity. Everything is counted per cluster and
    identity, never per pair, in integers.

    Args:
        visible_labels: Cluster of each visible image; -1 is noise.
        infrared_labels: Cluster of each infrared image, numbered as the visible ones; -1 is noise.
        visible_identities: True identity of each visible image; -1 is unknown, and left out.
        infrared_identities: True identity of each infrared image; -1 is unknown, and left out.

    Returns:
        The report, computed on the CPU. A value over nothing (no images, only noise, no pair) is
        0; two equal partitions, be it into one cluster, have index 1.

    Raises:
        ValueError: If shapes or data types are wrong.

    Note:
        Published numbers count all noise as one cluster. That can raise or lower the index: give
        both.

    Example:
        >>> report = association_report(
        ...     torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1]),
        ...     torch.tensor([5, 5, 6]), torch.tensor([5, 5, 6]),
        ... )
        >>> round(report.precision, 4), report.recall, round(report.f1, 4)
        (0.6667, 0.4, 0.5)
        >>> report.ari_visible, round(report.ari_all, 4), report.n_shared
        (1.0, 0.3119, 2)

    References:
        Hubert and Arabie. Comparing Partitions. Journal of Classification 1985.
    """
    check_labels(visible_labels=visible_labels, infrared_labels=infrared_labels)
    check_labels(len(visible_labels), visible_identities=visible_identities)
    check_labels(len(infrared_labels), infrared_identities=infrared_identities)
    visible = _Modality(visible_labels.cpu(), visible_identities.cpu()).known()
    infrared = _Modality(infrared_labels.cpu(), infrared_identities.cpu()).known()
    everything = visible.joined(infrared)
    visible_clusters, infrared_clusters = visible.clusters(), infrared.clusters()
    precision, recall, f1 = _pair_scores(visible, infrared)
    return AssociationReport(
        ari_visible=_adjusted_rand(visible),
        ari_visible_clustered=_adjusted_rand(visible.clustered()),
        ari_infrared=_adjusted_rand(infrared),
        ari_infrared_clustered=_adjusted_rand(infrared.clustered()),
        ari_all=_adjusted_rand(everything),
        ari_all_clustered=_adjusted_rand(everything.clustered()),
        nmi_all=_mutual_information(everything),
        precision=precision,
        recall=recall,
        f1=f1,
        n_visible_clusters=len(visible_clusters),
        n_infrared_clusters=len(infrared_clusters),
        n_shared=len(visible_clusters & infrared_clusters),
        visible_noise=visible.noise(),
        infrared_noise=infrared.noise(),
    )


class _Means(NamedTuple):
    cmc: Tensor
    rank_1: float
    mean_ap: float
    mean_inp: float

    @classmethod
    def from_row(cls, row: Tensor) -> "_Means":
        return cls(row[:-2], row[0].item(), row[-2].item(), row[-1].item())


class _Side(NamedTuple):
    """Identity and camera of queries, or of gallery images."""

    identities: np.ndarray
    cameras: np.ndarray

    def rows(self, index: np.ndarray) -> "_Side":
        return _Side(self.identities[index], self.cameras[index])


class _Search(NamedTuple):
    """What the kernel needs of the queries and one gallery, and where it writes."""

    queries: np.ndarray
    skipped: np.ndarray  # the camera that each query skips
    gallery: np.ndarray
    cameras: np.ndarray
    n_people: int
    own: bool  # skip only images of the query's own identity
    distinct: bool  # places of the CMC are identities
    scores: np.ndarray  # (queries, 3): first hit or -1, AP, INP


class _Modality(NamedTuple):
    labels: Tensor
    identities: Tensor

    def known(self) -> "_Modality":
        return _Modality(*(part[self.identities >= 0] for part in self))

    def clustered(self) -> "_Modality":
        return _Modality(*(part[self.labels >= 0] for part in self))

    def joined(self, other: "_Modality") -> "_Modality":
        return _Modality(*(torch.cat(parts) for parts in zip(self, other, strict=True)))

    def numbered(self) -> "_Modality":
        """Labels and identities as numbers from 0."""
        return _Modality(*(torch.unique(part, return_inverse=True)[1] for part in self))

    def clusters(self) -> set[int]:
        return set(self.clustered().labels.tolist())

    def noise(self) -> float:
        return int((self.labels < 0).sum()) / max(len(self.labels), 1)


def _check_distance(distance: Tensor) -> None:
    check_tensor(distance=distance)
    if distance.ndim != 2 or not distance.is_floating_point():
        raise ValueError(
            "distance must be a floating-point tensor (queries, gallery), "
            f"got {distance.dtype} of shape {tuple(distance.shape)}"
        )
    bad = distance.detach().amax(dim=1).isnan() if distance.numel() else distance.new_zeros(0)
    if bad.any():
        raise ValueError(f"distance must not hold nan, got nan in row {int(bad.nonzero()[0])}")


def _side(
    name: str, n: int, identities: Tensor, cameras: Tensor | None, protocol: Protocol
) -> _Side:
    check_labels(n, **{f"{name}_identities": identities})
    if cameras is not None:
        check_labels(n, **{f"{name}_cameras": cameras})
    elif protocol in DRAWN:
        raise ValueError(f"{name}_cameras must be given for protocol {protocol!r}, got None")
    cameras = torch.zeros_like(identities) if cameras is None else cameras
    return _Side(*(part.cpu().contiguous().numpy() for part in (identities, cameras)))


def _draw(side: _Side, protocol: str, trial: int, shots: int) -> np.ndarray:
    generator = random.Random(trial)
    rows = np.lexsort((side.cameras, side.identities))
    if protocol in CAMERAS:
        rows = rows[np.isin(side.cameras[rows], CAMERAS[protocol])]
    changes = (np.diff(np.stack(side)[:, rows]) != 0).any(axis=0)
    drawn: list[int] = []
    for images in np.split(rows, np.flatnonzero(changes) + 1):
        drawn += generator.sample(images.tolist(), min(shots, len(images)))
    return np.array(drawn, dtype=np.int64)


def _search(query: _Side, gallery: _Side, protocol: str) -> _Search:
    n = len(query.identities)
    people, codes = np.unique(
        np.concatenate([query.identities, gallery.identities]), return_inverse=True
    )
    skipped = np.full(n, NO_CAMERA)
    if protocol in CAMERAS:
        skipped[query.cameras == 3] = 2
    elif protocol == "llcm":
        skipped = query.cameras
    return _Search(
        queries=np.where(query.identities < 0, -1, codes[:n]),
        skipped=skipped,
        gallery=codes[n:],
        cameras=gallery.cameras,
        n_people=len(people),
        own=protocol == "llcm",
        distinct=protocol in DRAWN,
        scores=np.zeros((n, 3)),
    )


def _score(search: _Search, start: int, distance: np.ndarray) -> None:
    """Score the queries from ``start`` on, of which these are the distances."""
    from mmmlib._kernels.ranking import score_queries

    part = slice(start, start + len(distance))
    in_threads(
        score_queries, len(distance), distance, search.queries[part], search.skipped[part],
        search.gallery, search.cameras, search.n_people, search.own, search.distinct,
        search.scores[part], chunk=64,
    )  # fmt: skip


def _distance_blocks(query: Tensor, gallery: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Negative cosine similarity, some queries at a time, and the first of them."""
    dtype = torch.float64 if query.dtype == gallery.dtype == torch.float64 else torch.float32
    columns = unit_rows(gallery.detach()).double().T
    step = max(1, BLOCK // max(len(gallery), 1))
    for start in range(0, len(query), step):
        rows = unit_rows(query[start : start + step].detach()).double()
        yield start, (-rows @ columns).to(dtype).cpu().numpy()


def _metrics(search: _Search, max_rank: int, device: torch.device) -> RankingMetrics:
    hit, precision, penalty = search.scores[search.scores[:, 0] >= 0].T
    count = max(len(hit), 1)
    place = np.minimum(hit, max_rank).astype(np.int64)
    hits = np.bincount(place, minlength=max_rank + 1)[:max_rank].cumsum()
    return RankingMetrics(
        cmc=torch.from_numpy(hits / count).to(device),
        mean_ap=float(precision.sum() / count),
        mean_inp=float(penalty.sum() / count),
        n_queries=len(search.scores),
        n_valid=len(hit),
        n_gallery=len(search.gallery),
    )


def _warn_left_out(trials: Sequence[RankingMetrics]) -> None:
    worst = min(trials, key=lambda trial: trial.n_valid)
    if worst.n_valid < max(worst.n_queries, 1):
        logger.warning(
            "only %d of %d queries have a gallery image of their identity; the means are over them:"
            " check that identities and cameras of both sides are numbered alike",
            worst.n_valid,
            worst.n_queries,
        )


def _cells(images: _Modality) -> tuple[Tensor, Tensor, Tensor]:
    """For each (label, identity) that occurs: its images, its label's and its identity's."""
    label, person = images.numbered()
    label_size, size = label.bincount(), person.bincount()
    cell, count = torch.unique(label * len(size) + person, return_counts=True)
    return count, label_size[cell // len(size)], size[cell % len(size)]


def _adjusted_rand(images: _Modality) -> float:
    """(2 n s - 2 a b) / (n a + n b - 2 a b), in ordered pairs of two images.

    ``n`` is all of them, ``s`` those alike in both, ``a`` in label, ``b`` in identity.
    """
    n = len(images.labels)
    if not n:
        return 0.0
    count, label_size, size = _cells(images)
    both, label, person = (int((count * other).sum()) - n for other in (count, label_size, size))
    pairs = n * (n - 1)
    span = pairs * (label + person) - 2 * label * person
    return 2 * (pairs * both - label * person) / span if span else 1.0


def _mutual_information(images: _Modality) -> float:
    """Mutual information over the mean of the two entropies."""
    n = len(images.labels)
    if not n:
        return 0.0
    count, label, person = (part.double() / n for part in _cells(images))
    shared = (count * torch.log(count / (label * person))).sum().item()
    entropies = -(count * torch.log(label * person)).sum().item()
    return min(max(2 * shared / entropies, 0.0), 1.0) if entropies > 0 else 1.0


def _pair_scores(visible: _Modality, infrared: _Modality) -> tuple[float, float, float]:
    """Precision, recall and F1 of the pairs of a visible and an infrared image."""
    true = _cross_pairs(visible.identities, infrared.identities)
    visible, infrared = visible.clustered(), infrared.clustered()
    predicted = _cross_pairs(visible.labels, infrared.labels)
    label, person = visible.joined(infrared).numbered()
    both = label * len(person) + person
    right = _cross_pairs(both[: len(visible.labels)], both[len(visible.labels) :])
    return (
        right / max(predicted, 1),
        right / max(true, 1),
        2 * right / max(predicted + true, 1),
    )


def _cross_pairs(visible: Tensor, infrared: Tensor) -> int:
    """How many pairs of a visible and an infrared entry are equal."""
    kinds, kind = torch.unique(torch.cat([visible, infrared]), return_inverse=True)
    first, second = kind[: len(visible)], kind[len(visible) :]
    n = len(kinds)
    return int((first.bincount(minlength=n) * second.bincount(minlength=n)).sum())
