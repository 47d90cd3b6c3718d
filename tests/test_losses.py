import math
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import reference_losses as reference
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import losses as published
from mmmlib._types import ClusterMatch
from mmmlib.losses import (
    _discrepancy,
    _distances,
    batch_hard_triplet,
    class_mmd,
    cluster_nce,
    consistency_loss,
    mmd,
    modality_agnostic_nce,
    neighbor_loss,
    prototype_alignment,
    soft_cluster_alignment,
    soft_cross_entropy,
    weighted_triplet,
)

FORMS = ["paper", "code"]
LINE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
LINE_LABELS = torch.tensor([0, 0, 1, 1])


def make_batch(n=10, dtype=torch.float64):
    """Rows with everything a loss may want; two of them are noise, one stands alone."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.tensor([0, 3, 0, -1, 2, 3, 2, 0, 1, -1])[:n]
    targets = normal(n, 4).softmax(dim=1)
    targets[labels < 0] = 0
    return SimpleNamespace(
        logits=3 * normal(n, 4),
        other_logits=3 * normal(n, 4),
        features=normal(n, 3),
        other_features=normal(n, 3) + 0.5,
        prototypes=normal(4, 3),
        targets=targets,
        labels=labels,
        groups=torch.tensor([5, 5, 0, 0, 0, 7, 7, 5, -1, 9])[:n],
        mask=torch.rand(n, 4, generator=generator) < 0.4,
        weights=torch.rand(n, generator=generator, dtype=torch.float64).to(dtype),
    )


def batch_arrays(batch):
    return SimpleNamespace(**{name: value.numpy() for name, value in vars(batch).items()})


CALLS = {
    "cluster_nce": lambda b, **o: cluster_nce(b.logits, b.labels, **o),
    "soft_cross_entropy": lambda b, **o: soft_cross_entropy(b.logits, b.targets, **o),
    "modality_agnostic_nce": lambda b, **o: modality_agnostic_nce(
        b.logits, b.labels, b.groups, **o
    ),
    "consistency_loss": lambda b, **o: consistency_loss(b.logits, b.other_logits, **o),
    "prototype_alignment": lambda b, **o: prototype_alignment(
        b.features, b.labels, b.prototypes, **o
    ),
    "batch_hard_triplet": lambda b, **o: batch_hard_triplet(b.features, b.labels, **o),
    "weighted_triplet": lambda b, **o: weighted_triplet(b.features, b.labels, **o),
    "neighbor_loss": lambda b, **o: neighbor_loss(b.logits, b.mask, **o),
}
PAIR_CALLS = {
    "mmd": lambda b, **o: mmd(b.features, b.other_features, **o),
    "class_mmd": lambda b, **o: class_mmd(
        b.features, b.labels, b.other_features, b.labels.flip(0), **o
    ),
    "soft_cluster_alignment": lambda b, **o: soft_cluster_alignment(
        b.features, b.labels, b.prototypes, b.other_features, b.labels.flip(0), b.prototypes, **o
    ),
}
ALL_CALLS = CALLS | PAIR_CALLS
EXPECTED = {
    "cluster_nce": lambda b, *o: reference.cluster_nce(b.logits, b.labels, *o),
    "soft_cross_entropy": lambda b, *o: reference.soft_cross_entropy(b.logits, b.targets, *o),
    "modality_agnostic_nce": lambda b, w, form: reference.modality_agnostic_nce(
        b.logits, b.labels, b.groups, w
    ),
    "consistency_loss": lambda b, *o: reference.consistency_loss(b.logits, b.other_logits, *o),
    "prototype_alignment": lambda b, *o: reference.prototype_alignment(
        b.features, b.labels, b.prototypes, *o
    ),
    "batch_hard_triplet": lambda b, w, form: reference.batch_hard_triplet(
        b.features, b.labels, w, 0.3
    ),
    "weighted_triplet": lambda b, w, form: reference.weighted_triplet(b.features, b.labels, w),
    "neighbor_loss": lambda b, *o: reference.neighbor_loss(b.logits, b.mask, *o),
}
WITHOUT_FORM = {"modality_agnostic_nce", "batch_hard_triplet", "weighted_triplet", "mmd"}
WITH_FORM = sorted(set(ALL_CALLS) - WITHOUT_FORM)
PAIRS = torch.tensor([[0, 2], [0, 0], [1, 1], [3, 0], [2, 9], [3, 3]])
MORE_OPTIONS = {
    "batch_hard_triplet": {"margin": 0.05},
    "mmd": {"first_weights": "weights", "second_weights": "weights", "kernels": 2, "factor": 3.0},
    "class_mmd": {"visible_weights": "weights", "infrared_weights": "weights", "kernels": 2},
    "soft_cluster_alignment": {"visible_weights": "weights", "intra": 0.3, "inter": 0.7},
}
VARIANTS = [(name, {}) for name in ALL_CALLS]
VARIANTS += [(name, {"form": "code"}) for name in WITH_FORM]
VARIANTS += [(name, {"weights": "weights"}) for name in CALLS]
VARIANTS += list(MORE_OPTIONS.items())
VARIANTS += [
    (name, {**options, "pairs": PAIRS})
    for name in ("class_mmd", "soft_cluster_alignment")
    for options in ({}, {"form": "code"}, MORE_OPTIONS[name])
]
VARIANTS = [pytest.param(*pair, id="-".join([pair[0], *pair[1]])) for pair in VARIANTS]


def call(name, batch, options):
    """A loss with options, of which the weights are the batch's."""
    chosen = {key: batch.weights if key.endswith("weights") else v for key, v in options.items()}
    if "pairs" in chosen:
        chosen["pairs"] = chosen["pairs"].to(batch.labels.device)
    return ALL_CALLS[name](batch, **chosen)


INPUTS = ("logits", "other_logits", "features", "other_features")


def watch(batch):
    """Ask for the gradients of the rows."""
    for name in INPUTS:
        setattr(batch, name, getattr(batch, name).clone().requires_grad_())
    return [getattr(batch, name) for name in INPUTS]


def gradients(value, rows):
    found = torch.autograd.grad(value, rows, allow_unused=True)
    return [grad for grad in found if grad is not None]


def choose(batch, rows):
    kept = {k: v if k == "prototypes" else v[rows] for k, v in vars(batch).items()}
    return SimpleNamespace(**kept)


