import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import reference_clustering as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmlib import neighbors
from mmmlib._kernels import in_threads
from mmmlib._rows import full_precision
from mmmlib.neighbors import knn, row_metric

FORMS = ["paper", "code"]


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def lattice(n=150, dim=4, seed=0):
    """Rows of a few whole numbers: many are equal, parallel, or at equal angles."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (n, dim), generator=generator).float()


def with_zeros(rows):
    rows = rows.clone()
    rows[::7] = 0
    return rows


def beyond_float32(n=100):
    """Rows whose nearness to each other float32 cannot tell apart, and thirty others."""
    crowd = normal(1, 8, dtype=torch.float64) + 3e-4 * normal(n, 8, dtype=torch.float64)
    return torch.cat([crowd, normal(30, 8, seed=1, dtype=torch.float64)])


ROWS = {
    "random": normal(90, 12),
    "one column": normal(40, 1),
    "strided": normal(12, 180).T[::2],
    "every row three times": normal(30, 12).repeat(3, 1),
    "equal rows": torch.ones(40, 5),
    "zero rows": with_zeros(normal(60, 12)),
    "nothing but zeros": torch.zeros(20, 3),
    "lattice": lattice(),
    "parallel": torch.cat([normal(20, 12), 2 * normal(20, 12), normal(20, 12) / 8]),
    "float16": normal(60, 12, dtype=torch.float16),
    "bfloat16": normal(60, 12, dtype=torch.bfloat16),
    "float64": normal(60, 12, dtype=torch.float64),
    "closer than float32": beyond_float32(),
}  # fmt: skip
FAR = {
    "1e30": 1e30 * normal(60, 12),
    "1e-30": 1e-30 * normal(60, 12),
    "1e-40": 1e-40 * normal(60, 12),
    "1e-30 to 1e30": 10.0 ** torch.linspace(-30, 30, 60)[:, None] * normal(60, 12),
    "float64 of 1e100": 1e100 * normal(60, 12, dtype=torch.float64),
    "float64 of 1e-100": 1e-100 * normal(60, 12, dtype=torch.float64),
}


def search_device(features, k, form="paper"):
    return neighbors._search_device(row_metric(features, form), min(k, len(features)))


def assert_exact(found, features, k, form="paper"):
    indices, similarities = reference.knn(features.double().numpy(), k, form)
    assert found.indices.dtype == torch.int64
    assert found.similarities.dtype == torch.float32
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.similarities.numpy(), similarities, rtol=1e-6, atol=1e-6)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("search", [knn, search_device])
@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize("name", [*ROWS, *FAR])
def test_neighbors_are_those_of_float64(name, k, search):
    features = (ROWS | FAR)[name]
    assert_exact(search(features, k), features, k)


@pytest.mark.parametrize("search", [knn, search_device])
@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize("name", ROWS)
def test_code_form_ranks_by_euclidean_distance_and_returns_inner_products(name, k, search):
    features = ROWS[name]
    assert_exact(search(features, k, form="code"), features, k, "code")


def test_by_hand():
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [4.0, 3.0], [0.0, 0.0], [-1.0, 0.0]])
    found = knn(features, 3)
    assert found.indices.tolist() == [[0, 2, 1], [1, 2, 0], [2, 0, 1], [3, 0, 1], [4, 1, 3]]
    torch.testing.assert_close(
        found.similarities,
        torch.tensor([[1, 0.8, 0], [1, 0.6, 0], [1, 0.8, 0.6], [0, 0, 0], [1, 0, 0]]),
    )


def test_code_form_by_hand():
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [4.0, 3.0], [0.0, 0.0]])
    found = knn(features, 3, form="code")
    assert found.indices.tolist() == [[0, 3, 1], [1, 3, 0], [2, 0, 1], [3, 1, 0]]
    assert found.similarities.tolist() == [[4, 0, 0], [1, 0, 0], [25, 8, 3], [0, 0, 0]]


@pytest.mark.parametrize("tiles", [(7, 5), (5, 7), (16, 64), (64, 16), (150, 1), (1, 150)])
@pytest.mark.parametrize("form", FORMS)
def test_tile_sizes_change_nothing(tiles, form, monkeypatch):
    rows = [lattice(), ROWS["random"], ROWS["closer than float32"]]
    whole = [knn(features, 6, form=form) for features in rows]
    monkeypatch.setattr(neighbors, "ROW_TILE", tiles[0])
    monkeypatch.setattr(neighbors, "COLUMN_TILE", tiles[1])
    for features, expected in zip(rows, whole, strict=True):
        found = knn(features, 6, form=form)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.similarities, expected.similarities)


@pytest.mark.parametrize("form", FORMS)
def test_threads_change_nothing(form, threads):
    features = torch.cat([lattice(900, 6), lattice(300, 6).repeat(2, 1)])
    found = []
    for count in (1, 2):
        threads(count)
        found.append(knn(features, 10, form=form))
    assert torch.equal(found[0].indices, found[1].indices)
    assert torch.equal(found[0].similarities, found[1].similarities)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [*ROWS, *FAR])
def test_a_gpu_finds_the_same_neighbors_with_tf32_and_autocast_on(name):
    features = (ROWS | FAR)[name]
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda"):
            found = knn(features.cuda(), 5)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.indices.is_cuda
    assert_exact(type(found)(*(part.cpu() for part in found)), features, 5)


@pytest.mark.parametrize("block", [1, 13, 4096])
def test_device_blocks_change_nothing(block):
    features = lattice()
    found = neighbors._search_device(row_metric(features, "paper"), 6, block=block)
    assert_exact(found, features, 6)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("search", [knn, search_device])
def test_more_equal_rows_than_candidates_are_kept(search, k):
    features = normal(330, 8)
    features[10:310] = features[10]
    assert_exact(search(features, k), features, k)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("search", [knn, search_device])
def test_more_rows_than_float32_can_order(search, form):
    features = beyond_float32(300)
    assert_exact(search(features, 4, form=form), features, 4, form)


def test_a_device_search_that_is_unsure_looks_at_whole_rows(monkeypatch):
    features, widths = lattice(300, 3), []
    rank = neighbors._rank_exactly

    def spy(metric, own, candidates, k):
        widths.append(candidates.shape[1])
        return rank(metric, own, candidates, k)

    monkeypatch.setattr(neighbors, "_rank_exactly", spy)
    assert_exact(search_device(features, 5), features, 5)
    assert {5 + neighbors.SPARE, len(features)} == set(widths)
    widths.clear()
    assert_exact(search_device(normal(150, 12), 5), normal(150, 12), 5)
    assert {5 + neighbors.SPARE} == set(widths)


@pytest.mark.parametrize("search", [knn, search_device])
def test_autocast_changes_nothing(search):
    features = normal(1, 64) + 0.03 * normal(300, 64)
    with torch.autocast("cpu", torch.bfloat16), full_precision("cpu"):
        nominated = search_device(features, 5)
    assert_exact(nominated, features, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_exact(knn(features, 5), features, 5)


def test_the_precision_of_matrix_products_is_lent_and_given_back():
    backends = [torch.backends.cuda.matmul]
    name, exact = "allow_tf32", False
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        backends.append(torch.backends.mkldnn.matmul)
        name, exact = "fp32_precision", "ieee"
    torch.set_float32_matmul_precision("medium")
    try:
        before = [getattr(backend, name) for backend in backends]
        with full_precision("cpu"):
            inside = [getattr(backend, name) for backend in backends]
        after = [getattr(backend, name) for backend in backends]
        precision = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert inside == [exact] * len(backends)
    assert exact not in before
    assert after == before
    assert precision == "medium"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_rows_than_neighbors(n, form):
    features = normal(n, 3)
    found = knn(features, 4, form=form)
    assert found.indices.shape == found.similarities.shape == (n, n)
    assert_exact(found, features, 4, form)


def test_rows_without_columns_are_equal():
    found = knn(torch.zeros(3, 0), 2)
    assert found.indices.tolist() == [[0, 1], [1, 0], [2, 0]]
    assert found.similarities.tolist() == [[0, 0], [0, 0], [0, 0]]


def test_the_first_neighbor_is_the_row_itself_whatever_it_holds():
    for features in (ROWS | FAR).values():
        assert knn(features, 3).indices[:, 0].tolist() == list(range(len(features)))


def test_scaling_a_row_changes_no_neighbor():
    features = normal(80, 6)
    scaled = features * 2.0 ** torch.arange(-40, 40)[:, None]
    assert torch.equal(knn(features, 7).indices, knn(scaled, 7).indices)


def test_similarities_fall():
    for features in (ROWS | FAR).values():
        assert (knn(features, 9).similarities.diff(dim=1)[:, 1:] <= 1e-6).all()


def test_the_argument_is_not_changed_and_gets_no_gradient():
    features = normal(30, 4).requires_grad_()
    before = features.detach().clone()
    assert not knn(features, 3).similarities.requires_grad
    assert torch.equal(features.detach(), before)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 999),
       st.sampled_from(FORMS))  # fmt: skip
def test_any_lattice_is_ranked_exactly(n, dim, k, seed, form):
    features = lattice(n, dim, seed)
    assert_exact(knn(features, k, form=form), features, k, form)
    assert_exact(search_device(features, k, form), features, k, form)


@pytest.mark.parametrize("count", [1, 2])
def test_chunks_come_back_in_order(count, threads):
    threads(count)
    chunks = in_threads(lambda start, stop, more: (start, stop, more), 25, "more", chunk=10)
    assert chunks == [(0, 10, "more"), (10, 20, "more"), (20, 25, "more")]
    assert in_threads(lambda start, stop: stop, 0) == []


@pytest.mark.parametrize("count", [1, 2])
def test_errors_in_a_chunk_come_out(count, threads):
    def refuse(start, stop):
        raise ArithmeticError(f"chunk {start}")

    threads(count)
    with pytest.raises(ArithmeticError, match="chunk 0"):
        in_threads(refuse, 25, chunk=10)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: knn(np.zeros((3, 2)), 2), TypeError,
         "features must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"),
        (lambda: knn(torch.zeros(3), 2), ValueError,
         "features must be a floating-point tensor (n, dim), got torch.float32 of shape (3,)"),
        (lambda: knn(torch.zeros(3, 2).long(), 2), ValueError,
         "features must be a floating-point tensor (n, dim), got torch.int64 of shape (3, 2)"),
        (lambda: knn(torch.tensor([[0.0], [torch.nan]]), 2), ValueError,
         "features must be finite, got nan in row 1"),
        (lambda: knn(torch.zeros(3, 2), 0), ValueError,
         "k must be a whole number of at least 1, got 0"),
        (lambda: knn(torch.zeros(3, 2), 2, form="book"), ValueError,
         "form must be 'paper' or 'code', got 'book'"),
        (lambda: knn(torch.full((3, 2), -1e30), 2, form="code"), ValueError,
         "features must be at most 1e+15 in magnitude with form='code', got 1e+30"),
    ],
)  # fmt: skip
def test_errors_of_knn(call, error, sentence):
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()


GALLERY = {
    "other rows": (normal(70, 12), normal(45, 12, seed=1)),
    "rows that both have": (normal(30, 12), normal(50, 12)),
    "lattice": (lattice(60), lattice(80, seed=1)),
    "zero rows": (with_zeros(normal(20, 12)), with_zeros(normal(30, 12, seed=1))),
    "far apart in size": (1e20 * normal(20, 12), 1e-20 * normal(30, 12, seed=1)),
}


@pytest.mark.parametrize("name", GALLERY)
@pytest.mark.parametrize("search", ["cpu", "device", "half"])
def test_a_gallery_is_searched_as_by_the_oracle(name, search):
    queries, gallery = GALLERY[name]
    first, second = (side.double() for side in (queries, gallery))
    norm = [side.norm(dim=1).clamp_min(1e-300) for side in (first, second)]
    product = (first[:, None] * second).sum(dim=2)  # equal rows give equal sums
    cosine = (product / norm[0][:, None] / norm[1] * 2**40).round() / 2**40
    expected = cosine.sort(dim=1, descending=True, stable=True)
    for k in (1, 7, 100):
        metric, most = row_metric(queries, "paper", gallery), min(k, len(gallery))
        if search == "cpu":
            found = knn(queries, k, gallery=gallery)
        else:
            found = neighbors._search_device(metric, most, half=search == "half")
        assert torch.equal(found.indices, expected.indices[:, :most])
        torch.testing.assert_close(
            found.similarities, expected.values[:, :most].float(), atol=1e-6, rtol=0
        )


def test_a_gallery_may_be_empty_and_so_may_the_queries():
    rows = normal(4, 3)
    assert knn(rows, 2, gallery=rows[:0]).indices.shape == (4, 0)
    assert knn(rows[:0], 2, gallery=rows).indices.shape == (0, 2)


def test_a_gallery_in_code_form_is_ranked_by_distance():
    queries, gallery = normal(30, 6), 2 * normal(40, 6, seed=1)
    expected = torch.cdist(queries.double(), gallery.double()).sort(dim=1, stable=True).indices
    assert torch.equal(knn(queries, 9, gallery=gallery, form="code").indices, expected[:, :9])


@pytest.mark.parametrize("name", ["random", "equal rows", "zero rows", "lattice", "parallel"])
def test_half_precision_only_nominates(name):
    rows = ROWS[name]
    k = min(9, len(rows))
    found = neighbors._search_device(row_metric(rows, "paper"), k, half=True, block=32)
    assert torch.equal(found.indices, knn(rows, k).indices)


def test_the_bound_of_half_precision_covers_its_error():
    rows = normal(200, 300) * torch.logspace(-6, 6, 200)[:, None]
    metric, own = row_metric(rows, "paper"), torch.arange(200)
    score, bound = neighbors._half_scores(metric)(own)
    exact = (rows.double() @ rows.double().T) * metric.scale
    assert ((score.double() - exact).abs() <= bound[:, None]).all()
    assert (bound < 3e-3 * rows.double().norm(dim=1)).all()


def test_a_device_out_of_memory_gets_half_the_block(monkeypatch):
    rows, block, tried = normal(50, 8), neighbors._search_block, []

    def small(metric, own, k, width, nominate):
        tried.append(len(own))
        if len(own) > 13:
            raise torch.cuda.OutOfMemoryError
        return block(metric, own, k, width, nominate)

    monkeypatch.setattr(neighbors, "_search_block", small)
    found = neighbors._search_device(row_metric(rows, "paper"), 5, block=50)
    assert tried == [50, 25, 12, 12, 12, 12, 2]
    assert torch.equal(found.indices, knn(rows, 5).indices)


def test_faiss_finds_the_same_where_its_index_is_exact():
    pytest.importorskip("faiss")
    rows, other = normal(300, 16), normal(80, 16, seed=1)
    for gallery in (None, other):
        found = knn(rows, 6, gallery=gallery, backend="faiss")
        assert torch.equal(found.indices, knn(rows, 6, gallery=gallery).indices)


def test_faiss_with_cells_stays_itself_first_and_never_gives_minus_one():
    pytest.importorskip("faiss")
    rows = normal(400, 8)
    found = knn(rows, 12, backend="faiss", factory="IVF20,Flat").indices
    assert torch.equal(found[:, 0], torch.arange(400))
    assert found.min() >= 0
    assert all(len(row.unique()) == 12 for row in found)
    exact = knn(rows, 12).indices
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]) > 4


def test_errors_of_faiss_are_named(monkeypatch):
    rows = normal(30, 4)
    sentence = "form must be 'paper' with backend='faiss', got 'code'"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        knn(rows, 3, form="code", backend="faiss")
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace())
    sentence = (
        "backend='faiss' needs a whole faiss: faiss-cpu and faiss-gpu share their files, so "
        "uninstall both and install one"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(sentence)}$"):
        knn(rows, 3, backend="faiss")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"^backend='faiss' needs faiss-cpu or faiss-gpu: .+"):
        knn(rows, 3, backend="faiss")


def test_errors_of_a_faiss_factory_are_named():
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"^factory must suit 30 rows, got 'Nonsense': .+"):
        knn(normal(30, 4), 3, backend="faiss", factory="Nonsense")
