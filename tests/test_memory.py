import copy
import math
import pickle
import re

import numpy as np
import pytest
import reference_memory as reference
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from mmmlib._types import SubPrototypes
from mmmlib.losses import neighbor_loss
from mmmlib.memory import (
    ClusterMemory,
    InstanceMemory,
    MultiMemory,
    _banks,
    _update,
    update_memory,
)

RULES = ["sequential", "hardest", "mean"]
REDUCTIONS = ["max", "mean", "logsumexp"]
RECORDINGS = ["cm", "cm_m02", "cm_hard", "cm_hard_m02"]


def make_batch(n=40, clusters=6, dim=5, dtype=torch.float64, seed=0):
    """Unit memories, rows of any norm, labels with repeats, noise and a cluster without rows."""
    generator = torch.Generator().manual_seed(seed)
    memory = normalize(torch.randn(clusters, dim, generator=generator, dtype=torch.float64))
    features = 3 * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, clusters - 1, (n,), generator=generator)
    return memory.to(dtype), features.to(dtype), labels


def make_sub_prototypes(clusters=4, memories=3, dim=5, dtype=torch.float64):
    """Memories of any norm; memory 1 of every other cluster is not real."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(clusters, memories, dim, generator=generator, dtype=torch.float64)
    weights = torch.ones(clusters, memories, dtype=torch.float64) / memories
    weights[::2, 1] = 0
    return SubPrototypes(values.to(dtype), weights.to(dtype))


def update_elsewhere(
    memory, features, labels, *, momentum, rule="sequential", threshold=None, **extra
):
    """``update_memory`` by the way that a GPU goes."""
    bank = memory.clone()
    step = _update.Step(momentum, rule, threshold)
    _update._write_in_torch(bank, _update.Batch(features, labels, **extra), step)
    return bank


HOOKED = hasattr(update_memory, "__wrapped__")
COMPILED = pytest.mark.skipif(HOOKED, reason="the type checker's wrappers are not compiled")
WAYS = pytest.mark.parametrize("update", [update_memory, update_elsewhere])


def update_by_hand(batch, **options):
    memory, features, labels = (part.numpy() for part in batch)
    options = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    return torch.from_numpy(reference.update_memory(memory, features, labels, **options))


# update_memory


def test_two_rows_of_one_cluster_by_hand():
    memory = torch.tensor([[1.0, 0.0]])
    features, labels = torch.tensor([[0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0])
    first = update_memory(memory, features[:1], labels[:1], momentum=0.1)
    assert first[0].tolist() == pytest.approx([0.110432, 0.993884], abs=1e-6)
    both = update_memory(memory, features, labels, momentum=0.1)
    assert both[0].tolist() == pytest.approx([0.558050, 0.829807], abs=1e-6)
    hardest = update_memory(memory, features, labels, momentum=0.1, rule="hardest")
    assert hardest[0].tolist() == pytest.approx([0.110432, 0.993884], abs=1e-6)
    mean = update_memory(memory, features, labels, momentum=0.5, rule="mean")
    expected = normalize(torch.tensor([[1.0, 0.0]]) + normalize(torch.tensor([[0.3, 0.9]])))
    assert torch.allclose(mean, expected)


@WAYS
@pytest.mark.parametrize("options", ["plain", "weights", "threshold", "weights and threshold"])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_loop_over_rows(rule, momentum, options, update):
    for seed in range(3):
        batch = make_batch(seed=seed)
        chosen = {"momentum": momentum, "rule": rule}
        if "weights" in options:
            weights = torch.rand(40, dtype=torch.float64)
            weights[::7] = 0
            weights[3] = 1
            chosen["weights"] = weights
        if "threshold" in options:
            chosen["threshold"] = 0.2
        found = update(*batch, **chosen)
        assert found.dtype == torch.float64
        assert torch.allclose(found, update_by_hand(batch, **chosen), atol=1e-12)


@WAYS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threshold", [None, -0.2])
def test_groups_count_alike_however_many_rows_they_have(threshold, weighted, update):
    batch = make_batch()
    groups = torch.randint(-1, 3, (40,))
    weights = torch.rand(40, dtype=torch.float64) if weighted else None
    options = {
        "momentum": 0.2, "rule": "mean", "groups": groups, "threshold": threshold,
        "weights": weights,
    }  # fmt: skip
    found = update(*batch, **options)
    assert torch.allclose(found, update_by_hand(batch, **options), atol=1e-12)


@WAYS
@pytest.mark.parametrize("extra", ["plain", "weights", "threshold", "groups"])
@pytest.mark.parametrize("rule", RULES)
def test_soft_labels_count_a_row_once_for_each_of_its_clusters(rule, extra, update):
    memory, features, _ = make_batch()
    shares = torch.rand(40, 6, dtype=torch.float64) * (torch.rand(40, 6) > 0.5)
    shares[:, 4] = 0
    options = {"momentum": 0.1, "rule": rule}
    if extra == "weights":
        options["weights"] = torch.rand(40, dtype=torch.float64).round(decimals=1)
    if extra == "threshold":
        options["threshold"] = 0.1
    if extra == "groups" and rule == "mean":
        options["groups"] = torch.randint(-1, 3, (40,))
    arrays = {k: v.numpy() if torch.is_tensor(v) else v for k, v in options.items()}
    expected = reference.update_soft(memory.numpy(), features.numpy(), shares.numpy(), **arrays)
    found = update(memory, features, shares, **options)
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-12)
    assert torch.equal(found[4], memory[4])
    assert not torch.isclose(found[:4], memory[:4]).all(dim=1).any()


@WAYS
@pytest.mark.parametrize("rule", RULES)
def test_soft_labels_that_are_hard_are_labels(rule, update):
    memory, features, labels = make_batch()
    soft = torch.nn.functional.one_hot(labels + 1, 7)[:, 1:].double()
    found = update(memory, features, soft.requires_grad_(), momentum=0.1, rule=rule)
    expected = update_memory(memory, features, labels, momentum=0.1, rule=rule)
    assert torch.allclose(found, expected, atol=1e-14)
    assert not found.requires_grad


@WAYS
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.2, 0.3, 0.5, 0.99])
def test_sixty_rows_of_one_cluster_stay_within_a_millionth_of_float64(momentum, update):
    memory, features, labels = make_batch(n=200, clusters=4, dim=64, dtype=torch.float32)
    found = update(memory, features, labels, momentum=momentum)
    exact = reference.update_memory(memory.numpy(), features.numpy(), labels.numpy(), momentum)
    assert abs(found.numpy() - exact).max() < 5e-7


@pytest.mark.parametrize("momentum", [0.1, 0.2, 0.3])
def test_what_a_gpu_passes_over_is_forgotten(momentum):
    """Rows opposite to the memory, which hold on to it longest."""
    rounds = _update._felt(momentum, 1e-9)
    assert rounds < {0.1: 12, 0.2: 22, 0.3: 80}[momentum]
    rows = torch.randn(rounds, 3, dtype=torch.float64)
    rows[1:, 1:] *= 1e-3
    labels = torch.zeros(rounds, dtype=torch.int64)
    for _ in range(5):
        far = normalize(torch.randn(2, 3, dtype=torch.float64))
        first, second = (update_memory(far[i : i + 1], rows, labels, momentum=momentum)
                         for i in range(2))  # fmt: skip
        assert (first - second).abs().max() <= 1e-9


class Calls(TorchDispatchMode):
    """How many operations reach the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_on_a_gpu_no_value_is_waited_for(rule, soft):
    memory, features, labels = make_batch()
    if soft:
        labels = torch.rand(40, 6)
    with FakeTensorMode() as mode:  # tensors without values
        parts = [mode.from_tensor(part) for part in (memory, features, labels)]
        update_elsewhere(*parts, momentum=0.1, rule=rule)


