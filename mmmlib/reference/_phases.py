"""Single phases on saved features: extract, cluster, match, evaluate."""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmmlib import matching
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.clustering import cluster_features, describe_labels, prototypes, sub_prototypes
from mmmlib.reference.data import DataSet, Images
from mmmlib.reference.models import (
    TwoStreamCNN,
    extract_features,
    load_resnet50,
    load_weights,
    read_weights,
)
from mmmlib.reference.models._weights import unpickled
from mmmlib.reference.run import CHECKPOINT, SELECTED, check_writable, save_tensors, write_whole

SIDES = ("visible", "infrared")
_UNREADABLE = (
    zipfile.BadZipFile, EOFError, LookupError, NotImplementedError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip
SPLITS = {"train": ("visible", "infrared"), "test": ("gallery", "query")}


class Arrays(NamedTuple):
    """What a file of features or labels holds: tensors and names by their key."""

    path: Path
    tensors: dict[str, Tensor]
    names: dict[str, list[str]]

    def need(self, key: str) -> Tensor:
        """A tensor that has to be there."""
        if key not in self.tensors:
            known = ", ".join(self.tensors) or "none"
            raise ValueError(f"{self.path} must hold {key}, got {known}")
        if not self.tensors[key].ndim:
            raise ValueError(f"{self.path} must hold rows of {key}, got a single number")
        return self.tensors[key]


def load_network(path: Path, device: str) -> nn.Module:
    """The network of a checkpoint, of ours or of a published program; its kind is in its weights.

    Args:
        path: A file of weights, or the folder of a run: that of its result, or else its last.
        device: Where it goes.
    """
    if path.is_dir():
        path = path / (SELECTED if (path / SELECTED).is_file() else CHECKPOINT)
    weights = read_weights(path)
    model: nn.Module
    if "trunk.0.0.weight" in weights:
        channels = [_size(path, weights, f"{side}_stem.1.0.weight", 4, 1) for side in SIDES]
        model = TwoStreamCNN(*channels, dim=_size(path, weights, "neck.weight", 1, 0))
        load_weights(model, path)
    else:
        model = load_resnet50(path)
    return model.to(device)


def _size(path: Path, weights: dict[str, Tensor], name: str, dimensions: int, dim: int) -> int:
    """One size of a weight that has to be there."""
    weight = weights.get(name)
    if weight is None or weight.ndim != dimensions or not weight.numel():
        said = "none" if weight is None else f"shape {tuple(weight.shape)}"
        raise ValueError(
            f"path must hold {name} of {dimensions} dimensions, got {said} in {str(path)!r}"
        )
    return weight.shape[dim]


def extract(model: nn.Module, data: DataSet, split: str, batch_size: int) -> dict[str, Any]:
    """Features of both modalities of a split, with name, camera and identity of each image."""
    content: dict[str, Any] = {}
    for side, name in zip(SIDES, SPLITS[split], strict=True):
        images: Images | None = getattr(data, name)
        if images is None:
            raise ValueError(f"-d must have a {split} split, got {data.name} without")
        content[side] = extract_features(
            model, images.pixels, infrared=side == "infrared", batch_size=batch_size
        ).cpu()
        content[f"{side}_names"] = list(images.names)
        content[f"{side}_cameras"] = images.cameras
        if images.identities is not None:
            content[f"{side}_identities"] = images.identities
    return content


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    if path.suffix not in (".npz", ".pt"):
        raise ValueError(f"--out must end in .npz or .pt, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out must lie in a directory that exists, got {str(path)!r}")
    check_writable(path)


def write_arrays(path: Path, content: dict[str, Any], *, compress: bool = False) -> None:
    """Write tensors and lists of names."""
    check_target(path)
    if path.suffix == ".pt":
        write_whole(path, lambda new: save_tensors(content, new))
        return
    arrays: dict[str, Any] = {
        name: value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.str_)
        for name, value in content.items()
    }

    def write(new: Path) -> None:
        with new.open("wb") as file:
            (np.savez_compressed if compress else np.savez)(file, **arrays)

    write_whole(path, write)


