"""Unsupervised training finds rendered persons again across the modalities."""

import csv
from pathlib import Path

import pytest

from mmmlib.cli import main
from mmmlib.reference.people import render_people, write_sysu_tree

pytest.importorskip("PIL.Image")

# All six cameras; everybody seen from the front, nothing before them. 45 persons train, 15 test.
FLAGS = [
    "--recipe", "mmm", "--allow-incomplete", "--quiet", "-a", "cnn", "--height", "48",
    "--width", "24", "--pad", "3", "--erase", "0", "--contrast", "0.6", "--negative", "0.5",
    "--views", "2", "-b", "128", "--num-instances", "8", "--lr", "2e-3", "--step-size", "18",
    "--warm-up", "6", "--epochs", "12", "--iters", "40", "--eval-step", "18", "--k1", "16",
    "--k2", "4", "--joint-k1", "30", "--joint-k2", "6", "--eps", "0.6", "--joint-eps", "0.6",
]  # fmt: skip


@pytest.mark.slow
def test_mmm_finds_persons_across_the_modalities_that_a_random_network_does_not(
    tmp_path: Path,
) -> None:
    people = render_people(60, 4, height=48, width=24, yaw=0.0, occlusion=0.0)
    write_sysu_tree(people, tmp_path / "tree")
    logs = tmp_path / "runs"
    arguments = ["-d", "sysu", "--data-dir", str(tmp_path / "tree"), "--logs-dir", str(logs)]
    assert main(["train", *arguments, *FLAGS]) == 0
    with (logs / "sysu_mmm" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for score, least in (("rank_1", 0.10), ("mean_ap", 0.08)):
        assert float(rows[-1][score]) - float(rows[0][score]) > least
    assert float(rows[-1]["ari_all"]) > 0.1