def test_on_a_gpu_the_number_of_launches_depends_on_sizes_and_momentum_only():
    memory, features, labels = make_batch(dtype=torch.float32)
    counts = []
    for chosen in (labels, torch.zeros_like(labels), torch.full_like(labels, -1)):
        with Calls() as calls:
            update_elsewhere(memory, features, chosen, momentum=0.1)
        counts.append(calls.count)
    assert len(set(counts)) == 1
    features, labels = features.repeat(20, 1), labels.repeat(20)
    with Calls() as calls:
        update_elsewhere(memory, features, labels, momentum=0.1)
    assert calls.count == counts[0]
    with Calls() as calls:
        update_elsewhere(memory, features, labels, momentum=0.1, threshold=0.0)
    assert calls.count > 2 * counts[0]


@WAYS
@pytest.mark.parametrize("rule", RULES)
def test_layout_does_not_matter(rule, update):
    memory, features, labels = make_batch(dtype=torch.float32)
    weights = torch.rand(40)
    expected = update(memory, features, labels, momentum=0.1, rule=rule, weights=weights)
    found = update(
        memory.T.contiguous().T, features.T.contiguous().T, labels.repeat_interleave(2)[::2],
        momentum=0.1, rule=rule, weights=weights.repeat_interleave(2)[::2],
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_the_number_of_threads_does_not_matter():
    memory, features, labels = make_batch(2000, clusters=9, dim=600, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found += [update_memory(memory, features, labels, momentum=0.1, rule=rule)
                      for rule in RULES]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(found[:3], found[3:], strict=True):
        assert torch.equal(first, second)


def test_group_means_by_hand():
    memory = torch.tensor([[0.0, 0.0, 1.0]])
    features = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0], [0, 2.0, 0]])
    labels, groups = torch.zeros(4, dtype=torch.int64), torch.tensor([7, 7, 7, 2])
    found = update_memory(memory, features, labels, momentum=0.0, rule="mean", groups=groups)
    assert torch.allclose(found, torch.tensor([[math.sqrt(0.5), math.sqrt(0.5), 0.0]]))
    without = update_memory(memory, features, labels, momentum=0.0, rule="mean")
    assert torch.allclose(without, normalize(torch.tensor([[3.0, 1.0, 0.0]])))


@WAYS
@pytest.mark.parametrize("rule", RULES)
def test_rows_left_out_do_not_count(rule, update):
    memory, features, labels = make_batch()
    features[::5] = torch.tensor([1.0, math.nan, 0, 0, 0], dtype=torch.float64)
    features[1::5] = math.inf
    features[2::5] = 0
    kept = (torch.arange(40) % 5 >= 3) & (labels >= 0)
    found = update(memory, features, labels, momentum=0.1, rule=rule)
    expected = update_memory(memory, features[kept], labels[kept], momentum=0.1, rule=rule)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, memory)


def test_rows_of_group_minus_one_are_left_out():
    memory, features, labels = make_batch()
    groups = torch.arange(40) % 3 - 1
    found = update_memory(memory, features, labels, momentum=0.1, rule="mean", groups=groups)
    labels[groups < 0] = -1
    expected = update_memory(
        memory, features, labels, momentum=0.1, rule="mean", groups=groups + 10
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_memories_without_a_row_keep_every_bit_and_the_others_have_norm_one(rule, dtype):
    memory, features, labels = make_batch(dtype=dtype)
    labels[labels == 2] = -1
    found = update_memory(memory, features, labels, momentum=0.3, rule=rule)
    untouched = ~torch.isin(torch.arange(len(memory)), labels)
    assert untouched.sum() == 2
    assert torch.equal(found[untouched], memory[untouched])
    assert not torch.isclose(found[~untouched], memory[~untouched]).all(dim=1).any()
    norms = torch.linalg.vector_norm(found, dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_momentum_one_keeps_every_bit(rule):
    memory, features, labels = make_batch(dtype=torch.float32)
    assert torch.equal(update_memory(memory, features, labels, momentum=1, rule=rule), memory)


def test_momentum_zero_forgets_the_old_memory():
    memory, features, labels = make_batch()
    other = normalize(torch.randn_like(memory))
    touched = labels[labels >= 0].unique()
    for rule in ("sequential", "mean"):
        found = update_memory(memory, features, labels, momentum=0, rule=rule)
        again = update_memory(other, features, labels, momentum=0, rule=rule)
        assert torch.allclose(found[touched], again[touched])
    last = update_memory(memory, features, labels, momentum=0)
    for label in touched.tolist():
        row = features[(labels == label).nonzero()[-1, 0]]
        assert torch.allclose(last[label], row / row.norm())


@WAYS
@pytest.mark.parametrize("rule", RULES)
def test_a_row_opposite_to_its_memory_does_not_erase_it(rule, update):
    memory = torch.eye(2, dtype=torch.float64)
    found = update(memory, -memory[:1], torch.tensor([0]), momentum=0.5, rule=rule)
    assert torch.equal(found, memory)


@WAYS
def test_rows_that_cancel_do_not_erase_their_memory(update):
    rows = torch.tensor([[1.0, 0], [-1.0, 0]])
    found = update(torch.eye(2), rows, torch.tensor([1, 1]), momentum=0, rule="mean")
    assert torch.equal(found, torch.eye(2))


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch_or_bank_changes_nothing(rule):
    memory, features, labels = make_batch()
    options = {"momentum": 0.1, "rule": rule}
    assert torch.equal(update_memory(memory, features[:0], labels[:0], **options), memory)
    noise = torch.full_like(labels, -1)
    assert torch.equal(update_memory(memory, features, noise, **options), memory)
    assert torch.equal(update_elsewhere(memory, features, noise, **options), memory)
    assert update_memory(memory[:0], features, noise, **options).shape == (0, 5)
    if rule == "mean":
        found = update_memory(memory, features, noise, groups=noise, **options)
        assert torch.equal(found, memory)


@pytest.mark.parametrize("rule", RULES)
def test_only_the_order_inside_a_cluster_matters(rule):
    memory, features, labels = make_batch()
    found = update_memory(memory, features, labels, momentum=0.1, rule=rule)
    order = labels.argsort(stable=True, descending=True)
    assert not torch.equal(order, torch.arange(len(order)))
    by_label = update_memory(memory, features[order], labels[order], momentum=0.1, rule=rule)
    assert torch.allclose(found, by_label, atol=1e-14)
    reverse = update_memory(memory, features.flip(0), labels.flip(0), momentum=0.1, rule=rule)
    assert torch.allclose(found, reverse, atol=1e-12) == (rule != "sequential")


@WAYS
def test_hardest_takes_the_first_of_equally_similar_rows(update):
    rows = torch.tensor([[0.0, 1, 0], [0.0, 0, 1]])
    memory, labels = torch.tensor([[1.0, 0, 0]]), torch.tensor([0, 0])
    for order in ([0, 1], [1, 0]):
        found = update(memory, rows[order], labels, momentum=0.0, rule="hardest")
        assert torch.equal(found[0], rows[order[0]])


def test_the_sequential_threshold_looks_at_the_memory_as_it_moves():
    memory = torch.tensor([[1.0, 0.0]])
    rows, labels = torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0])
    options = {"momentum": 0.1, "threshold": 0.5}
    once = update_memory(memory, rows[:1], labels[:1], **options)
    assert not torch.equal(once, memory)
    twice = update_memory(memory, rows, labels, **options)
    assert torch.equal(twice, update_memory(once, rows[1:], labels[1:], **options))
    assert not torch.equal(twice, once)
    assert torch.equal(update_memory(memory, rows.flip(0), labels, **options), once)


