import csv
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mmmlib import plots
from mmmlib.clustering import jaccard_graph, suggest_eps
from mmmlib.matching import match_costs

ROOT = Path(__file__).parent.parent
BLUE, ORANGE = "#0072b2", "#d55e00"


@pytest.fixture(autouse=True)
def close():
    yield
    pyplot.close("all")


def labels_of(*values):
    return torch.tensor(values, dtype=torch.int64)


def drawn(ax):
    """Everything is laid out and drawn once: whatever fails only then, fails here."""
    ax.figure.savefig(io.BytesIO(), dpi=40)
    return ax


def marks(ax):
    (found,) = (part for part in ax.collections if isinstance(part, PathCollection))
    return found.get_offsets().astype(int).tolist()


def numbers(axis):
    return [int(tick.get_text()) for tick in axis.get_ticklabels()]


def frames(ax):
    """Colour and line of each frame, and the text below it."""
    texts = [text.get_text() for text in ax.texts]
    return [
        (to_hex(patch.get_edgecolor()), patch.get_linestyle(), text)
        for patch, text in zip(ax.patches, texts, strict=True)
    ]


COST = torch.tensor([[0.9, 0.2, 0.8, 0.7], [0.9, 0.8, 0.9, 0.1], [0.3, 0.8, 0.7, 0.9]])
ROWS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
EVERY = {
    "match_heat_map": lambda **rest: plots.match_heat_map(match_costs(COST), **rest),
    "k_distance_curve": lambda **rest: plots.k_distance_curve(torch.rand(9), eps=0.4, **rest),
    "cluster_sizes": lambda **rest: plots.cluster_sizes(labels_of(0, 0, 1, -1), **rest),
    "distance_histograms": lambda **rest: plots.distance_histograms(
        ROWS, ROWS, labels_of(0, 1), labels_of(0, 1), **rest
    ),
    "pca_scatter": lambda **rest: plots.pca_scatter(
        ROWS, ROWS, labels_of(0, 1), labels_of(0, -1), **rest
    ),
    "identity_strip": lambda **rest: plots.identity_strip(
        torch.rand(2, 3, 8, 4), torch.rand(1, 1, 8, 4), labels_of(0, -1), labels_of(0), **rest
    ),
    "retrieval_strip": lambda **rest: plots.retrieval_strip(
        torch.rand(1, 8, 4), torch.rand(2, 3, 8, 4), torch.tensor([True, False]), **rest
    ),
    "training_curves": lambda **rest: plots.training_curves(
        [{"epoch": 0, "a": 1.0}, {"epoch": 1, "a": 2.0}], ["a"], **rest
    ),
}
every = pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)


def test_every_picture_is_tried():
    assert set(EVERY) == set(plots.__all__)


@every
def test_a_picture_is_drawn_on_the_axis_that_is_given_and_makes_no_figure(draw):
    given = Figure().subplots()
    assert drawn(draw(ax=given)) is given
    assert given.has_data()
    assert not pyplot.get_fignums()


@every
def test_without_an_axis_a_picture_makes_one_figure_and_changes_no_setting(draw):
    before = dict(mpl.rcParams)
    ax = drawn(draw())
    assert pyplot.get_fignums() == [ax.figure.number]
    assert dict(mpl.rcParams) == before


@every
def test_every_picture_says_what_it_shows(draw):
    ax = draw()
    names = ax.get_xlabel() and ax.get_ylabel()
    assert names or ax.get_title()


def test_matched_pairs_run_down_the_diagonal_cheapest_first():
    ax = drawn(plots.match_heat_map(match_costs(COST, assignment="mutual")))
    assert numbers(ax.xaxis) == [3, 1, 0, 2]
    assert numbers(ax.yaxis) == [1, 0, 2]
    assert sorted(marks(ax)) == [[0, 0], [1, 1], [2, 2]]
    shown = ax.images[0].get_array()
    assert np.allclose(np.diagonal(shown), [0.1, 0.2, 0.3])
    assert ax.get_title() == "3 matched pairs: 3/3 visible, 3/4 infrared clusters"


def test_clusters_without_a_partner_come_last_and_forbidden_pairs_are_left_out():
    cost = torch.tensor([[math.inf, math.inf], [math.inf, 0.5], [0.2, math.inf]])
    ax = drawn(plots.match_heat_map(match_costs(cost)))
    assert numbers(ax.yaxis) == [2, 1, 0]
    assert ax.images[0].get_array().mask.sum() == 4
    assert "forbidden" in ax.figure.axes[1].get_ylabel()


