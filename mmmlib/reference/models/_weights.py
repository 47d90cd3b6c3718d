"""Files of weights: torchvision's, those of the published methods, our own."""

import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from mmmlib.reference.models._resnet import TwoStreamResNet50

__all__ = ["load_resnet50", "load_weights", "read_weights"]

_WRAPPINGS = ("state_dict", "net", "model")  # ADCA, PGM and MBCCM; MMM; ours

# A name in a file, and what it is called here: one name, two, or none for what is not needed.
_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?:visible_stem|infrared_stem|trunk|layer[1-4]|non_local|neck)\..+", (r"\g<0>",)),
    # torchvision: one stem, which both modalities start from
    (r"(?:conv1|bn1)\..+", (r"visible_stem.\g<0>", r"infrared_stem.\g<0>")),
    # the published methods: three whole networks, of which a part each is used
    (r"visible_module\.visible\.((?:conv1|bn1)\..+)", (r"visible_stem.\1",)),
    (r"thermal_module\.thermal\.((?:conv1|bn1)\..+)", (r"infrared_stem.\1",)),
    (r"base_resnet\.base\.(layer[1-4]\..+)", (r"\1",)),
    (r"bottleneck\.(.+)", (r"neck.\1",)),
    (r"NL_([1-4])\.(\d+)\.(theta|phi)\.(.+)", (r"non_local.layer\1.\2.\3.\4",)),
    (r"NL_([1-4])\.(\d+)\.g\.0\.(.+)", (r"non_local.layer\1.\2.g.\3",)),
    (r"NL_([1-4])\.(\d+)\.W\.(.+)", (r"non_local.layer\1.\2.out.\3",)),
    (r"(?:visible_module\.visible|thermal_module\.thermal|base_resnet\.base)\..+", ()),
    (r"(?:fc|classifier|disnet)\..+", ()),
)


class _Inert:
    """Takes the place of a NumPy value beside the weights; does nothing, holds nothing."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS = [
    type(name, (_Inert,), {"__module__": module})
    for module, names in (
        ("numpy", ("dtype", "ndarray")),
        ("numpy.core.multiarray", ("scalar", "_reconstruct")),
        ("numpy._core.multiarray", ("scalar", "_reconstruct")),
    )
    for name in names
]

# What torch.load raises for files that it can not read.
_UNREADABLE = (
    UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError,
    AssertionError,
)  # fmt: skip


def read_weights(path: str | PathLike[str]) -> dict[str, Shaped[Tensor, "..."]]:
    """Read the weights in a file, by the names that they have here.

    Reads torchvision's ResNet-50, the checkpoints of ADCA, PGM, MMM and MBCCM, and our own, with
    or without the prefix that data parallelism leaves. Only tensors and plain values are
    unpickled: a file can not run code.

    Args:
        path: A file written by ``torch.save``.

    Returns:
        The weights on the CPU; a name that nobody knows is kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything but tensors and plain values, or no weights.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> weights = {"module.base_resnet.base.layer1.0.bn1.bias": torch.zeros(64)}
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "model_best.pth.tar")
        ...     torch.save({"state_dict": weights, "epoch": 49}, path)
        ...     list(read_weights(path))
        ['layer1.0.bn1.bias']
    """
    content = unpickled(Path(path))
    for name in _WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    found = content.items() if isinstance(content, dict) else ()
    weights = {
        ours: value
        for name, value in found
        if isinstance(name, str) and isinstance(value, Tensor)
        for ours in _renamed(name)
    }
    if not weights:
        raise ValueError(f"path must hold named weights, got none in {str(path)!r}")
    return weights


def _renamed(name: str) -> list[str]:
    name = re.sub(r"^(?:module\.)+", "", name)
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, name):
            return [match.expand(template) for template in ours]
    return [name]


def unpickled(path: Path) -> Any:
    """What a file holds, if that is tensors and plain values; nothing in it is run."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file, got {str(path)!r}")
    try:
        with _allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(
                "path must hold tensors and plain values only, "
                f"got {str(path)!r}, which asks for {refused[1]} and was not loaded"
            ) from None
        raise ValueError(
            f"path must be a whole file written by torch.save, got {str(path)!r}"
        ) from error


def _allowed() -> AbstractContextManager[None]:
    """NumPy's numbers, which the published programs save beside the weights, come to nothing."""
    safe_globals: Any = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    return safe_globals(_STAND_INS) if safe_globals else nullcontext()


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Load a file of weights into a network, all of them or none.

    ImageNet weights have neither neck nor non-local blocks: these stay as they are. Counters of
    batches, which old files lack, do too.

    Args:
        model: A two-stream network; changed in place.
        path: A file that ``read_weights`` reads.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If weights are missing, unknown or of another shape, each named; or if the
            file can not be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mmmlib.reference.models import TwoStreamCNN
        >>> first, second = TwoStreamCNN(dim=8), TwoStreamCNN(dim=8)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"model": first.state_dict(), "epoch": 3}, Path(folder, "last.pth"))
        ...     load_weights(second, Path(folder, "last.pth"))
        >>> torch.equal(first.neck.weight, second.neck.weight)
        True
    """
    _load(model, read_weights(path), path)


def _load(model: nn.Module, weights: dict[str, Tensor], path: str | PathLike[str]) -> None:
    own = model.state_dict()
    spared = ("num_batches_tracked",)
    kept = () if any(name.startswith("neck.") for name in weights) else ("neck.", "non_local.")
    problems = {
        "without": [
            name
            for name in own
            if name not in weights and not name.endswith(spared) and not name.startswith(kept)
        ],
        "with the unknown": [name for name in weights if name not in own],
        "with what is no finite number in": [
            name for name in own if name in weights and not _is_sound(weights[name], own[name])
        ],
        "with another shape of": [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    said = [f"{how} {_some(names)}" for how, names in problems.items() if names]
    if said:
        kind = type(model).__name__
        raise ValueError(
            f"path must hold the weights of a {kind}, got {str(path)!r} {' and '.join(said)}"
        )
    model.load_state_dict(own | weights)


def _is_sound(weight: Tensor, own: Tensor) -> bool:
    """Real where the network's are, and finite."""
    if own.is_floating_point() and not weight.is_floating_point():
        return False
    return bool(weight.isfinite().all())


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def load_resnet50(path: str | PathLike[str]) -> TwoStreamResNet50:
    """Make the two-stream ResNet-50 that a file was saved from.

    Whether it has non-local blocks, and of which form, is read from the file.

    Args:
        path: A file that ``read_weights`` reads.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not hold the weights of such a network.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "checkpoint.pth.tar")
        ...     torch.save({"model": TwoStreamResNet50(non_local="code").state_dict()}, path)
        ...     model = load_resnet50(path)
        >>> model.non_local["layer2"][0].theta.out_channels
        1
    """
    weights = read_weights(path)
    model = TwoStreamResNet50(non_local=_form(weights.get("non_local.layer2.0.theta.weight")))
    _load(model, weights, path)
    return model


def _form(theta: Tensor | None) -> Literal["paper", "code"] | None:
    if theta is None:
        return None
    return "code" if len(theta) == 1 else "paper"