@WAYS
@pytest.mark.parametrize("rule", RULES)
def test_a_row_has_to_exceed_the_threshold(rule, update):
    memory, rows, label = torch.eye(2)[:1], torch.eye(2)[1:], torch.tensor([0])
    options = {"momentum": 0.1, "rule": rule}
    assert torch.equal(update(memory, rows, label, threshold=0.0, **options), memory)
    moved = update(memory, rows, label, threshold=-0.01, **options)
    assert torch.equal(moved, update(memory, rows, label, **options))
    assert not torch.equal(moved, memory)


def test_weight_zero_is_no_update_and_weight_one_a_whole_one():
    memory, features, labels = make_batch()
    for rule in RULES:
        options = {"momentum": 0.1, "rule": rule}
        ones, zeros = torch.ones(40), torch.zeros(40)
        plain = update_memory(memory, features, labels, **options)
        weighted = update_memory(memory, features, labels, weights=ones, **options)
        assert torch.equal(weighted, plain)
        assert torch.equal(
            update_memory(memory, features, labels, weights=zeros, **options), memory
        )


@pytest.mark.parametrize("rule", RULES)
def test_rows_keep_their_direction_at_any_scale(rule):
    memory, features, labels = make_batch(dtype=torch.float32)
    expected = update_memory(memory, features, labels, momentum=0.1, rule=rule)
    for scale in (1e-30, 1e30):
        found = update_memory(memory, features * scale, labels, momentum=0.1, rule=rule)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_low_precision_rows_move_a_float32_memory(rule, dtype):
    memory, features, labels = make_batch(dtype=torch.float32)
    low = features.to(dtype)
    found = update_memory(memory, low, labels, momentum=0.1, rule=rule)
    assert found.dtype == torch.float32
    expected = update_memory(memory, low.float(), labels, momentum=0.1, rule=rule)
    assert torch.equal(found, expected)
    assert update_memory(memory.to(dtype), low, labels, momentum=0.1).dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
def test_update_memory_leaves_its_arguments_alone(rule):
    memory, features, labels = make_batch()
    features.requires_grad_()
    weights, groups = torch.rand(40), torch.arange(40) % 2
    parts = [memory, features, labels, weights, groups]
    copies = [part.detach().clone() for part in parts]
    options = {"groups": groups} if rule == "mean" else {}
    found = update_memory(
        memory, features, labels, momentum=0.1, rule=rule, weights=weights, threshold=0.1, **options
    )
    for part, kept in zip(parts, copies, strict=True):
        assert torch.equal(part.detach(), kept)
    assert not found.requires_grad
    untouched = update_memory(memory, features[:0], labels[:0], momentum=0.1, rule=rule)
    assert untouched.data_ptr() != memory.data_ptr()


def test_a_toy_case_tells_the_order_of_the_batch():
    memory = np.array([[1.0, 0.0]])
    rows, labels = np.array([[0.0, 1.0], [0.6, 0.8]]), np.array([0, 0])
    expected = [0.558050, 0.829807]
    right = reference.update_memory(memory, rows, labels, 0.1)
    wrong = reference.update_memory(memory, rows[::-1], labels[::-1], 0.1)
    assert right[0] == pytest.approx(expected, abs=1e-6)
    assert abs(wrong[0] - expected).max() > 0.3


def test_recordings_reject_the_reverse_order_of_the_batch(recording):
    for name in ("cm", "cm_m02", "cm_cross_threshold"):
        saved = recording(name)
        rows, labels, momentum = saved["inputs"], saved["targets"], float(saved["momentum"])
        options = {"threshold": float(saved["threshold"])} if "threshold" in saved else {}
        expected = saved["memory_after"]
        right = reference.update_memory(saved["memory_before"], rows, labels, momentum, **options)
        wrong = reference.update_memory(
            saved["memory_before"], rows[::-1], labels[::-1], momentum, **options
        )
        assert abs(right - expected).max() < 5e-7
        assert abs(wrong - expected).max() > 0.05


@pytest.mark.parametrize("name", [*RECORDINGS, "cm_cross_threshold"])
def test_recorded_update(tensors, name):
    saved = tensors(name)
    found = update_memory(
        saved["memory_before"],
        saved["inputs"],
        saved["targets"],
        momentum=saved["momentum"].item(),
        rule="hardest" if "hard" in name else "sequential",
        threshold=saved["threshold"].item() if "threshold" in saved else None,
    )
    assert torch.allclose(found, saved["memory_after"], atol=5e-7, rtol=0)


# ClusterMemory


def test_cluster_contrast_by_hand():
    logits = ClusterMemory(torch.eye(2))(torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(logits, torch.tensor([[12.0, 16.0]]))
    for label, loss in ((0, 4.018150), (1, 0.018150)):
        found = cross_entropy(logits, torch.tensor([label])).item()
        assert found == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_logits_are_cosines_over_the_temperature(temperature):
    prototypes, features, _ = make_batch()
    memory = ClusterMemory(4 * prototypes, temperature=temperature)
    found = memory(features)
    expected = reference.logits(features.numpy(), prototypes.numpy(), temperature)
    assert found.dtype == torch.float64
    assert np.allclose(found, expected, rtol=1e-12)


def test_logits_have_the_gradient_of_their_value():
    prototypes, features, _ = make_batch(n=4)
    memory = ClusterMemory(prototypes)
    assert torch.autograd.gradcheck(memory, features.requires_grad_())
    assert not memory(features.detach()).requires_grad


@pytest.mark.parametrize("kind", ["cluster", "multi"])
def test_two_losses_on_one_memory_have_the_sum_of_their_gradients(kind):
    memory = (
        ClusterMemory(make_batch()[0]) if kind == "cluster" else MultiMemory(make_sub_prototypes())
    )
    rows = make_batch(n=6)[1].requires_grad_()
    first, second = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 2, 1, 0, 0, 0])
    apart = [
        torch.autograd.grad(cross_entropy(memory(rows), labels), rows)[0]
        for labels in (first, second)
    ]
    both = cross_entropy(memory(rows), first) + cross_entropy(memory(rows), second)
    assert torch.allclose(torch.autograd.grad(both, rows)[0], sum(apart), rtol=1e-12)


