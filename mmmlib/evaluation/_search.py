"""Scores of every query in every gallery, from distances or from features.

A score is the first hit (from 0; -1 without a right image), the average precision and the inverse
negative penalty. Of features, float32 products give distances and a bound on their error; what it
cannot tell apart is decided by float64 inner products, so that no score depends on the size of a
block or the number of threads.
"""

import threading
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmmlib._check import check_finite
from mmmlib._kernels import TIE, each_alone, in_threads
from mmmlib._rows import full_precision
from mmmlib.evaluation import _device
from mmmlib.evaluation._protocols import Rules, Side, skipped_camera

BLOCK = 2**21  # distances in memory at once, in each thread
TILE = 512  # queries, and gallery images, that are multiplied at once
DEPTH = 1024  # columns of features in one float32 product: the fewer, the smaller its error
LARGE = 2**13  # galleries in which more images are too close to tell: half the depth
SAFE = 1e24  # squared norms whose products are safe in float32, from 1 / SAFE
OFTEN = 1 / 8  # of the distances needed exactly: then float64 products are cheaper


class Task(NamedTuple):
    """What to score: arrays of queries and galleries.

    Attributes:
        persons: Identity of each query as a number from 0, -1 for nobody.
        skipped: The camera that each query skips.
        columns: The images of the galleries, one gallery after the other, sorted by identity.
        order: Where each of them stands in its gallery as given.
        people: Identity of each of them, as a number from 0.
        cameras: Camera of each of them.
        identity: For each gallery, where every identity begins, and the end.
        bounds: Where each gallery begins, and the end.
        own: Whether a query skips images of its own identity only.
        distinct: Whether places of the CMC are identities.
    """

    persons: np.ndarray
    skipped: np.ndarray
    columns: np.ndarray
    order: np.ndarray
    people: np.ndarray
    cameras: np.ndarray
    identity: np.ndarray
    bounds: np.ndarray
    own: bool
    distinct: bool


class Rows(NamedTuple):
    """Features that can be multiplied in float32, and their norms in float64."""

    values: Tensor
    norm: Tensor

    @property
    def dim(self) -> int:
        """Their width."""
        return self.values.shape[1]

    @classmethod
    def without_columns(cls, n: int, device: torch.device) -> "Rows":
        """Rows that leave all to the distances."""
        norm = torch.zeros(n, dtype=torch.float64, device=device)
        return cls(norm[:, None][:, :0], norm)

    def part(self, index: slice | Tensor) -> "Rows":
        """Some of them."""
        return Rows(self.values[index], self.norm[index])


def make_task(query: Side, gallery: Side, draws: list[np.ndarray], rules: Rules) -> Task:
    """The queries, and one gallery for each draw of gallery images."""
    n = len(query.identities)
    nobody = gallery.identities < 0  # each of them is somebody else
    strangers = np.where(nobody, -1 - np.cumsum(nobody), gallery.identities)
    everyone = np.concatenate([query.identities, strangers])
    known, codes = np.unique(everyone, return_inverse=True)
    drawn = [codes[n:][draw] for draw in draws]
    orders = [np.argsort(people, kind="stable") for people in drawn]
    people = [side[order] for side, order in zip(drawn, orders, strict=True)]
    columns = np.concatenate([draw[order] for draw, order in zip(draws, orders, strict=True)])
    return Task(
        persons=np.where(query.identities < 0, -1, codes[:n]),
        skipped=skipped_camera(query, rules.skip),
        columns=columns,
        order=np.concatenate(orders),
        people=np.concatenate(people),
        cameras=gallery.cameras[columns],
        identity=np.stack([np.searchsorted(side, np.arange(len(known) + 1)) for side in people]),
        bounds=np.cumsum([0, *map(len, draws)]),
        own=rules.skip == "own-camera",
        distinct=rules.places == "identities",
    )