# Every loss: what it is


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_equals_the_loop_over_rows(name, form, weighted):
    batch = make_batch()
    options = {"weights": batch.weights} if weighted else {}
    options |= {} if name in WITHOUT_FORM else {"form": form}
    arrays = batch_arrays(batch)
    weights = arrays.weights if weighted else np.ones(len(arrays.weights))
    expected = EXPECTED[name](arrays, weights, form)
    assert expected > 0.01
    assert CALLS[name](batch, **options).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_has_the_gradient_of_its_value(name, form):
    batch = make_batch()
    options = {} if name in WITHOUT_FORM else {"form": form}
    fields = [field for field in ("logits", "other_logits", "features") if field in INPUTS]

    def value(*rows):
        changed = SimpleNamespace(**vars(batch) | dict(zip(fields, rows, strict=True)))
        return CALLS[name](changed, weights=batch.weights, **options)

    rows = [getattr(batch, field).requires_grad_() for field in fields]
    assert torch.autograd.gradcheck(value, rows)


def test_soft_targets_and_weights_have_gradients_too():
    batch = make_batch()
    inputs = [batch.logits[:3], batch.targets[:3] + 0.1, batch.weights[:3] + 0.1]
    assert torch.autograd.gradcheck(
        lambda logits, targets, weights: soft_cross_entropy(logits, targets, weights=weights),
        [value.clone().requires_grad_() for value in inputs],
    )


@pytest.mark.parametrize("name", [name for name in CALLS if "triplet" not in name])
def test_a_weight_of_zero_removes_the_row(name):
    batch = make_batch()
    batch.weights[[1, 3, 8]] = 0
    whole = CALLS[name](batch, weights=batch.weights)
    part = choose(batch, batch.weights > 0)
    assert whole.item() == pytest.approx(CALLS[name](part, weights=part.weights).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["batch_hard_triplet", "weighted_triplet"])
def test_a_weight_of_zero_removes_the_anchor_not_the_partner(name):
    batch = make_batch()
    weights = torch.zeros_like(batch.weights)
    weights[0] = 0.5
    rows = torch.cat([batch.features[:1], batch.features[batch.labels > 0]])
    labels = torch.tensor([0] + [1] * (len(rows) - 1))  # which negative is which does not matter
    rows = torch.cat([rows, batch.features[[2, 7]]])
    labels = torch.cat([labels, torch.tensor([0, 0])])
    alone = torch.zeros(len(rows), dtype=torch.float64)
    alone[0] = 3.0
    value = CALLS[name](SimpleNamespace(features=rows, labels=labels), weights=alone)
    assert CALLS[name](batch, weights=weights).item() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_only_proportions_of_weights_matter_in_the_paper_form(name):
    batch = make_batch()
    one, many = (CALLS[name](batch, weights=s * batch.weights) for s in (1.0, 1e-6))
    assert many.item() == pytest.approx(one.item(), rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(CALLS) - WITHOUT_FORM))
def test_lower_weights_lower_the_loss_in_the_code_form(name):
    batch = make_batch()
    plain = CALLS[name](batch, form="code")
    halved = CALLS[name](batch, weights=torch.full_like(batch.weights, 0.5), form="code")
    assert halved.item() == pytest.approx(plain.item() / 2, rel=1e-12)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_the_order_of_rows_does_not_matter(name):
    batch = make_batch()
    order = torch.tensor([3, 9, 0, 8, 1, 7, 2, 6, 5, 4])
    call = ALL_CALLS[name]
    if name in ("class_mmd", "soft_cluster_alignment"):
        batch.labels = torch.tensor([0, 1, 1, 0, -1, -1, 0, 1, 1, 0])  # the same backwards
        order = torch.tensor([3, 2, 1, 0, 5, 4, 9, 8, 7, 6])
    shuffled = choose(batch, order)
    assert call(shuffled).item() == pytest.approx(call(batch).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["cluster_nce", "prototype_alignment", "modality_agnostic_nce"])
def test_rows_of_noise_have_no_effect_and_no_gradient(name):
    batch = make_batch()
    rows = watch(batch)
    value = CALLS[name](batch)
    noise = batch.labels < 0
    for grad in gradients(value, rows):
        assert (grad[noise] == 0).all()
        assert (grad[batch.labels == 0] != 0).any()
    assert value.item() == pytest.approx(CALLS[name](choose(batch, ~noise)).item(), rel=1e-12)


# Every loss: inputs of any size and type


@pytest.mark.parametrize("name", ALL_CALLS)
def test_no_rows_cost_a_zero_with_a_gradient(name):
    batch = make_batch(0)
    rows = watch(batch)
    value = ALL_CALLS[name](batch)
    value.backward()
    assert value.item() == 0
    assert any(row.grad is not None for row in rows)


@pytest.mark.parametrize("name", sorted(set(ALL_CALLS) - {"mmd", "consistency_loss"}))
def test_noise_alone_costs_a_zero_with_a_zero_gradient(name):
    batch = make_batch()
    batch.labels[:], batch.targets[:], batch.mask[:] = -1, 0, False
    rows = watch(batch)
    value = ALL_CALLS[name](batch)
    assert value.item() == 0
    assert all((grad == 0).all() for grad in gradients(value, rows))


@pytest.mark.parametrize("weights", [0.0, 1e-30])
@pytest.mark.parametrize("form", FORMS)
def test_vanishing_weights_stay_finite(form, weights):
    batch = make_batch()
    value = cluster_nce(
        batch.logits, batch.labels, weights=weights * torch.ones_like(batch.weights), form=form
    )
    plain = cluster_nce(batch.logits, batch.labels).item()
    assert value.item() == pytest.approx(plain if form == "paper" and weights else 0, abs=1e-25)


def test_an_impossible_label_without_weight_costs_nothing():
    logits = torch.tensor([[-math.inf, 0.0], [1.0, 0.0]], requires_grad=True)
    labels, weights = torch.tensor([0, 0]), torch.tensor([0.0, 1.0])
    value = cluster_nce(logits, labels, weights=weights)
    assert value.item() == pytest.approx(cluster_nce(logits[1:], labels[1:]).item())
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("name", ALL_CALLS)
def test_arguments_stay_as_they_were(name):
    batch, untouched = make_batch(), make_batch()
    ALL_CALLS[name](batch)
    assert all(torch.equal(v, vars(untouched)[k]) for k, v in vars(batch).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL_CALLS)
