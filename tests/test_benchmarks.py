"""Every benchmark at toy size, so that none can rot; and the docs show what was recorded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    clustering,
    evaluation,
    matching,
    memory,
    overview,
    published,
    tables,
    timing,
    training,
    windows,
)
from benchmarks.features import make_features
from mmmlib.clustering import jaccard_graph


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
    arguments += ["--dim", "16", "--threads", "1", "--repeats", "1", "--json", str(results)]
    matching.main(arguments)
    records = timing.recorded(results)
    assert [row["kind"] for row in records] == ["match", "solver", "solver"]
    assert records[0]["error"] < 1e-5
    assert records[0]["parts"]["published loop"]["error"] < 1e-5
    for record in records[1:]:
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
    assert "| 10 v 25, exp-cos, threads: 1 |" in text


def test_evaluation_times_every_case(tmp_path: Path) -> None:
    results = tmp_path / "evaluation.json"
    arguments = ["--scale", "0.05", "--dim", "16", "--threads", "1", "--repeats", "1"]
    evaluation.main([*arguments, "--json", str(results)])
    records = timing.recorded(results)
    assert len(records) == len(evaluation.CASES)
    assert evaluation.table(records).count("threads: 1") >= len(records)


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
