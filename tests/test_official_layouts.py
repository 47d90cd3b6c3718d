"""Every recipe trains, resumes, evaluates and reports on miniature trees in official layouts."""

import json
from pathlib import Path

import pytest
import torch

from mmmlib.cli import main
from mmmlib.reference.people import People, render_people, write_sysu_tree
from mmmlib.reference.train import _loop

pillow = pytest.importorskip("PIL.Image")

RECIPES = ("baseline", "adca", "pgm", "mbccm", "mmm", "adca+mmm")
# Interrupted in the second epoch with clusters, in which every recipe matches that ever does.
SMALL = [
    "--allow-incomplete", "--quiet", "-a", "cnn", "--features", "32", "--height", "32",
    "--width", "16", "--pad", "2", "-b", "32", "--num-instances", "4", "--warm-up", "1",
    "--epochs", "2", "--iters", "2", "--k1", "6", "--k2", "2", "--joint-k1", "12",
    "--joint-k2", "4", "--eps", "0.6", "--joint-eps", "0.6",
]  # fmt: skip


@pytest.fixture(scope="module")
def people() -> People:
    return render_people(16, 3, height=32, width=16, yaw=0.0, occlusion=0.0)


def save(people: People, row: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(people.pixels[row].permute(1, 2, 0).numpy()).save(path)


def write_regdb(people: People, root: Path) -> None:
    """Ten images of each modality an identity, as far as there are; the first half trains."""
    lists: dict[str, list[str]] = {}
    for row, (person, camera) in enumerate(
        zip(people.identities.tolist(), people.cameras.tolist(), strict=True)
    ):
        modality = "Thermal" if camera in (3, 6) else "Visible"
        path = f"{modality}/{person}/{camera}_{row}.bmp"
        save(people, row, root / path)
        split, label = ("train", person) if person <= 8 else ("test", person - 8)
        lists.setdefault(f"{split}_{modality.lower()}", []).append(f"{path} {label - 1}")
    for name, lines in lists.items():
        path = root / "idx" / f"{name}_1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def write_llcm(people: People, root: Path) -> None:
    """Training images by lists, test images by camera and identity."""
    lists: dict[str, list[str]] = {"train_vis": [], "train_nir": []}
    for row, (person, camera) in enumerate(
        zip(people.identities.tolist(), people.cameras.tolist(), strict=True)
    ):
        modality = "nir" if camera in (3, 6) else "vis"
        if person > 8:
            folder = root / f"test_{modality}" / f"cam{camera}" / f"{person:04d}"
            save(people, row, folder / f"{person:04d}_c{camera}_{row}.jpg")
            continue
        path = f"{modality}/{person:04d}/{person:04d}_c{camera:02d}_{row}.jpg"
        save(people, row, root / path)
        lists[f"train_{modality}"].append(f"{path} {person - 1}")
    (root / "idx").mkdir()
    for name, lines in lists.items():
        (root / "idx" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, range(9, 17))) + "\n")


@pytest.fixture(scope="module")
def trees(people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    write_sysu_tree(people, root / "sysu", test=0.5)
    write_regdb(people, root / "regdb")
    write_llcm(people, root / "llcm")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dataset", ["sysu", "regdb", "llcm"])
def test_every_recipe_trains_resumes_evaluates_and_reports(
    dataset: str, recipe: str, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "-d", dataset, "--data-dir", str(trees / dataset), "--recipe", recipe,
               "--logs-dir", str(tmp_path), *SMALL]  # fmt: skip
    real = _loop.train_epoch

    def interrupted(*arguments: object) -> dict[str, float]:
        if arguments[5] == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_loop, "train_epoch", interrupted)
        assert main(command) == 130
    assert main([*command, "--resume"]) == 0
    folder = tmp_path / f"{dataset}_{recipe}"
    assert "going on after epoch 2" in (folder / "log.txt").read_text()
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert state["epoch"] == 3
    assert all(part.isfinite().all() for part in state["model"].values())
    assert ("matched" in state["rows"][-1]) == (recipe != "baseline")

    assert main(["evaluate", str(folder), "--json", str(tmp_path / "found.json")]) == 0
    card = json.loads((folder / "card.json").read_text())
    assert json.loads((tmp_path / "found.json").read_text())["results"] == card["results"]
    protocols = {result["protocol"] for result in card["results"]}
    assert protocols == {"sysu": {"sysu-all", "sysu-indoor"}}.get(dataset, {dataset})
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert f"{recipe} on {dataset}" in page
    assert "Searches" in page
