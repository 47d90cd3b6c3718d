"""Retrieval metrics, gallery draws, and agreement of labels with identities."""

import logging
import random
import re
from contextlib import contextmanager

import numpy as np
import pytest
import reference_evaluation as slow
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from mmmlib._kernels import ranking
from mmmlib.evaluation import (
    RankingMetrics,
    _device,
    _ranking,
    _search,
    association_report,
    average_trials,
    draw_gallery,
    evaluate,
    ranking_metrics,
)

PROTOCOLS = ["plain", "regdb", "sysu-all", "sysu-indoor", "llcm"]
DRAWN = {"sysu-all": (1, 2, 4, 5), "sysu-indoor": (1, 2), "llcm": range(10)}


def random_case(n_queries, n_gallery, n_people, levels, seed=0):
    """Distances of few levels (ties everywhere), identities and cameras 1 to 6."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, size: torch.randint(0, high, size, generator=generator)  # noqa: E731
    distance = draw(levels, (n_queries, n_gallery)) / levels
    people = draw(n_people + 2, (n_queries,)), draw(n_people, (n_gallery,))
    return distance, people, (draw(6, (n_queries,)) + 1, draw(6, (n_gallery,)) + 1)


def random_images(n_queries=25, n_gallery=160, n_people=9, seed=0):
    _, (query, gallery), cameras = random_case(n_queries, n_gallery, n_people, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n_queries + n_gallery, 6, generator=generator)
    query = query % n_people
    return features[:n_queries], features[n_queries:], query, gallery, *cameras


@contextmanager
def torch_threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hand_example(query, camera):
    similarity = torch.tensor([[0.95, 0.6, 0.9, 0.8, 0.7, 0.1]])
    return ranking_metrics(
        1 - similarity,
        torch.tensor([query]),
        torch.tensor([7, 7, 5, 9, 5, 9]),
        query_cameras=torch.tensor([camera]),
        gallery_cameras=torch.tensor([2, 1, 2, 4, 1, 5]),
        protocol="sysu-all",
        max_rank=3,
    )


# ranking_metrics


@pytest.mark.parametrize(
    ("query", "camera", "cmc", "precision", "penalty"),
    [
        (5, 3, [0, 1, 1], 1 / 2, 1 / 2),
        (5, 6, [0, 1, 1], 1 / 2, 1 / 2),
        (7, 3, [0, 0, 1], 1 / 3, 1 / 3),
    ],
)
def test_the_worked_example_comes_out(query, camera, cmc, precision, penalty):
    metrics = hand_example(query, camera)
    assert metrics.cmc.tolist() == cmc
    assert metrics.mean_ap == pytest.approx(precision, abs=1e-15)
    assert metrics.mean_inp == pytest.approx(penalty, abs=1e-15)
    assert metrics[3:] == (1, 1, 6)


def test_places_are_images_without_a_camera_rule_and_identities_with_one():
    distance, query = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([2])
    gallery, cameras = torch.tensor([1, 1, 1, 2]), torch.tensor([1, 1, 4, 5])
    plain = ranking_metrics(distance, query, gallery, max_rank=4)
    sysu = ranking_metrics(
        distance, query, gallery, query_cameras=torch.tensor([6]), gallery_cameras=cameras,
        protocol="sysu-all", max_rank=4,
    )  # fmt: skip
    assert plain.cmc.tolist() == [0, 0, 0, 1]
    assert sysu.cmc.tolist() == [0, 1, 1, 1]
    assert plain.mean_ap == sysu.mean_ap == 0.25


def test_llcm_skips_images_of_the_same_identity_and_camera_only():
    metrics = ranking_metrics(
        torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([4]), torch.tensor([4, 5, 4]),
        query_cameras=torch.tensor([7]), gallery_cameras=torch.tensor([7, 7, 8]),
        protocol="llcm", max_rank=2,
    )  # fmt: skip
    assert metrics.cmc.tolist() == [0, 1]
    assert metrics.mean_ap == 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("levels", [2, 7, 2**20])
@pytest.mark.parametrize("n_people", [2, 20])  # 2: so many right images that they are sorted
def test_metrics_equal_those_of_a_stable_sort(protocol, levels, n_people):
    distance, people, cameras = random_case(60, 190, n_people, levels)
    metrics = ranking_metrics(
        distance, *people, query_cameras=cameras[0], gallery_cameras=cameras[1],
        protocol=protocol, max_rank=25,
    )  # fmt: skip
    cmc, mean_ap, mean_inp, n_valid = slow.ranking_metrics(
        distance.numpy(), *(part.tolist() for part in (*people, *cameras)), protocol, 25
    )
    assert metrics.n_valid == n_valid < metrics.n_queries == 60
    np.testing.assert_allclose(metrics.cmc.numpy(), cmc, rtol=0, atol=1e-15)
    assert metrics.mean_ap == pytest.approx(mean_ap, abs=1e-14)
    assert metrics.mean_inp == pytest.approx(mean_inp, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "protocol", "tolerance"),
    [
        ("eval_sysu_rank20", "sysu-all", 1e-12),
        ("eval_sysu_rank10", "sysu-all", 1e-9),
        ("eval_regdb", "regdb", 1e-12),
    ],
)
def test_recorded_metrics_are_reproduced(tensors, name, protocol, tolerance):
    case = tensors(name)
    metrics = ranking_metrics(
        case["distmat"], case["q_pids"], case["g_pids"], query_cameras=case.get("q_camids"),
        gallery_cameras=case.get("g_camids"), protocol=protocol, max_rank=int(case["max_rank"]),
    )  # fmt: skip
    torch.testing.assert_close(metrics.cmc.float(), case["cmc"], rtol=0, atol=1e-6)
    assert metrics.mean_ap == pytest.approx(case["mAP"].item(), abs=tolerance)
    assert metrics.mean_inp == pytest.approx(case["mINP"].item(), abs=tolerance)


def test_among_equal_distances_the_image_given_first_comes_first():
    distance, query = torch.zeros(1, 3), torch.tensor([1])
    places = [
        ranking_metrics(distance, query, torch.tensor(gallery)).mean_ap
        for gallery in ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    ]
    assert places == [1, 1 / 2, 1 / 3]


def test_infinite_distances_are_ranked_last():
    distance = torch.tensor([[torch.inf, 5.0, -torch.inf]])
    metrics = ranking_metrics(distance, torch.tensor([1]), torch.tensor([1, 0, 0]))
    assert metrics.mean_ap == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_ranks_alike(dtype):
    distance, people, _ = random_case(9, 40, 5, 8)
    assert (
        ranking_metrics(distance.to(dtype), *people)[1:] == ranking_metrics(distance, *people)[1:]
    )


def test_a_strided_distance_with_gradient_is_ranked_and_left_alone():
    distance, people, _ = random_case(9, 40, 5, 8)
    columns = distance.T.contiguous().requires_grad_()
    before = [part.clone() for part in (columns, *people)]
    metrics = ranking_metrics(columns.T, *people)
    assert metrics[1:] == ranking_metrics(distance, *people)[1:]
    for part, copy in zip((columns, *people), before, strict=True):
        assert torch.equal(part, copy)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 330, 7000])
def test_neither_block_size_nor_threads_change_the_metrics(monkeypatch, threads, block):
    distance, people, cameras = random_case(300, 50, 9, 5)
    options = {"query_cameras": cameras[0], "gallery_cameras": cameras[1], "protocol": "llcm"}
    whole = ranking_metrics(distance, *people, **options)
    monkeypatch.setattr(_search, "BLOCK", block)
    with torch_threads(threads):
        parts = ranking_metrics(distance, *people, **options)
    assert torch.equal(whole.cmc, parts.cmc)
    assert whole[1:] == parts[1:]


@pytest.mark.parametrize("levels", [1, 3, 2**20])
def test_many_right_images_are_ranked_by_one_sort(levels, monkeypatch):
    distance, people, cameras = random_case(12, 400, 1, levels)
    distance[0, :30] = torch.inf
    options = {"query_cameras": cameras[0], "gallery_cameras": cameras[1], "protocol": "llcm"}
    metrics = ranking_metrics(distance, *people, **options)
    assert ranking.MOST_COUNTED < 400 * 5 / 6
    cmc, mean_ap, mean_inp, _ = slow.ranking_metrics(
        distance.numpy(), *(part.tolist() for part in (*people, *cameras)), "llcm", 20
    )
    np.testing.assert_allclose(metrics.cmc.numpy(), cmc, rtol=0, atol=1e-15)
    assert metrics.mean_ap == pytest.approx(mean_ap, abs=1e-14)
    assert metrics.mean_inp == pytest.approx(mean_inp, abs=1e-14)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("skip", [None, "nothing", "overlapping-camera", "own-camera"])
@pytest.mark.parametrize("places", [None, "images", "identities"])
def test_every_rule_can_be_chosen_apart_from_the_protocol(protocol, skip, places):
    distance, people, cameras = random_case(40, 90, 7, 9)
    metrics = ranking_metrics(
        distance, *people, query_cameras=cameras[0], gallery_cameras=cameras[1],
        protocol=protocol, skip=skip, places=places,
    )  # fmt: skip
    cmc, mean_ap, mean_inp, n_valid = slow.ranking_metrics(
        distance.numpy(), *(part.tolist() for part in (*people, *cameras)), protocol, 20,
        skip, places,
    )  # fmt: skip
    assert metrics.n_valid == n_valid
    np.testing.assert_allclose(metrics.cmc.numpy(), cmc, rtol=0, atol=1e-15)
    assert metrics.mean_ap == pytest.approx(mean_ap, abs=1e-14)
    assert metrics.mean_inp == pytest.approx(mean_inp, abs=1e-14)


def test_the_cmc_of_a_short_gallery_stays_at_its_last_value():
    distance = torch.tensor([[0.2, 0.1]])
    metrics = ranking_metrics(distance, torch.tensor([3]), torch.tensor([3, 4]), max_rank=5)
    assert metrics.cmc.tolist() == [0, 1, 1, 1, 1]
    assert [metrics.rank(k) for k in (1, 2, 5)] == [0, 1, 1]


def test_a_query_without_a_right_image_is_left_out_and_said(caplog):
    distance = torch.tensor([[0.1, 0.2], [0.1, 0.2], [0.2, 0.1]])
    with caplog.at_level(logging.WARNING, "mmmlib"):
        metrics = ranking_metrics(distance, torch.tensor([1, 9, 1]), torch.tensor([1, 2]))
    assert metrics.cmc[:2].tolist() == [0.5, 1]
    assert metrics.mean_ap == 0.75
    assert (metrics.n_queries, metrics.n_valid) == (3, 2)
    assert len(caplog.records) == 1
    assert "only 2 of 3 queries" in caplog.text


def test_a_query_whose_only_images_the_camera_rule_skips_is_left_out():
    metrics = ranking_metrics(
        torch.tensor([[0.1, 0.2]]), torch.tensor([5]), torch.tensor([5, 6]),
        query_cameras=torch.tensor([3]), gallery_cameras=torch.tensor([2, 1]), protocol="sysu-all",
    )  # fmt: skip
    assert metrics.n_valid == 0


def test_nobody_is_right_for_nobody():
    metrics = ranking_metrics(torch.zeros(2, 2), torch.tensor([-1, 3]), torch.tensor([-1, 3]))
    assert metrics.n_valid == 1
    assert metrics.mean_ap == 0.5


@pytest.mark.parametrize(("n_queries", "n_gallery"), [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_to_rank_gives_zeros(n_queries, n_gallery, protocol, caplog):
    query, gallery = torch.ones(n_queries, dtype=torch.int64), torch.ones(n_gallery).long()
    metrics = ranking_metrics(
        torch.zeros(n_queries, n_gallery), query, gallery, query_cameras=query,
        gallery_cameras=gallery, protocol=protocol, max_rank=3,
    )  # fmt: skip
    assert metrics.cmc.tolist() == [0, 0, 0]
    assert metrics[1:] == (0, 0, n_queries, 0, n_gallery)
    assert f"only 0 of {n_queries}" in caplog.text


# draw_gallery


@pytest.mark.parametrize("shots", [1, 10])
@pytest.mark.parametrize("search", ["all", "indoor"])
def test_recorded_galleries_are_drawn(recording, search, shots):
    case = recording("sysu_gallery")
    files = np.sort(case["files"])
    cameras = torch.tensor([int(name[3]) for name in files])
    identities = torch.tensor([int(name[5:9]) for name in files])
    for trial, expected in enumerate(case[f"{search}_shot{shots}"]):
        rows = draw_gallery(
            identities, cameras, protocol=f"sysu-{search}", trial=trial, shots=shots
        )
        assert files[rows.numpy()].tolist() == expected.tolist()
    assert identities[rows].tolist() == case[f"{search}_shot{shots}_pid"].tolist()
    assert cameras[rows].tolist() == case[f"{search}_shot{shots}_cam"].tolist()


@pytest.mark.parametrize("protocol", DRAWN)
@pytest.mark.parametrize("shots", [1, 3, 100])
def test_draws_equal_those_folder_by_folder(protocol, shots):
    _, (_, identities), (_, cameras) = random_case(1, 400, 12, 2)
    for trial in (0, 7):
        rows = draw_gallery(identities, cameras, protocol=protocol, trial=trial, shots=shots)
        expected = slow.draw_gallery(
            identities.tolist(), cameras.tolist(), DRAWN[protocol], trial, shots
        )
        assert rows.tolist() == expected


def test_a_draw_neither_reads_nor_seeds_the_global_generator():
    identities, states, draws = torch.arange(40) // 10, [], []
    for seed in (1, 2):
        random.seed(seed)
        rows = draw_gallery(identities, torch.ones(40).long(), protocol="llcm", trial=4)
        draws.append(rows.tolist())
        states.append(random.getstate())
    assert draws[0] == draws[1]
    assert states[0] != states[1]


@pytest.mark.parametrize("cameras", [[], [3, 6]])
def test_a_gallery_without_its_cameras_is_empty(cameras):
    cameras = torch.tensor(cameras, dtype=torch.int64)
    rows = draw_gallery(torch.zeros_like(cameras), cameras, protocol="sysu-all", trial=0)
    assert rows.dtype == torch.int64
    assert rows.shape == (0,)


# evaluate


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("shots", [1, 4])
def test_trials_equal_a_sort_of_each_gallery(protocol, shots, monkeypatch):
    monkeypatch.setattr(_search, "BLOCK", 800)
    query, gallery, *people, query_cameras, gallery_cameras = random_images()
    gallery[80:] = gallery[:80] * 2  # ties
    result = evaluate(
        query, gallery, *people, query_cameras=query_cameras, gallery_cameras=gallery_cameras,
        protocol=protocol, trials=3, shots=shots, max_rank=6,
    )  # fmt: skip
    unit = [torch.nn.functional.normalize(part.double(), dim=1) for part in (query, gallery)]
    distance = -(unit[0] @ unit[1].T).float().numpy()
    assert len(result.trials) == (3 if protocol in DRAWN else 1)
    for trial, metrics in enumerate(result.trials):
        rows = np.arange(len(gallery))
        if protocol in DRAWN:
            rows = slow.draw_gallery(
                people[1].tolist(), gallery_cameras.tolist(), DRAWN[protocol], trial, shots
            )
        cmc, mean_ap, mean_inp, n_valid = slow.ranking_metrics(
            distance[:, rows], people[0].tolist(), people[1][rows].tolist(),
            query_cameras.tolist(), gallery_cameras[rows].tolist(), protocol, 6,
        )  # fmt: skip
        np.testing.assert_allclose(metrics.cmc.numpy(), cmc, rtol=0, atol=1e-15)
        assert metrics.mean_ap == pytest.approx(mean_ap, abs=1e-14)
        assert metrics.mean_inp == pytest.approx(mean_inp, abs=1e-14)
        assert (metrics.n_valid, metrics.n_gallery) == (n_valid, len(rows))


def crowded_images(n_queries=40, n_gallery=300, n_people=12, dim=2100, dtype=torch.float32):
    """Integer rows of one norm, so many nearly alike that float32 cannot tell their order."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randint(1000, 1100, (dim,), generator=generator).double()
    rows = common.repeat(n_queries + n_gallery, 1)
    pair = torch.rand(len(rows), dim, generator=generator).argsort(dim=1)[:, :6]
    rows.scatter_(1, pair, rows.gather(1, pair.roll(1, dims=1)))  # swaps keep the norm
    people = torch.randint(n_people, (len(rows),), generator=generator)
    rows[-20:] = rows[n_queries : n_queries + 20]
    query, gallery = rows.to(dtype).split([n_queries, n_gallery])
    return query, gallery, *people.split([n_queries, n_gallery])


