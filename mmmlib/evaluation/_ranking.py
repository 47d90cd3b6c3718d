"""CMC, mean average precision and mean inverse negative penalty of a search."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import (
    check_count,
    check_dense,
    check_features,
    check_room,
    check_tensor,
    check_values,
)
from mmmlib.evaluation._protocols import (
    Places,
    Protocol,
    Skip,
    check_rules,
    check_side,
    draw,
    folders,
)
from mmmlib.evaluation._search import make_task, safe_rows, score_distances, score_features

_log = logging.getLogger("mmmlib")

_MOST_RANKS = 2**24


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

        Args:
            k: The number of places, from 1.

        Returns:
            The share, in [0, 1].

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


def ranking_metrics(
    distance: Float[Tensor, "queries gallery"],
    query_identities: Int[Tensor, "queries"],
    gallery_identities: Int[Tensor, "gallery"],
    *,
    query_cameras: Int[Tensor, "queries"] | None = None,
    gallery_cameras: Int[Tensor, "gallery"] | None = None,
    protocol: Protocol = "plain",
    skip: Skip | None = None,
    places: Places | None = None,
    max_rank: int = 20,
) -> RankingMetrics:
    r"""Measure a ranking: CMC, mean average precision and mean inverse negative penalty.

    The gallery is ranked by distance, among equals the image given first. With a query's
    :math:`R` right images at places :math:`p_1 < \dots < p_R`,

    .. math:: \mathrm{AP} = \frac{1}{R} \sum_{i=1}^{R} \frac{i}{p_i}, \qquad
              \mathrm{INP} = \frac{R}{p_R}.

    ====================== ======================== ================
    protocol               ``skip``                 ``places``
    ====================== ======================== ================
    plain, regdb           ``"nothing"``            ``"images"``
    sysu-all, sysu-indoor  ``"overlapping-camera"`` ``"identities"``
    llcm                   ``"own-camera"``         ``"identities"``
    ====================== ======================== ================

    What a query skips is out of the ranking: ``"overlapping-camera"`` (camera 2 and 3 of SYSU-MM01
    see one place) the gallery images of camera 2, if it is of camera 3 itself; ``"own-camera"``
    the images of its own identity and camera. Where places of the CMC are identities, each counts
    once, at its first image; both averages are over images all the same.

    Args:
        distance: Lower is closer; infinity is allowed.
        query_identities: True identity of each query; -1 is nobody, and never right.
        gallery_identities: True identity of each gallery image; -1 is nobody, and never right.
        query_cameras: Camera of each query, as the data set numbers it; for ``"sysu-*"`` and
            ``"llcm"``, and where cameras decide what is skipped.
        gallery_cameras: Camera of each gallery image, likewise.
        protocol: The rules above. The gallery is taken as given: ``evaluate`` draws it.
        skip: What a query skips, in place of the protocol's rule.
        places: What a place of the CMC is, likewise.
        max_rank: Length of the CMC. Beyond the end of a short gallery it stays constant.

    Returns:
        The metrics, over the queries that have a right image left (``n_valid`` of ``n_queries``,
        and a warning in the log if it is not all of them); zeros without any. ``cmc`` is on the
        device of ``distance``.

    Raises:
        ValueError: If shapes or data types are wrong, a distance is NaN, or cameras are missing.

    Note:
        A gallery is not sorted, unless more than 256 of its images are right: what comes before
        each right image is counted. The released SYSU-MM01 code also adds queries without a right
        image to the CMC, and divides by the others; such a query adds zeros, so the numbers are
        the same.

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
    rules = check_rules(protocol, skip, places)
    check_count("max_rank", max_rank, most=_MOST_RANKS)
    _check_distance(distance)
    n, m = distance.shape
    query = check_side("query", n, query_identities, query_cameras, protocol, rules)
    gallery = check_side("gallery", m, gallery_identities, gallery_cameras, protocol, rules)
    task = make_task(query, gallery, [np.arange(m)], rules)
    metrics = _metrics(score_distances(distance, task)[:, 0], m, max_rank, distance.device)
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
    skip: Skip | None = None,
    places: Places | None = None,
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
            ``"llcm"``, and where cameras decide what is skipped.
        gallery_cameras: Camera of each gallery image, likewise.
        protocol: How the gallery is drawn and ranked.
        trials: How many galleries to draw; trial ``t`` has seed ``t``. Not used where the whole
            gallery is searched.
        shots: How many images of an identity and camera to draw; likewise.
        skip: What a query skips, in place of the protocol's rule (see ``ranking_metrics``).
        places: What a place of the CMC is, likewise.
        max_rank: Length of the CMC.

    Returns:
        Means and standard deviations over the trials, and every trial.

    Raises:
        ValueError: If shapes, data types or devices are wrong, a feature is not finite, or cameras
            are missing.

    Note:
        Every image of the drawn galleries is compared once, in blocks of queries: memory does
        not grow with their number. Float32 products nominate; images that their rounding error
        cannot tell apart are ordered by float64 inner products, and then as given. So a result
        does not depend on threads or blocks, and images with equal features tie.
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
    rules = check_rules(protocol, skip, places)
    for name, count in (("trials", trials), ("shots", shots), ("max_rank", max_rank)):
        check_count(name, count, most=_MOST_RANKS if name == "max_rank" else None)
    check_features(query=query, gallery=gallery)
    n, m = len(query), len(gallery)
    searching = check_side("query", n, query_identities, query_cameras, protocol, rules)
    searched = check_side("gallery", m, gallery_identities, gallery_cameras, protocol, rules)
    left, right = safe_rows("query", query), safe_rows("gallery", gallery)
    draws = [np.arange(m)]
    if rules.cameras is not None:
        check_room("trials", trials, max(m, 1))
        images = folders(searched, rules)
        draws = [draw(images, trial, shots) for trial in range(trials)]
        drawn, draws = _together(draws)
        right, searched = right.part(torch.from_numpy(drawn)), searched.rows(drawn)
    scores = score_features(left, right, make_task(searching, searched, draws, rules))
    metrics = [
        _metrics(scores[:, trial], len(drawn), max_rank, query.device)
        for trial, drawn in enumerate(draws)
    ]
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