def test_many_partners_are_all_marked():
    ax = plots.match_heat_map(match_costs(COST, assignment="nearest"))
    assert len(marks(ax)) == int(match_costs(COST).matched.sum()) == 4


def test_numbers_of_many_clusters_are_not_written():
    ax = drawn(plots.match_heat_map(match_costs(torch.rand(31, 4))))
    assert numbers(ax.yaxis) == []
    assert sorted(numbers(ax.xaxis)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("cost", "why"),
    [
        (torch.zeros(0, 3), "no clusters on one side"),
        (torch.zeros(2, 0), "no clusters on one side"),
        (torch.full((1, 2), math.inf), "every pair is forbidden"),
    ],
)
def test_a_match_of_nothing_is_an_empty_axis_that_says_so(cost, why):
    ax = drawn(plots.match_heat_map(match_costs(cost)))
    assert [text.get_text() for text in ax.texts] == [why]
    assert not ax.images
    assert ax.get_xlabel()


def test_the_curve_ascends_and_the_share_of_core_points_is_that_of_the_radius():
    distances = torch.tensor([0.4, 0.1, 1.0, 0.2, 0.3])
    ax = drawn(plots.k_distance_curve(distances, eps=0.3))
    stored, beyond, radius = ax.lines
    assert np.allclose(stored.get_ydata(), [0.1, 0.2, 0.3, 0.4])
    assert np.allclose(stored.get_xdata(), [20, 40, 60, 80])
    assert beyond.get_ydata().tolist() == [1]
    assert set(radius.get_ydata()) == {0.3}
    assert ax.get_title() == "eps 0.3: 60% of the rows are core points"


def test_a_suggested_radius_is_drawn_as_it_comes():
    angle = torch.tensor([0, 10, 25, 60, 70, 80, 180]).double().deg2rad()
    rows = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = suggest_eps(jaccard_graph(rows, k1=4, k2=2, max_distance=1.0), min_samples=3)
    ax = plots.k_distance_curve(found.distances, eps=found.eps)
    assert ax.get_title() == "eps 0.183: 86% of the rows are core points"


def test_a_radius_on_a_distance_holds_for_it_in_either_precision():
    for dtype in (torch.float32, torch.float64):
        distances = torch.tensor([0.6, 0.6], dtype=torch.float32).to(dtype)
        title = plots.k_distance_curve(distances, eps=0.6).get_title()
        assert title == "eps 0.6: 100% of the rows are core points"


def test_no_distances_give_an_empty_curve():
    ax = drawn(plots.k_distance_curve(torch.zeros(0), eps=0.3))
    assert [text.get_text() for text in ax.texts] == ["no rows"]


def test_cluster_sizes_are_counted_whatever_the_numbers_of_the_clusters():
    labels = labels_of(7, 7, 90, 90, 3, 3, 3, 3, -1, -1)
    ax = drawn(plots.cluster_sizes(labels))
    bars = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in ax.patches}
    assert bars == {2: 2, 3: 0, 4: 1}
    assert ax.get_title() == "3 clusters of 2 to 4 rows (median 2), 20% noise"
    assert ax.get_yscale() == "linear"


def test_one_large_cluster_among_small_ones_is_seen():
    labels = torch.cat([torch.arange(100).repeat_interleave(3), torch.full((500,), 100)])
    ax = drawn(plots.cluster_sizes(labels))
    assert ax.get_yscale() == "log"
    assert sum(bar.get_height() for bar in ax.patches) == 101
    last = max((bar for bar in ax.patches if bar.get_height()), key=lambda bar: bar.get_x())
    assert last.get_x() < 500 < last.get_x() + last.get_width()


@pytest.mark.parametrize(
    ("labels", "title"),
    [
        (labels_of(), "no clusters, no rows"),
        (labels_of(-1, -1), "no clusters, 100% noise"),
        (labels_of(4), "1 cluster of 1 row, 0% noise"),
    ],
)
def test_few_labels_give_a_labelled_axis(labels, title):
    ax = drawn(plots.cluster_sizes(labels))
    assert (ax.get_title(), ax.get_xlabel()) == (title, "rows in a cluster")
    assert bool(ax.patches) == bool((labels >= 0).any())


def stairs(ax):
    """Densities within and between, and the edges."""
    within, _, between, _ = (part.get_data() for part in ax.patches)
    return within.values, between.values, within.edges