def test_an_update_before_backward_is_refused():
    prototypes, features, labels = make_batch(dtype=torch.float32)
    for memory in (ClusterMemory(prototypes), MultiMemory(prototypes[:, None])):
        logits = memory(features.clone().requires_grad_())
        memory.update(features, labels)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logits.sum().backward()
        memory(features.clone().requires_grad_()).sum().backward()


@pytest.mark.parametrize("rule", RULES)
def test_update_writes_what_update_memory_gives(rule):
    prototypes, features, labels = make_batch(dtype=torch.float32)
    groups = torch.arange(40) % 2 if rule == "mean" else None
    memory = ClusterMemory(prototypes, momentum=0.3, rule=rule)
    before = memory.prototypes.clone()
    storage = memory.prototypes.data_ptr()
    memory.update(features.requires_grad_(), labels, groups)
    expected = update_memory(before, features, labels, momentum=0.3, rule=rule, groups=groups)
    assert torch.equal(memory.prototypes, expected)
    assert memory.prototypes.data_ptr() == storage
    assert not memory.prototypes.requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_a_memory_can_be_written_into_itself(rule):
    memory = ClusterMemory(make_batch(dtype=torch.float32)[0], rule=rule)
    before = memory.prototypes.clone()
    memory.update(memory.prototypes, torch.tensor([1, 2, 3, 4, 5, 0]))
    expected = before.roll(1, dims=0)
    assert torch.allclose(memory.prototypes, normalize(0.1 * before + 0.9 * expected), atol=1e-6)


def test_a_memory_shares_storage_with_nobody():
    prototypes, features, labels = make_batch(dtype=torch.float32)
    first, second = ClusterMemory(prototypes), ClusterMemory(prototypes)
    second.reset(first.prototypes)
    kept = first.prototypes.clone()
    second.update(features, labels)
    assert torch.equal(first.prototypes, kept)
    prototypes.zero_()
    assert torch.equal(first.prototypes, kept)
    sub_prototypes = make_sub_prototypes(dtype=torch.float32)
    multi, other = MultiMemory(sub_prototypes), MultiMemory(sub_prototypes)
    other.reset(multi.as_prototypes())
    kept = multi.values.clone()
    other.update(features, labels.clamp(max=3))
    sub_prototypes.values.zero_()
    sub_prototypes.weights.zero_()
    assert torch.equal(multi.values, kept)
    assert (multi.weights > 0).any()


def test_reset_takes_other_prototypes_of_any_number():
    memory = ClusterMemory(torch.randn(3, 4))
    memory.reset(5 * torch.eye(4)[:2])
    assert torch.equal(memory.prototypes, torch.eye(4)[:2])
    assert memory(torch.randn(5, 4)).shape == (5, 2)
    assert list(memory.state_dict()) == ["prototypes"]


def test_state_dicts_load_across_cluster_counts(tmp_path):
    saved = ClusterMemory(torch.randn(7, 4))
    torch.save(saved.state_dict(), tmp_path / "memory.pt")
    loaded = ClusterMemory(torch.randn(3, 4))
    loaded.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert torch.equal(loaded.prototypes, saved.prototypes)
    features, labels = torch.randn(9, 4), torch.arange(9) % 7
    for memory in (saved, loaded):
        memory.update(features, labels)
    assert torch.equal(loaded.prototypes, saved.prototypes)


def test_multi_memory_state_dicts_load_across_cluster_and_memory_counts(tmp_path):
    saved = torch.nn.ModuleDict({"bank": MultiMemory(make_sub_prototypes(7, 2))})
    torch.save(saved.state_dict(), tmp_path / "memory.pt")
    loaded = torch.nn.ModuleDict({"bank": MultiMemory(torch.randn(3, 4, 5).double())})
    loaded.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    features = torch.randn(9, 5)
    assert torch.equal(loaded["bank"](features), saved["bank"](features))
    assert loaded["bank"].as_prototypes().weights.shape == (7, 2)


