"""Every benchmark at toy size, so that none can rot; and the docs show what was recorded."""

import json
from pathlib import Path

import pytest

from benchmarks import tables, training, windows


def test_training_appends_a_line_a_run_and_skips_those_present(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "training.jsonl"
    arguments = ["--data", "synthetic", "--recipe", "mmm-unshared", "mmm-1", "--seeds", "1"]
    training.main([*arguments, "--json", str(results)])
    assert len(capsys.readouterr().out.splitlines()) == 2
    training.main([*arguments, "--json", str(results)])
    assert capsys.readouterr().out == ""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["mmm-unshared", "mmm-1"]
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


def test_the_generated_pages_are_up_to_date() -> None:
    for name, text in tables.tables().items():
        assert (tables.DOCS / name).read_text() == text, "run python -m benchmarks.tables"
