import math
import re

import numpy as np
import pytest
import reference_memory as reference
import torch
from torch.nn.functional import cross_entropy, normalize

from mmmlib._types import SubPrototypes
from mmmlib.memory import ClusterMemory, MultiMemory, update_memory

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


@pytest.mark.parametrize("options", ["plain", "weights", "threshold", "weights and threshold"])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_loop_over_rows(rule, momentum, options):
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
        found = update_memory(*batch, **chosen)
        assert found.dtype == torch.float64
        assert torch.allclose(found, update_by_hand(batch, **chosen), atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threshold", [None, -0.2])
def test_groups_count_alike_however_many_rows_they_have(threshold, weighted):
    batch = make_batch()
    groups = torch.randint(-1, 3, (40,))
    weights = torch.rand(40, dtype=torch.float64) if weighted else None
    options = {
        "momentum": 0.2, "rule": "mean", "groups": groups, "threshold": threshold,
        "weights": weights,
    }  # fmt: skip
    found = update_memory(*batch, **options)
    assert torch.allclose(found, update_by_hand(batch, **options), atol=1e-12)


def test_group_means_by_hand():
    memory = torch.tensor([[0.0, 0.0, 1.0]])
    features = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [5.0, 0, 0], [0, 2.0, 0]])
    labels, groups = torch.zeros(4, dtype=torch.int64), torch.tensor([7, 7, 7, 2])
    found = update_memory(memory, features, labels, momentum=0.0, rule="mean", groups=groups)
    assert torch.allclose(found, torch.tensor([[math.sqrt(0.5), math.sqrt(0.5), 0.0]]))
    without = update_memory(memory, features, labels, momentum=0.0, rule="mean")
    assert torch.allclose(without, normalize(torch.tensor([[3.0, 1.0, 0.0]])))


@pytest.mark.parametrize("rule", RULES)
def test_rows_left_out_do_not_count(rule):
    memory, features, labels = make_batch()
    features[::5] = torch.tensor([1.0, math.nan, 0, 0, 0], dtype=torch.float64)
    features[1::5] = math.inf
    features[2::5] = 0
    kept = (torch.arange(40) % 5 >= 3) & (labels >= 0)
    found = update_memory(memory, features, labels, momentum=0.1, rule=rule)
    expected = update_memory(memory, features[kept], labels[kept], momentum=0.1, rule=rule)
    assert torch.equal(found, expected)
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


@pytest.mark.parametrize("rule", RULES)
def test_a_row_opposite_to_its_memory_does_not_erase_it(rule):
    memory = torch.eye(2, dtype=torch.float64)
    found = update_memory(memory, -memory[:1], torch.tensor([0]), momentum=0.5, rule=rule)
    assert torch.equal(found, memory)


def test_rows_that_cancel_do_not_erase_their_memory():
    rows = torch.tensor([[1.0, 0], [-1.0, 0]])
    found = update_memory(torch.eye(2), rows, torch.tensor([1, 1]), momentum=0, rule="mean")
    assert torch.equal(found, torch.eye(2))


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch_or_bank_changes_nothing(rule):
    memory, features, labels = make_batch()
    options = {"momentum": 0.1, "rule": rule}
    assert torch.equal(update_memory(memory, features[:0], labels[:0], **options), memory)
    noise = torch.full_like(labels, -1)
    assert torch.equal(update_memory(memory, features, noise, **options), memory)
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


def test_hardest_takes_the_first_of_equally_similar_rows():
    rows = torch.tensor([[0.0, 1, 0], [0.0, 0, 1]])
    memory, labels = torch.tensor([[1.0, 0, 0]]), torch.tensor([0, 0])
    for order in ([0, 1], [1, 0]):
        found = update_memory(memory, rows[order], labels, momentum=0.0, rule="hardest")
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


@pytest.mark.parametrize("rule", RULES)
def test_a_row_has_to_exceed_the_threshold(rule):
    memory, rows, label = torch.eye(2)[:1], torch.eye(2)[1:], torch.tensor([0])
    options = {"momentum": 0.1, "rule": rule}
    assert torch.equal(update_memory(memory, rows, label, threshold=0.0, **options), memory)
    moved = update_memory(memory, rows, label, threshold=-0.01, **options)
    assert torch.equal(moved, update_memory(memory, rows, label, **options))
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
    for part, copy in zip(parts, copies, strict=True):
        assert torch.equal(part.detach(), copy)
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
    for part, copy in zip(found, kept, strict=True):
        assert torch.equal(part, copy)
    found.values.zero_()
    assert not torch.equal(memory.values, found.values)
    again = MultiMemory(memory.as_prototypes())
    assert torch.allclose(again.values, memory.values, atol=1e-15)


def test_multi_memory_resets_to_any_number():
    memory = MultiMemory(make_sub_prototypes())
    memory.reset(torch.eye(5)[None, :2] * 3)
    assert torch.equal(memory.values, torch.eye(5)[None, :2])
    assert torch.equal(memory.weights, torch.ones(1, 2))
    assert list(memory.state_dict()) == ["values", "weights"]


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
        ({"weights": torch.tensor([1.0, 1.5, 0.5])}, "weights must be at most 1, got 1.5"),
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
