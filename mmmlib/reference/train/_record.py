"""What a run keeps beside its numbers: labels and matches, and what its report shows."""

from typing import Any

import torch
from torch import Tensor, nn

from mmmlib._rows import unit_rows
from mmmlib._types import ClusterMatch
from mmmlib.evaluation import draw_gallery
from mmmlib.evaluation._protocols import DRAWN, RULES, Side, skipped_camera
from mmmlib.reference._phases import write_arrays
from mmmlib.reference.data import DataSet, Images
from mmmlib.reference.run import Run, Settings
from mmmlib.reference.train._objective import Labels
from mmmlib.reference.train._plan import Epoch
from mmmlib.reference.train._score import Tested, features_of
from mmmlib.reference.train._selection import rows_of

ROWS = 1500  # images of a modality whose distances a report shows, at most
PERSONS, SHOWN = 3, 8  # identities in a report, and images of each in a modality
QUERIES, FOUND = 5, 8  # searches in a report, and images of each
TALL = 96  # pixels of an image in a report


def keep_epoch(run: Run, number: int, plan: Epoch, data: DataSet) -> None:
    """Write the labels and the match of an epoch: ``epochs/<number>.npz``."""
    if not run.writes:
        return
    pairs = plan.match.matched.nonzero()
    content: dict[str, Any] = {
        **{
            f"{side}_{kind}": getattr(plan.labels, name)
            for side in ("visible", "infrared")
            for kind, name in (
                ("labels", side), ("shared", f"shared_{side}"), ("joint", f"joint_{side}"),
            )
        },
        "to_infrared": plan.match.to_infrared, "to_visible": plan.match.to_visible,
        "pairs": pairs, "cost": plan.match.cost[tuple(pairs.T)],
        "confidence": plan.match.confidence[tuple(pairs.T)],
        "visible_names": data.visible.names, "infrared_names": data.infrared.names,
    }  # fmt: skip
    folder = run.folder / "epochs"
    folder.mkdir(exist_ok=True)
    write_arrays(folder / f"{number:03d}.npz", content, compress=True)


def keep_pictures(
    run: Run,
    model: nn.Module,
    data: DataSet,
    shown: tuple[Labels, ClusterMatch] | None,
    tested: Tested | None,
    settings: Settings,
) -> None:
    """Write what a report shows of the network that is the result: ``report.npz``.

    Some identities (or shared labels, where nobody is known) at even distances, with all their
    training images; and some searches of the first trial, at even distances too.
    """
    content: dict[str, Any] = {}
    if shown is not None:
        content |= _training(model, data, shown[0], settings)
        content |= {f"match_{name}": part for name, part in shown[1]._asdict().items()}
    if tested is not None:
        content |= _searches(data, tested)
    if run.writes:
        write_arrays(run.folder / "report.npz", content, compress=True)


def _training(model: nn.Module, data: DataSet, found: Labels, settings: Settings) -> dict[str, Any]:
    """Features, identities and labels of some training images; pictures of a few of them."""
    content: dict[str, Any] = {}
    sides = (("visible", data.visible), ("infrared", data.infrared))
    labels = [getattr(found, f"shared_{name}").cpu() for name, _ in sides]
    known = data.visible.identities is not None and data.infrared.identities is not None
    who = [
        images.identities if images.identities is not None and known else label
        for (_, images), label in zip(sides, labels, strict=True)
    ]
    both = torch.unique(who[0][torch.isin(who[0], who[1]) & (who[0] >= 0)])
    step = max(1, -(-max(map(len, who)) // ROWS))
    shown = _evenly(both, PERSONS)
    for i, (name, images) in enumerate(sides):
        rows = torch.isin(who[i], both[::step]).nonzero()[:, 0]
        some = rows_of(images, rows)
        features = features_of(model, some, settings, infrared=name == "infrared")
        content[name] = features.half()
        content[f"{name}_labels"] = labels[i][rows]
        if known:
            content[f"{name}_identities"] = who[i][rows]
        picked = torch.cat([(who[i] == one).nonzero()[:SHOWN, 0] for one in shown.tolist()] or
                           [rows[:0]])  # fmt: skip
        content[f"{name}_pictures"] = thumbnails(images.pixels[picked])
        content[f"{name}_pictured"] = torch.stack([who[i][picked], labels[i][picked]], dim=1)
    return content


def _searches(data: DataSet, tested: Tested) -> dict[str, Any]:
    """Some queries and what is nearest to each in the gallery of the first trial."""
    (queries, query), (features, gallery) = tested
    drawn = torch.arange(len(gallery.names))
    if data.protocol in DRAWN:
        drawn = draw_gallery(_identities(gallery), gallery.cameras, protocol=data.protocol, trial=0)  # type: ignore[arg-type]
    gallery, features = rows_of(gallery, drawn), unit_rows(features.float().cpu())[drawn]
    rows = _evenly(torch.arange(len(query.names)), QUERIES)
    similarity = unit_rows(queries.float().cpu()[rows]) @ features.T
    sides = Side(_identities(query)[rows].numpy(), query.cameras[rows].numpy())
    skipped = torch.from_numpy(skipped_camera(sides, RULES[data.protocol].skip))
    similarity[gallery.cameras == skipped[:, None]] = -torch.inf
    values, nearest = similarity.sort(dim=1, descending=True, stable=True)
    nearest, there = nearest[:, :FOUND], values[:, :FOUND].isfinite()
    right = _identities(gallery)[nearest] == _identities(query)[rows][:, None]
    return {
        "query_pictures": thumbnails(query.pixels[rows]),
        "query_names": [query.names[row] for row in rows.tolist()],
        "found_pictures": thumbnails(gallery.pixels[nearest.flatten()]),
        "found_right": right & there, "found_there": there,
    }  # fmt: skip


def _identities(images: Images) -> Tensor:
    return torch.full((len(images.names),), -1) if images.identities is None else images.identities


def _evenly(values: Tensor, most: int) -> Tensor:
    """So many of the values at even distances, or all."""
    n = min(most, len(values))
    return values[(torch.arange(n) * 2 + 1) * len(values) // max(2 * n, 1)]


def thumbnails(pixels: Tensor) -> Tensor:
    """Images no taller than a report shows them."""
    height, width = pixels.shape[2:]
    if height <= TALL or not len(pixels):
        return pixels
    size = TALL, max(1, round(width * TALL / height))
    small = torch.nn.functional.interpolate(pixels.float(), size=size, mode="area")
    return small.round().to(torch.uint8)