def test_a_memory_moves_between_dtypes():
    prototypes, features, labels = make_batch(dtype=torch.float32)
    memory = ClusterMemory(prototypes)
    before = memory(features)
    assert memory.double()(features).dtype == torch.float32
    assert torch.equal(memory(features), before)
    assert memory(features.double()).dtype == torch.float64
    for memory in (ClusterMemory(prototypes), MultiMemory(prototypes[:, None])):
        expected = memory(features)
        memory.to(torch.bfloat16)
        assert memory(features).dtype == torch.float32
        assert torch.allclose(memory(features), expected, atol=0.2)
        memory.update(features, labels)
        assert torch.isfinite(memory(features)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_another_dtype_move_a_float32_memory(dtype):
    prototypes, features, labels = make_batch(dtype=torch.float32)
    rows = features.to(dtype)
    for make in (ClusterMemory, lambda bank: MultiMemory(bank[:, None])):
        memory, expected = make(prototypes), make(prototypes)
        memory.update(rows, labels)
        expected.update(rows.float(), labels)
        assert torch.allclose(memory(features), expected(features), atol=1e-5)
        assert memory(features).dtype == torch.float32


@pytest.mark.parametrize("kind", ["cluster", "max", "mean", "logsumexp"])
def test_autocast_logits_and_updates_stay_in_float32(kind):
    if kind == "cluster":
        memory, other = (ClusterMemory(make_batch(dtype=torch.float32)[0]) for _ in range(2))
    else:
        memory, other = (
            MultiMemory(make_sub_prototypes(dtype=torch.float32), reduction=kind) for _ in range(2)
        )
    _, features, labels = make_batch(dtype=torch.float32)
    labels = labels.clamp(max=3)
    rows = features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = memory(rows)
        low = memory(rows.bfloat16())
        cross_entropy(logits, labels.clamp(min=0)).backward()
        memory.update(features, labels)
    assert logits.dtype == low.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert torch.isfinite(low).all()
    assert torch.equal(logits, other(features))
    assert torch.isfinite(rows.grad).all()
    other.update(features, labels)
    assert torch.equal(memory(features), other(features))


def test_zero_rows_and_zero_prototypes_give_finite_logits_and_gradients():
    for memory in (ClusterMemory(torch.zeros(2, 3)), MultiMemory(torch.zeros(2, 2, 3))):
        rows = torch.zeros(4, 3, requires_grad=True)
        memory(rows).logsumexp(dim=1).sum().backward()
        assert torch.equal(memory(rows), torch.zeros(4, 2))
        assert torch.isfinite(rows.grad).all()
        memory.update(torch.eye(3), torch.tensor([0, -1, -1]))
        assert memory(torch.eye(3))[0, 0] == 20


def test_a_memory_of_no_clusters_gives_no_logits():
    for memory in (ClusterMemory(torch.zeros(0, 3)), MultiMemory(torch.zeros(0, 2, 3))):
        assert memory(torch.randn(4, 3)).shape == (4, 0)
        memory.update(torch.randn(4, 3), torch.full((4,), -1))
        assert memory(torch.randn(0, 3)).shape == (0, 0)


def test_a_memory_describes_itself():
    assert repr(ClusterMemory(torch.eye(2), rule="mean")) == (
        "ClusterMemory(momentum=0.1, temperature=0.05, rule='mean')"
    )


# MultiMemory


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_cluster_has_the_logit_of_its_real_memories(reduction):
    sub_prototypes, features = make_sub_prototypes(), make_batch(n=7)[1]
    features[:4] = sub_prototypes.values[:, 1]  # nearest to what is not real in clusters 0 and 2
    found = MultiMemory(sub_prototypes, temperature=0.5, reduction=reduction)(features)
    reduce = {
        "max": max,
        "mean": np.mean,
        "logsumexp": lambda logits: math.log(np.mean(np.exp(logits))),
    }[reduction]
    for cluster, (values, weights) in enumerate(zip(*sub_prototypes, strict=True)):
        bank = [reference.unit(value) for value in values[weights > 0].numpy()]
        for row, logits in enumerate(reference.logits(features.numpy(), bank, 0.5)):
            assert found[row, cluster].item() == pytest.approx(reduce(logits), rel=1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multi_memory_logits_have_the_gradient_of_their_value(reduction):
    memory = MultiMemory(make_sub_prototypes(), temperature=0.5, reduction=reduction)
    rows = make_batch(n=4)[1].requires_grad_()
    assert torch.autograd.gradcheck(memory, rows)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_memory_per_cluster_is_a_cluster_memory(reduction):
    prototypes, features, labels = make_batch()
    one, many = ClusterMemory(prototypes), MultiMemory(prototypes[:, None], reduction=reduction)
    assert torch.allclose(one(features), many(features), rtol=1e-12)
    one.update(features, labels)
    many.update(features, labels)
    assert torch.equal(one.prototypes, many.values[:, 0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equal_memories_count_as_one(reduction):
    prototypes, features, _ = make_batch()
    many = MultiMemory(prototypes[:, None].expand(-1, 4, -1), reduction=reduction)
    assert torch.allclose(many(features), ClusterMemory(prototypes)(features), rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_updates_the_nearest_real_memory_of_its_cluster(rule):
    sub_prototypes = make_sub_prototypes()
    _, features, labels = make_batch(clusters=5)
    features[:4] = sub_prototypes.values[:, 1]  # nearest to what is not real in clusters 0 and 2
    labels[:4] = torch.arange(4)
    groups = torch.arange(40) % 2 if rule == "mean" else None
    memory = MultiMemory(sub_prototypes, momentum=0.3, rule=rule)
    bank = memory.values.flatten(0, 1).numpy().copy()
    slots = []
    for row, label in zip(features.numpy(), labels.tolist(), strict=True):
        real = [m for m in range(3) if label >= 0 and sub_prototypes.weights[label, m] > 0]
        near = [reference.unit(row) @ bank[3 * label + m] for m in real]
        slots.append(3 * label + real[int(np.argmax(near))] if real else -1)
    expected = reference.update_memory(
        bank, features.numpy(), np.array(slots), 0.3, rule,
        groups=None if groups is None else groups.numpy(),
    )  # fmt: skip
    memory.update(features, labels, groups)
    assert np.allclose(memory.values.flatten(0, 1), expected, atol=1e-12)
    assert np.array_equal(memory.values[::2, 1].flatten(0, 0), bank.reshape(4, 3, 5)[::2, 1])
    assert torch.equal(memory.weights, sub_prototypes.weights)


def test_rows_that_are_not_finite_update_no_memory():
    memory = MultiMemory(make_sub_prototypes())
    before = memory.values.clone()
    rows = torch.full((2, 5), math.nan)
    rows[1] = math.inf
    memory.update(rows, torch.tensor([0, 1]))
    assert torch.equal(memory.values, before)


def test_as_prototypes_is_a_copy_that_a_matcher_takes():
    memory = MultiMemory(make_sub_prototypes())
    found = memory.as_prototypes()
    assert isinstance(found, SubPrototypes)
    kept = [part.clone() for part in found]
    memory.update(*make_batch(clusters=4)[1:])
    for part, old in zip(found, kept, strict=True):
        assert torch.equal(part, old)
    found.values.zero_()
    assert not torch.equal(memory.values, found.values)
    again = MultiMemory(memory.as_prototypes())
    assert torch.allclose(again.values, memory.values, atol=1e-15)


def test_multi_memory_resets_to_any_number():
    memory = MultiMemory(make_sub_prototypes())
    memory.reset(torch.eye(5)[None, :2] * 3)
    assert torch.equal(memory.values, torch.eye(5)[None, :2])
    assert torch.equal(memory.weights, torch.ones(1, 2))
    assert list(memory.state_dict()) == ["values", "weights", "idle"]


# Dead memories


def make_uneven(n=300, seed=0):
    """Rows of which few are near to the last memory of a cluster, none to that of cluster 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (n,), generator=generator)
    which = torch.randint(0, 2, (n,), generator=generator)
    which[50::60] = 2
    which[labels == 0] = 0
    centres = torch.eye(9, dtype=torch.float64).view(3, 3, 9)
    rows = centres[labels, which] + 0.3 * torch.randn(n, 9, generator=generator).double()
    return centres, rows, labels


@pytest.mark.parametrize("way", ["in numba", pytest.param("in torch", marks=COMPILED)])
@pytest.mark.parametrize("patience", [1, 10, 50])
def test_dead_memories_become_the_farthest_row(patience, way):
    centres, rows, labels = make_uneven()
    weights = torch.ones(3, 3)
    weights[0, 1] = 0
    memory = MultiMemory(SubPrototypes(centres, weights), patience=patience)
    update = memory.update
    if way == "in torch":
        update = torch.compile(memory.update, backend="eager", fullgraph=True)
    values, idle = memory.values.numpy().copy(), np.zeros((3, 3), int)
    revived = 0
    for start in range(0, 300, 20):
        part = slice(start, start + 20)
        before = idle
        values, idle = reference.update_several(
            values, weights > 0, idle, rows[part].numpy(), labels[part].numpy(), patience, 0.1
        )
        update(rows[part], labels[part])
        assert np.allclose(memory.values, values, atol=1e-12)
        assert np.array_equal(memory.idle, idle)
        revived += ((before > patience / 2) & (idle == 0)).sum()
    assert revived or patience == 50
    assert torch.equal(memory.values[0, 1], centres[0, 1])
    assert torch.equal(memory.weights, weights)


@pytest.mark.parametrize("patience", [None, 2])
def test_elsewhere_rows_without_a_direction_write_nothing_either(patience, monkeypatch):
    expected, found = (MultiMemory(make_sub_prototypes(), patience=patience) for _ in range(2))
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 4, (40,), generator=generator)
    rows[::5], rows[1::5], rows[2::5] = 0.0, torch.nan, torch.inf
    for part in torch.arange(40).split(8):
        expected.update(rows[part], labels[part])
        with monkeypatch.context() as patch:
            patch.setattr(_banks, "is_compiling", lambda: True)
            patch.setattr(_update, "is_compiling", lambda: True)
            found.update(rows[part], labels[part])
        assert torch.allclose(found.values, expected.values, atol=1e-12)
        assert torch.equal(found.idle, expected.idle)
    assert not torch.equal(found.values, MultiMemory(make_sub_prototypes()).values)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.25, 0.33, 0.5, 0.9, 0.995])
def test_elsewhere_a_long_batch_of_one_cluster_is_felt_to_its_first_row(momentum):
    memory, features, labels = make_batch(n=150, clusters=2)
    labels = labels.clamp(min=0)
    features[0] *= -1
    expected = update_memory(memory, features, labels, momentum=momentum)
    found = update_elsewhere(memory, features, labels, momentum=momentum)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.2, 0.3, 0.32])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8, 1e-17])
def test_what_is_forgotten_is_the_first_that_makes_no_difference(momentum, tolerance):
    felt, shrink = _update._felt(momentum, tolerance), momentum / (1 - 2 * momentum)
    assert 2 * shrink**felt <= tolerance * (1 + 1e-9) < 2 * shrink ** (felt - 1)


def test_a_dead_memory_comes_back_by_hand():
    memory = MultiMemory(torch.eye(3)[None], patience=2, momentum=0.5)
    memory.update(torch.tensor([[0.8, 0.6, 0.0]]), torch.tensor([0]))
    assert memory.idle.tolist() == [[0, 1, 1]]
    moved = normalize(torch.tensor([[0.9, 0.3, 0.0]]))
    assert torch.allclose(memory.values[0], torch.cat([moved, torch.eye(3)[1:]]))
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.8, 0.0]])  # nearest to memory 1 and 0
    memory.update(rows, torch.tensor([0, 0]))
    assert torch.allclose(memory.values[0], torch.cat([moved, rows]))  # the second is farther
    assert memory.idle.tolist() == [[0, 0, 0]]


def test_no_memory_is_revived_without_patience():
    row = torch.tensor([[0.8, 0.6, 0.0]]).expand(300, -1)
    for patience in (None, 300):
        memory = MultiMemory(torch.eye(3)[None], patience=patience)
        memory.update(row, torch.zeros(300, dtype=torch.int64))
        assert torch.equal(memory.values[0, 1:], torch.eye(3)[1:]) == (patience is None)


# InstanceMemory


def make_images(n=12, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    features = 2 * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 3, -1, 3, 3, 1, 0, -1, 3, 0])
    return features.to(dtype), labels


def test_images_have_logits_of_their_own_or_of_their_clusters():
    images, labels = make_images()
    rows = make_batch(n=7)[1]
    memory = InstanceMemory(images, labels=labels, temperature=0.5)
    bank = normalize(images).numpy()
    expected = reference.logits(rows.numpy(), bank, 0.5)
    assert np.allclose(memory.instance_logits(rows), expected, rtol=1e-12)
    assert np.allclose(InstanceMemory(images, temperature=0.5)(rows), expected, rtol=1e-12)
    expected = reference.cluster_logits(rows.numpy(), bank, labels.tolist(), 0.5)
    assert np.allclose(memory(rows), expected, rtol=1e-12)
    assert torch.equal(memory(rows)[:, 2], torch.full((7,), -math.inf, dtype=torch.float64))
    memory.set_labels(None)
    assert memory(rows).shape == (7, 12)


def test_logits_of_an_instance_memory_have_the_gradient_of_their_value():
    images, labels = make_images()
    rows = make_batch(n=4)[1].requires_grad_()
    memory = InstanceMemory(images, temperature=0.5)
    assert torch.autograd.gradcheck(memory, rows)
    memory.set_labels(labels)
    loss = cross_entropy(memory(rows), torch.tensor([0, 1, 3, 0]))
    assert torch.isfinite(torch.autograd.grad(loss, rows)[0]).all()
    memory.set_labels(labels.clamp(max=1))
    assert torch.autograd.gradcheck(memory, rows)


@pytest.mark.parametrize("rule", RULES)
def test_every_row_updates_its_image(rule):
    images, _ = make_images()
    rows = make_batch(n=7)[1]
    indices = torch.tensor([3, 0, 3, -1, 11, 5, 3])
    memory = InstanceMemory(images, momentum=0.3, rule=rule)
    bank = memory.features.clone()
    memory.update(rows, indices)
    expected = reference.update_memory(bank.numpy(), rows.numpy(), indices.numpy(), 0.3, rule)
    assert np.allclose(memory.features, expected, atol=1e-12)
    untouched = torch.tensor([1, 2, 4, 6, 7, 8, 9, 10])
    assert torch.equal(memory.features[untouched], bank[untouched])


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 1.0])
def test_neighbors_are_nearly_as_similar_as_the_most_similar_image(ratio):
    images, labels = make_images()
    rows = make_batch(n=9)[1]
    rows[0], rows[1] = images[0], 0
    memory = InstanceMemory(images, labels=labels)
    found = memory.neighbors(rows.requires_grad_(), ratio=ratio)
    expected = reference.neighbors(rows.detach().numpy(), normalize(images).numpy(), ratio)
    assert found.dtype == torch.bool
    assert np.array_equal(found, expected)
    assert found.sum() == 0 if ratio == 1 else found[0, 0]
    assert not found[1].any()
    loss = neighbor_loss(memory.instance_logits(rows), found)
    assert torch.isfinite(loss)


def test_an_opposite_row_has_no_neighbor():
    memory = InstanceMemory(torch.eye(2)[:1])
    assert not memory.neighbors(-torch.eye(2)[:1], ratio=0.5).any()


def test_the_cluster_logits_follow_the_updates():
    images, labels = make_images()
    rows = make_batch(n=12)[1]
    memory = InstanceMemory(images, labels=labels, momentum=0.0)
    memory.update(rows, torch.arange(12))
    expected = InstanceMemory(rows, labels=labels)(images)
    assert torch.allclose(memory(images), expected, atol=1e-12)


def test_an_instance_memory_without_images_or_clusters():
    memory = InstanceMemory(torch.zeros(0, 3))
    assert memory(torch.rand(2, 3)).shape == (2, 0)
    assert memory.neighbors(torch.rand(2, 3)).shape == (2, 0)
    memory.update(torch.rand(2, 3), torch.tensor([-1, -1]))
    memory = InstanceMemory(torch.eye(3), labels=torch.full((3,), -1))
    assert memory(torch.rand(2, 3)).shape == (2, 0)
    assert memory.instance_logits(torch.rand(0, 3)).shape == (0, 3)


def test_an_instance_memory_resets_to_other_images_and_labels():
    images, labels = make_images()
    memory = InstanceMemory(images, labels=labels)
    memory.reset(torch.eye(5)[:3] * 2)
    assert torch.equal(memory.features, torch.eye(5)[:3])
    assert memory(torch.rand(2, 5)).shape == (2, 3)
    memory.reset(images, labels)
    assert memory(torch.rand(2, 5)).shape == (2, 4)
    labels.zero_()
    images.zero_()
    assert memory.labels.max() == 3
    assert memory.features.any()


# What all memories have


def make_memories(dtype=torch.float32):
    """One of each kind, in two sizes."""
    images, labels = make_images(dtype=dtype)
    return {
        "cluster": [ClusterMemory(make_batch(clusters=c, dtype=dtype)[0]) for c in (6, 4)],
        "multi": [MultiMemory(make_sub_prototypes(c, m, dtype=dtype)) for c, m in ((6, 3), (4, 2))],
        "instance": [InstanceMemory(images), InstanceMemory(images[:4])],
        "labelled": [InstanceMemory(images, labels=labels), InstanceMemory(images[:4])],
    }


KINDS = pytest.mark.parametrize("kind", ["cluster", "multi", "instance", "labelled"])


@KINDS
def test_state_dicts_load_across_sizes_and_weights_only(kind, tmp_path):
    saved, other = make_memories()[kind]
    _, features, labels = make_batch(dtype=torch.float32)
    saved.update(features, labels)
    torch.save(saved.state_dict(), tmp_path / "memory.pt")
    other.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert torch.equal(other(features), saved(features))
    for memory in (saved, other):
        memory.update(features.flip(0), labels)
    for name, buffer in saved.state_dict().items():
        assert torch.equal(other.state_dict()[name], buffer)


@KINDS
def test_copies_share_nothing(kind):
    memory = make_memories()[kind][0]
    _, features, labels = make_batch(dtype=torch.float32)
    expected = memory(features)
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert torch.equal(other(features), expected)
        other.update(features, labels)
        assert not torch.equal(other(features), expected)
        assert torch.equal(memory(features), expected)


@COMPILED
@KINDS
def test_forward_and_update_compile_to_one_graph(kind):
    memory, other = (make_memories(torch.float64)[kind][0] for _ in range(2))
    _, features, labels = make_batch(n=12)
    rows = features.clone().requires_grad_()
    forward = torch.compile(memory, backend="eager", fullgraph=True)
    update = torch.compile(memory.update, backend="eager", fullgraph=True)
    logits = forward(rows)
    assert torch.allclose(logits, memory(rows), rtol=1e-12)
    logits[torch.isfinite(logits)].sum().backward()
    assert torch.isfinite(rows.grad).all()
    update(features, labels)
    other.update(features, labels)
    assert torch.allclose(memory(features), other(features), rtol=1e-12)


@COMPILED
def test_in_a_compiled_graph_labels_out_of_range_count_as_noise():
    prototypes, features, labels = make_batch()
    memory, other = ClusterMemory(prototypes), ClusterMemory(prototypes)
    update = torch.compile(memory.update, backend="eager", fullgraph=True)
    update(features, torch.where(labels < 0, 99, labels))
    other.update(features, labels)
    assert torch.allclose(memory.prototypes, other.prototypes, atol=1e-12)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_meet_a_float32_bank(kind, dtype):
    memory, other = (make_memories()[kind][0] for _ in range(2))
    _, features, labels = make_batch(dtype=torch.float32)
    rows = features.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert memory(rows).dtype == torch.float32
        memory.update(rows, labels)
    other.update(rows.float(), labels)
    for first, second in zip(memory.buffers(), other.buffers(), strict=True):
        assert first.dtype in (torch.float32, torch.int64)
        assert torch.equal(first, second)


@KINDS
def test_a_group_of_this_process_alone_changes_nothing(kind):
    memory, other = (make_memories()[kind][0] for _ in range(2))
    _, features, labels = make_batch(dtype=torch.float32)
    memory.update(features, labels, group=True)
    other.update(features, labels)
    for first, second in zip(memory.buffers(), other.buffers(), strict=True):
        assert torch.equal(first, second)


def test_weights_and_soft_labels_reach_the_update():
    prototypes, features, labels = make_batch(dtype=torch.float32)
    weights, shares = torch.rand(40), torch.rand(40, 6)
    memory = ClusterMemory(prototypes, threshold=0.1)
    before = memory.prototypes.clone()
    memory.update(features, labels, weights=weights)
    options = {"momentum": 0.1, "threshold": 0.1}
    expected = update_memory(before, features, labels, weights=weights, **options)
    assert torch.equal(memory.prototypes, expected)
    memory.update(features, shares)
    assert torch.equal(memory.prototypes, update_memory(expected, features, shares, **options))
    assert repr(memory).endswith("rule='sequential', threshold=0.1)")


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_do_not_count_hit_no_memory(rule):
    memory = MultiMemory(torch.eye(4).view(2, 2, 4), rule=rule)
    weights = torch.tensor([0.0, 1.0, 1.0])
    groups = torch.tensor([0, -1, 0]) if rule == "mean" else None
    memory.update(torch.eye(4)[:3], torch.tensor([0, 0, 1]), groups, weights=weights)
    hit = [[0, 0], [0, 1]] if rule == "mean" else [[1, 0], [0, 1]]
    assert memory.idle.tolist() == hit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@KINDS
@pytest.mark.parametrize("rule", RULES)
def test_no_step_on_a_gpu_waits_for_it(rule, kind):
    memory = make_memories()[kind][0].cuda()
    memory.rule = rule
    _, features, labels = (part.cuda() for part in make_batch(dtype=torch.float32))
    weights = torch.rand(40, device="cuda")
    memory.update(features, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        memory(features)
        memory.update(features, labels)
        memory.update(features, labels, weights=weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_updates_alike_and_counts_labels_out_of_range_as_noise(rule):
    memory, features, labels = make_batch()
    expected = update_memory(memory, features, labels, momentum=0.1, rule=rule)
    labels[labels < 0] = 99
    found = update_memory(memory.cuda(), features.cuda(), labels.cuda(), momentum=0.1, rule=rule)
    assert torch.allclose(found.cpu(), expected, atol=1e-12)
    many = MultiMemory(make_sub_prototypes(), rule=rule)
    on_gpu = MultiMemory(make_sub_prototypes(), rule=rule).cuda()
    many.update(features, torch.where(labels < 4, labels, -1))
    on_gpu.update(features.cuda(), labels.cuda())
    assert torch.allclose(on_gpu(features.cuda()).cpu(), many(features), atol=1e-10)


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1.5}, "momentum must be in [0, 1], got 1.5"),
        ({"rule": "hard"}, "rule must be 'sequential', 'hardest' or 'mean', got 'hard'"),
        ({"threshold": 2.0}, "threshold must be in [-1, 1], got 2.0"),
        ({"features": torch.rand(3, 5)}, "memory and features must have the same number of "
         "columns, got memory (2, 4), features (3, 5)"),
        ({"memory": torch.rand(4)},
         "memory must be a floating-point tensor (n, dim), got torch.float32 of shape (4,)"),
        ({"labels": torch.zeros(2, dtype=torch.int64)},
         "labels must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)"),
        ({"labels": torch.zeros(3)},
         "labels must be an int64 tensor of shape (3,), got torch.float32 of shape (3,)"),
        ({"labels": torch.tensor([0, -2, 1])}, "labels must be -1 or above, got -2"),
        ({"labels": torch.tensor([0, 2, 1])},
         "labels must be below the number of clusters 2, got 2"),
        ({"groups": torch.zeros(3, dtype=torch.int64)},
         "groups must be None unless rule is 'mean', got rule 'sequential'"),
        ({"groups": torch.zeros(3), "rule": "mean"},
         "groups must be an int64 tensor of shape (3,), got torch.float32 of shape (3,)"),
        ({"weights": torch.ones(2)},
         "weights must be a floating-point tensor of shape (3,), got torch.float32 of shape (2,)"),
        ({"weights": torch.tensor([1.0, math.nan, 0.5])},
         "weights must be finite and 0 or above, got nan"),
        ({"weights": torch.tensor([1.0, -0.5, 0.5])},
         "weights must be finite and 0 or above, got -0.5"),
        ({"weights": torch.tensor([1.0, 1.5, 0.5])}, "weights must be in [0, 1], got 1.5"),
        ({"labels": torch.zeros(3, 4)},
         "labels must have shape (3, 2) to be soft, got shape (3, 4)"),
        ({"labels": torch.tensor([[0.0, 1.0], [0.5, 1.5], [0.0, 0.0]])},
         "labels must be in [0, 1], got 1.5"),
        ({"labels": torch.tensor([[0.0, 1.0], [math.nan, 0.5], [0.0, 0.0]])},
         "labels must be in [0, 1], got nan"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_of_an_update(change, message):
    arguments = {
        "memory": torch.eye(2, 4), "features": torch.rand(3, 4), "labels": torch.tensor([0, 1, -1]),
        "momentum": 0.1,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        update_memory(**arguments)


@pytest.mark.parametrize("name", ["memory", "features", "labels", "weights", "groups"])
def test_errors_tell_how_to_convert_an_array(name):
    arguments = {
        "memory": torch.eye(2, 4), "features": torch.rand(3, 4), "labels": torch.tensor([0, 1, -1]),
        "weights": torch.ones(3), "groups": torch.tensor([0, 0, 1]), "momentum": 0.1,
        "rule": "mean",
    }  # fmt: skip
    arguments[name] = arguments[name].numpy()
    message = (
        f"{name} must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        update_memory(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClusterMemory(torch.eye(2), momentum=-0.1),
         "momentum must be in [0, 1], got -0.1"),
        (lambda: ClusterMemory(torch.eye(2), temperature=0.0),
         "temperature must be in (0, inf), got 0.0"),
        (lambda: ClusterMemory(torch.eye(2), rule="max"),
         "rule must be 'sequential', 'hardest' or 'mean', got 'max'"),
        (lambda: ClusterMemory(torch.tensor([[0.0], [math.inf]])),
         "prototypes must be finite, got inf in row 1"),
        (lambda: ClusterMemory(torch.zeros(2)),
         "prototypes must be a floating-point tensor (n, dim), got torch.float32 of shape (2,)"),
        (lambda: ClusterMemory(torch.eye(2))(torch.zeros(3, 4)), "memory and features must have "
         "the same number of columns, got memory (2, 2), features (3, 4)"),
        (lambda: ClusterMemory(torch.eye(2), threshold=-2.0),
         "threshold must be in [-1, 1], got -2.0"),
        (lambda: MultiMemory(torch.rand(2, 3, 4), patience=0),
         "patience must be a whole number of at least 1, got 0"),
        (lambda: MultiMemory(torch.rand(2, 3, 4)).update(torch.zeros(3, 4), torch.zeros(3, 2)),
         "labels must be an int64 tensor of shape (3,), got torch.float32 of shape (3, 2)"),
        (lambda: InstanceMemory(torch.tensor([[0.0], [math.nan]])),
         "features must be finite, got nan in row 1"),
        (lambda: InstanceMemory(torch.eye(2), labels=torch.tensor([0])),
         "labels must be an int64 tensor of shape (2,), got torch.int64 of shape (1,)"),
        (lambda: InstanceMemory(torch.eye(2)).reset(torch.eye(3), torch.tensor([0])),
         "labels must be an int64 tensor of shape (3,), got torch.int64 of shape (1,)"),
        (lambda: InstanceMemory(torch.eye(2)).neighbors(torch.eye(2), ratio=1.5),
         "ratio must be in [0, 1], got 1.5"),
        (lambda: InstanceMemory(torch.eye(2)).update(torch.eye(2), torch.tensor([0, 2])),
         "indices must be below the number of clusters 2, got 2"),
        (lambda: InstanceMemory(torch.eye(2)).update(torch.eye(2), torch.tensor([0, -2])),
         "indices must be -1 or above, got -2"),
        (lambda: MultiMemory(torch.zeros(2, 3)), "sub_prototypes must be a floating-point tensor "
         "(clusters, memories, dim), got torch.float32 of shape (2, 3)"),
        (lambda: MultiMemory(torch.zeros(2, 3, 4), reduction="min"),
         "reduction must be 'max', 'mean' or 'logsumexp', got 'min'"),
        (lambda: MultiMemory(SubPrototypes(torch.zeros(2, 3, 4), torch.zeros(2, 3))),
         "sub_prototypes must have a real memory in every cluster, got none in 0"),
        (lambda: MultiMemory(torch.rand(2, 3, 4))(torch.zeros(3, 5)), "memory and features must "
         "have the same number of columns, got memory (6, 4), features (3, 5)"),
        (lambda: MultiMemory(torch.rand(2, 3, 4)).update(torch.zeros(3, 4), torch.arange(3)),
         "labels must be below the number of clusters 2, got 2"),
        (lambda: MultiMemory(torch.rand(2, 3, 4)).update(torch.zeros(3, 4), torch.arange(2)),
         "labels must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_of_a_memory(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda array: ClusterMemory(array), "prototypes"),
        (lambda array: MultiMemory(array), "sub_prototypes"),
        (lambda array: InstanceMemory(array), "features"),
        (lambda array: InstanceMemory(torch.eye(2), labels=array), "labels"),
        (lambda array: InstanceMemory(torch.eye(2)).update(torch.eye(2), array), "indices"),
        (lambda array: ClusterMemory(torch.eye(2)).update(torch.eye(2), array), "labels"),
        (lambda array: ClusterMemory(torch.eye(2))(array), "features"),
        (lambda array: MultiMemory(torch.rand(1, 2, 2))(array), "features"),
        (lambda array: MultiMemory(torch.rand(1, 2, 2)).update(array, torch.arange(2)), "features"),
    ],
)
def test_errors_of_memories_tell_how_to_convert_an_array(make, name):
    message = (
        f"{name} must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        make(np.eye(2, dtype=np.float32))


def test_errors_of_an_update_leave_the_memory_as_it_was():
    memory = ClusterMemory(torch.eye(2))
    message = "labels must be below the number of clusters 2, got 5"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        memory.update(torch.rand(2, 2), torch.tensor([0, 5]))
    assert torch.equal(memory.prototypes, torch.eye(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_row_has_a_finite_gradient_beside_a_real_bank(dtype):
    memory = ClusterMemory(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    features[1] = 0
    features.requires_grad_()
    logits = memory(features)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_a_dead_memory_waits_for_rows_of_its_own_cluster():
    memory = MultiMemory(torch.eye(4).expand(2, 4, 4), patience=1, momentum=0.5)
    memory.update(torch.eye(4)[:1], torch.tensor([0]))  # three of cluster 0 are dead, one revives
    before = memory.values[0].clone()
    memory.update(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([1]))
    assert torch.equal(memory.values[0], before)