def test_half_precision_is_computed_in_single_and_double_in_double(name, dtype):
    batch = make_batch(dtype=dtype)
    rows = watch(batch)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in vars(batch).items()}
    value = ALL_CALLS[name](batch)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = ALL_CALLS[name](SimpleNamespace(**exact)).item()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert all(grad.dtype == dtype and grad.isfinite().all() for grad in gradients(value, rows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL_CALLS)
def test_autocast_changes_nothing(name, dtype):
    batch = make_batch(dtype=torch.float32)
    rows = watch(batch)
    plain = ALL_CALLS[name](batch)
    expected = gradients(plain, rows)
    with torch.autocast("cpu", dtype=dtype):
        value = ALL_CALLS[name](batch)
        found = gradients(value, rows)
    assert value.item() == plain.item()
    pairs = zip(found, expected, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ALL_CALLS)
def test_large_rows_stay_finite(name, dtype):
    batch = make_batch(dtype=torch.float64)
    scale = 6e4 if dtype == torch.float16 else 1e15
    for field in INPUTS:
        rows = getattr(batch, field)
        setattr(batch, field, (scale * rows / rows.abs().max()).to(dtype))
    batch.prototypes, batch.targets = batch.prototypes.to(dtype), batch.targets.to(dtype)
    rows = watch(batch)
    value = ALL_CALLS[name](batch)
    assert math.isfinite(value.item())
    if dtype == torch.float32:
        assert all(grad.isfinite().all() for grad in gradients(value, rows))


@pytest.mark.parametrize("name", ["mmd", "class_mmd", "batch_hard_triplet", "weighted_triplet"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0])
def test_duplicates_stay_finite(name, scale):
    batch = make_batch()
    for field in ("features", "other_features"):
        rows = getattr(batch, field)
        setattr(batch, field, (scale * rows[:1]).expand_as(rows))
    batch.other_features = batch.features
    rows = watch(batch)
    value = ALL_CALLS[name](batch)
    assert value.item() == pytest.approx({"mmd": 0, "class_mmd": 0}.get(name, value.item()))
    assert math.isfinite(value.item())
    assert all(grad.isfinite().all() for grad in gradients(value, rows))


def become_zero(batch):
    for field in (*INPUTS, "prototypes"):
        getattr(batch, field).zero_()


def become_equal(batch):
    for field in INPUTS:
        rows = getattr(batch, field)
        setattr(batch, field, rows[:1].repeat(len(rows), 1))


def become_lonely(batch):
    batch.labels = torch.tensor([0, 1, 2, 3, -1, -1, -1, 3, -1, -1])  # few stand on both sides


def become_cold(batch):
    """Similarities at a temperature of 1e-3."""
    for field in ("logits", "other_logits"):
        setattr(batch, field, normalize(getattr(batch, field), dim=1) / 1e-3)


EXTREMES = [become_zero, become_equal, become_lonely, become_cold]
PRECISIONS = {
    "float32": (torch.float32, None),
    "float16": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "float16-autocast": (torch.float32, torch.float16),
    "bfloat16-autocast": (torch.float32, torch.bfloat16),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_extremes_stay_finite_in_any_precision(name, options, extreme, precision):
    dtype, autocast = PRECISIONS[precision]
    batch = make_batch()
    extreme(batch)
    typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in vars(batch).items()}
    batch = SimpleNamespace(**typed)
    rows = watch(batch)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        value = call(name, batch, options)
    assert math.isfinite(value.item())
    assert value.item() >= -1e-6
    found = gradients(value, rows)
    assert found
    assert all(grad.isfinite().all() for grad in found)


def test_equal_rows_have_no_gradient_whatever_the_classes():
    rows = torch.randn(2, 6, dtype=torch.float64).repeat_interleave(4, dim=0).requires_grad_()
    labels = torch.arange(2).repeat_interleave(4)
    for options in ({}, {"pairs": torch.tensor([[0, 0], [1, 1]])}):
        for group in (labels, torch.tensor([0] * 4 + [1])):  # a line each; all together
            some = rows[: len(group)]
            value = class_mmd(some, group, some.detach(), group, **options)
            assert value.item() == 0
            assert (torch.autograd.grad(value, rows)[0] == 0).all()


hooked = hasattr(cluster_nce, "__wrapped__")


def compile_call(name, batch, options, **compiler):
    torch.compiler.reset()
    return torch.compile(lambda: call(name, batch, options), fullgraph=True, **compiler)


@pytest.mark.skipif(hooked, reason="the type checker's wrappers are not compiled")
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_compiles_into_one_graph(name, options):
    batch = make_batch()
    rows = watch(batch)
    value, plain = compile_call(name, batch, options, backend="eager")(), call(name, batch, options)
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    for grad, expected in zip(gradients(value, rows), gradients(plain, rows), strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.slow
@pytest.mark.skipif(hooked, reason="the type checker's wrappers are not compiled")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler calls what is deprecated
def test_the_default_compiler_gives_the_same():
    batch = make_batch()
    rows = watch(batch)
    value, plain = compile_call("class_mmd", batch, {})(), call("class_mmd", batch, {})
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    for grad, expected in zip(gradients(value, rows), gradients(plain, rows), strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.skipif(hooked, reason="the type checker's wrappers are not compiled")
def test_a_label_without_a_column_counts_as_noise_in_a_compiled_graph():
    batch = make_batch()
    compiled = torch.compile(cluster_nce, fullgraph=True, backend="eager")
    labels = torch.where(batch.labels < 0, 4, batch.labels)
    value = compiled(batch.logits, labels)
    assert value.item() == pytest.approx(cluster_nce(batch.logits, batch.labels).item(), rel=1e-12)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_values_are_read_on_the_cpu_only(name, options):
    """Tensors without values stand for a device that would have to synchronise."""
    batch = SimpleNamespace(**{k: v.to("meta") for k, v in vars(make_batch()).items()})
    rows = watch(batch)
    value = call(name, batch, options)
    assert value.shape == ()
    assert value.device.type == "meta"
    assert gradients(value, rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_gpu_gives_the_same_without_a_synchronisation(name, options):
    batch = make_batch(dtype=torch.float32)
    rows = watch(batch)
    expected = call(name, batch, options)
    on_gpu = SimpleNamespace(**{k: v.detach().cuda() for k, v in vars(batch).items()})
    gpu_rows = watch(on_gpu)
    options = {k: v.cuda() if k == "pairs" else v for k, v in options.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = call(name, on_gpu, options)
        found = gradients(value, gpu_rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, other in zip(found, gradients(expected, rows), strict=True):
        torch.testing.assert_close(grad.cpu(), other, rtol=1e-4, atol=1e-6)


# Contrast and consistency


def test_alternate_cross_contrast_is_the_contrast_of_matched_labels():
    """PGM: infrared rows with the memory of the visible clusters they were matched to."""
    batch = make_batch()
    to_infrared, to_visible = torch.tensor([2, -1, 0, 1]), torch.tensor([2, 3, 0, -1])
    matched = torch.zeros(4, 4, dtype=torch.bool)
    matched[[0, 2, 3], [2, 0, 1]] = True
    match = ClusterMatch(to_infrared, to_visible, matched, torch.zeros(4, 4), torch.ones(4, 4))
    value = cluster_nce(batch.logits, match.to_visible_labels(batch.labels))
    kept = (batch.labels >= 0) & (batch.labels != 3)  # infrared cluster 3 has no partner
    expected = cluster_nce(batch.logits[kept], to_visible[batch.labels[kept]])
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_cluster_nce_of_two_clusters_by_hand():
    logits = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64) / 0.05
    first, second = (
        cluster_nce(logits[:1], torch.tensor([label]), weights=None).item() for label in (0, 1)
    )
    assert (first, second) == pytest.approx((4.018150, 0.018150), abs=1e-6)
    both = cluster_nce(logits, torch.tensor([0, 1]))
    assert both.item() == pytest.approx((first + second) / 2)


def test_a_certain_soft_label_is_a_label():
    batch = make_batch()
    targets = torch.zeros(10, 4, dtype=torch.float64)
    known = batch.labels >= 0
    targets[known, batch.labels[known]] = 1
    for form in FORMS:
        soft = soft_cross_entropy(batch.logits, targets, weights=batch.weights, form=form)
        hard = cluster_nce(batch.logits, batch.labels, weights=batch.weights, form=form)
        assert soft.item() == pytest.approx(hard.item(), rel=1e-12)


def test_impossible_clusters_without_mass_cost_nothing():
    logits = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0]]))
    expected = soft_cross_entropy(logits[:, :2], torch.tensor([[0.5, 0.5]]))
    assert loss.item() == pytest.approx(expected.item())
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.isfinite().all()


def test_one_group_is_the_plain_contrast():
    batch = make_batch()
    groups = torch.full_like(batch.groups, 3)
    agnostic = modality_agnostic_nce(batch.logits, batch.labels, groups, weights=batch.weights)
    plain = cluster_nce(batch.logits, batch.labels, weights=batch.weights)
    assert agnostic.item() == pytest.approx(plain.item(), rel=1e-12)


def test_groups_count_the_same_whatever_their_size():
    batch = make_batch()
    groups = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2, 2, 2])
    means = [cluster_nce(batch.logits[groups == g], batch.labels[groups == g]) for g in range(3)]
    value = modality_agnostic_nce(batch.logits, batch.labels, groups)
    assert 3 * value.item() == pytest.approx(sum(means).item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_consistency_of_two_logits_by_hand(form):
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    value = consistency_loss(first.double(), second.double(), form=form)
    assert value.item() == pytest.approx(0.917783, abs=1e-6)


def test_consistency_is_symmetric_and_zero_for_equals():
    batch = make_batch()
    there = consistency_loss(batch.logits, batch.other_logits)
    back = consistency_loss(batch.other_logits, batch.logits)
    assert there.item() == pytest.approx(back.item(), rel=1e-12)
    assert consistency_loss(batch.logits, batch.logits + 7).item() == pytest.approx(0, abs=1e-12)


def test_only_the_paper_form_moves_confident_rows():
    first = torch.tensor([[100.0, 0.0]], requires_grad=True)
    second = torch.tensor([[0.0, 100.0]])
    values, grads = [], []
    for form in FORMS:
        values.append(consistency_loss(first, second, form=form))
        grads.append(torch.autograd.grad(values[-1], first)[0].abs().max().item())
    assert [value.item() for value in values] == pytest.approx([100, 27.631], abs=1e-3)
    assert grads == pytest.approx([0.5, 0.0])


def test_consistency_allows_columns_that_are_impossible_for_both():
    first = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    second = torch.tensor([[0.0, 2.0, -math.inf]])
    value = consistency_loss(first, second)
    assert value.item() == pytest.approx(0.917783, abs=1e-6)
    assert torch.autograd.grad(value, first)[0].isfinite().all()


@pytest.mark.parametrize(("form", "expected"), [("paper", 0.758624), ("code", 0.505749)])
def test_neighbor_loss_by_hand(form, expected):
    logits = torch.tensor([[2.0, 0.0, 2.0]], dtype=torch.float64)  # log(2 + exp(-2)) = 0.758624
    mask = torch.tensor([[True, False, True]])
    assert neighbor_loss(logits, mask, form=form).item() == pytest.approx(expected, abs=1e-6)


def test_only_the_code_form_of_neighbor_loss_has_an_upper_end():
    logits, mask = torch.tensor([[0.0, 100.0]]), torch.tensor([[True, False]])
    paper, code = (neighbor_loss(logits, mask, form=form).item() for form in FORMS)
    assert (paper, code) == pytest.approx((100, -math.log(1e-8) / 2))


# Alignment


def test_prototype_alignment_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    labels, weights = torch.tensor([0, 1, -1]), torch.tensor([0.5, 0.25, 1.0])
    paper, code = (
        prototype_alignment(features, labels, torch.zeros(2, 2), weights=weights, form=form).item()
        for form in FORMS
    )
    assert paper == pytest.approx((0.5 * 1 + 0.25 * 9) / 0.75)
    assert code == pytest.approx((0.5 * 0.5 + 0.25 * 1.5) / 2)


def test_prototypes_are_constants():
    batch = make_batch()
    prototypes = batch.prototypes.requires_grad_()
    value = prototype_alignment(batch.features.requires_grad_(), batch.labels, prototypes)
    assert torch.autograd.grad(value, prototypes, allow_unused=True) == (None,)


def test_alignment_without_prototypes_is_zero():
    labels = torch.tensor([-1, -1])
    value = prototype_alignment(torch.ones(2, 3), labels, torch.zeros(0, 3))
    assert value.item() == 0


def test_mmd_by_hand():
    first = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    second = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    assert mmd(first, second).item() == pytest.approx(2.356389, abs=1e-6)


@pytest.mark.parametrize(("kernels", "factor"), [(5, 2.0), (1, 2.0), (2, 3.0), (3, 1.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_mmd_of_uneven_sets_equals_the_double_sum(weighted, kernels, factor):
    batch = make_batch()
    first, second = batch.features[:4], batch.other_features
    weights = (batch.weights[:4], batch.weights.flip(0)) if weighted else (None, None)
    value = mmd(
        first,
        second,
        first_weights=weights[0],
        second_weights=weights[1],
        kernels=kernels,
        factor=factor,
    )
    arrays = [None if w is None else w.numpy() for w in weights]
    expected = reference.mmd(first.numpy(), second.numpy(), *arrays, kernels=kernels, factor=factor)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def slope(function, rows, step=1e-6):
    """Central differences, entry by entry."""
    found = np.zeros_like(rows)
    for index in np.ndindex(*rows.shape):
        up, down = rows.copy(), rows.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found


def test_the_gradient_of_mmd_is_that_at_a_fixed_bandwidth():
    batch = make_batch()
    first, second = batch.features[:4], batch.other_features[:3]
    x, y = first.numpy().copy(), second.numpy().copy()
    scale = reference.mean_distance(x, y, np.ones(4), np.ones(3))
    rows = first.requires_grad_(), second.requires_grad_()
    grads = torch.autograd.grad(mmd(*rows), rows)
    expected = (
        slope(lambda rows: reference.mmd(rows, y, scale=scale), x),
        slope(lambda rows: reference.mmd(x, rows, scale=scale), y),
    )
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad.numpy(), other, atol=1e-8)


def test_mmd_of_a_set_with_itself_is_zero_in_any_order():
    rows = make_batch().features
    assert mmd(rows, rows.flip(0)).item() == pytest.approx(0, abs=1e-14)


def test_mmd_does_not_depend_on_scale():
    batch = make_batch()
    plain = mmd(batch.features, batch.other_features).item()
    for scale in (1e-3, 1e6):
        scaled = mmd(scale * batch.features, scale * batch.other_features).item()
        assert scaled == pytest.approx(plain, rel=1e-8)


@pytest.mark.parametrize("name", ["mmd", "class_mmd", "batch_hard_triplet", "weighted_triplet"])
def test_distances_keep_their_digits_far_from_the_origin(name):
    batch = make_batch()
    plain = ALL_CALLS[name](batch).item()
    batch.features, batch.other_features = 1e6 + batch.features, 1e6 + batch.other_features
    assert ALL_CALLS[name](batch).item() == pytest.approx(plain, rel=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_class_mmd_equals_the_loop_over_classes(form):
    batch = make_batch()
    labels = torch.tensor([0, 7, 0, -1, 7, 7, 4, -1, 9, 0])
    other = torch.tensor([7, 7, 0, 0, 9, -1, 3, 0, 0, 7])  # 4 and 3 stand on one side only
    value = class_mmd(batch.features, labels, batch.other_features, other, form=form)
    expected = reference.class_mmd(
        batch.features.numpy(), labels.numpy(), batch.other_features.numpy(), other.numpy(),
        form=form,
    )  # fmt: skip
    assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2, 2], [1, 7, 1, 1], [10]])
def test_class_mmd_does_not_depend_on_how_even_the_classes_are(sizes):
    batch = make_batch()
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    value = class_mmd(batch.features, labels, batch.other_features, labels)
    expected = reference.class_mmd(
        batch.features.numpy(), labels.numpy(), batch.other_features.numpy(), labels.numpy()
    )
    assert value.item() == pytest.approx(expected, rel=1e-10)


# How it is computed


@pytest.fixture(params=["lines", "together"])
def path(request, monkeypatch):
    """Class by class where labels are read, and without reading, as on a GPU."""
    if request.param == "together":
        monkeypatch.setattr(_discrepancy, "_may_read", lambda rows: False)
    return request.param


def small_batch(**sizes):
    return published.make_batch(published.Configuration(threads=1, clusters=64, images=9, **sizes))


@pytest.mark.parametrize("name", ["class_mmd", "soft_cluster_alignment"])
def test_a_tenth_of_the_published_form_is_kept_for_backward(name, path):
    batch = small_batch(classes=16, instances=8, dim=1024)
    loss = published.LOSSES[name]
    kept = [published.kept_bytes(form, batch) for form in (loss.ours, loss.plain)]
    assert 0 < 10 * kept[0] <= kept[1]


def test_even_classes_keep_less_than_all_pairs_of_rows():
    batch = small_batch(classes=64, instances=2, dim=2)
    assert 0 < published.kept_bytes(published.LOSSES["class_mmd"].ours, batch) < 256 * 256 * 8


class CountOperations(TorchDispatchMode):
    """How many operations run, views included."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", published.LOSSES)
def test_the_number_of_operations_does_not_grow_with_the_batch(name, path):
    counts = []
    for classes in (2, 16):
        batch = small_batch(classes=classes, instances=3, dim=8)
        with CountOperations() as operations:
            published.LOSSES[name].ours(batch).backward()
        counts.append(operations.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", published.LOSSES)
def test_the_published_form_has_the_same_value_and_gradients(name, path):
    batch = small_batch(classes=5, instances=3, dim=8)
    ours, plain, tolerance = published.LOSSES[name]
    values = ours(batch), plain(batch)
    assert values[0].item() == pytest.approx(values[1].item(), rel=tolerance)
    grads = [torch.autograd.grad(value, batch[:5], allow_unused=True) for value in values]
    for grad, expected in zip(*grads, strict=True):
        if expected is not None:
            torch.testing.assert_close(grad, expected, rtol=0, atol=tolerance)


def test_the_benchmark_says_what_each_loss_takes_and_keeps(monkeypatch):
    monkeypatch.setattr(published, "SECONDS", 0.0)
    tiny = published.Configuration(
        torch.get_num_threads(), classes=2, instances=2, dim=8, clusters=5, images=9, repeats=1
    )
    record = published.run(tiny)
    assert list(record["losses"]) == list(published.LOSSES)
    assert all(part["ours"]["seconds"] > 0 for part in record["losses"].values())
    lines = published.table([record]).splitlines()
    assert lines[0].startswith("**2 classes x 2 images of each modality, width 8, 5 clusters")
    assert sum(line.startswith("| `") for line in lines) == len(published.LOSSES)
    assert len(published.describe(record).splitlines()) >= 1 + len(published.LOSSES)
    assert published.table([]) == "No runs.\n"


def test_squared_distances_have_first_and_second_derivatives():
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for lines in (None, torch.tensor([[0, 2], [4, 1]])):
        assert torch.autograd.gradcheck(_distances.squared_distances, (rows, lines))
        assert torch.autograd.gradgradcheck(_distances.squared_distances, (rows, lines))


def test_kernel_sums_have_first_and_second_derivatives():
    squared = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    rates, amounts = -torch.rand(2, 3, 5).double(), torch.rand(2, 3, 5).double()
    assert torch.autograd.gradcheck(_distances.kernel_sum, (squared, rates, amounts))
    assert torch.autograd.gradgradcheck(_distances.kernel_sum, (squared, rates, amounts))


def test_sums_of_discrepancies_have_the_gradient_at_a_fixed_bandwidth(path, monkeypatch):
    def fixed(spread, rest, kernels):
        return torch.tensor([-0.4, -1.1], dtype=torch.float64).expand(*spread.shape, 2)

    monkeypatch.setattr(_discrepancy, "_rates", fixed)
    batch = make_batch()
    inputs = batch.features, batch.other_features, batch.weights, batch.weights.flip(0)
    sizes = _discrepancy.Kernels(2, 2.0)

    def total(rows, others, weights, other_weights, pairs=None):
        sides = (
            _discrepancy.Side(rows, batch.labels, weights),
            _discrepancy.Side(others, batch.labels.flip(0), other_weights),
        )
        if pairs is None:
            return _discrepancy.of_labels(*sides, sizes)[0]
        return _discrepancy.of_pairs(*sides, pairs, sizes)[0]

    inputs = [value.requires_grad_() for value in inputs]
    for pairs in (None, PAIRS):
        assert torch.autograd.gradcheck(partial(total, pairs=pairs), inputs)
        assert torch.autograd.gradgradcheck(partial(total, pairs=pairs), inputs)


@pytest.mark.parametrize("options", [{}, {"pairs": PAIRS}])
def test_small_blocks_change_nothing(options, path, monkeypatch):
    batch = make_batch()
    rows = watch(batch)
    whole = call("class_mmd", batch, options)
    expected = gradients(whole, rows)
    monkeypatch.setattr(_distances, "BLOCK", 1)
    monkeypatch.setattr(_distances, "LIMIT", 1)
    value = call("class_mmd", batch, options)
    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    for grad, other in zip(gradients(value, rows), expected, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("sizes", [[1, 9], [2, 3, 5]])
@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_uneven_classes_equal_the_loop(sizes, form, path):
    batch = make_batch()
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rows = batch.features, labels, batch.other_features, labels.flip(0) + 1
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2], [2, 2], [1, 7]])
    value = class_mmd(*rows, pairs=pairs, form=form)
    expected = reference.class_mmd(*(row.numpy() for row in rows), pairs.tolist(), form=form)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_many_to_many_pairs_stand_all_against_all():
    batch = make_batch()
    labels = torch.tensor([0, 1, 0, -1, 2, 1, 2, 0, 1, 3])
    other = torch.tensor([5, 5, 6, 6, 0, 0, -1, 5, 7, 8])
    pairs = torch.tensor([[0, 5], [0, 6], [1, 5], [2, 0], [3, 1], [9, 5]])
    for form in FORMS:
        rows = batch.features, labels, batch.other_features, other
        value = class_mmd(*rows, pairs=pairs, form=form)
        expected = reference.class_mmd(*(row.numpy() for row in rows), pairs.tolist(), form=form)
        assert value.item() == pytest.approx(expected, rel=1e-10)


def test_pairs_of_equal_labels_are_the_default():
    batch = make_batch()
    rows = batch.features, batch.labels, batch.other_features, batch.labels
    pairs = torch.arange(4)[:, None].expand(4, 2)
    options = {"visible_weights": batch.weights, "infrared_weights": batch.weights.flip(0)}
    plain, paired = class_mmd(*rows, **options), class_mmd(*rows, pairs=pairs, **options)
    assert paired.item() == pytest.approx(plain.item(), rel=1e-12)


@pytest.mark.parametrize("pairs", [[], [[0, 1]], [[-1, -1]], [[0, -1]]])
def test_no_pair_in_the_batch_costs_a_zero_with_a_gradient(pairs):
    batch = make_batch()
    visible = batch.features.requires_grad_()
    labels, other = torch.tensor([0, -1] * 5), torch.full((10,), -1)
    value = class_mmd(
        visible, labels, batch.other_features, other,
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
    )  # fmt: skip
    assert value.item() == 0
    assert (torch.autograd.grad(value, visible)[0] == 0).all()


def test_swapping_the_modalities_swaps_the_gradients():
    batch = make_batch()
    rows = batch.features.requires_grad_(), batch.other_features.requires_grad_()
    labels = batch.labels
    there = torch.autograd.grad(class_mmd(rows[0], labels, rows[1], labels), rows)
    back = torch.autograd.grad(class_mmd(rows[1], labels, rows[0], labels), rows)
    for one, other in zip(there, back, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("form", "value_factor", "gradient_factor"), [("paper", 1, 0.5),
                                                                     ("code", 2, 1)])  # fmt: skip
def test_each_modality_moves_towards_the_other_held_still(form, value_factor, gradient_factor):
    batch = make_batch()
    rows = batch.features.requires_grad_(), batch.other_features.requires_grad_()
    labels = torch.zeros(10, dtype=torch.int64)
    value = class_mmd(rows[0], labels, rows[1], labels, form=form)
    plain = mmd(*rows)
    assert value.item() == pytest.approx(value_factor * plain.item(), rel=1e-12)
    for grad, attached in zip(
        torch.autograd.grad(value, rows), torch.autograd.grad(plain, rows), strict=True
    ):
        torch.testing.assert_close(grad, gradient_factor * attached)


def test_class_weights_are_those_of_mmd():
    batch = make_batch()
    labels = torch.full_like(batch.labels, 6)
    weights = batch.weights, batch.weights.flip(0)
    rows = batch.features, labels, batch.other_features, labels
    value = class_mmd(*rows, visible_weights=weights[0], infrared_weights=weights[1])
    expected = mmd(
        batch.features, batch.other_features, first_weights=weights[0], second_weights=weights[1]
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("paired", [False, True])
def test_soft_alignment_is_the_sum_of_its_parts(form, paired):
    batch = make_batch()
    pairs = torch.tensor([[0, 2], [1, 1], [3, 0]]) if paired else None
    labels, other = batch.labels, batch.labels.flip(0)
    value = soft_cluster_alignment(
        batch.features, labels, batch.prototypes,
        batch.other_features, other, 2 * batch.prototypes,
        visible_weights=batch.weights, infrared_weights=batch.weights.flip(0),
        intra=0.3, inter=0.7, pairs=pairs, form=form,
    )  # fmt: skip
    visible = prototype_alignment(
        batch.features, labels, batch.prototypes, weights=batch.weights, form=form
    )
    infrared = prototype_alignment(
        batch.other_features, other, 2 * batch.prototypes, weights=batch.weights.flip(0), form=form
    )
    between = class_mmd(batch.features, labels, batch.other_features, other, pairs=pairs, form=form)
    expected = 0.3 * (visible + infrared) + 0.7 * between
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


# Triplets


def test_triplets_on_a_line_by_hand():
    assert batch_hard_triplet(LINE, LINE_LABELS, margin=0.2).item() == pytest.approx(0.05)
    assert weighted_triplet(LINE, LINE_LABELS).item() == pytest.approx(0.246929, abs=1e-6)


def test_far_negatives_keep_their_weights():
    far = 10 * LINE
    expected = reference.weighted_triplet(far.numpy(), LINE_LABELS.numpy(), np.ones(4))
    assert weighted_triplet(far, LINE_LABELS).item() == pytest.approx(expected, rel=1e-5)
    assert expected < 1  # with lost negatives, as published, it is 15


@pytest.mark.parametrize("loss", [batch_hard_triplet, weighted_triplet])
def test_a_row_of_noise_is_neither_anchor_nor_partner(loss):
    noisy = torch.cat([LINE, torch.tensor([[1.5, 0.1]], dtype=torch.float64)]).requires_grad_()
    value = loss(noisy, torch.cat([LINE_LABELS, torch.tensor([-1])]))
    assert value.item() == pytest.approx(loss(LINE, LINE_LABELS).item(), rel=1e-12)
    assert (torch.autograd.grad(value, noisy)[0][-1] == 0).all()


@pytest.mark.parametrize("loss", [batch_hard_triplet, weighted_triplet])
def test_one_cluster_alone_has_no_triplet(loss):
    rows = LINE.clone().requires_grad_()
    value = loss(rows, torch.zeros(4, dtype=torch.int64))
    assert value.item() == 0
    assert (torch.autograd.grad(value, rows)[0] == 0).all()


def test_a_row_alone_in_its_cluster_keeps_the_others_away():
    rows = torch.tensor([[0.0], [0.1]], requires_grad=True)
    value = batch_hard_triplet(rows, torch.tensor([0, 1]), margin=0.3)
    assert value.item() == pytest.approx(0.2, abs=1e-5)
    grad = torch.autograd.grad(value, rows)[0]
    assert grad[0] > 0 > grad[1]


# The published implementations

ROWS = {"hard_m02": 0.2, "hard_m03": 0.3}


@pytest.mark.parametrize("key", ROWS)
def test_batch_hard_triplet_is_the_recorded_one(tensors, key):
    record = tensors("triplet")
    inputs = record["inputs"].requires_grad_()
    value = batch_hard_triplet(inputs, record["targets"], margin=ROWS[key])
    assert value.item() == pytest.approx(record[f"{key}_loss"].item(), rel=1e-6)
    (grad,) = torch.autograd.grad(value, inputs)
    torch.testing.assert_close(grad, record[f"{key}_grad"], rtol=0, atol=5e-8)


def test_weighted_triplet_of_unit_rows_is_the_recorded_one(tensors):
    record = tensors("triplet")
    inputs = record["inputs"].requires_grad_()
    value = weighted_triplet(normalize(inputs, dim=1), record["targets"])
    assert value.item() == pytest.approx(record["wrt_norm_loss"].item(), rel=5e-5)
    (grad,) = torch.autograd.grad(value, inputs)
    torch.testing.assert_close(grad, record["wrt_norm_grad"], rtol=0, atol=1e-6)


def test_the_code_form_of_consistency_is_the_recorded_one(tensors):
    record = tensors("symmetric_kl")
    inputs = record["pred"].requires_grad_(), record["label"].requires_grad_()
    value = consistency_loss(*inputs, form="code")
    assert value.item() == pytest.approx(record["value"].item(), rel=1e-6)
    grads = torch.autograd.grad(value, inputs)
    for grad, name in zip(grads, ("grad_pred", "grad_label"), strict=True):
        torch.testing.assert_close(grad, record[name], rtol=0, atol=2e-7)


def test_mmd_is_the_recorded_one(tensors):
    record = tensors("mmd")
    inputs = record["source"].requires_grad_(), record["target"].requires_grad_()
    value = mmd(*inputs)
    assert value.item() == pytest.approx(record["value"].item(), abs=2e-6)
    grads = torch.autograd.grad(value, inputs)
    for grad, name in zip(grads, ("grad_source", "grad_target"), strict=True):
        torch.testing.assert_close(grad, record[name], rtol=0, atol=1e-7)


def test_the_code_form_of_class_mmd_over_two_views_is_the_recorded_one(tensors):
    record = tensors("mmd_classwise")
    names, label = ("rgb1", "rgb2", "ir"), record["label"]
    first, second, infrared = inputs = [record[name].requires_grad_() for name in names]
    value = record["md_w"] * (
        class_mmd(first, label, infrared, label, form="code")
        + class_mmd(second, label, infrared, label, form="code")
    )
    expected = (record["loss_rgb"] + record["loss_ir"]).item()
    assert value.item() == pytest.approx(expected, abs=1e-6)
    for grad, name in zip(torch.autograd.grad(value, inputs), names, strict=True):
        torch.testing.assert_close(grad, record[f"grad_{name}"], rtol=0, atol=1e-8)


def mmm_alignment(record, features, labels, trust, **weights):
    """Two calls, one a view; the infrared part counts once."""
    first, second, infrared = features.split(len(labels))
    sides = (first, "prototype_v1", trust[0]), (second, "prototype_v2", trust[1])
    return sum(
        soft_cluster_alignment(
            visible, labels, record[name], infrared, labels, record["prototype_r"],
            visible_weights=weight, infrared_weights=trust[2], form="code", **weights,
        )
        for visible, name, weight in sides
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mmm_step_epoch0", "mmm_step_epoch3"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_whole_training_step_of_mmm_is_the_recorded_one(tensors, name, number):
    record = tensors(name)
    features = record["features"][number].requires_grad_()
    logits = record["logits"][number].requires_grad_()
    labels, trust = record["labels"][number], record["prob"][number]
    intra = record["sm_w"].item() / 2 if record["epoch"] else 0.0  # from epoch 1 on
    inter = record["md_w"].item()

    identity = cluster_nce(logits, labels.repeat(3), weights=trust.flatten(), form="code")
    triplet = batch_hard_triplet(features, labels.repeat(3), margin=record["margin"].item())
    within = mmm_alignment(record, features, labels, trust, intra=intra, inter=0.0)
    between = mmm_alignment(record, features, labels, trust, intra=0.0, inter=inter)
    total = (
        identity
        + triplet
        + mmm_alignment(record, features, labels, trust, intra=intra, inter=inter)
    )

    def expected(*keys):
        return pytest.approx(sum(record[key][number].item() for key in keys), rel=1e-5)

    assert identity.item() == expected("loss_id")
    assert triplet.item() == expected("loss_tri")
    assert within.item() == expected("loss_sm_rgb", "loss_sm_ir")
    assert between.item() == expected("loss_md_rgb", "loss_md_ir")
    assert total.item() == expected("loss_total")
    grads = torch.autograd.grad(total, (features, logits))
    for grad, key in zip(grads, ("grad_features", "grad_logits"), strict=True):
        torch.testing.assert_close(grad, record[key][number], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["mmm_step_epoch0", "mmm_step_epoch3"])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_the_prototypes_after_the_epoch_divide_by_the_count(tensors, name, side):
    """Trust times feature, over the number of images: the recorded, shrunken means."""
    record = tensors(name)
    key = ("v1", "v2", "r")[side]
    labels = record["labels"].flatten()
    features = record["features"].reshape(2, 3, 20, -1)[:, side].flatten(0, 1)
    trust = record["prob"][:, side].flatten()
    expected = record[f"prototype_{key}"].double()
    for label in labels.unique():
        rows = labels == label
        expected[label] = (trust[rows, None] * features[rows]).mean(dim=0)
    after = record[f"prototype_after_{key}"]
    torch.testing.assert_close(expected.float(), after, rtol=0, atol=2e-6)


# Errors


def refuses(message, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


ROW, LABEL = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("name", WITH_FORM)
def test_errors_of_an_unknown_form(name):
    with refuses("form must be 'paper' or 'code', got 'book'"):
        ALL_CALLS[name](make_batch(), form="book")


@pytest.mark.parametrize("name", CALLS)
def test_errors_of_weights(name):
    batch = make_batch()
    with refuses(
        "weights must be a floating-point tensor of shape (10,), got torch.float64 of shape (9,)"
    ):
        CALLS[name](batch, weights=batch.weights[:9])
    batch.weights[4] = -1
    with refuses("weights must be finite and 0 or above, got -1.0"):
        CALLS[name](batch, weights=batch.weights)


def test_errors_of_arrays():
    hint = "torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    with refuses(f"logits must be a {hint}", TypeError):
        cluster_nce(np.zeros((3, 2)), LABEL)
    with refuses(f"labels must be a {hint}", TypeError):
        cluster_nce(ROW, np.zeros(3))
    with refuses(f"infrared must be a {hint}", TypeError):
        class_mmd(ROW, LABEL, np.zeros((3, 2)), LABEL)
    with refuses(f"neighbors_mask must be a {hint}", TypeError):
        neighbor_loss(ROW, np.zeros((3, 2)))


def test_errors_of_labels():
    with refuses("labels must be an int64 tensor of shape (3,), got torch.int32 of shape (3,)"):
        cluster_nce(ROW, LABEL.int())
    with refuses("labels must be -1 or above, got -2"):
        batch_hard_triplet(ROW, LABEL - 2)
    with refuses("labels must be below the number of clusters 2, got 2"):
        cluster_nce(ROW, LABEL + 2)
    with refuses("labels must be below the number of clusters 2, got 2"):
        modality_agnostic_nce(ROW, LABEL + 2, LABEL)
    with refuses("groups must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)"):
        modality_agnostic_nce(ROW, LABEL, LABEL[:2])
    with refuses("labels must be below the number of clusters 0, got 0"):
        prototype_alignment(ROW, LABEL, ROW[:0])
    with refuses("infrared_labels must be below the number of clusters 3, got 3"):
        soft_cluster_alignment(ROW, LABEL, ROW, ROW, LABEL + 3, ROW)
    with refuses(
        "visible_labels must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)"
    ):
        soft_cluster_alignment(ROW, LABEL[:2], ROW, ROW, LABEL, ROW)


def test_errors_of_shapes():
    with refuses("logits and targets must have the same shape, got logits (3, 2), targets (2, 2)"):
        soft_cross_entropy(ROW, ROW[:2])
    with refuses(
        "first and second must have the same number of columns, got first (3, 2), second (3, 1)"
    ):
        consistency_loss(ROW, ROW[:, :1])
    with refuses(
        "features must be a floating-point tensor (n, dim), got torch.int64 of shape (3,)"
    ):
        weighted_triplet(LABEL, LABEL)
    with refuses(
        "visible and infrared must have the same number of columns, "
        "got visible (3, 2), infrared (3, 1)"
    ):
        class_mmd(ROW, LABEL, ROW[:, :1], LABEL)
    with refuses(
        "infrared and infrared_prototypes must have the same number of columns, "
        "got infrared (3, 2), infrared_prototypes (3, 1)"
    ):
        soft_cluster_alignment(ROW, LABEL, ROW, ROW, LABEL, ROW[:, :1])
    with refuses("neighbors_mask must be a bool tensor of shape (3, 2), "
                 "got torch.float32 of shape (3, 2)"):  # fmt: skip
        neighbor_loss(ROW, ROW)
    with refuses("pairs must be an int64 tensor of shape (pairs, 2), "
                 "got torch.int64 of shape (3,)"):  # fmt: skip
        class_mmd(ROW, LABEL, ROW, LABEL, pairs=LABEL)


def test_errors_of_devices():
    elsewhere = LABEL.to("meta")
    with refuses("features and labels must be on one device, got features on cpu, labels on meta"):
        weighted_triplet(ROW, elsewhere)
    with refuses("visible and pairs must be on one device, got visible on cpu, pairs on meta"):
        class_mmd(ROW, LABEL, ROW, LABEL, pairs=elsewhere)


def test_errors_of_numbers():
    with refuses("margin must be in [0, inf), got -0.1"):
        batch_hard_triplet(ROW, LABEL, margin=-0.1)
    with refuses("intra must be in [0, inf), got -1"):
        soft_cluster_alignment(ROW, LABEL, ROW, ROW, LABEL, ROW, intra=-1)
    with refuses("kernels must be a whole number of at least 1, got 0"):
        mmd(ROW, ROW, kernels=0)
    with refuses("factor must be in (0, inf), got 0"):
        class_mmd(ROW, LABEL, ROW, LABEL, factor=0)