def test_histograms_hold_every_cross_modality_pair_of_known_identity():
    visible, infrared = torch.randn(300, 5, dtype=torch.float64), torch.randn(40, 5)
    who, other = torch.randint(-1, 4, (300,)), torch.randint(-1, 4, (40,))
    ax = drawn(plots.distance_histograms(visible, infrared, who, other, bins=20))
    within, between, edges = stairs(ax)
    means = []
    for same, density in ((True, within), (False, between)):
        pairs = [
            1 - torch.cosine_similarity(visible[i], infrared[j].double(), dim=0).item()
            for i in range(300)
            for j in range(40)
            if who[i] >= 0 and other[j] >= 0 and (who[i] == other[j]) == same
        ]
        slow, _ = np.histogram(pairs, edges)
        assert np.abs(density * len(pairs) / 10 - slow).max() < 1.5  # rounding at an edge
        means.append(f"{np.mean(pairs):.3f}")
    assert ax.get_title() == f"mean distance {means[0]} within, {means[1]} between identities"


def test_histograms_depend_on_directions_only():
    scale = torch.tensor([[1e30], [1e-30]])
    who = labels_of(0, 1)
    first = plots.distance_histograms(ROWS, ROWS, who, who)
    second = plots.distance_histograms(ROWS * scale, ROWS.half(), who, who)
    assert first.get_title() == second.get_title()
    assert first.get_title() == "mean distance 0.000 within, 1.000 between identities"


def test_a_kind_without_pairs_has_no_mean():
    ax = drawn(plots.distance_histograms(ROWS, ROWS, labels_of(0, 1), labels_of(2, 3)))
    assert ax.get_title() == "mean distance none within, 0.500 between identities"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "within identities (0 pairs)",
        "between identities (4 pairs)",
    ]


@pytest.mark.parametrize("who", [labels_of(-1, -1), labels_of()])
def test_no_known_pair_gives_an_empty_histogram(who):
    rows = ROWS[: len(who)]
    ax = drawn(plots.distance_histograms(rows, ROWS, who, labels_of(0, 1)))
    assert [text.get_text() for text in ax.texts] == ["no pairs of known identity"]
    assert ax.get_xlabel() == "cosine distance, visible to infrared"


def points(ax):
    return np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_scatter_keeps_the_variance_of_the_first_two_components():
    rows, labels = torch.randn(50, 6).double(), torch.zeros(50, dtype=torch.int64)
    ax = drawn(plots.pca_scatter(rows[:20], rows[20:], labels[:20], labels[20:]))
    unit = torch.nn.functional.normalize(rows)
    singular = torch.linalg.svdvals(unit - unit.mean(dim=0))
    found = points(ax)
    assert len(found) == 50
    assert np.allclose((found**2).sum(axis=0), singular[:2] ** 2, rtol=1e-4)
    share = singular**2 / (singular**2).sum()
    assert ax.get_xlabel() == f"first component ({share[0]:.0%} of the variance)"
    assert ax.get_ylabel() == f"second component ({share[1]:.0%})"


def test_modalities_have_a_marker_and_frequent_labels_a_colour():
    visible, infrared = torch.randn(9, 3), torch.randn(4, 3)
    ax = drawn(
        plots.pca_scatter(
            visible, infrared, labels_of(5, 5, 5, 2, 2, 8, 9, -1, -1), labels_of(5, 2, 2, 2),
            max_labels=2,
        )
    )  # fmt: skip
    assert legend(ax) == ["visible", "infrared", "label 2", "label 5", "2 more labels, noise"]
    sizes = [len(part.get_offsets()) for part in ax.collections]
    assert sizes == [4, 0, 5, 4]  # the grey ones below: visible, infrared; then the coloured ones
    colours = [to_hex(colour) for colour in ax.collections[2].get_facecolors()]
    assert colours == [ORANGE] * 3 + [BLUE] * 2


def test_labels_may_be_any_numbers():
    ax = plots.pca_scatter(ROWS, ROWS, labels_of(2**60, 3), labels_of(2**60, 3))
    assert legend(ax) == ["visible", "infrared", "label 3", f"label {2**60}"]


@pytest.mark.parametrize("rows", [torch.rand(1, 3), torch.rand(2, 1), torch.zeros(3, 2)])
def test_rows_that_do_not_vary_lie_in_the_middle(rows):
    nobody = torch.full((len(rows),), -1)
    ax = drawn(plots.pca_scatter(rows, rows[:0], nobody, nobody[:0]))
    assert np.allclose(points(ax), 0, atol=1e-6)
    assert ax.get_xlabel() == "first component (0% of the variance)"
    assert legend(ax) == ["visible", "infrared", "noise"]


