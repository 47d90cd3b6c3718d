"""Every benchmark at toy size, so that none can rot; and the docs show what was recorded."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    clustering,
    distributed,
    evaluation,
    kills,
    matching,
    memory,
    overview,
    papers,
    published,
    tables,
    timing,
    training,
    windows,
)
from benchmarks.features import make_features
from mmmlib.clustering import jaccard_graph
from mmmlib.reference.recipes import ablated


def test_training_appends_a_line_a_run_and_skips_those_present(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "training.jsonl"
    arguments = ["--data", "synthetic", "--recipe", "mmm-unshared", "mmm-shared-1", "--seeds", "1"]
    training.main([*arguments, "--json", str(results)])
    assert len(capsys.readouterr().out.splitlines()) == 2
    training.main([*arguments, "--json", str(results)])
    assert capsys.readouterr().out == ""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["mmm-unshared", "mmm-shared-1"]
    assert rows[1]["settings"]["num_memories"] == 1
    assert "loss_shared_nce" in rows[1]["last"]
    assert "loss_shared_nce" not in rows[0]["last"]
    assert rows[1]["last"]["stage"] == "clusters"
    assert len(rows[1]["curve"]) == 4


def test_training_looks_at_images_of_the_size_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(
        training.data, "load", lambda name, data_dir, **options: asked.append(options)
    )
    settings = training.settings_of("mmm", "people", None, 987)
    training.load(settings)
    training.load(training.settings_of("adca", "people", None, 987))  # the same images
    (options,) = asked
    assert (options["height"], options["width"]) == (settings.height, settings.width)
    assert options["seed"] == 987
    training._load.cache_clear()


def test_a_record_without_a_setting_that_is_new_since_counts_as_made_with_its_default() -> None:
    settings = training.settings_of("mmm", "synthetic", "somewhere", 1)
    row = {"name": "mmm", "settings": {**asdict(settings), "data_dir": None}}
    assert training.is_run(row, "mmm", settings)
    del row["settings"]["cross"]
    assert training.is_run(row, "mmm", settings)
    assert not training.is_run(row, "mmm-1", settings)
    assert not training.is_run(row, "mmm", replace(settings, lr=1.0))


def test_every_recipe_trains_on_persons_written_as_a_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "tree.jsonl"
    arguments = ["--tree", "--quick", "--seeds", "2", "--json", str(results)]
    arguments += ["--recipe", "baseline", "mmm", "pgm"]
    training.main(arguments)
    assert len(capsys.readouterr().out.splitlines()) == 3
    training.main(arguments)
    assert capsys.readouterr().out == ""
    rows = training.finished(results)
    assert [(row["name"], row["dataset"], len(row["curve"])) for row in rows] == [
        ("baseline", "sysu", 4), ("mmm", "sysu", 4), ("pgm", "sysu", 4)
    ]  # fmt: skip
    assert all(row["settings"]["arch"] == "cnn" for row in rows)
    assert training.tree_table(rows) == "No runs.\n"  # quick ones mean nothing


def test_the_table_of_the_tree_says_what_was_gained() -> None:
    settings = training.tree_settings("mmm", None, 1)
    curve = [{"rank_1": epoch / 100} for epoch in range(settings.warm_up + settings.epochs + 1)]
    row = {
        "name": "mmm", "seed": 1, "settings": asdict(settings), "curve": curve,
        "random": curve[0], "last": curve[-1],
    }  # fmt: skip
    assert "| `mmm` | 1 | 0.0 | 8.0 | 18.0 | 18.0 |" in training.tree_table([row])


def test_papers_records_each_run_once_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "papers.jsonl"
    arguments = ["--dataset", "synthetic", "--quick", "--json", str(results)]
    arguments += ["--images", str(tmp_path), "--only", "ari", "distances", "num_memories"]
    papers.main([*arguments, "--draw"])
    assert capsys.readouterr().out == ""
    papers.main(arguments)
    rows = training.finished(results)
    expected = ["mmm", "mmm num_memories=1", "baseline", "mmm num_memories=2"]
    assert [row["name"] for row in rows] == [*expected, "mmm num_memories=8"]
    assert [row["settings"]["num_memories"] for row in rows] == [4, 1, 4, 2, 8]
    for row in rows:
        sides = row["distances"]["last"]
        assert sum(sides["within"]["counts"]) + sum(sides["between"]["counts"]) == 128 * 128
        assert len(row["curve"]) == 4
        assert row["curve"][-1]["ari_all"] is not None
    said = capsys.readouterr().out.splitlines()
    pictures = [tmp_path / f"papers_synthetic_{name}.png" for name in papers.PICTURES]
    assert said[5:] == [f"wrote {path}" for path in pictures]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    papers.main(arguments)
    assert len(capsys.readouterr().out.splitlines()) == len(pictures)
    assert papers.tables(rows) == "No runs.\n"  # quick ones mean nothing


def test_what_is_changed_to_what_it_was_is_no_change() -> None:
    assert papers.changed("mmm", num_memories=4, lambda_intra=0.5) == papers.changed("mmm")
    assert papers.changed("mbccm", alpha=0.9, beta=0.5) == papers.changed("mbccm")
    parts = papers.PARTS
    for name, experiments in parts.items():
        assert len({one.name for one in experiments}) == len(experiments), name
    for experiment in {one for part in parts.values() for one in part}:
        settings = experiment.settings("hubble", None, 1, False)
        ablated(experiment.made(), settings)  # no flag without a use


def test_the_tables_of_the_papers_say_what_has_not_been_run() -> None:
    settings = papers.changed("mbccm", beta=0).settings("hubble", None, 3, False)
    last = {"rank_1": 0.5, "mean_ap": 0.25, "ari_all": 0.125, "pair_precision": 0.75}
    row = {
        "name": "mbccm beta=0", "dataset": "hubble", "seed": 3,
        "settings": {**asdict(settings), "data_dir": None}, "last": last,
    }  # fmt: skip
    text = papers.tables([row])
    assert "### On hubble" in text
    assert "| MS + MA | 3 | 50.0 | 25.0 | 0.125 | 75.0 |" in text
    assert "| MS | not run |" in text
    assert "| random | not run |" in text


def test_the_gap_is_that_between_the_mean_distances() -> None:
    settings = papers.changed("baseline").settings("hubble", None, 1, False)
    apart = {"within": {"mean": 0.25}, "between": {"mean": 0.75}}
    last = dict.fromkeys(papers.SCORES, 0.5)
    row = {
        "name": "baseline", "dataset": "hubble", "seed": 1, "settings": asdict(settings),
        "last": last, "distances": {"random": apart, "last": {**apart, "between": {"mean": 1.0}}},
    }  # fmt: skip
    text = papers.tables([row])
    assert "| random | 1 | 0.250 | 0.750 | 0.500 |" in text
    assert "| `baseline` | 1 | 0.250 | 1.000 | 0.750 |" in text


def test_windows_counts_right_pairs() -> None:
    rows = windows.run([0])
    assert len(rows) == 12
    found = {(row["clusters"], row["memories"], row["assignment"]): row for row in rows}
    four, one = (found["true", memories, "one_to_one"]["right"] for memories in (4, 1))
    assert four > 0.85
    assert four > one + 0.15
    assert found["damaged", 4, "balanced"]["recall"] > found["damaged", 1, "balanced"]["recall"]


def test_clustering_keeps_one_record_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "clustering.json"
    arguments = ["--sizes", "300", "--dim", "64", "--threads", "1", "--repeats", "1"]
    clustering.main([*arguments, "--json", str(results)])
    (record,) = timing.recorded(results)
    opponents = [part for part in record["opponents"].values() if "skipped" not in part]
    assert len(opponents) >= 3  # faiss need not be there
    assert all(part["same"] > 0.99 for part in opponents)
    assert record["whole"]["rise_with_features"] >= 4 * 300 * 64
    assert capsys.readouterr().out.startswith("300 x 64, cpu, threads: 1\n")
    assert "| 300 x 64, threads: 1 |" in tables.clustering_tables([record])

    clustering.main([*arguments, "--json", str(results), "--opponents"])
    (record,) = timing.recorded(results)
    assert record["opponents"] == {}


def test_the_benchmark_runs_each_size_with_each_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[clustering.Configuration] = []
    monkeypatch.setattr(timing, "in_fresh_process", lambda module, config: made.append(config))
    monkeypatch.setattr(timing, "keep", lambda *record: None)
    clustering.main(["--large", "--published", "--threads", "1", "2"])
    sizes = [4120, 11909, 22258, 34167, 100_000, 200_000]
    sizes += 2 * [1000, 2000, 4000, 8000]
    assert [(config.n, config.threads) for config in made] == [
        (n, t) for n in sizes for t in (1, 2)
    ]
    assert published.recorded("rows", n=made[-1].n, balanced=made[-1].balanced) == 71.3
    assert published.recorded("rows", n=made[0].n) is None


@pytest.mark.parametrize("balanced", [False, True])
def test_the_published_form_gives_our_distances(balanced: bool) -> None:
    made = make_features(300, 64)
    groups = made.modality if balanced else None
    ours = jaccard_graph(made.rows, k1=12, k2=5, groups=groups, max_distance=1.0).to_dense()
    ranked = published.neighbours(made.rows, 12)
    theirs = published.distance(made.rows, ranked, 5, made.modality.numpy() if balanced else None)
    off = ~np.eye(300, dtype=bool)  # the published diagonal is only nearly 0
    np.testing.assert_allclose(theirs[off], ours.numpy()[off], atol=1e-5)


@pytest.mark.parametrize(("calm", "least", "most"), [(False, 0.1, 0.3), (True, 0.002, 0.03)])
def test_the_features_are_as_dense_as_those_of_a_training(
    calm: bool, least: float, most: float
) -> None:
    config = clustering.Configuration(2000, 256, 1, calm=calm, repeats=1)
    made = clustering.features_of(config, config.n)
    torch.testing.assert_close(made.rows.norm(dim=1), torch.ones(2000))
    about = clustering.statistics(clustering.stages(made, config)[0])
    assert least < about["noise"] < most
    assert 0.4 < about["ari_clustered"] < 0.9
    assert 10 < about["mutual"] < 25
    assert 60 < about["in_degree"] < 400


def test_memory_measures_updates_beside_the_published_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "memory.json"
    sizes = {"batch": 16, "instances": 4, "clusters": 6, "memories": 2, "images": 30, "dim": 32}
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    memory.main([*arguments, "--threads", "1", "--repeats", "1", "--json", str(results)])
    (record,) = timing.recorded(results)
    assert set(record["parts"]) >= {memory.LOOP, "sequential", "hardest", "mean", "logits"}
    assert record["error"] < memory.TOLERANCE
    assert capsys.readouterr().out.startswith("batch 16 of 4 labels, 6 x 32, cpu, threads: 1\n")
    assert "| 16, threads: 1 | 4 x 4 |" in memory.table([record])


def test_matching_times_matchers_and_solvers(tmp_path: Path) -> None:
    results = tmp_path / "matching.json"
    arguments = ["--sizes", "12x10", "--solver-sizes", "20x20", "10x25", "--costs", "exp-cos"]
    arguments += ["--turn-sizes", "12x10", "--widths", "8", "16"]
    arguments += ["--dim", "16", "--threads", "1", "--repeats", "1", "--json", str(results)]
    matching.main(arguments)
    records = timing.recorded(results)
    kinds = [row["kind"] for row in records]
    assert kinds == ["match", "solver", "solver", "turns", "turns"]
    assert records[0]["error"] < 1e-5
    assert records[0]["parts"]["published loop"]["error"] < 1e-5
    for record in records[3:]:
        parts = record["parts"]
        ratio = parts["match_clusters"]["seconds"] / parts["multi_memory_match"]["seconds"]
        assert record["ratio"] == pytest.approx(ratio)
    for record in records[1:3]:
        totals = [part["total"] for part in record["parts"].values() if "total" in part]
        assert len(totals) >= 2
        assert record["parts"]["linear_assignment"]["gap"] <= 1e-9 * 20 * record["largest"]
        parts = record["parts"]
        if "capacitated_assignment" in parts:
            both = (parts["capacitated_assignment"], parts["scipy, repeated rows"])
            assert both[0]["total"] == pytest.approx(both[1]["total"])
        else:
            assert totals == pytest.approx([totals[0]] * len(totals))
    text = matching.tables(records)
    assert "| 12 v 10, threads: 1 |" in text
    assert "| 12 v 10, threads: 1 | 8 |" in text
    assert "| 10 v 25, exp-cos, threads: 1 |" in text


def test_evaluation_times_every_case(tmp_path: Path) -> None:
    results = tmp_path / "evaluation.json"
    arguments = ["--scale", "0.05", "--dim", "16", "--threads", "1", "--repeats", "1"]
    evaluation.main([*arguments, "--json", str(results)])
    records = timing.recorded(results)
    assert len(records) == len(evaluation.CASES)
    assert evaluation.table(records).count("threads: 1") >= len(records)


def test_recipes_are_held_against_mmm_seed_by_seed() -> None:
    def of(name: str, seed: int, rank: float) -> dict[str, object]:
        settings = asdict(training.settings_of(name, "hubble", None, seed))
        last = {"rank_1": rank, "mean_ap": 0.5}
        return {"name": name, "dataset": "hubble", "seed": seed, "settings": settings, "last": last}

    runs = [of("mmm", seed, 0.5 + seed / 10) for seed in range(4)]
    runs += [of("pgm", seed, 0.5 + seed / 10 + 0.02 + 0.01 * (seed % 2)) for seed in range(1, 5)]
    row = tables.compared_table(runs).splitlines()[2]  # seeds 1, 2 and 3: 3, 2 and 3 points
    assert row == "| hubble | `pgm` | 1, 2, 3 | +2.7 [+1.2, +4.1] | +0.0 [+0.0, +0.0] |"


def test_two_processes_share_a_clustering(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "distributed.json"
    arguments = ["--sizes", "300", "--dim", "64", "--repeats", "2", "--json", str(results)]
    distributed.main(arguments)
    (record,) = timing.recorded(results)
    assert record["equal"]
    assert record["clusters"] > 1
    assert record["efficiency"] > 0
    assert record["ceiling"] > 0
    neighbours = 8 * 150 * 30  # of the rows that each process decides on
    assert all(neighbours < sent < 30 * neighbours for sent in record["sent"])
    assert capsys.readouterr().out.startswith("300 x 64, processes: 2, cpu, threads: 1\n")
    assert "| 300 x 64 | 2, threads: 1 |" in distributed.table([record])


@pytest.mark.slow
def test_a_killed_training_is_held_against_one_that_was_not(tmp_path: Path) -> None:
    results = tmp_path / "kills.json"
    arguments = ["--recipe", "baseline", "--kills", "1", "--epochs", "2", "--iters", "1"]
    kills.main([*arguments, "--json", str(results)])
    record = json.loads(results.read_text())
    (row,) = record["recipes"]
    assert row["compared"] > 100
    assert row["tensors"] > 50
    assert not any(moment["different"] for moment in row["moments"])
    assert f"| `baseline` | {row['epochs']} | 1 |" in kills.table(record)


def test_what_differs_after_a_kill_is_named_and_seconds_are_not() -> None:
    rows = [{"epoch": 1, "seconds_train": 2.0}]
    first = kills.leaves("state", {"weight": torch.ones(2), "rows": rows, "names": ("a",)})
    assert list(first) == ["state/weight", "state/rows/0/epoch", "state/names/0"]
    other = {**first, "state/weight": torch.tensor([1.0, 1.0 + 2**-23])}
    assert kills.different(first, first) == []
    assert kills.different(first, other) == ["state/weight"]
    assert kills.different(first, {**first, "state/weight": torch.ones(2).double()}) == [
        "state/weight"
    ]
    assert kills.different(first, {**first, "more": 1}) == ["more"]
    assert kills.same(np.ones(2), np.ones(2))
    assert not kills.same(np.ones(2), np.ones(3))


def test_the_script_for_a_gpu_names_every_benchmark_and_their_options() -> None:
    script = (Path(clustering.__file__).parent / "gpu.sh").read_text()
    for name in ("clustering", "evaluation", "losses", "matching", "memory"):
        assert f"-m benchmarks.{name} " in script


def test_the_generated_pages_are_up_to_date() -> None:
    for name, text in tables.tables().items():
        assert (tables.DOCS / name).read_text() == text, "run python -m benchmarks.tables"
    for language, page in overview.PAGES.items():
        text = page.read_text()
        assert overview.written(text, language) == text, "run python -m benchmarks.tables"


def test_the_readme_divides_only_what_one_machine_measured() -> None:
    english, chinese = (
        [line.split(" | ") for line in overview.overview(language).splitlines()[2:] if "|" in line]
        for language in ("en", "zh")
    )
    assert [line[1:] for line in english] == [line[1:] for line in chinese]
    for row, line in zip(overview._rows(), english, strict=True):
        assert (line[3].strip() != "") == (row.form is not None)
    searched = [line[0] for line in english if "search for neighbours included" in line[0]]
    already = [line[0] for line in english if "neighbours already found" in line[0]]
    assert len(already) >= 3
    assert len(searched) >= 3


def test_a_page_without_the_marks_of_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="page must hold"):
        overview.written("# mmmlib\n", "en")


def test_the_evaluation_benchmark_quotes_the_recorded_seconds() -> None:
    known = json.loads(published.RECORDED.read_text())["evaluation"]
    assert {row["seconds"] for row in known} == {
        case.recorded for case in evaluation.CASES.values()
    }


def test_the_search_takes_more_than_nine_tenths_as_the_readmes_say() -> None:
    records = [row for row in timing.recorded(clustering.RESULTS) if row["n"] >= 8000]
    plain = [row for row in records if not row["balanced"]]
    assert len(plain) >= 4
    for record in plain:
        parts = [record[name]["seconds"] for name in ("neighbours", "graph", "dbscan")]
        assert parts[0] > 0.9 * sum(parts)