class _Means(NamedTuple):
    cmc: Tensor
    rank_1: float
    mean_ap: float
    mean_inp: float

    @classmethod
    def from_row(cls, row: Tensor) -> "_Means":
        return cls(row[:-2], row[0].item(), row[-2].item(), row[-1].item())


def _check_distance(distance: Tensor) -> None:
    check_tensor(distance=distance)
    if distance.ndim != 2 or not distance.is_floating_point():
        raise ValueError(
            "distance must be a floating-point tensor (queries, gallery), "
            f"got {distance.dtype} of shape {tuple(distance.shape)}"
        )
    check_dense(distance=distance)
    check_values(distance=distance)
    bad = distance.detach().amax(dim=1).isnan() if distance.numel() else distance.new_zeros(0)
    if bad.any():
        raise ValueError(f"distance must not hold nan, got nan in row {int(bad.nonzero()[0])}")


def _together(draws: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """All rows drawn, once each, and the draws as places among them."""
    drawn = np.unique(np.concatenate(draws))
    return drawn, [np.searchsorted(drawn, draw) for draw in draws]


def _metrics(
    scores: np.ndarray, n_gallery: int, max_rank: int, device: torch.device
) -> RankingMetrics:
    """Averages over the queries that have a right image."""
    hit, precision, penalty = scores[scores[:, 0] >= 0].T
    count = max(len(hit), 1)
    place = np.minimum(hit, max_rank).astype(np.int64)
    hits = np.bincount(place, minlength=max_rank + 1)[:max_rank].cumsum()
    return RankingMetrics(
        cmc=torch.from_numpy(hits / count).to(device),
        mean_ap=float(precision.sum() / count),
        mean_inp=float(penalty.sum() / count),
        n_queries=len(scores),
        n_valid=len(hit),
        n_gallery=n_gallery,
    )


def _warn_left_out(trials: Sequence[RankingMetrics]) -> None:
    worst = min(trials, key=lambda trial: trial.n_valid)
    if worst.n_valid < max(worst.n_queries, 1):
        _log.warning(
            "only %d of %d queries have a gallery image of their identity; the means are over them:"
            " check that identities and cameras of both sides are numbered alike",
            worst.n_valid,
            worst.n_queries,
        )