def test_no_rows_give_an_empty_scatter():
    ax = drawn(plots.pca_scatter(ROWS[:0], ROWS[:0], labels_of(), labels_of()))
    assert [text.get_text() for text in ax.texts] == ["no rows"]


def test_images_of_an_identity_are_framed_by_their_label():
    visible, infrared = torch.rand(4, 3, 8, 4), torch.rand(3, 1, 6, 6)
    ax = drawn(plots.identity_strip(visible, infrared, labels_of(7, 1, -1, 7), labels_of(1, 1, 9)))
    blue, orange, green, grey = BLUE, ORANGE, "#009e73", "#b8bcc2"
    assert frames(ax) == [
        (orange, "-", "7"), (blue, "-", "1"), (grey, ":", "noise"), (orange, "-", "7"),
        (blue, "-", "1"), (blue, "-", "1"), (green, "-", "9"),
    ]  # fmt: skip
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["visible", "infrared"]
    assert ax.get_title() == "7 images, 3 pseudo-labels, 1 noise"


def test_images_keep_their_shape_and_their_colours():
    visible = torch.zeros(1, 3, 8, 4, dtype=torch.uint8)
    visible[:, 0] = 255
    infrared = torch.rand(1, 2, 6, 6)
    ax = plots.identity_strip(visible, infrared, labels_of(0), labels_of(0))
    first, second = ax.images
    assert first.get_array().shape == (8, 4, 3)
    assert (first.get_array() == [1, 0, 0]).all()
    assert np.allclose(second.get_array(), infrared[0].mean(dim=0))
    left, right, below, above = first.get_extent()
    assert ((right - left) / (below - above), ax.get_aspect()) == (0.5, 1)


def test_only_the_first_images_are_shown_and_all_are_counted():
    pixels, labels = torch.rand(12, 1, 4, 4), torch.arange(12)
    ax = drawn(plots.identity_strip(pixels, pixels[:2], labels, labels[:2], max_images=3))
    assert len(ax.images) == 5
    assert ax.get_title() == "14 images, 12 pseudo-labels, 0 noise"


def test_labels_beyond_the_colours_are_told_by_their_numbers():
    pixels, labels = torch.rand(8, 1, 4, 4), torch.arange(8)
    ax = plots.identity_strip(pixels, pixels[:0], labels, labels[:0])
    colours = [to_hex(patch.get_edgecolor()) for patch in ax.patches]
    assert len(set(colours[:6])) == 6
    assert colours[6:] == ["#444444"] * 2


def test_a_modality_without_images_says_so():
    pixels = torch.rand(2, 1, 4, 4)
    ax = drawn(plots.identity_strip(pixels, pixels[:0], labels_of(0, 0), labels_of()))
    assert "no images" in [text.get_text() for text in ax.texts]


def test_found_images_are_framed_by_whether_they_are_right():
    query, gallery = torch.rand(3, 8, 4), torch.rand(4, 1, 8, 4)
    right = torch.tensor([True, False, True, True])
    ax = drawn(plots.retrieval_strip(query, gallery, right, max_images=3))
    assert frames(ax) == [
        ("#444444", "-", "query"),
        (BLUE, "-", "1\nright"),
        (ORANGE, "--", "2\nwrong"),
        (BLUE, "-", "3\nright"),
    ]
    assert ax.get_title() == "2 of the first 3 are right"


def test_nothing_found_shows_the_query_alone():
    none = torch.zeros(0, dtype=torch.bool)
    ax = drawn(plots.retrieval_strip(torch.rand(1, 4, 4), torch.rand(0, 1, 4, 4), none))
    assert (len(ax.images), ax.get_title()) == (1, "nothing found")


def test_curves_of_a_file_leave_out_what_is_empty():
    text = "epoch,stage,rank_1,ari_all\n0,random,0.1,\n1,clusters,0.4,0.2\n2,clusters,0.5,0.3\n"
    rows = list(csv.DictReader(io.StringIO(text)))
    ax = drawn(plots.training_curves(rows, {"rank_1": "Rank-1", "ari_all": "ARI"}, percent=True))
    first, second = ax.lines
    assert first.get_xdata().tolist() == [0, 1, 2]
    assert np.allclose(second.get_xdata(), [1, 2])
    assert np.allclose(second.get_ydata(), [20, 30])
    assert [line.get_label() for line in ax.lines] == ["Rank-1", "ARI"]
    assert first.get_linestyle() != second.get_linestyle()
    assert (ax.get_ylabel(), ax.get_ylim()) == ("share (%)", (0, 100))