@pytest.mark.parametrize("depth", [64, 1024, 4096])
@pytest.mark.parametrize("often", [0.0, 2.0])  # after the first block: float64 products, or float32
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_float32_cannot_tell_is_ranked_exactly(depth, often, dtype, monkeypatch):
    monkeypatch.setattr(_search, "DEPTH", depth)
    monkeypatch.setattr(_search, "OFTEN", often)
    monkeypatch.setattr(_search, "TILE", 16)
    query, gallery, *people = crowded_images(dtype=dtype)
    exact = query.long() @ gallery.long().T
    places = (-exact).argsort(dim=1, stable=True).argsort(dim=1)
    result = evaluate(query, gallery, *people).trials[0]
    expected = ranking_metrics(places.double(), *people)
    rough = ranking_metrics(-(query.float() @ gallery.float().T), *people)
    assert torch.equal(result.cmc, expected.cmc)
    assert result[1:3] == expected[1:3]
    assert result[1:3] != rough[1:3]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("block", "tile"), [(1, 7), (3000, 50), (2**23, 1024)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_neither_blocks_nor_threads_change_an_evaluation(
    protocol, threads, block, tile, monkeypatch
):
    query, gallery, *people = crowded_images()
    generator = torch.Generator().manual_seed(0)
    cameras = [torch.randint(1, 7, (len(side),), generator=generator) for side in people]
    options = {"query_cameras": cameras[0], "gallery_cameras": cameras[1], "protocol": protocol}
    whole = evaluate(query, gallery, *people, **options, trials=3)
    monkeypatch.setattr(_search, "BLOCK", block)
    monkeypatch.setattr(_search, "TILE", tile)
    with torch_threads(threads):
        parts = evaluate(query, gallery, *people, **options, trials=3)
    for trial, other in zip(whole.trials, parts.trials, strict=True):
        assert torch.equal(trial.cmc, other.cmc)
        assert trial[1:] == other[1:]


@pytest.mark.parametrize("compared", [500, 2**27])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("images", [random_images, crowded_images])
def test_plain_tensor_operations_score_alike(images, protocol, compared, monkeypatch):
    query, gallery, *people = images()[:4]
    generator = torch.Generator().manual_seed(0)
    cameras = [torch.randint(1, 7, (len(side),), generator=generator) for side in people]
    options = {"query_cameras": cameras[0], "gallery_cameras": cameras[1], "protocol": protocol}
    compiled = evaluate(query, gallery, *people, **options, trials=2)
    monkeypatch.setattr(_device, "COMPARED", compared)
    monkeypatch.setattr(_device, "FACTORS", 10_000)
    monkeypatch.setattr(_search, "_score", score_plainly)
    plain = evaluate(query, gallery, *people, **options, trials=2)
    for trial, other in zip(compiled.trials, plain.trials, strict=True):
        assert torch.equal(trial.cmc, other.cmc)
        assert trial[3:] == other[3:]
        assert trial[1:3] == pytest.approx(other[1:3], abs=1e-14)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("levels", [2, 2**20])
def test_plain_tensor_operations_score_distances_alike(protocol, levels, monkeypatch):
    distance, people, cameras = random_case(60, 190, 6, levels)
    distance[:3, ::2] = torch.inf
    options = {"query_cameras": cameras[0], "gallery_cameras": cameras[1], "protocol": protocol}
    compiled = ranking_metrics(distance, *people, **options)
    monkeypatch.setattr(_search, "_score", score_plainly)
    plain = ranking_metrics(distance, *people, **options)
    assert torch.equal(compiled.cmc, plain.cmc)
    assert compiled[1:3] == pytest.approx(plain[1:3], abs=1e-14)


def score_plainly(distance, width, query, gallery, task, start):
    """What a device other than the CPU does."""
    part = slice(start, start + len(distance))
    task = task._replace(persons=task.persons[part], skipped=task.skipped[part])
    quantum = (_search._quantum(query.dim) * query.norm).clamp_min(1e-300)
    exact = query.values, gallery.values, _search._factor(gallery), quantum
    return _device.score_queries(distance, width, task, exact), 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_gpu_gives_the_same(protocol):
    query, gallery, *people = crowded_images()
    cameras = [side % 6 + 1 for side in people]
    arguments = [query, gallery, *people]
    options = {"query_cameras": cameras[0], "gallery_cameras": cameras[1]}
    expected = evaluate(*arguments, **options, protocol=protocol, trials=2)
    result = evaluate(
        *(part.cuda() for part in arguments),
        **{name: part.cuda() for name, part in options.items()}, protocol=protocol, trials=2,
    )  # fmt: skip
    assert result.cmc.is_cuda
    torch.testing.assert_close(result.cmc.cpu(), expected.cmc, rtol=0, atol=0)
    assert result.mean_ap == pytest.approx(expected.mean_ap, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_and_the_largest_features_are_searched(dtype):
    query, gallery, *people = random_images()[:4]
    expected = evaluate(query, gallery, *people)
    limits = torch.finfo(dtype)
    far = evaluate(query.to(dtype) * (limits.max / 8), gallery.to(dtype), *people)
    near = evaluate(query.to(dtype), gallery.to(dtype) * (limits.tiny * 8), *people)
    assert far.mean_ap == pytest.approx(expected.mean_ap, abs=1e-12)
    assert near.mean_ap == pytest.approx(expected.mean_ap, abs=1e-12)


def test_huge_rows_with_entries_of_zero_are_searched_as_their_unit_rows_are():
    query, gallery, *people = random_images()[:4]
    query, gallery = query.double(), gallery.double()
    query[:, 0] = 0.0
    query[:, 1] = torch.where(query[:, 1] > 0, 1e-200, 0.0)
    expected = evaluate(query, gallery, *people)
    found = evaluate(query * 1e300, gallery, *people)
    assert torch.equal(found.cmc, expected.cmc)
    assert found.mean_ap == pytest.approx(expected.mean_ap, abs=1e-14)


class Elsewhere(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU, so that operations of torch are taken."""

    device = torch.device("cuda")


def test_elsewhere_squares_of_rows_are_those_of_a_loop():
    rows = torch.randn(9000, 3, generator=torch.Generator().manual_seed(0))
    found = _search._squares(rows.as_subclass(Elsewhere))
    expected = rows.double().square().sum(dim=1)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=1e-12, atol=0)


def test_cosines_that_only_rounding_tells_apart_tie():
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(-9, 10, (64,), generator=generator).double()
    query = torch.randint(-9, 10, (6, 64), generator=generator).double()
    lengths = torch.tensor([1.0, 3, 7, 11, 13, 49, 99, 343], dtype=torch.float64)
    people = torch.arange(8)
    same = evaluate(query, row.expand(8, -1), people[:6], people)
    found = evaluate(query, row * lengths[:, None], people[:6], people)
    assert torch.equal(found.cmc, same.cmc)
    assert found.mean_ap == same.mean_ap


def test_errors_of_too_many_places():
    query, gallery, *people = random_images()[:4]
    with pytest.raises(ValueError, match=f"max_rank must be at most {2**24}, got {2**24 + 1}"):
        evaluate(query, gallery, *people, max_rank=2**24 + 1)


def test_the_trial_that_leaves_out_most_queries_is_said(caplog):
    people = torch.tensor([1, 2, 3])
    distance = torch.rand(3, 3)
    whole = ranking_metrics(distance, people, people)
    part = ranking_metrics(distance[:, :2], people, people[:2])
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        caplog.clear()
        _ranking._warn_left_out([whole, part, whole])
    assert "only 2 of 3 queries" in caplog.text


@pytest.mark.parametrize("protocol", ["plain", "sysu-all"])
def test_without_queries_there_are_as_many_trials_as_ever(protocol):
    _, gallery, _, people, _, cameras = random_images()
    nobody = torch.zeros(0, dtype=torch.int64)
    options = {"query_cameras": nobody, "gallery_cameras": cameras, "protocol": protocol}
    found = evaluate(gallery[:0], gallery, nobody, people, **options, trials=3)
    trials = 3 if protocol == "sysu-all" else 1
    assert len(found.trials) == trials
    assert all(trial.n_queries == trial.n_valid == 0 for trial in found.trials)


def test_features_without_columns_all_tie():
    people = torch.tensor([0, 1])
    result = evaluate(torch.zeros(2, 0), torch.zeros(2, 0), people, people)
    assert result.mean_ap == 0.75


def test_the_result_is_the_mean_of_the_trials():
    query, gallery, *people, query_cameras, gallery_cameras = random_images()
    result = evaluate(
        query, gallery, *people, query_cameras=query_cameras, gallery_cameras=gallery_cameras,
        protocol="sysu-all",
    )  # fmt: skip
    assert len(result.trials) == 10
    for name in ("mean_ap", "mean_inp"):
        values = [getattr(trial, name) for trial in result.trials]
        assert getattr(result, name) == pytest.approx(np.mean(values), abs=1e-15)
        assert getattr(result, f"{name}_std") == pytest.approx(np.std(values), abs=1e-15)
        assert np.std(values) > 0
    curves = np.stack([trial.cmc for trial in result.trials])
    np.testing.assert_allclose(result.cmc, curves.mean(axis=0), atol=1e-15)
    np.testing.assert_allclose(result.cmc_std, curves.std(axis=0), atol=1e-15)
    assert (result.rank_1, result.rank_1_std) == (result.cmc[0], result.cmc_std[0])


def test_the_length_of_a_feature_does_not_matter():
    query, gallery, *people = random_images()[:4]
    scaled = evaluate(query * 1e30, gallery * 1e-30, *people)
    assert scaled.mean_ap == pytest.approx(evaluate(query, gallery, *people).mean_ap, abs=1e-12)


def test_equal_features_tie_wherever_they_stand():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(7, 33, generator=generator)
    gallery = torch.randn(1, 33, generator=generator).repeat(1003, 1)
    for place in (0, 500, 1002):
        identities = torch.zeros(1003, dtype=torch.int64)
        identities[place] = 1
        result = evaluate(query, gallery, torch.ones(7).long(), identities)
        assert result.mean_ap == pytest.approx(1 / (place + 1), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_type_are_searched_under_autocast(dtype):
    query, gallery, *people = random_images()[:4]
    query, gallery = query.to(dtype).requires_grad_(), gallery.to(dtype)
    expected = evaluate(query.detach().double(), gallery.double(), *people)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = evaluate(query, gallery, *people)
    assert result.mean_ap == pytest.approx(expected.mean_ap, abs=1e-6)
    assert not result.cmc.requires_grad


def test_zero_features_are_ranked_without_nan():
    people = torch.tensor([0, 1])
    result = evaluate(torch.zeros(2, 3), torch.zeros(2, 3), people, people)
    assert result.mean_ap == 0.75


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_images_give_zeros_and_one_warning(protocol, caplog):
    nobody = torch.zeros(0, dtype=torch.int64)
    result = evaluate(
        torch.zeros(0, 3), torch.zeros(0, 3), nobody, nobody, query_cameras=nobody,
        gallery_cameras=nobody, protocol=protocol,
    )  # fmt: skip
    assert (result.rank_1, result.mean_ap, result.mean_ap_std) == (0, 0, 0)
    assert len(caplog.records) == 1


def test_evaluating_changes_no_argument():
    images = random_images()
    before = [part.clone() for part in images]
    evaluate(
        *images[:4], query_cameras=images[4], gallery_cameras=images[5], protocol="sysu-indoor"
    )
    for part, copy in zip(images, before, strict=True):
        assert torch.equal(part, copy)


def test_models_of_several_splits_are_averaged():
    trials = [
        evaluate(*random_images(seed=seed)[:4], protocol="regdb").trials[0] for seed in range(3)
    ]
    result = average_trials(trials)
    assert result.trials == tuple(trials)
    assert result.mean_ap == pytest.approx(np.mean([trial.mean_ap for trial in trials]))


# association_report


def random_labels(seed=0, n_visible=90, n_infrared=60):
    generator = torch.Generator().manual_seed(seed)
    sizes = (n_visible, n_infrared) * 2
    labels = [torch.randint(0, 8, (n,), generator=generator) for n in sizes]
    for identities, label in zip(labels[2:], labels[:2], strict=True):
        agree = torch.rand(len(label), generator=generator) < 0.6
        label[agree] = identities[agree]
        label[torch.rand(len(label), generator=generator) < 0.2] = -1
    return labels


def test_the_worked_indices_come_out():
    labels, identities = torch.tensor([0, 0, 1, 1, -1]), torch.tensor([0, 0, 0, 1, 1])
    report = association_report(labels, labels[:0], identities, identities[:0])
    assert report.ari_visible == pytest.approx(1 / 11, abs=1e-15)
    assert report.ari_visible_clustered == 0
    assert report.ari_all == report.ari_visible


def test_the_worked_pairs_come_out():
    report = association_report(
        torch.tensor([0, 0, 1, -1]), torch.tensor([0, 2, -1]),
        torch.tensor([5, 6, 6, 5]), torch.tensor([5, 6, 5]),
    )  # fmt: skip
    assert report.precision == 1 / 2  # of (5, 5) and (6, 5)
    assert report.recall == 1 / 6  # 2 * 2 of identity 5, 2 of identity 6
    assert report.f1 == 2 / 8
    assert (report.n_visible_clusters, report.n_infrared_clusters, report.n_shared) == (2, 2, 1)
    assert (report.visible_noise, report.infrared_noise) == (1 / 4, 1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_reports_equal_scikit_learn_and_all_pairs(seed):
    visible, infrared, visible_people, infrared_people = random_labels(seed)
    report = association_report(visible, infrared, visible_people, infrared_people)
    labels, people = torch.cat([visible, infrared]), torch.cat([visible_people, infrared_people])
    sides = {
        "visible": (visible, visible_people),
        "infrared": (infrared, infrared_people),
        "all": (labels, people),
    }
    for name, (label, person) in sides.items():
        kept = label >= 0
        whole, part = getattr(report, f"ari_{name}"), getattr(report, f"ari_{name}_clustered")
        assert whole == pytest.approx(adjusted_rand_score(person, label), abs=1e-12)
        assert whole == pytest.approx(slow.adjusted_rand(label, person), abs=1e-12)
        assert part == pytest.approx(adjusted_rand_score(person[kept], label[kept]), abs=1e-12)
    assert report.nmi_all == pytest.approx(normalized_mutual_info_score(people, labels), abs=1e-12)
    expected = slow.pair_scores(visible, infrared, visible_people, infrared_people)
    assert (report.precision, report.recall, report.f1) == pytest.approx(expected, abs=1e-15)


def test_renumbering_labels_and_identities_changes_nothing():
    visible, infrared, *people = random_labels()
    number = torch.tensor([70, 3, 10**15, 4, 0, 9, 12, 5, -1])  # the last stands for -1
    renamed = association_report(number[visible], number[infrared], *(p * 10**12 for p in people))
    assert renamed == association_report(visible, infrared, *people)


def test_swapping_the_modalities_swaps_the_report():
    visible, infrared, visible_people, infrared_people = random_labels()
    report = association_report(visible, infrared, visible_people, infrared_people)
    other = association_report(infrared, visible, infrared_people, visible_people)
    assert (report.ari_visible, report.visible_noise) == (other.ari_infrared, other.infrared_noise)
    assert (report.ari_all, report.f1, report.n_shared) == (other.ari_all, other.f1, other.n_shared)


def test_images_of_unknown_identity_are_left_out():
    visible, infrared, visible_people, infrared_people = random_labels()
    more = torch.cat([visible, torch.tensor([0, 8, -1])])
    report = association_report(
        more, infrared, torch.cat([visible_people, torch.tensor([-1, -1, -1])]), infrared_people
    )
    assert report == association_report(visible, infrared, visible_people, infrared_people)


def test_large_counts_do_not_overflow():
    n = 300_000
    labels = torch.zeros(n, dtype=torch.int64)
    people = torch.arange(n) // (n // 2)
    report = association_report(labels, labels, people, people)
    assert report.ari_all == 0
    assert (report.precision, report.recall) == (0.5, 1)
    again = association_report(people, people, people, people)
    assert (again.ari_all, again.f1) == (1, 1)


def test_perfect_labels_score_one():
    people = torch.tensor([4, 4, 2, 9])
    report = association_report(people, people, people, people)
    assert report[:10] == (1,) * 10
    assert report[10:] == (3, 3, 3, 0, 0)


def test_one_cluster_of_one_identity_scores_one():
    one = torch.zeros(3, dtype=torch.int64)
    assert association_report(one, one, one, one)[:10] == (1,) * 10


def test_one_cluster_of_several_identities_scores_zero():
    one, people = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 2])
    report = association_report(one, one, people, people)
    assert (report.ari_all, report.nmi_all) == (0, 0)
    assert (report.precision, report.recall) == (6 / 16, 1)


def test_only_noise_scores_zero():
    noise, people = torch.full((4,), -1), torch.tensor([0, 0, 1, 2])
    report = association_report(noise, noise, people, people)
    assert report[:13] == (0,) * 13
    assert report[13:] == (1, 1)


def test_no_images_score_zero():
    nobody = torch.zeros(0, dtype=torch.int64)
    assert association_report(nobody, nobody, nobody, nobody) == (0,) * 15


def test_reporting_changes_no_argument():
    labels = random_labels()
    before = [part.clone() for part in labels]
    association_report(*labels)
    for part, copy in zip(labels, before, strict=True):
        assert torch.equal(part, copy)


# errors

PEOPLE = torch.tensor([0, 1])


def says(sentence, kind=ValueError):
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


def test_errors_name_the_row_of_a_nan():
    distance = torch.tensor([[0.0, 1.0], [0.5, torch.nan]])
    with says("distance must not hold nan, got nan in row 1"):
        ranking_metrics(distance, PEOPLE, PEOPLE)


def test_errors_refuse_an_array_and_a_vector():
    with says(
        "distance must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array",
        TypeError,
    ):
        ranking_metrics(np.zeros((2, 2)), PEOPLE, PEOPLE)
    with says(
        "distance must be a floating-point tensor (queries, gallery), "
        "got torch.float32 of shape (2,)"
    ):
        ranking_metrics(torch.zeros(2), PEOPLE, PEOPLE)


def test_errors_refuse_identities_of_another_length():
    with says("gallery_identities must be an int64 tensor of shape (3,), got torch.int64 of shape "
              "(2,)"):  # fmt: skip
        ranking_metrics(torch.zeros(2, 3), PEOPLE, PEOPLE)


@pytest.mark.parametrize("protocol", DRAWN)
def test_errors_ask_for_cameras(protocol):
    with says(f"query_cameras must be given for protocol '{protocol}', got None"):
        ranking_metrics(torch.zeros(2, 2), PEOPLE, PEOPLE, protocol=protocol)
    with says(f"gallery_cameras must be given for protocol '{protocol}', got None"):
        evaluate(
            torch.zeros(2, 2), torch.zeros(2, 2), PEOPLE, PEOPLE, query_cameras=PEOPLE,
            protocol=protocol,
        )  # fmt: skip


def test_errors_name_the_protocols():
    said = "protocol must be 'plain', 'regdb', 'sysu-all', 'sysu-indoor' or 'llcm', got 'sysu'"
    with says(said):
        ranking_metrics(torch.zeros(2, 2), PEOPLE, PEOPLE, protocol="sysu")
    with says(said):
        evaluate(torch.zeros(2, 2), torch.zeros(2, 2), PEOPLE, PEOPLE, protocol="sysu")
    with says("protocol must be 'sysu-all', 'sysu-indoor' or 'llcm', got 'regdb'"):
        draw_gallery(PEOPLE, PEOPLE, protocol="regdb", trial=0)


def test_errors_name_the_rules():
    with says("skip must be 'nothing', 'overlapping-camera' or 'own-camera', got 'camera'"):
        ranking_metrics(torch.zeros(2, 2), PEOPLE, PEOPLE, skip="camera")
    with says("places must be 'images' or 'identities', got 'rows'"):
        evaluate(torch.zeros(2, 2), torch.zeros(2, 2), PEOPLE, PEOPLE, places="rows")
    with says("query_cameras must be given for skip 'own-camera', got None"):
        ranking_metrics(torch.zeros(2, 2), PEOPLE, PEOPLE, skip="own-camera")


@pytest.mark.parametrize("name", ["trials", "shots", "max_rank"])
def test_errors_refuse_counts_below_one(name):
    with says(f"{name} must be a whole number of at least 1, got 0"):
        evaluate(torch.zeros(2, 2), torch.zeros(2, 2), PEOPLE, PEOPLE, **{name: 0})


def test_errors_refuse_a_negative_trial():
    with says("trial must be a whole number of at least 0, got -1"):
        draw_gallery(PEOPLE, PEOPLE, protocol="llcm", trial=-1)


def test_errors_name_the_features_that_are_not_finite():
    features = torch.tensor([[1.0, 0.0], [torch.inf, 0.0]])
    with says("gallery must be finite, got inf in row 1"):
        evaluate(torch.zeros(2, 2), features, PEOPLE, PEOPLE)


def test_errors_refuse_features_of_another_width():
    with says(
        "query and gallery must have the same number of columns, got query (2, 3), gallery (2, 2)"
    ):
        evaluate(torch.zeros(2, 3), torch.zeros(2, 2), PEOPLE, PEOPLE)


def test_errors_refuse_a_place_beyond_the_cmc():
    metrics = ranking_metrics(torch.zeros(2, 2), PEOPLE, PEOPLE, max_rank=5)
    with says("k must be in [1, 5], got 6"):
        metrics.rank(6)


def test_errors_refuse_trials_that_cannot_be_averaged():
    with says("trials must hold cmc of one length, got lengths []"):
        average_trials([])
    trials = [RankingMetrics(torch.zeros(n), 0.0, 0.0, 1, 1, 1) for n in (2, 3)]
    with says("trials must hold cmc of one length, got lengths [2, 3]"):
        average_trials(trials)


def test_errors_refuse_labels_that_are_not_one_per_identity():
    with says("visible_identities must be an int64 tensor of shape (1,), got torch.int64 of shape "
              "(2,)"):  # fmt: skip
        association_report(PEOPLE[:1], PEOPLE, PEOPLE, PEOPLE)


def test_images_of_nobody_are_as_many_strangers():
    distance = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    options = {"protocol": "plain", "places": "identities"}
    query = torch.tensor([7])
    found = ranking_metrics(distance, query, torch.tensor([-1, -1, -1, 7]), **options)
    wanted = ranking_metrics(distance, query, torch.tensor([1, 2, 3, 7]), **options)
    assert torch.equal(found.cmc, wanted.cmc)
    assert found.cmc[:4].tolist() == [0, 0, 0, 1]
