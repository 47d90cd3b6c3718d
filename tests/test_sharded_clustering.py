"""Search, graph and clusters shared by 1 to 4 processes; this file is the program of each."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from processes import start_processes, wait_for
from torch import Tensor
from torch import distributed as dist

from benchmarks.features import make_features
from mmmlib import neighbors
from mmmlib.clustering import (
    camera_cluster,
    cluster_features,
    cross_modality_cluster,
    jaccard_graph,
)
from mmmlib.neighbors import knn, row_metric

MOST = 4  # processes


def real_rows() -> Tensor:
    return make_features(900, 64).rows


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = real_rows()
    steps = torch.randint(-1, 2, (500, 6), generator=generator)
    return {
        "as of a training": rows,
        "many equal distances": steps.float(),
        "duplicates": rows[torch.randint(60, (500,), generator=generator)],
        "float64, from small to huge": rows[:300].double()
        * 10.0 ** torch.arange(-150.0, 150.0).double()[:, None],
        "bfloat16": rows[:400].bfloat16(),
        "fewer rows than processes": rows[:3],
        "one row": rows[:1],
        "no rows": rows[:0],
    }


def searches(group: object) -> dict[str, tuple[Tensor, ...]]:
    """All that is shared."""
    found = {}
    for name, rows in inputs().items():
        found[f"knn of {name}"] = tuple(knn(rows, 12, group=group))
        graph = jaccard_graph(rows, k1=12, k2=4, max_distance=1.0, group=group)
        found[f"graph of {name}"] = tuple(graph[:3])
    rows = real_rows()
    visible, infrared = rows[:500], rows[500:]
    found["gallery"] = tuple(knn(visible, 5, gallery=infrared, group=group))
    found["small gallery"] = tuple(knn(visible, 5, gallery=infrared[:2], group=group))
    found["code"] = tuple(knn(3 * rows, 9, form="code", group=group))
    found["k beyond the rows"] = tuple(knn(rows[:50], 70, group=group))
    found["labels"] = (cluster_features(rows, k1=12, min_samples=3, group=group),)
    found["unaveraged"] = (cluster_features(rows, k1=12, k2=1, group=group),)
    both = cross_modality_cluster(visible, infrared, k1=12, k2=6, group=group)
    found["both modalities"] = (both.visible, both.infrared, both.in_both)
    cameras = torch.arange(900) % 3
    found["cameras"] = (camera_cluster(rows, cameras, k1=8, min_samples=2, group=group),)
    return found


def message_of(call) -> str | None:
    try:
        call()
    except (ValueError, TypeError, ConnectionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def failures(rank: int) -> dict[str, str | None]:
    rows = real_rows()[:200]
    nan, last = rows.clone(), rank == MOST - 1
    nan[7, 3] = torch.nan
    moved, swapped = rows.clone(), rows.clone()
    moved[199, 63] += 1e-6
    swapped[[4, 5]] = rows[[5, 4]]
    real = neighbors._select

    def refuse(*arguments: object) -> None:
        raise MemoryError("no room")

    calls = {
        "another value": lambda: knn(moved if last else rows, 5, group=True),
        "another order": lambda: knn(swapped if last else rows, 5, group=True),
        "another length": lambda: knn(rows[:150] if last else rows, 5, group=True),
        "another k": lambda: knn(rows, 5 + last, group=True),
        "another eps": lambda: cluster_features(rows, eps=0.5 + last / 10, group=True),
        "another min_samples": lambda: cluster_features(rows, min_samples=4 + last, group=True),
        "another camera": lambda: camera_cluster(
            rows, (torch.arange(200) + last * (torch.arange(200) == 9)) % 3, group=True
        ),
        "nan": lambda: cluster_features(nan if last else rows, group=True),
        "an eps out of range": lambda: cluster_features(rows, eps=0.5 + last, group=True),
        "an array": lambda: jaccard_graph(rows.numpy() if last else rows, group=True),
    }
    found = {name: message_of(call) for name, call in calls.items()}
    neighbors._select = refuse if last else real
    try:
        found["no room"] = message_of(lambda: knn(rows, 5, group=True))
    except MemoryError as error:
        found["no room"] = f"MemoryError: {error}"
    neighbors._select = real
    found["afterwards"] = message_of(lambda: knn(rows, 5, group=True))
    return found


def work(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    rank = dist.get_rank()
    groups = {size: dist.new_group(list(range(size))) for size in range(1, MOST + 1)}
    neighbors.ROW_TILE, neighbors.COLUMN_TILE = 64, 160
    result: dict[str, object] = {
        "found": {size: searches(group) for size, group in groups.items() if rank < size}
    }
    metric = row_metric(real_rows(), "paper")
    own = range(100 * rank, 100 * (rank + 1))
    result["device"] = tuple(neighbors._search_device(metric, 5, own, block=30))
    result["failures"] = failures(rank)
    dist.barrier()
    if rank == MOST - 1:
        torch.save(result, folder / f"{rank}.pt")
        os._exit(3)
    result["dead"] = message_of(lambda: knn(real_rows(), 5, group=True))
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    ended = wait_for(start_processes(MOST, __file__, str(folder)))
    codes, said = zip(*ended, strict=True)
    assert codes == (0,) * (MOST - 1) + (3,), "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(MOST)]


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Tensor, ...]]:
    return searches(None)


@pytest.mark.parametrize("size", range(1, MOST + 1))
def test_every_process_gets_the_bits_of_a_single_one(
    results: list[dict], alone: dict[str, tuple[Tensor, ...]], size: int
) -> None:
    for result in results[:size]:
        found = result["found"][size]
        assert found.keys() == alone.keys()
        for name, parts in alone.items():
            for ours, theirs in zip(found[name], parts, strict=True):
                assert ours.dtype == theirs.dtype, name
                assert torch.equal(ours, theirs), name
    assert (alone["labels"][0] >= 0).any()


def test_a_share_of_the_queries_on_a_device_is_that_part_of_all(results: list[dict]) -> None:
    alone = knn(real_rows(), 5)
    for rank, result in enumerate(results):
        indices, similarities = result["device"]
        assert torch.equal(indices, alone.indices[100 * rank : 100 * (rank + 1)])
        assert similarities.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("another value", "features"), ("another order", "features"),
        ("another length", "features"), ("another k", "k"), ("another eps", "max_distance"),
        ("another min_samples", "min_samples"), ("another camera", "cameras"),
    ],
)  # fmt: skip
def test_errors_name_what_differs_between_processes(
    results: list[dict], name: str, argument: str
) -> None:
    message = (
        f"ValueError: {argument} must be the same on all processes, got another on process 3 than "
        "on process 0"
    )
    assert {result["failures"][name] for result in results} == {message}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("nan", "ValueError: features must be finite, got nan in row 7"),
        ("an eps out of range", "ValueError: eps must be in [0, 1), got 1.5"),
        (
            "an array",
            "TypeError: features must be a torch.Tensor, got numpy.ndarray; torch.from_numpy "
            "converts an array",
        ),
        ("no room", "MemoryError: no room"),
    ],
)
def test_errors_of_one_process_end_the_call_on_all(
    results: list[dict], name: str, own: str
) -> None:
    message = f"ValueError: group must have no process that fails, got one on process 3: {own}"
    assert [result["failures"][name] for result in results] == [message] * 3 + [own]
    assert all(result["failures"]["afterwards"] is None for result in results)


def test_errors_tell_of_a_process_that_has_ended(results: list[dict]) -> None:
    for result in results[:-1]:
        assert result["dead"].startswith("ConnectionError: group must keep all its processes, got")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("n", [1, 1023, 1024, 5000])
def test_processes_share_every_entry_of_the_product_once_and_evenly(n: int, size: int) -> None:
    seen = torch.zeros(n, n, dtype=torch.int8)
    for mirrored in (False, True):
        part = [tile for tile in neighbors._tiles(n, n, True) if tile[2] == mirrored]
        areas = []
        for rank in range(size):
            areas.append(0)
            for rows, columns, _ in neighbors._share_of_tiles(part, rank, size):
                seen[rows, columns] += 1
                areas[-1] += (rows.stop - rows.start) * (columns.stop - columns.start)
                if mirrored:
                    seen[columns, rows] += 1
        assert max(areas) - min(areas) <= 2 * neighbors.ROW_TILE
    assert (seen == 1).all()


def test_errors_refuse_to_share_a_search_by_faiss() -> None:
    with pytest.raises(ValueError, match=r"^group must be None with backend='faiss', got True$"):
        knn(torch.eye(3), 2, backend="faiss", group=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
