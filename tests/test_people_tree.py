"""Unsupervised training finds rendered persons again across the modalities."""

import csv
from pathlib import Path

import pytest

from mmmlib.cli import main
from mmmlib.reference.people import render_people, write_sysu_tree

pytest.importorskip("PIL.Image")

# One visible and one infrared camera; everybody from the front, nothing before them.
CAMERAS = (1, 6)
FLAGS = [
    "--recipe", "mmm", "--allow-incomplete", "--quiet", "-a", "cnn", "--height", "48",
    "--width", "24", "--pad", "3", "--erase", "0", "--contrast", "0.6", "--negative", "0.5",
    "--views", "1", "-b", "96", "--num-instances", "4", "--lr", "2e-3", "--warm-up", "6",
    "--epochs", "8", "--iters", "20", "--eval-step", "6", "--k1", "8", "--k2", "3",
    "--joint-k1", "16", "--joint-k2", "4", "--eps", "0.6", "--joint-eps", "0.5",
]  # fmt: skip


@pytest.mark.slow
def test_mmm_finds_persons_across_the_modalities_that_a_random_network_does_not(
    tmp_path: Path,
) -> None:
    people = render_people(
        60, 8, height=48, width=24, yaw=0.0, occlusion=0.0, cameras=CAMERAS
    )  # 45 persons for training, 15 for the test
    tree, logs = tmp_path / "tree", tmp_path / "runs"
    write_sysu_tree(people, tree)
    for camera in range(1, 7):  # the layout has all six
        (tree / f"cam{camera}").mkdir(exist_ok=True)
    arguments = ["-d", "sysu", "--data-dir", str(tree), "--logs-dir", str(logs)]
    assert main(["train", *arguments, *FLAGS]) == 0
    with (logs / "sysu_mmm" / "metrics.csv").open(newline="") as file:
        random, *_, last = csv.DictReader(file)
    assert float(last["rank_1"]) - float(random["rank_1"]) > 0.08
    assert float(last["mean_ap"]) - float(random["mean_ap"]) > 0.07
    assert float(last["ari_all"]) > 0.15
