"""The reference training, end to end on tiny images, and the command line around it."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmmlib.cli import main, settings_from
from mmmlib.reference import data
from mmmlib.reference.recipes import RECIPES, Part, Recipe
from mmmlib.reference.report import write_report
from mmmlib.reference.run import PRESETS, Run, Settings, command_of
from mmmlib.reference.train import LOSSES, Step, train

LEFT = [
    "args.json", "card.json", "checkpoint.pth.tar", "env.json", "epochs", "log.txt", "metrics.csv",
    "model_best.pth.tar", "report.html", "report.npz",
]  # fmt: skip


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {key: row[key] for key in row if not key.startswith("seconds")}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("runs")
    arguments = ["train", "-d", "synthetic", "--recipe", "mmm", "--logs-dir", str(logs), "--quiet"]
    assert main(arguments) == 0
    return logs / "synthetic_mmm"


def test_a_run_leaves_its_files(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == LEFT
    rows = metrics(finished)
    assert [row["stage"] for row in rows] == ["random", "warm-up", "clusters", "clusters"]
    assert all(0 <= float(row["rank_1"]) <= 1 for row in rows)
    assert float(rows[-1]["loss_visible_nce"]) > 0
    assert json.loads((finished / "args.json").read_text())["recipe"] == "mmm"


def test_the_checkpoint_loads_without_pickled_code(finished: Path) -> None:
    state = torch.load(finished / "checkpoint.pth.tar", weights_only=True)
    assert state["epoch"] == 3
    assert len(state["labels"]["visible"]) == len(state["labels"]["shared_visible"])
    assert state["match"]["matched"].any()


def test_the_report_tells_the_result_and_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    final = f"{float(metrics(finished)[-1]['rank_1']):.1%}"
    assert f"Rank-1<b>{final}</b>" in page
    assert page.count('<svg class="chart"') == 7
    assert all(
        re.match("#|data:image/png", link) for link in re.findall(r'(?:src|href)="(.*?)"', page)
    )
    assert "url(http" not in page
    command = command_of(json.loads((finished / "args.json").read_text()))
    assert command.startswith("mmmlib train -d synthetic --recipe mmm --seed 1")
    assert command in page


def test_two_runs_with_one_seed_give_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    again = ["train", "--config", str(finished / "args.json"), "--logs-dir", str(tmp_path)]
    assert main([*again, "--quiet"]) == 0
    assert main([*again, "--quiet", "--seed", "2"]) == 0
    assert metrics(tmp_path / "synthetic_mmm") == metrics(finished)
    assert metrics(tmp_path / "synthetic_mmm_2") != metrics(finished)


def test_a_second_run_does_not_overwrite_the_first(tmp_path: Path) -> None:
    arguments = ["train", "-d", "synthetic", "--recipe", "baseline", "--epochs", "1", "--quiet"]
    for _ in range(2):
        assert main([*arguments, "--logs-dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "synthetic_baseline",
        "synthetic_baseline_2",
    ]


def test_the_log_has_one_line_an_epoch(finished: Path) -> None:
    lines = (finished / "log.txt").read_text().splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 4
    assert re.fullmatch(
        r"epoch   3 clusters  clusters +\d+ visible +\d+ infrared  noise +[\d.]+% +[\d.]+%  "
        r"ARI -?[\d.]+  Rank-1: [\d.]+% \| mAP: [\d.]+%  [\d.]+ s",
        epochs[-1],
    )


def test_a_recipe_of_your_own_takes_a_function_as_a_part(tmp_path: Path) -> None:
    def smaller(step: Step) -> torch.Tensor:
        return step.both().square().mean()

    recipe = Recipe(parts=(Part("visible_nce"), Part(smaller, weight=0.1)))
    settings = settings_from({"dataset": "synthetic", "epochs": 1})
    run = Run(tmp_path, settings, quiet=True)
    last = train(data.load("synthetic", seed=1), recipe, settings, run)
    assert "rank_1" in last
    assert run.rows[-1]["loss_smaller"] > 0


def test_images_without_identities_train_too(tmp_path: Path) -> None:
    loaded = data.load("synthetic", seed=1)
    blind = loaded._replace(
        visible=loaded.visible._replace(identities=None),
        infrared=loaded.infrared._replace(identities=None),
        query=None,
        gallery=None,
    )
    settings = settings_from({"dataset": "synthetic", "epochs": 1})
    run = Run(tmp_path, settings, quiet=True)
    last = train(blind, RECIPES["mmm"], settings, run)
    assert "ari_all" not in last
    assert last["visible_clusters"] > 1
    write_report(tmp_path)
    with pytest.raises(
        ValueError, match=r"^recipe must not need identities, which synthetic lacks$"
    ):
        train(blind, RECIPES["oracle"], settings, run)


def test_a_part_rests_ramps_and_alternates() -> None:
    ramped = Part("joint_nce", weight=2.0, start=0.5, ramp=0.4)
    assert [round(ramped.factor(epoch, 10), 3) for epoch in (4, 5, 6, 8, 9)] == [0, 0.5, 1, 2, 2]
    odd = Part("joint_nce", every=2, parity=1)
    assert [odd.factor(epoch, 4) for epoch in range(4)] == [0, 1, 0, 1]


def test_every_part_of_every_recipe_is_known() -> None:
    for recipe in RECIPES.values():
        assert {part.loss for part in recipe.parts} <= LOSSES.keys()
        assert recipe.source


def test_flags_win_over_an_earlier_run_which_wins_over_presets(tmp_path: Path) -> None:
    assert settings_from({"dataset": "synthetic"}).k1 == PRESETS["synthetic"]["k1"]
    config = tmp_path / "args.json"
    config.write_text(json.dumps({"dataset": "synthetic", "k1": 7, "k2": 2}))
    settings = settings_from({"k2": 4}, config)
    assert (settings.dataset, settings.k1, settings.k2) == ("synthetic", 7, 4)
    assert settings.iters == PRESETS["synthetic"]["iters"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["train", "-d", "sysu2"],
            "mmmlib train: -d must be one of hubble, people, landsat, folder, sysu, regdb, llcm, "
            "synthetic, got 'sysu2'\n",
        ),
        (
            ["train", "-d", "synthetic", "--recipe", "best"],
            "mmmlib train: --recipe must be one of baseline, adca, pgm, mmm, mmm-shared, mbccm, "
            "oracle, mmm-whitened, adca+mmm, got 'best'\n",
        ),
        (
            ["train", "-d", "landsat"],
            "mmmlib train: data_dir must be a TIFF file, got None\n",
        ),
        (
            ["report", "nowhere"],
            "mmmlib report: run must be the folder of a run, got nowhere without args.json\n",
        ),
    ],
)
def test_errors_of_the_command_line_are_one_line(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err == sentence
    assert not list(tmp_path.iterdir())


def test_errors_without_clusters_say_which_flag_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "-d", "synthetic", "--eps", "0.0001", "--logs-dir", str(tmp_path)]
    assert main([*arguments, "--quiet"]) == 2
    assert re.fullmatch(
        r"mmmlib train: --eps must give (visible|infrared) clusters to train on, got no cluster, "
        r"100\.0% noise with --eps 0\.0001 \(DBSCAN\(eps=0\.0001, .*; try another eps\)\n",
        capsys.readouterr().err,
    )


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmmlib", "--help"], capture_output=True, text=True, check=True,
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert "train" in done.stdout


def test_settings_have_a_flag_each() -> None:
    names = [name for item in Settings.__dataclass_fields__.values()
             for name in item.metadata["names"]]  # fmt: skip
    assert len(names) == len(set(names))
    assert {"-d", "--data-dir", "-b", "--num-instances", "--eps", "--k1", "--k2", "--temp"} <= {
        *names
    }


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--iters", "0"], "--iters must be a whole number of at least 1, got 0"),
        (["--num-instances", "0"], "--num-instances must be a whole number of at least 1, got 0"),
        (["--negative", "2"], "--negative must be in [0, 1], got 2.0"),
        (["--temp", "0"], "--temp must be in (0, inf), got 0.0"),
        (["--eps", "1"], "--eps must be in [0, 1), got 1.0"),
        (["--epochs", "-1"], "--epochs must be a whole number of at least 0, got -1"),
        (["--device", "foo"], "--device must be one that torch can use here, got 'foo'"),
    ],
)
def test_errors_of_flags_name_the_flag_and_leave_no_folder(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-d", "synthetic", "--logs-dir", str(tmp_path / "runs"), *flags]) == 2
    assert capsys.readouterr().err == f"mmmlib train: {sentence}\n"
    assert not list(tmp_path.iterdir())


def test_errors_of_a_config_name_what_is_no_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "args.json"
    config.write_text(json.dumps({"dataset": "synthetic", "speed": 3}))
    assert main(["train", "--config", str(config)]) == 2
    sentence = "mmmlib train: config must hold settings of a run, got speed\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            Recipe(parts=(Part("sharednce"),)),
            f"recipe must be made of functions and {', '.join(LOSSES)}, got 'sharednce'",
        ),
        (
            RECIPES["mmm-shared"]._replace(match_start=0.5),
            "recipe must match with sampling='shared' before shared_nce begins, "
            "got sampling='shared' from 0.5 on",
        ),
        (
            Recipe(parts=(Part("joint_nce"),)),
            "recipe must have joint=True for joint_nce, got joint=False",
        ),
    ],
)
def test_errors_of_a_recipe_come_before_the_training(
    recipe: Recipe, sentence: str, tmp_path: Path
) -> None:
    settings = settings_from({"dataset": "synthetic"})
    run = Run(tmp_path, settings, quiet=True)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        train(data.load("synthetic", seed=1), recipe, settings, run)
    assert not run.rows


def test_errors_of_a_loss_that_is_not_finite_name_the_epoch(tmp_path: Path) -> None:
    def broken(step: Step) -> torch.Tensor:
        return step.both().sum() * float("nan")

    settings = settings_from({"dataset": "synthetic", "epochs": 1})
    run = Run(tmp_path, settings, quiet=True)
    sentence = (
        f"loss must be finite, got nan in step 1 of epoch 2: broken is not, though the features "
        f"are (a larger --temp may help); {tmp_path / 'checkpoint.pth.tar'} holds epoch 1"
    )
    with pytest.raises(ArithmeticError, match=f"^{re.escape(sentence)}$"):
        train(data.load("synthetic", seed=1), Recipe(parts=(Part(broken),)), settings, run)
