"""What holds for every public name, whatever it computes: see ``contract_cases``."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from contract_cases import CASES, MODULES, OPTED_OUT, SIZES, Case
from torch import Tensor

from mmmlib._types import ClusterMatch, JaccardGraph
from mmmlib.confidence import NeighborConfidence

SENTENCE = re.compile(
    r"^[\w\[\]().,='-]+( and [\w\[\]()]+| weights| or \w+)*( of the \w+ images)? must .+, got .+",
    re.DOTALL,
)
REFUSED = (TypeError, ValueError)

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def leaves(value: Any) -> Iterator[Any]:
    """Tensors and plain values inside tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def mapped(change: Any, value: Any) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(value, dict):
        return {key: mapped(change, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [mapped(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value) if isinstance(value, Tensor) else value


def plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def same(first: Any, second: Any, tolerance: float = 0.0) -> None:
    """Integers, masks and words are equal; floats too, or nearly."""
    left, right = list(leaves(first)), list(leaves(second))
    assert len(left) == len(right)
    for one, other in zip(map(plain, left), map(plain, right), strict=True):
        if isinstance(one, (float, Tensor)) and tolerance:
            one, other = torch.as_tensor(one), torch.as_tensor(other)
            if one.is_floating_point():
                scale = one[one.isfinite()].abs().max().item() if one.isfinite().any() else 1.0
                torch.testing.assert_close(
                    one.double(), other.double(), rtol=tolerance, atol=tolerance * scale,
                    equal_nan=True,
                )  # fmt: skip
                continue
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        else:
            assert one == other


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def words_of(case: Case, name: str) -> tuple[list[str], str]:
    """The axes of a tensor, and the kind of its values."""
    words = case.axes[name].split()
    kind = words.pop() if words and words[-1].startswith(":") else ""
    return words, kind


# Names


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_case_or_a_reason_for_having_none(module: str) -> None:
    home = importlib.import_module(f"mmmlib.{module}")
    cased = {name.split(" ")[0] for name in CASES}
    for name in home.__all__:
        full = f"{module}.{name}"
        assert (full in cased) != (full in OPTED_OUT), full


def test_nobody_is_opted_out_without_a_reason_or_after_having_left() -> None:
    for name, reason in OPTED_OUT.items():
        module, _, public = name.rpartition(".")
        assert public in importlib.import_module(f"mmmlib.{module}").__all__
        assert len(reason.split()) > 2


def test_all_modules_that_anybody_imports_are_looked_at() -> None:
    import mmmlib

    root = mmmlib.__path__[0]
    found = {"cli", "_types"}
    for path in sorted(importlib.resources.files("mmmlib").iterdir()):
        name = path.name.removesuffix(".py")
        if not name.startswith("_") and name not in ("py.typed", "reference"):
            found.add(name)
    for path in sorted((importlib.resources.files("mmmlib") / "reference").iterdir()):
        name = path.name.removesuffix(".py")
        if not name.startswith("_"):
            found.add(f"reference.{name}")
    assert found == set(MODULES), root


# Results


@every_case
def test_arguments_stay_as_they_are(case: Case) -> None:
    given = case.tensors()
    before = mapped(torch.clone, given)
    versions = [leaf._version for leaf in leaves(given) if isinstance(leaf, Tensor)]
    case.run(given)
    same(given, before)
    after = [leaf._version for leaf in leaves(given) if isinstance(leaf, Tensor)]
    assert after == versions


@every_case
def test_results_are_the_same_again_and_for_one_thread_and_for_two(case: Case) -> None:
    given, threads = case.tensors(), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            found.append(case.run(given))
    finally:
        torch.set_num_threads(threads)
    same(found[0], found[1])
    same(found[0], found[2])


TILES = {
    "mmmlib.neighbors": ("ROW_TILE", "COLUMN_TILE", "LOOK_BYTES"),
    "mmmlib.matching._transfer": ("_ROW_TILE", "_COLUMN_TILE", "_BLOCK"),
    "mmmlib.matching._propagation": ("_BLOCK",),
    "mmmlib.evaluation._search": ("BLOCK", "TILE", "DEPTH"),
    "mmmlib.losses._distances": ("LIMIT", "BLOCK"),
    "mmmlib.memory._update": ("_CHUNK",),
}


@every_case
@pytest.mark.parametrize("size", [1, 3, 7])
def test_results_are_the_same_for_any_tile(
    case: Case, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case.tensors()
    expected = case.run(given)
    for module, names in TILES.items():
        for name in names:
            monkeypatch.setattr(f"{module}.{name}", size)
    monkeypatch.setattr("mmmlib.matching._costs.TILE", (size, size))
    same(expected, case.run(given), 1e-6)


def strided(value: Tensor) -> Tensor:
    """The same values, every second of a larger tensor, the last axis laid out first."""
    if not value.ndim:
        return value
    wide = value.new_zeros([2 * n for n in reversed(value.shape)])
    view = wide[tuple([slice(1, None, 2)] * value.ndim)].permute(*reversed(range(value.ndim)))
    view.copy_(value)
    return view


@every_case
def test_results_are_the_same_for_strided_input(case: Case) -> None:
    given = case.tensors()
    same(case.run(given), case.run(mapped(strided, given)), 2e-6)


def permuted(value: Tensor, axes: list[str], kind: str, orders: dict[str, Tensor]) -> Tensor:
    """The tensor after its axes, and what its values count, were reordered."""
    for dim, axis in enumerate(axes):
        if axis in orders:
            value = value.index_select(dim, orders[axis])
    if kind[1:] in orders:
        place = torch.cat([orders[kind[1:]].argsort(), torch.tensor([-1])])
        value = place[value]
    return value


def renumbered(labels: Tensor) -> Tensor:
    """Labels by their first appearance, along the last axis."""
    if labels.ndim > 1:
        return torch.stack([renumbered(row) for row in labels])
    seen: dict[int, int] = {-1: -1}
    return torch.tensor([seen.setdefault(int(label), len(seen) - 1) for label in labels])


def interleaved(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order in which the rows of each label stay in theirs."""
    order = torch.randperm(len(labels), generator=generator)
    for label in labels.unique():
        places = (labels[order] == label).nonzero()[:, 0]
        order[places] = order[places].sort().values
    return order


def movable(case: Case) -> list[str]:
    axes = {axis for name in case.axes for axis in words_of(case, name)[0]}
    return sorted(axes - set(case.still.split()) - {"_", "d", "k"})


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items() if any(case.axes.values())]
)
@pytest.mark.parametrize("seed", range(3))
def test_reordered_rows_give_the_reordered_result(case: Case, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given = case.tensors(seed)
    parts = [words_of(case, name) for name in given]
    sizes = {
        axis: value.shape[dim]
        for (axes, _), value in zip(parts, given.values(), strict=True)
        for dim, axis in enumerate(axes)
    }
    sizes |= {kind[1:]: SIZES[kind[1:]] for _, kind in parts if kind[1:] in SIZES} | sizes
    moved = set(movable(case)) | ({kind[1:] for _, kind in parts if kind[1:] in SIZES})
    moved -= set(case.still.split())
    orders = {axis: torch.randperm(sizes[axis], generator=generator) for axis in sorted(moved)}
    if case.still == "n" and case.axes.get("labels") == "n :c":
        orders["n"] = interleaved(given["labels"], generator)
    changed = {
        name: permuted(value, *part, orders)
        for (name, value), part in zip(given.items(), parts, strict=True)
    }
    expected, found = (list(leaves(case.run(part))) for part in (given, changed))
    tensors = [
        (one, other)
        for one, other in zip(expected, found, strict=True)
        if isinstance(one, Tensor) or not isinstance(other, (Tensor, str))
    ]
    kept = [pair for pair in tensors if isinstance(pair[0], Tensor)]
    for (one, other), words in zip(kept, case.out, strict=False):
        if words is None:
            continue
        axes = words.split()
        kind = axes.pop() if axes and axes[-1].startswith(":") else ""
        wanted = permuted(one, axes, kind, orders)
        if kind == ":label":
            wanted, other = renumbered(wanted), renumbered(other)
        same(wanted, other, 2e-5)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_gives_what_float64_gives(case: Case, dtype: torch.dtype) -> None:
    given = mapped(lambda value: value.to(dtype) if is_float(value) else value, case.tensors())
    wide = mapped(lambda value: value.double() if is_float(value) else value, given)
    found, expected = case.run(given), case.run(wide)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        if is_float(one):
            assert one.dtype in (torch.float32, torch.float64, dtype)
            torch.testing.assert_close(
                one.double(), other.double(), rtol=2e-3 if one.dtype == dtype else 1e-4,
                atol=max(1e-5, torch.finfo(one.dtype).eps * 4),
            )  # fmt: skip
        else:
            same(one, other, 1e-4)


@every_case
def test_input_that_requires_a_gradient_is_taken(case: Case) -> None:
    given = case.tensors()
    want = {
        name: value.detach().clone().requires_grad_() if is_float(value) else value
        for name, value in given.items()
    }
    found = case.run(want)
    same(case.run(given), found)
    losses = [leaf for leaf in leaves(found) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if losses and all(loss.isfinite().all() for loss in losses):
        sum(loss.sum() for loss in losses).backward()
        for value in want.values():
            if is_float(value) and value.grad is not None:
                assert value.grad.isfinite().all()


# Odd rows


def rows_of(case: Case, given: dict[str, Any]) -> list[str]:
    """The tensors of features: floats of at least two axes whose values have no bounds."""
    return [
        name
        for name, value in given.items()
        if is_float(value) and value.ndim > 1 and not words_of(case, name)[1]
    ]


every_case_with_rows = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if rows_of(case, case.tensors())],
)


def _first(value: Any, row: Any) -> Tensor:
    changed = value.clone()
    changed[0] = row
    return changed


ODD = {
    "a zero row": lambda value: _first(value, 0.0),
    "zeros": torch.zeros_like,
    "duplicates": lambda value: value[:1].expand_as(value).clone(),
    "huge rows": lambda value: value * 1e30,
    "tiny rows": lambda value: value * 1e-30,
    "a huge row": lambda value: _first(value, 1e30),
    "a tiny row": lambda value: _first(value, 1e-30),
}


def answered(case: Case, given: dict[str, Any]) -> Any:
    """The result, or None where the input is refused by a sentence."""
    try:
        return case.run(given)
    except REFUSED as error:
        if not SENTENCE.match(str(error)):
            raise
        return None


def sound(case: Case, found: Any, like: Any) -> None:
    """No nan, no infinity that means nothing, and types as ever."""
    for one, other in zip(leaves(found), leaves(like), strict=False):
        if isinstance(one, (Tensor, float)):
            number = torch.as_tensor(one)
            assert not number.isnan().any()
            assert case.infinite or number.isfinite().all()
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype


@every_case_with_rows
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_odd_rows_give_a_sound_result(case: Case, odd: Any) -> None:
    given = case.tensors()
    rows = rows_of(case, given)
    like = case.run(given)
    found = answered(case, given | {name: odd(given[name]) for name in rows})
    if found is not None:
        sound(case, found, like)


@every_case_with_rows
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_refused_or_shows(case: Case, bad: float) -> None:
    given = case.tensors()
    for name in rows_of(case, given):
        changed = given[name].clone()
        changed[: max(1, len(changed) - 1)] = bad
        found = answered(case, given | {name: changed})
        leaves_out = {"c d", "c _ d", "m d"} & set(case.out)  # a memory does, as documented
        if found is None or case.forbids or leaves_out or not case.out:
            continue
        floats = [leaf for leaf in leaves(found) if is_float(leaf)]
        assert "reference.augment" in case.of.__module__ or any(
            not part.isfinite().all() for part in floats
        ), name


def shortened(case: Case, given: dict[str, Any], axis: str, n: int) -> dict[str, Any]:
    """The first n along an axis; numbers of what is gone become 0 or nothing."""
    changed = {}
    for name, value in given.items():
        axes, kind = words_of(case, name)
        for dim, each in enumerate(axes):
            if each == axis:
                value = value.narrow(dim, 0, n)
        if kind == f":{axis}":
            value = value.clamp(max=n - 1)
        elif kind.startswith(":") and kind[1:] in SIZES and axis in axes and case.fitted:
            value = value.clamp(max=0)
        changed[name] = value
    return changed


@every_case
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows_give_a_sound_result(case: Case, n: int) -> None:
    given = case.tensors()
    axes = {axis for name in given for axis in words_of(case, name)[0]}
    like = case.run(given)
    for axis in sorted(axes - set("dhw_") - {"k"}):
        found = answered(case, shortened(case, given, axis, n))
        if found is not None:
            sound(case, found, like)


# Bad input


def wrong(case: Case, name: str, value: Any, others: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a tensor must not be."""
    yield "an array", value.numpy()
    yield "a list", value.tolist()
    yield "a word", "features"
    yield "another device", value.to("meta")
    yield "an axis more", value[None].expand(2, *value.shape)
    if value.ndim:
        yield "an axis less", value[..., 0]
    if not value.is_floating_point():
        for dtype in (torch.int32, torch.uint8, torch.float32, torch.complex64):
            yield str(dtype), value.to(dtype)
    else:
        for dtype in (torch.int64, torch.bool, torch.complex64):
            yield str(dtype), value.to(dtype)
        yield "sparse", value.to_sparse()
    axes, kind = words_of(case, name)
    if any(axes[:1] == words_of(case, other)[0][:1] for other in others) and axes[0] != "_":
        yield "a row more", torch.cat([value, value[:1]])
    if kind == ":label" or kind[1:] in SIZES:
        yield "a label below -1", _first(value, -2)
    if kind[1:] in SIZES:
        yield "a label beyond what can be numbered", _first(value, 2**40)
    if kind[1:] in SIZES and case.fitted:
        yield "a gap", value.masked_fill(value == 1, 77)


RECORDS = (JaccardGraph, ClusterMatch, NeighborConfidence)  # their fields are no options
PRIVATE = ("rows",)  # tensors of a case that have another name where they are given
UNNAMED = ("a row more", "an axis more")  # then another tensor may be at fault


@pytest.mark.parametrize("name", CASES)
def test_errors_of_every_tensor_are_a_sentence_about_it(name: str) -> None:
    case = CASES[name]
    given = case.tensors()
    silent, opaque = [], []
    for argument, value in given.items():
        if not isinstance(value, Tensor):
            continue
        others = {key: part for key, part in given.items() if key != argument}
        for what, bad in wrong(case, argument, value, others):
            try:
                case.run(given | {argument: bad})
            except REFUSED as error:
                said = str(error)
                named = argument in said or what in UNNAMED or argument in PRIVATE
                if not SENTENCE.match(said) or not named:
                    opaque.append((argument, what, repr(error)[:150]))
                elif what == "an array" and "torch.from_numpy" not in said:
                    opaque.append((argument, what, said))
            except Exception as error:  # noqa: BLE001
                opaque.append((argument, what, repr(error)[:150]))
            else:
                if not {what, f"{what} {argument}"} & set(case.takes):
                    silent.append((argument, what))
    assert not opaque, "\n".join(map(str, opaque))
    assert not silent, "\n".join(map(str, silent))


ODD_KINDS = {  # of an option, by a word of its annotation
    "Generator": [0, "generator"],
    "ProcessGroup": ["world", 3, [1]],
    "ClusterMatch": [3, "match", torch.ones(3, 3)],
    "JaccardGraph": ["word", 3, [1.0], np.zeros(3), torch.zeros(2, 3, 4, 5), torch.zeros(99), True],
    "Tensor": ["word", 3, [1.0], np.zeros(3), torch.zeros(2, 3, 4, 5), torch.zeros(99), True],
}


def choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) or (annotation,)


def bad_options(parameter: inspect.Parameter) -> list[Any]:
    """Values that an option must refuse."""
    kinds = choices(parameter.annotation)
    if "Sequence" in str(parameter.annotation):
        return [float("nan"), True, "3", ["3"]]
    none = [] if type(None) in kinds or parameter.default is None else [None]
    if any(isinstance(kind, str) for kind in kinds) or any(
        isinstance(inner, str) for kind in kinds for inner in choices(kind)
    ):
        return ["no such word", 3, ["paper"], *none]
    if int in kinds:
        return [-1, 2.5, "3", float("nan"), True, [1], *none]
    if float in kinds:
        return ["0.5", float("nan"), [0.5], True, *none]
    if bool in kinds and len(kinds) == 1:
        return ["yes", 1, float("nan"), [True], torch.tensor(True), None]
    if parameter.annotation is str:
        return [3, float("nan"), ["Flat"], None]
    odd = next(values for word, values in ODD_KINDS.items() if word in str(parameter.annotation))
    return odd if type(None) in kinds else [*odd, None]


def options_of(name: str) -> list[inspect.Parameter]:
    """What is not a tensor of the case, unless its fields or its network are."""
    case = CASES[name]
    return [
        parameter
        for option, parameter in inspect.signature(case.of).parameters.items()
        if option not in case.tensors()
        and not parameter.kind.name.startswith("VAR")
        and case.of not in RECORDS
        and "Module" not in str(parameter.annotation)
    ]


@pytest.mark.parametrize("name", CASES)
def test_every_option_has_values_that_it_must_refuse(name: str) -> None:
    for parameter in options_of(name):
        assert len(bad_options(parameter)) > 1


@pytest.mark.parametrize("name", CASES)
def test_errors_of_every_option_are_a_sentence_about_it(name: str) -> None:
    case = CASES[name]
    given = case.tensors()
    silent, opaque = [], []
    for parameter in options_of(name):
        option = parameter.name
        for bad in bad_options(parameter):
            try:
                case.run(given, **{option: bad})
            except REFUSED as error:
                if not SENTENCE.match(str(error)) or option not in str(error):
                    opaque.append((option, bad, repr(error)[:150]))
            except Exception as error:  # noqa: BLE001
                opaque.append((option, bad, repr(error)[:150]))
            else:
                silent.append((option, bad))
    assert not opaque, "\n".join(map(str, opaque))
    assert not silent, "\n".join(map(str, silent))


def test_errors_tell_an_array_how_to_become_a_tensor() -> None:
    from mmmlib.clustering import cluster_features

    with pytest.raises(TypeError, match=r"torch\.from_numpy"):
        cluster_features(np.zeros((4, 2), np.float32))
