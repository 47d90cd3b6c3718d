"""The scores of ``_kernels.ranking`` in plain tensor operations, for any device."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmmlib.evaluation._search import Task

COMPARED = 2**27  # distances compared at once
FACTORS = 2**24  # of inner products at once

Exact = tuple[Tensor, Tensor, Tensor, Tensor]  # queries, gallery, factor, quantum


class _View(NamedTuple):
    """One gallery as some queries see it.

    Attributes:
        values: Distances, nan where an image is skipped.
        width: Distances this close are told apart by their keys.
        columns: The images among those that were compared.
        order: Where each stands in the gallery as given.
        queries: Rows of the queries.
        exact: What the keys are made of.
    """

    values: Tensor
    width: Tensor
    columns: Tensor
    order: Tensor
    queries: Tensor
    exact: Exact

    def keys(self, query: Tensor, image: Tensor) -> Tensor:
        """What decides between images whose distances are too close to tell."""
        rows, gallery, factor, quantum = self.exact
        if gallery.shape[1] == 0:
            return self.values[query, image].double()
        pair = self.queries[query] * len(gallery) + self.columns[image]
        pair, inverse = torch.unique(pair, return_inverse=True)
        parts = []
        for some in torch.split(pair, max(1, FACTORS // rows.shape[1])):
            row, column = some // len(gallery), some % len(gallery)
            product = (rows[row].double() * gallery[column].double()).sum(dim=1)
            parts.append((product * factor[column] / quantum[row]).round())
        return torch.cat(parts)[inverse] if parts else pair.double()

    def before(self, first: Tensor, valid: Tensor) -> Tensor:
        """Whether each image comes before those given: (queries, given, images)."""
        value = self.values.gather(1, first)[..., None]
        width = self.width[:, None, None]
        before = self.values[:, None] < value - width
        close = (self.values[:, None] <= value + width) & ~before & valid[..., None]
        query, place, image = close.scatter_(2, first[..., None], False).nonzero(as_tuple=True)
        other = first[query, place]
        mine, theirs = self.keys(query, image), self.keys(query, other)
        earlier = self.order[image] < self.order[other]
        before[query, place, image] = (mine < theirs) | ((mine == theirs) & earlier)
        return before


class _Search(NamedTuple):
    """A task of one gallery, as tensors."""

    own: bool
    distinct: bool
    persons: Tensor
    skipped: Tensor
    columns: Tensor
    order: Tensor
    people: Tensor
    cameras: Tensor
    identity: Tensor


def score_queries(distance: Tensor, width: Tensor, task: "Task", exact: Exact) -> np.ndarray:
    """First hit (from 0; -1 without one), AP and INP by query and gallery."""
    rows = torch.arange(len(distance), device=distance.device)
    scores = []
    for trial in range(len(task.bounds) - 1):
        search = _gallery(task, trial, distance.device)
        most = max(1, int(search.identity.diff().max()))  # images of one identity
        step = max(1, COMPARED // max(1, most * len(search.columns)))
        parts = [
            _score(distance, width, part, most, search, exact) for part in torch.split(rows, step)
        ]
        scores.append(torch.cat(parts))
    return torch.stack(scores, dim=1).cpu().numpy()


def _gallery(task: "Task", trial: int, device: torch.device) -> _Search:
    part = slice(task.bounds[trial], task.bounds[trial + 1])
    images = (array[part] for array in task[2:6])
    arrays = (task.persons, task.skipped, *images, task.identity[trial])
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    return _Search(task.own, task.distinct, *tensors)


def _score(
    distance: Tensor, width: Tensor, rows: Tensor, most: int, task: _Search, exact: Exact
) -> Tensor:
    """The scores of some queries in one gallery."""
    person = task.persons[rows]
    skip = task.cameras == task.skipped[rows, None]
    if task.own:
        skip &= task.people == person[:, None]
    values = distance[rows[:, None], task.columns].masked_fill(skip, torch.nan)
    if not values.numel():
        return values.new_tensor([-1.0, 0.0, 0.0], dtype=torch.float64).expand(len(rows), 3)
    first, last = (task.identity[person.clamp_min(0) + i, None] for i in (0, 1))
    right = first + torch.arange(most, device=rows.device)
    valid = (right < last) & (person >= 0)[:, None]
    right = torch.where(valid, right, 0)
    valid &= ~values.gather(1, right).isnan()
    before = _View(values, width[rows], task.columns, task.order, rows, exact).before(right, valid)
    place = torch.where(valid, before.sum(dim=2) + 1, torch.iinfo(torch.int64).max)
    hit = place.amin(dim=1) - 1
    if task.distinct:
        mine = before[torch.arange(len(rows), device=rows.device), place.argmin(dim=1)]
        seen = torch.zeros(len(rows), len(task.identity), device=rows.device, dtype=torch.int64)
        hit = (seen.index_add_(1, task.people, mine.long()) > 0).sum(dim=1)
    return _averages(place.sort(dim=1).values, valid.sum(dim=1), hit)


def _averages(place: Tensor, count: Tensor, hit: Tensor) -> Tensor:
    """First hit, AP and INP from the places of the right images, in order."""
    number = torch.arange(1, place.shape[1] + 1, device=place.device)
    found = number <= count[:, None]
    share = torch.where(found, number / place.double(), 0.0)
    some = count.clamp_min(1)
    worst = place.gather(1, some[:, None] - 1)[:, 0]
    scores = [hit.double(), share.sum(dim=1) / some, count / worst.double()]
    return torch.stack(scores, dim=1).where((count > 0)[:, None], scores[0].new_tensor([-1, 0, 0]))