def score_distances(distance: Tensor, task: Task) -> np.ndarray:
    """The scores (queries, galleries, 3), some queries at a time."""
    n, m = distance.shape
    step = max(1, 4 * BLOCK // max(m, 1))  # there already: only what is not float takes memory
    scores, images = [], Rows.without_columns(m, distance.device)
    for start in range(0, n, step):
        block = distance[start : start + step].detach()
        block = (block if block.dtype == torch.float64 else block.float()).contiguous()
        queries = Rows.without_columns(len(block), distance.device)
        width = queries.norm.to(block.dtype)
        scores.append(_score(block, width, queries, images, task, start)[0])
    return _all_scores(scores, task)


def _all_scores(scores: list[np.ndarray], task: Task) -> np.ndarray:
    return np.concatenate(scores) if scores else np.zeros((0, len(task.bounds) - 1, 3))


def _at_once(m: int, device: torch.device, most: int) -> int:
    """How many queries of so many gallery images make a block; four times as many on a device."""
    times = 1 if device.type == "cpu" else 4
    return max(1, min(times * most, times * BLOCK // max(m, 1)))


def safe_rows(name: str, features: Tensor) -> Rows:
    """Features as they are, unless their products would leave the range of float32."""
    rows = features.detach()
    rows = (rows if rows.dtype == torch.float64 else rows.float()).contiguous()
    square = _squares(rows)
    if rows.numel() and not ((square > 1 / SAFE) & (square < SAFE)).all():  # nor is nan
        check_finite(**{name: features})
        largest = rows.abs().amax(dim=1, keepdim=True).double()
        rows = rows.double() / torch.where(largest > 0, largest, 1.0)
        square = _squares(rows)
    return Rows(rows, square.sqrt())


def _squares(rows: Tensor) -> Tensor:
    square = rows.new_zeros(len(rows), dtype=torch.float64)
    if rows.device.type != "cpu":
        for part, out in zip(torch.split(rows, 8192), torch.split(square, 8192), strict=True):
            out.copy_(part.double().square().sum(dim=1))
        return square
    from mmmlib._kernels.ranking import row_squares

    in_threads(row_squares, len(rows), rows.numpy(), square.numpy(), chunk=256)
    return square


def score_features(query: Rows, gallery: Rows, task: Task) -> np.ndarray:
    """The scores (queries, galleries, 3) by cosine, some queries at a time."""
    n, m = len(query.values), len(gallery.values)
    step = _at_once(m, query.values.device, TILE)
    double = threading.Event()  # so many distances are needed exactly that products had better be

    def score(start: int) -> np.ndarray:
        dtype = torch.float64 if double.is_set() else torch.float32
        own = query.part(slice(start, start + step))
        distance, error = _distances(own, gallery, dtype)
        width = 2 * (error + _quantum(query.dim)) * own.norm
        found, exact = _score(distance, width.to(dtype), own, gallery, task, start)
        if exact > OFTEN * distance.numel():
            double.set()
        return found

    device, starts = query.values.device.type, range(0, n, step)
    with full_precision(device):
        scores = each_alone(score, starts) if device == "cpu" else list(map(score, starts))
    return _all_scores(scores, task)


def _quantum(dim: int) -> float:
    """Cosines this close count as equal: only float64's own rounding tells them apart."""
    return (dim + 8) * 2.0**-24 * TIE


def _distances(query: Rows, gallery: Rows, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Negative cosines times the norm of the query; a bound on their error, in such norms.

    The bound holds whatever the order in which a product is summed.
    """
    scale = _factor(gallery).to(dtype)
    depth = DEPTH if len(scale) < LARGE else DEPTH // 2
    depth = min(depth if dtype == torch.float32 else query.dim, max(query.dim, 1))
    left, right = (
        torch.split(rows, max(depth, 1), dim=1) for rows in (query.values.to(dtype), gallery.values)
    )
    pairs = list(zip(left, right, strict=True))
    if scale.device.type == "cpu":
        distance = _products(pairs, scale)
    else:
        distance = torch.stack([a @ b.to(dtype).T for a, b in pairs]).sum(dim=0) * scale
    return distance, (depth + len(pairs) + 8) * torch.finfo(dtype).eps / 2


def _factor(gallery: Rows) -> Tensor:
    return torch.where(gallery.norm > 0, -1 / gallery.norm, 0.0)


def _products(pairs: list[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    """The sum of the products, tile by tile, with columns scaled."""
    from mmmlib._kernels.ranking import add_parts

    n, m = len(pairs[0][0]), len(scale)
    distance = scale.new_empty(n, m)
    buffer = scale.new_empty(len(pairs) * n * min(TILE, m))
    for start in range(0, m, TILE):
        part = slice(start, start + TILE)
        out = distance[:, part]
        tiles = buffer[: len(pairs) * out.numel()].view(len(pairs), *out.shape)
        for tile, (left, right) in zip(tiles, pairs, strict=True):
            torch.mm(left, right[part].to(left.dtype).T, out=tile)
        in_threads(add_parts, n, tiles.numpy(), scale[part].numpy(), out.numpy(), chunk=64)
    return distance


def _score(
    distance: Tensor, width: Tensor, query: Rows, gallery: Rows, task: Task, start: int
) -> tuple[np.ndarray, int]:
    """Scores of some queries, and how many distances had to be computed exactly (CPU only)."""
    part = slice(start, start + len(distance))
    quantum = (_quantum(query.dim) * query.norm).clamp_min(torch.finfo(torch.float64).tiny)
    exact = (query.values, gallery.values, _factor(gallery), quantum)
    task = task._replace(persons=task.persons[part], skipped=task.skipped[part])
    if distance.device.type != "cpu":
        return _device.score_queries(distance, width, task, exact), 0
    from mmmlib._kernels.ranking import score_queries

    scores = np.zeros((len(distance), len(task.bounds) - 1, 3))
    found = in_threads(
        score_queries, len(distance), distance.numpy(), width.numpy(),
        (task.persons, task.skipped), tuple(task[2:8]), tuple(task[8:]),
        tuple(side.numpy() for side in exact), scores, chunk=64,
    )  # fmt: skip
    return scores, sum(found)