def test_a_single_curve_names_the_axis_and_another_column_may_run_across():
    rows = [{"step": 10, "loss": torch.tensor(2.5)}, {"step": 20, "loss": None}]
    ax = drawn(plots.training_curves(rows, ["loss"], step="step"))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert ax.lines[0].get_marker() == "o"  # a single point would not show as a line


@pytest.mark.parametrize("rows", [[], [{"epoch": 0, "a": ""}]])
def test_a_table_without_values_gives_an_empty_axis(rows):
    ax = drawn(plots.training_curves(rows, ["a"]))
    assert [text.get_text() for text in ax.texts] == ["no values"]
    assert ax.get_xlabel() == "epoch"


def test_pictures_leave_their_inputs_as_they_are():
    match = match_costs(COST)
    rows, labels, pixels = torch.randn(5, 3), labels_of(0, 1, -1, 1, 1), torch.rand(5, 1, 4, 4)
    before = [part.clone() for part in (*match, rows, labels, pixels)]
    plots.match_heat_map(match)
    plots.k_distance_curve(rows[:, 0], eps=0.1)
    plots.cluster_sizes(labels)
    plots.distance_histograms(rows, rows, labels, labels)
    plots.pca_scatter(rows, rows, labels, labels)
    plots.identity_strip(pixels, pixels, labels, labels)
    plots.retrieval_strip(pixels[0], pixels, labels > 0)
    after = (*match, rows, labels, pixels)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_features_and_costs_may_require_gradients():
    rows = torch.randn(4, 3, requires_grad=True)
    labels = labels_of(0, 0, 1, 1)
    drawn(plots.match_heat_map(match_costs(COST)._replace(cost=COST.clone().requires_grad_())))
    drawn(plots.k_distance_curve(rows[:, 0] ** 2))
    drawn(plots.distance_histograms(rows, rows, labels, labels))
    assert len(points(drawn(plots.pca_scatter(rows, rows, labels, labels)))) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pictures_take_tensors_on_a_gpu():
    rows, labels = torch.randn(5, 3, device="cuda"), labels_of(0, 1, -1, 1, 1).cuda()
    pixels = torch.rand(5, 1, 4, 4, device="cuda")
    drawn(plots.match_heat_map(match_costs(COST.cuda())))
    drawn(plots.k_distance_curve(rows[:, 0].abs(), eps=0.1))
    drawn(plots.cluster_sizes(labels))
    drawn(plots.identity_strip(pixels, pixels, labels, labels))
    drawn(plots.retrieval_strip(pixels[0], pixels, labels > 0))
    drawn(plots.pca_scatter(rows, rows, labels, labels))
    titles = {
        device: plots.distance_histograms(
            rows.to(device), rows.to(device), labels.to(device), labels.to(device)
        ).get_title()
        for device in ("cpu", "cuda")
    }
    assert titles["cpu"] == titles["cuda"]


def test_importing_the_pictures_does_not_import_matplotlib():
    code = "import sys, mmmlib.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["matching", "match_heat_map", "pca_scatter", "training_curves"])
def test_the_figures_of_the_pages_are_made_again_and_are_small(name, tmp_path):
    pytest.importorskip("skimage")
    figures = load_figures()
    figures.main([name, "--out", str(tmp_path)])
    made = (tmp_path / f"{name}.png").read_bytes()
    assert made.startswith(b"\x89PNG")
    assert 1_000 < len(made) < figures.LARGEST


def test_every_figure_of_the_pages_is_committed():
    figures = load_figures()
    sizes = [(figures.IMAGES / f"{name}.png").stat().st_size for name in figures.FIGURES]
    assert max(sizes) <= figures.LARGEST


def load_figures():
    import importlib.util

    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("figures", module)
    spec.loader.exec_module(module)
    return module


def says(kind, sentence):
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


@every
def test_errors_of_an_axis_that_is_none(draw):
    with says(TypeError, "ax must be a matplotlib Axes, got numpy.ndarray"):
        draw(ax=Figure().subplots(2))


