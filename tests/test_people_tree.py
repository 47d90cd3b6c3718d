"""Unsupervised training finds rendered persons again across the modalities."""

import json
from pathlib import Path

import pytest

from benchmarks import training

pytest.importorskip("PIL.Image")


@pytest.mark.slow
def test_mmm_finds_persons_across_the_modalities_that_a_random_network_does_not(
    tmp_path: Path,
) -> None:
    results = tmp_path / "tree.jsonl"
    training.main(["--tree", "--recipe", "mmm", "--seeds", "1", "--json", str(results)])
    (row,) = map(json.loads, results.read_text().splitlines())
    random, last = row["random"], row["last"]
    assert last["rank_1"] - random["rank_1"] > 0.3
    assert last["mean_ap"] - random["mean_ap"] > 0.2
    assert last["ari_all"] > 0.08
