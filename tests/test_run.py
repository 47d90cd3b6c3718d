"""What a run writes, says and chooses."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmmlib.cli import main, settings_from
from mmmlib.reference import data
from mmmlib.reference._phases import read_arrays
from mmmlib.reference.models import read_weights
from mmmlib.reference.recipes import RECIPES
from mmmlib.reference.run import Laps, Run, Settings
from mmmlib.reference.train import _lines, _loop, _plan, _selection, _steps, train

SHORT = ["-d", "synthetic", "--recipe", "mmm", "--quiet"]


def train_in(logs: Path, *more: str) -> Path:
    assert main(["train", *SHORT, "--logs-dir", str(logs), *more]) == 0
    return max(logs.iterdir(), key=lambda path: path.stat().st_mtime)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("last"), "--print-freq", "2", "--tensorboard")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ["--select", "held-out", "--held-out", "0.2", "--epochs", "4"]
    return train_in(tmp_path_factory.mktemp("held"), *more)


def test_scripts_find_the_lines_of_the_published_programs(last: Path) -> None:
    log = (last / "log.txt").read_text()
    rows = table(last)
    for name, side in (("IR", "infrared"), ("RGB", "visible")):
        found = re.findall(rf"^==> Statistics for {name} epoch (\d+): (\d+) clusters$", log, re.M)
        assert found == [(row["epoch"], row[f"{side}_clusters"]) for row in rows[2:]]
    number = r"[\d.]+ \([\d.]+\)"
    steps = re.findall(
        rf"^Epoch: \[(\d+)\]\[(\d+)/4\]\tTime {number}\tData {number}\tLoss {number}"
        rf"\tLoss rgb {number}\tLoss ir {number}\t", log, re.M,
    )  # fmt: skip
    assert steps == [("2", "2"), ("2", "4"), ("3", "2"), ("3", "4")]
    scores = re.findall(
        r"^FC: Rank-1: (.*?)% \| Rank-5: .*?% \| Rank-10: .*?% \| Rank-20: .*?% \| mAP: .*?% "
        r"\| mINP: .*?%$", log, re.M,
    )  # fmt: skip
    assert scores[-2:] == [f"{100 * float(rows[-1]['rank_1']):.2f}"] * 2
    best = max(float(row["mean_ap"]) for row in rows)
    assert f" * Finished epoch   3 model mAP: {float(rows[-1]['mean_ap']):5.1%}  " in log
    assert re.search(rf"epoch   3 model mAP: .*best: {best:5.1%}$", log, re.M)
    assert re.search(r"^Mean AP: [\d.]+%$", log, re.M)
    assert "==> Test with the best model: the last epoch" in log
    assert re.search(r"^Total running time:  \d+:\d\d:\d\d$", log, re.M)


def test_the_losses_of_a_line_are_those_since_the_last_and_since_the_beginning(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, Settings(iters=4), quiet=True, print_freq=2)
    lines = _lines.StepLines(run, Settings(iters=4), 7, [("visible_nce", 1.0), ("joint_nce", 0.5)])
    for total in ([1.0, 2.0], [4.0, 4.0], [4.0, 6.0], [5.0, 8.0]):
        lines.drawn()
        lines.stepped(torch.tensor(total))
    found = [
        line.partition("\tLoss")[2] for line in (tmp_path / "log.txt").read_text().splitlines()
    ]
    assert found == [
        " 3.000 (3.000)\tLoss rgb 2.000 (2.000)\tLoss joint_nce 2.000 (2.000)",
        " 1.500 (2.250)\tLoss rgb 0.500 (1.250)\tLoss joint_nce 2.000 (2.000)",
    ]


def test_lines_for_scripts_are_kept_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, Settings())
    run.note("FC: Rank-1")
    run.say("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"
    assert (tmp_path / "log.txt").read_text() == "FC: Rank-1\nepoch 1\n"


def test_labels_and_match_of_every_epoch_are_kept_by_name(last: Path) -> None:
    loaded = data.load("synthetic", seed=1)
    assert sorted(path.name for path in (last / "epochs").iterdir()) == ["002.npz", "003.npz"]
    content = np.load(last / "epochs" / "003.npz")
    state = torch.load(last / "checkpoint.pth.tar", weights_only=True)
    for name, kept in (("visible", "visible_labels"), ("shared_infrared", "infrared_shared"),
                       ("joint_visible", "visible_joint")):  # fmt: skip
        assert content[kept].tolist() == state["labels"][name].tolist()
    assert content["visible_names"].tolist() == list(loaded.visible.names)
    assert content["pairs"].tolist() == state["match"]["matched"].nonzero().tolist()
    assert content["to_infrared"].tolist() == state["match"]["to_infrared"].tolist()
    i, j = content["pairs"].T
    assert content["cost"].tolist() == state["match"]["cost"].numpy()[i, j].tolist()


def test_the_labels_of_an_epoch_can_be_matched_alone(last: Path, tmp_path: Path) -> None:
    features, match = tmp_path / "features.npz", tmp_path / "match.npz"
    assert main(["extract", str(last), "-o", str(features)]) == 0
    labels = last / "epochs" / "003.npz"
    assert main(["match", str(features), str(labels), "-o", str(match)]) == 0
    assert read_arrays(match).tensors["matched"].any()


def test_the_network_of_the_result_is_kept_as_published_programs_keep_it(
    last: Path, tmp_path: Path
) -> None:
    state = torch.load(last / "model_best.pth.tar", weights_only=True)
    trained = torch.load(last / "checkpoint.pth.tar", weights_only=True)
    assert state["epoch"] == 3
    assert all(torch.equal(state["state_dict"][name], value)
               for name, value in trained["model"].items())  # fmt: skip
    assert read_weights(last / "model_best.pth.tar").keys() == trained["model"].keys()
    assert main(["evaluate", str(last), "--json", str(tmp_path / "found.json")]) == 0
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert results == json.loads((last / "card.json").read_text())["results"]


def test_seconds_of_phases_add_up(last: Path) -> None:
    for row in table(last):
        phases = {name: value for name, value in row.items() if name.startswith("seconds_")}
        total = sum(float(value) for value in phases.values() if value)
        assert total == pytest.approx(float(row["seconds"]))
    assert all(float(value) > 0 for value in phases.values())
    laps = Laps("cpu")
    laps.end("train")
    laps.end("evaluate")
    laps.end("train")
    assert list(laps.row()) == ["seconds", "seconds_train", "seconds_evaluate"]


def test_tensorboard_holds_the_numbers_of_metrics_csv(last: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(last / "tensorboard"))
    board.Reload()
    for name in ("mean_ap", "loss_visible_nce", "seconds_train"):
        wanted = [(int(row["epoch"]), float(row[name])) for row in table(last) if row[name]]
        found = [(event.step, event.value) for event in board.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in wanted]
    Run(tmp_path, Settings(), quiet=True)
    assert not (tmp_path / "tensorboard").exists()


def test_errors_without_tensorboard_say_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *SHORT, "--tensorboard", "--logs-dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "mmmlib train: --tensorboard needs what pip install 'mmmlib[tensorboard]' brings: "
    )
    assert len(error.splitlines()) == 1
    assert "mmmlib[train]" not in error
    assert not (tmp_path / "runs").exists()


def test_a_bar_is_drawn_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    runs = {
        "plain": Run(tmp_path / "plain", Settings()),
        "second": Run(tmp_path / "second", Settings(), writes=False),
    }
    assert list(runs["plain"].progress(range(3), "epoch 1", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(runs["second"].progress(range(3), "epoch 1", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert list(runs["plain"].progress(range(3), "epoch 1", 3)) == [0, 1, 2]
    assert "epoch 1" in capsys.readouterr().err
    assert (tmp_path / "plain" / "log.txt").read_text() == ""


def test_the_test_images_choose_nothing(last: Path) -> None:
    card = json.loads((last / "card.json").read_text())
    rows = table(last)
    best = max(rows, key=lambda row: float(row["mean_ap"]))
    assert (card["selected"], card["selected_epoch"]) == ("the last epoch", 3)
    assert card["results"][0]["mean_ap"] == float(rows[-1]["mean_ap"])
    assert card["test_selected"]["epoch"] == int(best["epoch"])
    assert card["test_selected"]["mean_ap"] == float(best["mean_ap"])
    assert card["test_selected"]["note"] == "chosen by the test images themselves: not a result"
    assert f"not a result: epoch {best['epoch']} is the best" in (last / "log.txt").read_text()


def test_held_out_images_are_neither_clustered_nor_trained_on() -> None:
    loaded = data.load("synthetic", seed=1)
    settings = settings_from({"dataset": "synthetic", "select": "held-out", "held_out": 0.25})
    kept, held = _selection.hold_out(loaded, settings)
    for side in ("visible", "infrared"):
        whole, used, out = (getattr(each, side) for each in (loaded, kept, held))
        assert len(out.names) == 48
        assert {*used.names} | {*out.names} == {*whole.names}
        assert not {*used.names} & {*out.names}
        place = whole.names.index(out.names[5])
        assert torch.equal(out.pixels[5], whole.pixels[place])
        assert out.identities[5] == whole.identities[place]
    assert _selection.hold_out(loaded, settings)[1].visible.names == held.visible.names
    assert _selection.hold_out(loaded, settings_from({"dataset": "synthetic"})) == (loaded, None)


def test_the_epoch_in_which_the_modalities_agree_best_is_the_result(
    held: Path, tmp_path: Path
) -> None:
    card = json.loads((held / "card.json").read_text())
    values = {int(row["epoch"]): float(row["held_out_agreement"]) for row in table(held)
              if row["held_out_agreement"]}  # fmt: skip
    assert list(values) == [2, 3, 4, 5]
    assert values[card["selected_epoch"]] == max(values.values())
    assert card["selected"].endswith("by pseudo-validation on held-out training images")
    assert card["data"]["visible"]["images"] == 154
    assert len(np.load(held / "epochs" / "005.npz")["visible_labels"]) == 154
    state = torch.load(held / "model_best.pth.tar", weights_only=True)
    assert state["epoch"] == card["selected_epoch"]
    row = table(held)[card["selected_epoch"]]
    assert card["results"][0]["mean_ap"] == pytest.approx(float(row["mean_ap"]), abs=1e-12)


def test_a_run_with_held_out_images_goes_on_to_the_same_choice(
    held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _loop.train_epoch

    def interrupted(*arguments: object) -> dict[str, float]:
        if arguments[5] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    flags = [*SHORT, "--select", "held-out", "--held-out", "0.2", "--epochs", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(_loop, "train_epoch", interrupted)
        assert main(["train", *flags, "--logs-dir", str(tmp_path)]) == 130
    assert main(["train", *flags, "--logs-dir", str(tmp_path), "--resume"]) == 0
    states = [torch.load(folder / "model_best.pth.tar", weights_only=True)
              for folder in (held, tmp_path / "synthetic_mmm")]  # fmt: skip
    assert states[0]["epoch"] == states[1]["epoch"]
    assert all(torch.equal(value, states[1]["state_dict"][name])
               for name, value in states[0]["state_dict"].items())  # fmt: skip


def test_agreement_beyond_chance_by_hand() -> None:
    first = torch.tensor([0, 0, 1, 1])
    assert _selection.kappa(first, first) == 1
    assert _selection.kappa(first, 1 - first) == -1
    # Three of four the same; chance 0.5 * 0.25 + 0.5 * 0.75 = 0.5.
    assert _selection.kappa(first, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.5)
    assert _selection.kappa(torch.zeros(4).long(), torch.zeros(4).long()) == 0  # a collapse


def test_a_later_epoch_that_is_as_good_is_taken() -> None:
    model = torch.nn.Linear(2, 2)
    choice = _selection.better(None, model, 3, 0.5)
    kept = choice.weights["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(choice.weights["weight"], kept)
    assert _selection.better(choice, model, 4, 0.4).epoch == 3
    assert _selection.better(choice, model, 4, 0.5).epoch == 4


def test_errors_of_too_few_held_out_images(tmp_path: Path) -> None:
    settings = settings_from({"dataset": "synthetic", "select": "held-out", "held_out": 0.01})
    run = Run(tmp_path, settings, quiet=True)
    sentence = "--held-out must hold out at least 8 visible images, got 0.01 of 192"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        train(data.load("synthetic"), RECIPES["baseline"], settings, run)


def test_images_of_a_cluster_come_from_its_cameras_in_turn_if_asked_for() -> None:
    loaded = data.load("synthetic", seed=1)
    cameras = torch.arange(len(loaded.visible.names)) % 4  # two images of each identity by each
    loaded = loaded._replace(
        visible=loaded.visible._replace(cameras=cameras),
        infrared=loaded.infrared._replace(cameras=cameras),
    )
    found = {}
    for aware in (False, True):
        settings = settings_from({"dataset": "synthetic", "recipe": "oracle", "iters": 8,
                                  "num_instances": 4, "camera_aware": aware})  # fmt: skip
        trainer = _loop.make_trainer(loaded, settings)
        plan = _plan.make_plan(trainer.model, loaded, RECIPES["oracle"], settings, 0)
        drawn = _steps.batches(RECIPES["oracle"], plan, settings, trainer.sampling, loaded)
        groups = [cameras[rows].view(-1, 4) for batch in drawn for rows in batch]
        found[aware] = [len(set(row)) for group in groups for row in group.tolist()]
    assert set(found[True]) == {4}
    assert min(found[False]) < 4


def test_camera_aware_batches_train(tmp_path: Path) -> None:
    folder = train_in(tmp_path, "--camera-aware", "--epochs", "1")
    assert json.loads((folder / "args.json").read_text())["camera_aware"] is True
