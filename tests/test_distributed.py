"""Two processes over gloo, in which this file is the program; one holds fewer rows, or none."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from mmmlib.distributed import _sum_of_bits, check_same, gather_rows, same_everywhere, share
from mmmlib.memory import ClusterMemory, InstanceMemory, MultiMemory

RULES = ["sequential", "hardest", "mean"]
KINDS = [f"cluster {rule}" for rule in RULES] + ["soft", "weights", "groups", "multi", "instance"]
SPLITS = {"uneven": 13, "even": 20, "empty": 40, "all empty": 0}  # rows of the first process
ROOT = Path(__file__).parent.parent


def make(kind):
    generator = torch.Generator().manual_seed(1)
    bank = torch.randn(6, 2, 8, generator=generator)
    if kind == "multi":
        return MultiMemory(bank, patience=5)
    if kind == "instance":
        return InstanceMemory(bank[:, 0], rule="sequential")
    rule = "mean" if kind == "groups" else kind.removeprefix("cluster ")
    return ClusterMemory(bank[:, 0], rule=rule if rule in RULES else "sequential")


def make_batch(kind, split):
    """What one process would write: features, labels and options."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(40, 8, generator=generator)
    labels = torch.randint(-1, 6, (40,), generator=generator)
    weights = torch.rand(40, generator=generator)
    if kind == "soft":
        labels = torch.rand(40, 6, generator=generator)
    options = {"weights": weights} if kind == "weights" else {}
    if kind == "groups":
        options = {"groups": torch.arange(40) % 2}
    n = 0 if split == "all empty" else 40
    return features[:n], labels[:n], {name: part[:n] for name, part in options.items()}


def part_of(rank, split, rows):
    first = SPLITS[split]
    return rows[:first] if rank == 0 else rows[first:]


def work(rank, folder):
    """All that the tests look at, from one process of the two."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    found = {"alone": dist.new_group([0]), "both": dist.new_group([0, 1])}
    result = {"banks": {}, "same": {}}
    for split in SPLITS:
        for kind in KINDS:
            memory = make(kind)
            features, labels, options = make_batch(kind, split)
            own = {name: part_of(rank, split, rows) for name, rows in options.items()}
            group = found["both"] if split == "even" else True
            memory.update(
                part_of(rank, split, features), part_of(rank, split, labels), group=group, **own
            )
            result["banks"][split, kind] = dict(memory.state_dict())
            result["same"][split, kind] = same_everywhere(*memory.buffers())
    local = make("cluster sequential")
    features, labels, _ = make_batch("cluster sequential", "uneven")
    local.update(part_of(rank, "uneven", features), part_of(rank, "uneven", labels))
    result["local"] = local.prototypes
    result["differ"] = same_everywhere(torch.zeros(2), local.prototypes)
    result["gathered"] = gather_rows(
        torch.full((rank + 1, 2), rank, dtype=torch.bfloat16),
        torch.full((2 - rank,), bool(rank)),
        torch.full((rank, 1, 2), 7),
        group=found["both"],
    )
    result["errors"] = [
        message_of(lambda: local.update(torch.rand(1, 8), torch.tensor([5 + rank]), group=True)),
        message_of(lambda: gather_rows(torch.zeros(1), group=found["alone"])),
    ]
    before = local.prototypes.clone()
    rows, labels = torch.rand(2, 8), torch.tensor([0, 1])
    result["refused"] = [
        message_of(lambda: local.update(torch.rand(2, 8 + rank), labels, group=True)),
        message_of(lambda: local.update(rows.half() if rank else rows, labels, group=True)),
        message_of(
            lambda: local.update(
                rows, labels, group=True, weights=torch.ones(2) if rank == 0 else None
            )
        ),
        message_of(lambda: local.update(rows[: 2 - rank], labels[: 1 + rank], group=True)),
    ]
    result["kept"] = torch.equal(local.prototypes, before)
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


def message_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_write_what_one_with_the_whole_batch_writes(results, split, kind):
    memory = make(kind)
    before = {name: buffer.clone() for name, buffer in memory.state_dict().items()}
    features, labels, options = make_batch(kind, split)
    memory.update(features, labels, **options)
    for result in results:
        assert result["same"][split, kind]
        for name, buffer in memory.state_dict().items():
            assert torch.equal(result["banks"][split, kind][name], buffer)
    bank = next(iter(before))
    assert torch.equal(memory.state_dict()[bank], before[bank]) == (split == "all empty")


def test_without_a_group_a_process_writes_its_own_batch(results):
    for rank, result in enumerate(results):
        memory = make("cluster sequential")
        features, labels, _ = make_batch("cluster sequential", "uneven")
        memory.update(part_of(rank, "uneven", features), part_of(rank, "uneven", labels))
        assert torch.equal(result["local"], memory.prototypes)
        assert not result["differ"]
    assert not torch.equal(results[0]["local"], results[1]["local"])


def test_rows_are_gathered_in_the_order_of_the_ranks(results):
    for result in results:
        numbers, flags, blocks = result["gathered"]
        assert numbers.dtype == torch.bfloat16
        assert numbers.tolist() == [[0, 0], [1, 1], [1, 1]]
        assert flags.tolist() == [False, False, True]
        assert blocks.tolist() == [[[7, 7]]]


def test_a_bad_label_on_one_process_is_refused_on_both(results):
    message = "labels must be below the number of clusters 6, got 6"
    assert [result["errors"][0] for result in results] == [message, message]


def test_batches_that_do_not_fit_together_are_refused_on_both(results):
    other = (
        "tensors must agree in number, type and width on all processes, got others on process 1 "
        "than on process 0"
    )
    uneven = "tensors must have equally many rows, got [2, 1] on process 0"
    for result in results:
        assert result["refused"] == [other, other, other, uneven]
        assert result["kept"]


def test_a_group_of_others_is_refused(results):
    message = "group must hold this process, got one without rank 1"
    assert [result["errors"][1] for result in results] == [None, message]


def test_one_process_gathers_its_own_rows():
    rows = torch.rand(3, 2, requires_grad=True)
    for group in (None, True, False):
        (found,) = gather_rows(rows, group=group)
        assert torch.equal(found, rows)
        assert not found.requires_grad
        assert same_everywhere(rows, group=group)
    assert gather_rows() == ()
    assert same_everywhere()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_the_sum_of_bits_tells_changed_and_moved_values(dtype):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(2 if dtype == torch.bool else 9, (7, 5), generator=generator).to(dtype)
    rows[0, :2], rows[1, :2] = torch.tensor([0, 1]).to(dtype), torch.tensor([1, 0]).to(dtype)
    other = rows.clone()
    other[6, 4] = 1 - other[6, 4].int()
    wide = 1e30 * torch.rand(300, 50, generator=generator, dtype=torch.float64)
    found = [
        _sum_of_bits(part)
        for part in (rows, other, rows[[1, 0, *range(2, 7)]], rows[:, [1, 0, 2, 3, 4]], wide)
    ]
    assert found[0] == _sum_of_bits(rows.clone())
    assert len(set(found)) == 5
    assert all(0 <= number < 2**61 for number in found)


def test_one_process_has_all_rows_and_agrees_with_itself():
    assert share(5, True) == share(5, None) == range(5)
    check_same(True, rows=torch.rand(2), k=3)


@pytest.mark.parametrize("function", [gather_rows, same_everywhere])
def test_errors_tell_how_to_convert_an_array(function):
    message = (
        "tensors[1] must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        function(torch.zeros(1), torch.zeros(1).numpy())


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
