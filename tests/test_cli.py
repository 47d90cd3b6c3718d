"""Single phases from the command line: evaluate, extract, cluster, match."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmmlib.cli import main
from mmmlib.clustering import cluster_features
from mmmlib.matching import progressive_match
from mmmlib.reference import _phases
from mmmlib.reference.data import load
from mmmlib.reference.models import TwoStreamResNet50, extract_features
from mmmlib.reference.run import Settings
from mmmlib.reference.train._score import search

SMALL = ["--k1", "8", "--k2", "3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("runs")
    arguments = ["train", "-d", "synthetic", "--recipe", "baseline", "--logs-dir", str(logs)]
    assert main([*arguments, "--quiet"]) == 0
    return logs / "synthetic_baseline"


@pytest.fixture(scope="module")
def features(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.npz"
    assert main(["extract", str(finished), "-o", str(path)]) == 0
    return path


def test_evaluate_gives_the_numbers_of_the_run_in_both_directions(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished), "--json", str(tmp_path / "found.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "plain, infrared to visible",
        "plain, visible to infrared",
    ]
    with (finished / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert f"Rank-1: {float(last['rank_1']):.2%} | Rank-5: " in lines[0]
    assert f"mAP: {float(last['mean_ap']):.2%} | mINP: " in lines[0]
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert results == json.loads((finished / "card.json").read_text())["results"]
    assert results[0]["mean_inp"] == float(last["mean_inp"])


def test_sysu_is_searched_all_over_and_indoors_from_infrared_only() -> None:
    data = load("synthetic")
    n = len(data.gallery.names)
    cameras = torch.tensor([1, 2, 4, 5]).repeat(n // 4)
    people = data._replace(
        protocol="sysu-all",
        query=data.query._replace(cameras=torch.full((len(data.query.names),), 6)),
        gallery=data.gallery._replace(cameras=cameras),
    )
    settings = Settings(dataset="synthetic")
    model = _phases.TwoStreamCNN(1, 1, dim=16)
    found = search(model, people, settings, trials=3)
    assert list(found) == [
        ("sysu-all", "infrared to visible"),
        ("sysu-indoor", "infrared to visible"),
    ]
    galleries = [result.trials[0].n_gallery for result in found.values()]
    assert galleries[0] == 2 * galleries[1]
    assert all(len(result.trials) == 3 for result in found.values())
    outdoor = people._replace(gallery=people.gallery._replace(cameras=cameras.clamp(min=4)))
    assert list(search(model, outdoor, settings)) == [("sysu-all", "infrared to visible")]


def test_extract_writes_features_with_the_name_of_each_image(
    finished: Path, features: Path, tmp_path: Path
) -> None:
    data = load("synthetic", seed=1)
    content = np.load(features)
    assert content["visible_names"].tolist() == list(data.visible.names)
    assert content["infrared_identities"].tolist() == data.infrared.identities.tolist()
    model = _phases.load_network(finished / "checkpoint.pth.tar", "cpu")
    wanted = extract_features(model, data.infrared.pixels, infrared=True)
    torch.testing.assert_close(torch.from_numpy(content["infrared"]), wanted)

    path = tmp_path / "test.pt"
    assert main(["extract", str(finished), "--split", "test", "-o", str(path)]) == 0
    tested = torch.load(path, weights_only=True)
    assert tested["visible_names"] == list(data.gallery.names)


def test_features_are_clustered_and_matched_step_by_step(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, found = tmp_path / "labels.npz", tmp_path / "match.pt"
    assert main(["cluster", str(features), *SMALL, "-o", str(labels)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["visible:", "infrared:"]
    content, made = np.load(features), np.load(labels)
    sides = [torch.from_numpy(content[side]) for side in ("visible", "infrared")]
    wanted = [cluster_features(side, k1=8, k2=3, eps=0.6) for side in sides]
    assert made["visible_labels"].tolist() == wanted[0].tolist()
    assert made["visible_names"].tolist() == content["visible_names"].tolist()

    for matcher in _phases.MATCHERS:
        arguments = [str(features), str(labels), "--matcher", matcher, "-o", str(found)]
        assert main(["match", *arguments]) == 0
        assert re.match(r"matched \d+/\d+ visible and \d+/\d+ infrared", capsys.readouterr().out)
        result = torch.load(found, weights_only=True)
        assert result["matched"].shape == tuple(int(part.max()) + 1 for part in wanted)
        assert len(result["infrared_labels"]) == len(sides[1])


def test_labels_are_joined_by_name(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(6, 4, generator=generator) for _ in range(2)]
    numbers = torch.tensor([0, 0, 1, 1, 2, -1])
    names = list("abcdef")
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    rows, labels = tmp_path / "rows.pt", tmp_path / "labels.npz"
    _phases.write_arrays(
        rows,
        {"visible": sides[0], "infrared": sides[1], "visible_names": names},
    )
    _phases.write_arrays(
        labels,
        {
            "visible_labels": numbers[order], "infrared_labels": numbers,
            "visible_names": [names[i] for i in order],
        },
    )  # fmt: skip
    files = _phases.read_arrays(rows), _phases.read_arrays(labels)
    torch.testing.assert_close(_phases.labels_of("visible", *files)[1], numbers)
    content, _ = _phases.match(*files, "progressive", 4)
    centres = [_phases.prototypes(side, numbers) for side in sides]
    wanted = progressive_match(*centres)
    assert content["to_infrared"].tolist() == wanted.to_infrared.tolist()


def test_a_checkpoint_of_a_resnet_is_known_by_its_weights(tmp_path: Path) -> None:
    model = TwoStreamResNet50(generator=torch.Generator().manual_seed(0))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "net.pth")
    loaded = _phases.load_network(tmp_path / "net.pth", "cpu")
    assert isinstance(loaded, TwoStreamResNet50)
    assert torch.equal(loaded.neck.weight, model.neck.weight)


def bad_files(folder: Path) -> dict[str, str]:
    """Files that hold something else."""
    torch.save({"visible": torch.rand(4, 3), "infrared": torch.rand(4, 3)}, folder / "rows.pt")
    torch.save({"visible": torch.rand(2, 3), "visible_names": ["a", "b"]}, folder / "named.pt")
    torch.save({"visible_labels": torch.zeros(4).long()}, folder / "labels.pt")
    torch.save(
        {"visible_labels": torch.zeros(2).long(), "visible_names": ["a", "c"]},
        folder / "other.pt",
    )
    (folder / "text.npz").write_text("hello")
    (folder / "text.pt").write_text("hello")
    return {path.stem + path.suffix[1:]: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("evaluate nowhere", "-d must be given for nowhere without args.json beside it"),
        ("evaluate nowhere -d synthetic", "path must be a file, got 'nowhere'"),
        ("cluster nowhere.npz -o {out}.npz", "file must be there, got 'nowhere.npz'"),
        ("cluster {rowspt} -o {out}.txt", "--out must end in .npz or .pt, got '{out}.txt'"),
        ("cluster {rowspt} -o {out}/x.pt",
         "--out must lie in a directory that exists, got '{out}/x.pt'"),
        ("cluster {textnpz} -o {out}.npz",
         "file must hold named arrays (.npz or .pt, nothing pickled), got '{textnpz}'"),
        ("cluster {textpt} -o {out}.npz",
         "file must hold named arrays (.npz or .pt, nothing pickled), got '{textpt}'"),
        ("cluster {labelspt} -o {out}.npz", "{labelspt} must hold visible, got visible_labels"),
        ("cluster {rowspt} --eps 2 -o {out}.npz", "eps must be in [0, 1), got 2.0"),
        ("match {rowspt} {labelspt} -o {out}.npz",
         "{labelspt} must hold infrared_labels, got visible_labels"),
        ("match {namedpt} {otherpt} -o {out}.npz",
         "{otherpt} must hold a label for each visible image, got none for 'b'"),
        ("match {rowspt} {labelspt} --matcher best -o {out}.npz",
         "--matcher must be one of multi-memory, clusters, progressive, bilateral, transport, "
         "nearest, mutual, vote, got 'best'"),
    ],
)  # fmt: skip
def test_errors_of_every_phase_are_one_line(
    arguments: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {**bad_files(tmp_path), "out": str(tmp_path / "out")}
    words = arguments.format(**names).split()
    assert main(words) == 2
    assert capsys.readouterr().err == f"mmmlib {words[0]}: {sentence.format(**names)}\n"
    assert not list(tmp_path.glob("out*"))


def test_errors_of_another_trial_are_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "args.json").write_text(json.dumps({"dataset": "regdb", "trial": 1}))
    assert main(["evaluate", str(tmp_path), "--trial", "2"]) == 2
    assert capsys.readouterr().err == (
        "mmmlib evaluate: --trial must be the one that was trained on, 1, got 2: the test of "
        "another trial holds persons of the training\n"
    )