def read_arrays(path: Path) -> Arrays:
    """Read what ``write_arrays`` wrote, or arrays of the same names from anywhere."""
    if not path.is_file():
        raise FileNotFoundError(f"file must be there, got {str(path)!r}")
    try:
        content = _read_pt(path) if path.suffix == ".pt" else _read_npz(path)
    except _UNREADABLE as error:
        raise ValueError(
            f"file must hold named arrays (.npz or .pt, nothing pickled), got {str(path)!r}"
        ) from error
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    names = {
        name.removesuffix("_names"): list(value)
        for name, value in content.items()
        if name.endswith("_names") and not isinstance(value, Tensor)
    }
    for key, words in names.items():
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path} must hold a word an image in {key}_names, got others")
    return Arrays(path, tensors, names)


def _read_pt(path: Path) -> dict[str, Any]:
    content = unpickled(path)
    if not isinstance(content, dict):
        raise ValueError("no names")
    return content


def _read_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise ValueError("no archive")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {
        name: value.tolist() if value.dtype.kind == "U" else torch.from_numpy(value)
        for name, value in arrays.items()
    }


def cluster(features: Arrays, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Labels of every modality in a file of features; what came out, a line each."""
    there = [side for side in SIDES if side in features.tensors]
    if not there:
        features.need("visible")
    content: dict[str, Any] = {}
    said = []
    for side in there:
        labels = cluster_features(features.need(side), **options)
        content[f"{side}_labels"] = labels
        if side in features.names:
            content[f"{side}_names"] = features.names[side]
        said.append(f"{side}: {describe_labels(labels)}")
    return content, said


def labels_of(side: str, features: Arrays, labels: Arrays) -> tuple[Tensor, Tensor]:
    """The features of a modality and the label of each row, joined by name if both have names."""
    rows, numbers = features.need(side), labels.need(f"{side}_labels")
    wanted, there = features.names.get(side), labels.names.get(side)
    if wanted is None or there is None:
        return rows, numbers
    place = {name: row for row, name in enumerate(there)}
    missing = [name for name in wanted if name not in place]
    if missing or len(wanted) != len(place):
        said = f"none for {missing[0]!r}" if missing else f"{len(place)} for {len(wanted)} images"
        raise ValueError(f"{labels.path} must hold a label for each {side} image, got {said}")
    for file, names, n in ((features, wanted, len(rows)), (labels, there, len(numbers))):
        if len(names) != n:
            raise ValueError(f"{file.path} must hold {n} {side}_names, got {len(names)}")
    return rows, numbers[torch.tensor([place[name] for name in wanted], dtype=torch.int64)]


MATCHERS: dict[str, Callable[..., ClusterMatch]] = {
    "multi-memory": matching.multi_memory_match,
    "clusters": matching.match_clusters,
    "progressive": matching.progressive_match,
    "bilateral": matching.bilateral_match,
    "transport": matching.transport_match,
    "nearest": matching.nearest_match,
    "mutual": matching.mutual_match,
    "vote": matching.vote_labels,
}


def match(
    features: Arrays, labels: Arrays, matcher: str, memories: int
) -> tuple[dict[str, Any], str]:
    """Partners of all clusters, and the labels that both modalities then share; one line of it."""
    sides = [labels_of(side, features, labels) for side in SIDES]
    if matcher == "vote":
        found = MATCHERS[matcher](*sides[0], *sides[1])
    elif matcher in ("multi-memory", "clusters"):
        parts = [sub_prototypes(*side, memories=memories) for side in sides]
        found = MATCHERS[matcher](*(SubPrototypes(*part) for part in parts))
    else:
        found = MATCHERS[matcher](*(prototypes(*side) for side in sides))
    shared = found.shared_labels(sides[0][1], sides[1][1])
    content: dict[str, Any] = {
        **found._asdict(),
        "visible_labels": shared[0],
        "infrared_labels": shared[1],
        **{f"{side}_names": features.names[side] for side in SIDES if side in features.names},
    }
    return content, found.summary()
