"""Whole recorded training steps of the published code, put together from the library's parts.

There the memory is written inside ``backward``: the last call of a step updates first, and the
gradient of an earlier call is taken with the memory as the later ones left it. The library does
neither; here a small function does, so that the parts can be held against the recordings.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmmlib.losses import cluster_nce, consistency_loss
from mmmlib.memory import ClusterMemory, update_memory

CM = ["cm", "cm_m02", "cm_hard", "cm_hard_m02"]
PGM = ["odd", "even", "odd_hard", "even_hard", "no_match"]


class ReadThenWrite(torch.autograd.Function):
    """Similarities to a memory, which moves when their gradient is asked for."""

    @staticmethod
    def forward(ctx, rows, labels, memory, options):
        ctx.rows, ctx.labels, ctx.memory, ctx.options = rows.detach(), labels, memory, options
        return rows @ memory.T

    @staticmethod
    def backward(ctx, grad):
        found = grad @ ctx.memory
        ctx.memory.copy_(update_memory(ctx.memory, ctx.rows, ctx.labels, **ctx.options))
        return found, None, None, None


class PublishedMemory:
    """A memory in float64 that is written by ``backward``."""

    def __init__(self, bank, temperature, **options):
        self.bank, self.temperature, self.options = bank.double(), temperature.item(), options
        self.options["momentum"] = options["momentum"].item()

    def __call__(self, features, labels) -> Tensor:
        rows = ReadThenWrite.apply(normalize(features), labels, self.bank, self.options)
        return rows / self.temperature

    def glance(self, features) -> Tensor:
        """Logits of features as they are; nothing is written."""
        return features @ self.bank.clone().T / self.temperature


class LibraryMemory(PublishedMemory):
    """The same, written after the step, in the order of the calls."""

    def __init__(self, bank, temperature, **options):
        super().__init__(bank, temperature, **options)
        self.todo = []

    def __call__(self, features, labels) -> Tensor:
        self.todo.append((features.detach(), labels))
        return normalize(features) @ self.bank.T / self.temperature

    def finish(self):
        for features, labels in self.todo:
            self.bank = update_memory(self.bank, features, labels, **self.options)


def watch(saved, *names):
    return [saved[name].double().requires_grad_() for name in names]


def assert_close(found, expected, tolerance):
    assert torch.allclose(found.double(), expected.double(), atol=tolerance, rtol=0)


def differ(found, expected):
    return (found.double() - expected.double()).abs().max().item()


# One memory, one call


@pytest.mark.parametrize("name", [*CM, "cm_cross_threshold"])
def test_recorded_cluster_contrast_step(tensors, name):
    saved = tensors(name)
    rule = "hardest" if "hard" in name.split("_") else "sequential"
    threshold = saved["threshold"].item() if "threshold" in saved else None
    memory = PublishedMemory(
        saved["memory_before"], saved["temp"], momentum=saved["momentum"], rule=rule,
        threshold=threshold,
    )  # fmt: skip
    (rows,) = watch(saved, "inputs")
    logits = memory(rows, saved["targets"])
    loss = cluster_nce(logits, saved["targets"])
    loss.backward()
    assert loss.item() == pytest.approx(saved["loss"].item(), rel=1e-5, abs=1e-6)
    assert_close(rows.grad, saved["grad"], 5e-7)
    assert_close(memory.bank, saved["memory_after"], 5e-7)
    if "logits" in saved:
        assert_close(logits, saved["logits"], 1e-5)


@pytest.mark.parametrize("name", CM)
def test_one_call_a_step_needs_no_update_inside_backward(tensors, name):
    saved = tensors(name)
    memory = ClusterMemory(
        saved["memory_before"], momentum=saved["momentum"].item(),
        temperature=saved["temp"].item(), rule="hardest" if "hard" in name else "sequential",
    )  # fmt: skip
    rows = saved["inputs"].requires_grad_()
    loss = cluster_nce(memory(rows), saved["targets"])
    loss.backward()
    memory.update(rows, saved["targets"])
    assert loss.item() == pytest.approx(saved["loss"].item(), rel=1e-5, abs=1e-6)
    assert_close(rows.grad, saved["grad"], 5e-7)
    assert_close(memory.prototypes, saved["memory_after"], 5e-7)


# MBCCM: modality-specific and modality-agnostic memories, consistency


def mbccm_step(saved, kind):
    """Losses in the order of the recording, the gradients and the memories after the step."""
    own, cross = saved["momentum"], saved["momentum_cross"]
    rgb, ir, rgb_ir, ir_rgb = (
        kind(saved[f"memory_{name}"], temperature=saved["temp"], momentum=momentum)
        for name, momentum in (("rgb", own), ("ir", own), ("rgb_ir", cross), ("ir_rgb", cross))
    )
    rows = watch(saved, "features_v1", "features_v2", "features_r")
    label_v, label_r = saved["label_v"], saved["label_r"]
    calls = [(rgb, 0, label_v), (rgb, 1, label_v), (ir, 2, label_r)]
    if "cc" in saved:
        calls += [(rgb_ir, i, label_v) for i in range(3)] + [(ir_rgb, i, label_r) for i in range(3)]
    logits = [memory(rows[i], labels) for memory, i, labels in calls]
    ce = [cluster_nce(found, call[2]) for found, call in zip(logits, calls, strict=True)]
    total, terms = sum(ce[:3]), []
    if "cc" in saved:
        pairs = [
            (logits[0], logits[3]),
            (logits[1], logits[4]),
            (logits[6], ir.glance(rows[0])),
            (logits[7], ir.glance(rows[1])),
            (logits[5], rgb.glance(rows[2])),
            (logits[2], logits[8]),
        ]
        terms = [consistency_loss(*pair, form="code") for pair in pairs]
        total = total + saved["alpha"] * sum(ce[3:]) + saved["beta"] * sum(terms)
    total.backward()
    return ce, terms, total, rows, (rgb, ir, rgb_ir, ir_rgb)


@pytest.mark.parametrize("when", ["early", "late"])
def test_recorded_mbccm_step(tensors, when):
    saved = tensors(f"mbccm_step_{when}")
    ce, terms, total, rows, memories = mbccm_step(saved, PublishedMemory)
    assert [loss.item() for loss in ce] == pytest.approx(saved["ce"].tolist(), rel=1e-5)
    assert sum(ce[:3]).item() == pytest.approx(saved["ms"].item(), rel=1e-5)
    assert total.item() == pytest.approx(saved["total"].item(), rel=1e-5)
    if when == "late":
        assert [term.item() for term in terms] == pytest.approx(
            saved["cc_terms"].tolist(), rel=1e-5
        )
        sums = [sum(ce[3:6]), sum(ce[6:]), sum(terms)]
        for found, name in zip(sums, ("ma_rgb", "ma_ir", "cc"), strict=True):
            assert found.item() == pytest.approx(saved[name].item(), rel=1e-5)
    for found, name in zip(rows, ("v1", "v2", "r"), strict=True):
        assert_close(found.grad, saved[f"grad_{name}"], 5e-6)
    for found, name in zip(memories, ("rgb", "ir", "rgb_ir", "ir_rgb"), strict=True):
        assert_close(found.bank, saved[f"memory_after_{name}"], 1e-6)
    if when == "early":
        assert torch.equal(memories[2].bank, saved["memory_rgb_ir"].double())


@pytest.mark.parametrize("when", ["early", "late"])
def test_updates_after_the_step_have_equal_losses_but_other_gradients(tensors, when):
    saved = tensors(f"mbccm_step_{when}")
    *_, total, rows, memories = mbccm_step(saved, LibraryMemory)
    assert total.item() == pytest.approx(saved["total"].item(), rel=1e-5)
    assert differ(rows[0].grad, saved["grad_v1"]) > 0.05
    for memory in memories:
        memory.finish()
    assert differ(memories[0].bank, saved["memory_after_rgb"]) > 0.05
    # The infrared memory was called once: nothing to disagree about.
    assert_close(memories[1].bank, saved["memory_after_ir"], 1e-6)


# PGM: alternate cross contrast


def pgm_step(saved, kind):
    hard = "hardest" if saved["use_hard"].item() else "sequential"
    options = {"temperature": saved["temp"], "momentum": saved["momentum"], "rule": hard}
    rgb, ir = (kind(saved[f"memory_{name}"], **options) for name in ("rgb", "ir"))
    rows = watch(saved, "features_v1", "features_v2", "features_r")
    visible, label_v, label_r = torch.cat(rows[:2]), saved["label_v"].repeat(2), saved["label_r"]
    calls = [(ir, rows[2], label_r), (rgb, visible, label_v)]
    if len(saved["losses"]) == 3:
        odd = saved["epoch"].item() % 2
        pairs = saved["i2r" if odd else "r2i"].long()
        partner = torch.full((len(pairs),), -1).index_copy(0, pairs[:, 0], pairs[:, 1])
        calls.append((rgb, rows[2], partner[label_r]) if odd else (ir, visible, partner[label_v]))
    losses = [
        cluster_nce(memory(features, labels), labels) for memory, features, labels in calls
    ]  # fmt: skip
    total = losses[0] + losses[1] + 0.25 * sum(losses[2:])
    total.backward()
    return losses, total, rows, (rgb, ir)


@pytest.mark.parametrize("name", PGM)
def test_recorded_pgm_step(tensors, name):
    saved = tensors(f"pgm_step_{name}")
    losses, total, rows, memories = pgm_step(saved, PublishedMemory)
    assert [loss.item() for loss in losses] == pytest.approx(saved["losses"].tolist(), rel=1e-5)
    assert total.item() == pytest.approx(saved["total"].item(), rel=1e-5)
    for found, view in zip(rows, ("v1", "v2", "r"), strict=True):
        assert_close(found.grad, saved[f"grad_{view}"], 5e-6)
    for found, side in zip(memories, ("rgb", "ir"), strict=True):
        assert_close(found.bank, saved[f"memory_after_{side}"], 1e-6)


@pytest.mark.parametrize("name", PGM)
def test_only_a_memory_used_twice_differs_when_it_is_updated_after_the_step(tensors, name):
    saved = tensors(f"pgm_step_{name}")
    _, total, rows, memories = pgm_step(saved, LibraryMemory)
    assert total.item() == pytest.approx(saved["total"].item(), rel=1e-5)
    for memory in memories:
        memory.finish()
    twice = {"odd": "rgb", "even": "ir"}.get(name.split("_")[0])
    for found, side in zip(memories, ("rgb", "ir"), strict=True):
        gap = differ(found.bank, saved[f"memory_after_{side}"])
        assert gap > 0.05 if side == twice else gap < 1e-6
    gaps = [
        differ(found.grad, saved[f"grad_{v}"])
        for found, v in zip(rows, ("v1", "v2", "r"), strict=True)
    ]
    assert (max(gaps) > 1e-3) == (twice is not None)


# The same without a recording


def test_the_last_call_of_a_step_updates_first_and_the_first_sees_it():
    bank = torch.eye(2)
    options = {"temperature": torch.tensor(1.0), "momentum": torch.tensor(0.0)}
    rows = torch.tensor([[[0.6, 0.8]], [[0.8, 0.6]]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0])
    for kind, seen in ((PublishedMemory, rows[1, 0].detach()), (LibraryMemory, bank[0].double())):
        memory = kind(bank.clone(), **options)
        logits = [memory(part, label) for part in rows]
        (grad,) = torch.autograd.grad(sum(part[0, 0] for part in logits), rows)
        across = torch.tensor([-0.8, 0.6], dtype=torch.float64)  # the gradient of a unit row
        assert torch.allclose(grad[0, 0], (across @ seen) * across)
        if kind is LibraryMemory:
            memory.finish()
        last = rows[0] if kind is PublishedMemory else rows[1]
        assert torch.allclose(memory.bank[0], last[0].detach())