@every
def test_errors_where_matplotlib_is_missing(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = (
        "mmmlib.plots needs matplotlib, which pip install 'mmmlib[train]' brings: "
        "import of matplotlib halted; None in sys.modules"
    )
    with says(ImportError, sentence):
        draw()


def test_errors_of_a_match_that_is_none():
    with says(TypeError, "match must be a ClusterMatch, got Tensor"):
        plots.match_heat_map(COST)


def test_errors_of_distances():
    with says(
        ValueError,
        "distances must be a floating-point tensor of shape (n,), got torch.float32 of shape "
        "(2, 2)",
    ):
        plots.k_distance_curve(torch.zeros(2, 2))
    with says(ValueError, "distances must be finite, got nan in row 1"):
        plots.k_distance_curve(torch.tensor([0.0, math.nan]))
    with says(ValueError, "eps must be in [0, inf), got -1"):
        plots.k_distance_curve(torch.zeros(2), eps=-1)
    with says(
        TypeError,
        "distances must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array",
    ):
        plots.k_distance_curve(np.zeros(2))


def test_errors_of_labels():
    with says(
        ValueError, "labels must be an int64 tensor of shape (n,), got torch.float32 of shape (2,)"
    ):
        plots.cluster_sizes(torch.zeros(2))
    for draw, name in (
        (plots.distance_histograms, "infrared_identities"),
        (plots.pca_scatter, "infrared_labels"),
    ):
        with says(
            ValueError,
            f"{name} must be an int64 tensor of shape (2,), got torch.int64 of shape (1,)",
        ):
            draw(ROWS, ROWS, labels_of(0, 1), labels_of(0))


def test_errors_of_features():
    who = labels_of(0, 1)
    for draw in (plots.distance_histograms, plots.pca_scatter):
        with says(ValueError, "infrared must be finite, got inf in row 1"):
            draw(ROWS, torch.tensor([[0.0, 0.0], [0.0, math.inf]]), who, who)
        with says(
            ValueError,
            "visible and infrared must have the same number of columns, got visible (2, 2), "
            "infrared (2, 1)",
        ):
            draw(ROWS, ROWS[:, :1], who, who)
    with says(ValueError, "bins must be a whole number of at least 1, got 0"):
        plots.distance_histograms(ROWS, ROWS, who, who, bins=0)
    with says(ValueError, "max_labels must be in [1, 6], got 7"):
        plots.pca_scatter(ROWS, ROWS, who, who, max_labels=7)


def test_errors_of_images():
    pixels, labels = torch.rand(2, 1, 4, 4), labels_of(0, 0)
    form = "a uint8 or floating-point tensor"
    with says(
        ValueError,
        f"infrared_pixels must be {form} (n, channels, height, width) of at least one pixel, got "
        "torch.float32 of shape (1, 4, 4)",
    ):
        plots.identity_strip(pixels, pixels[0], labels, labels)
    with says(
        ValueError,
        f"visible_pixels must be {form} (n, channels, height, width) of at least one pixel, got "
        "torch.int64 of shape (2, 1, 4, 4)",
    ):
        plots.identity_strip(pixels.long(), pixels, labels, labels)
    with says(ValueError, "visible_pixels must be in [0, 1], got 255"):
        plots.identity_strip(torch.full((2, 1, 4, 4), 255.0), pixels, labels, labels)
    with says(
        ValueError,
        f"query_pixels must be {form} (channels, height, width) of at least one pixel, got "
        "torch.float32 of shape (2, 1, 4, 4)",
    ):
        plots.retrieval_strip(pixels, pixels, labels > 0)
    with says(
        ValueError, "right must be a bool tensor of shape (2,), got torch.int64 of shape (2,)"
    ):
        plots.retrieval_strip(pixels[0], pixels, labels)
    with says(ValueError, "max_images must be a whole number of at least 1, got 0"):
        plots.retrieval_strip(pixels[0], pixels, labels > 0, max_images=0)


def test_errors_of_a_table():
    rows = [{"epoch": 0, "stage": "random", "a": 1.0}]
    with says(TypeError, "columns must be a sequence of names, got 'a'"):
        plots.training_curves(rows, "a")
    with says(ValueError, "columns must be among epoch, stage, a, got 'b'"):
        plots.training_curves(rows, ["a", "b"])
    with says(ValueError, "step must be among epoch, stage, a, got 'iteration'"):
        plots.training_curves(rows, ["a"], step="iteration")
    with says(
        ValueError,
        "rows must hold numbers in column stage, got could not convert string to float: 'random'",
    ):
        plots.training_curves(rows, ["stage"])
