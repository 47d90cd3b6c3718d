"""The page about a run, and the comparison of several."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmmlib.cli import main
from mmmlib.reference import data
from mmmlib.reference.report import compare_runs, write_report
from mmmlib.reference.train import _record

pytest.importorskip("matplotlib")

SECTIONS = (
    "Epoch by epoch", "Clusters and their match", "Distances", "Training identities", "Searches",
    "Where the time went", "Every epoch", "The same run again", "Made with",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in the number of memories, which the first match is the first to see."""
    logs = tmp_path_factory.mktemp("runs")
    for memories in ("4", "1"):
        arguments = ["-d", "synthetic", "--num-memories", memories, "--quiet"]
        assert main(["train", *arguments, "--logs-dir", str(logs)]) == 0
    return logs


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(runs / "synthetic_mmm", tmp_path / "copy"))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_a_report_has_every_part_and_needs_nothing_else(runs: Path) -> None:
    page = (runs / "synthetic_mmm" / "report.html").read_text()
    assert tuple(headings(page)) == SECTIONS
    pictures = re.findall("<h3>(.*?)</h3>", page)
    assert sum(name.startswith("Identity ") for name in pictures) == 3
    assert sum(name.startswith("Search ") for name in pictures) == 5
    assert {"Match of the clusters", "Distances of identities", "Distances of matched pairs",
            "Sizes of the visible clusters", "Seconds an epoch"} <= {*pictures}  # fmt: skip
    links = re.findall(r'(?:src|href)="(.*?)"', page)
    assert all(re.match("#|data:image/png;base64", link) for link in links)
    assert "plain" in page
    assert "Not a result: epoch" in page
    assert "#0a0b0c" not in page  # every colour of the ink is that of the page


def test_a_report_is_written_again_from_the_folder_alone(copy: Path) -> None:
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    (copy / "checkpoint.pth.tar").unlink()
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").read_text() == before


def test_a_run_of_an_earlier_version_still_gives_a_page(copy: Path) -> None:
    shutil.rmtree(copy / "epochs")
    for name in ("report.npz", "card.json", "model_best.pth.tar"):
        (copy / name).unlink()
    rows = table(copy)
    kept = [name for name in rows[0] if not name.startswith(("seconds_", "rank_5", "rank_2"))]
    with (copy / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    page = write_report(copy).read_text()
    assert headings(page) == ["Epoch by epoch", "Every epoch", "The same run again", "Made with"]


def test_an_unfinished_run_shows_what_there_is(copy: Path) -> None:
    for name in ("report.npz", "card.json"):
        (copy / name).unlink()
    page = write_report(copy).read_text()
    assert "Sizes of the infrared clusters" in page
    assert "Searches" not in headings(page)


def test_without_matplotlib_the_numbers_are_still_reported(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = write_report(copy).read_text()
    assert "None without matplotlib" in page
    assert "Epoch by epoch" in headings(page)


def test_names_of_runs_and_settings_are_escaped(copy: Path) -> None:
    settings = json.loads((copy / "args.json").read_text())
    (copy / "args.json").write_text(json.dumps({**settings, "recipe": "<b>mine</b>"}))
    (copy / "card.json").unlink()
    assert "<b>mine" not in write_report(copy).read_text()


def test_two_runs_part_where_their_settings_first_matter(runs: Path) -> None:
    first, second = runs / "synthetic_mmm", runs / "synthetic_mmm_2"
    lines = compare_runs([first, second])
    assert re.fullmatch(
        r"synthetic_mmm_2 and synthetic_mmm part in epoch 2: (matched pairs|cost of the matched "
        r"pairs) .*",
        lines[0],
    )
    assert lines[1:] == ["  --num-memories 1 against 4"]


def test_a_run_does_not_differ_from_itself(runs: Path, copy: Path) -> None:
    assert compare_runs([runs / "synthetic_mmm", copy]) == [
        "copy and synthetic_mmm do not differ in 4 epochs"
    ]


def change_labels(folder: Path) -> None:
    path = folder / "epochs" / "003.npz"
    content = dict(np.load(path))
    content["infrared_labels"][5] += 1
    np.savez(path, **content)


def change_loss(folder: Path) -> None:
    path, rows = folder / "metrics.csv", table(folder)
    rows[2]["loss_visible_nce"] = "0.5"
    rows[2]["rank_1"] = "0.25"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def drop_epoch(folder: Path) -> None:
    path = folder / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_labels, r"epoch 3: infrared labels of 1 in 192"),
        (change_loss, r"epoch 2: loss_visible_nce 0\.5 against [\d.]+"),
        (drop_epoch, r"epoch 3: the epoch itself, in synthetic_mmm only"),
    ],
)
def test_the_first_difference_is_named_by_epoch_and_quantity(
    change, said: str, runs: Path, copy: Path
) -> None:
    change(copy)
    (line,) = compare_runs([runs / "synthetic_mmm", copy])
    assert re.fullmatch(f"copy and synthetic_mmm part in {said}", line)


def test_the_command_line_compares_several_runs_and_passes_over_files(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = Path(shutil.copytree(runs, tmp_path / "logs"))
    for _ in range(2):  # the second time comparison.html is among runs/*
        assert main(["report", *map(str, sorted(logs.iterdir()))]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            str(logs / "synthetic_mmm" / "report.html"),
            str(logs / "synthetic_mmm_2" / "report.html"),
        ]
        assert lines[2].startswith("synthetic_mmm_2 and synthetic_mmm part in epoch 2: ")
        assert lines[-1] == str(logs / "comparison.html")
    page = (logs / "comparison.html").read_text()
    assert headings(page) == ["Results", "Where they part", "Epoch by epoch",
                              "Settings that differ", "Surroundings that differ"]  # fmt: skip
    assert "--num-memories" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_errors_of_a_report_name_what_is_wrong(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nowhere" / "page.html"
    cases = [
        ([str(copy), "-o", "page.html"],
         "--out must be left out with a single run, got 'page.html'"),
        ([str(copy), str(copy), "-o", str(out)],
         f"--out must lie in a directory that exists, got {str(out)!r}"),
        ([str(copy), "nowhere"],
         "run must be the folder of a run, got nowhere without args.json"),
    ]  # fmt: skip
    for arguments, sentence in cases:
        assert main(["report", *arguments]) == 2
        assert capsys.readouterr().err == f"mmmlib report: {sentence}\n"
    (copy / "metrics.csv").write_text("")
    assert main(["report", str(copy)]) == 2
    sentence = f"run must have an epoch to report, got {copy} with an empty metrics.csv"
    assert capsys.readouterr().err == f"mmmlib report: {sentence}\n"


def test_searches_follow_the_rules_of_the_protocol() -> None:
    """Camera 3 does not see the images of camera 2; what is right has the query's identity."""
    loaded = data.load("synthetic")
    pixels = torch.zeros(4, 1, 8, 4, dtype=torch.uint8)
    cameras = torch.tensor([1, 2, 4, 5])
    gallery = data.Images(pixels, torch.tensor([7, 7, 8, 9]), cameras, tuple("abcd"))
    query = data.Images(pixels[:1], torch.tensor([7]), torch.tensor([3]), ("q",))
    people = loaded._replace(query=query, gallery=gallery, protocol="sysu-all")
    rows = torch.eye(4)
    found = _record._searches(people, ((torch.tensor([[0.5, 0.9, 0.7, 0.1]]), query),
                                       (rows, gallery)))  # fmt: skip
    assert found["found_there"].tolist() == [[True, True, True, False]]
    assert found["found_right"].tolist() == [[False, True, False, False]]
    plain = people._replace(protocol="plain")
    found = _record._searches(plain, ((torch.tensor([[0.5, 0.9, 0.7, 0.1]]), query),
                                      (rows, gallery)))  # fmt: skip
    assert found["found_right"].tolist() == [[True, False, True, False]]


def test_pictures_are_small_and_at_even_distances() -> None:
    tall = torch.randint(256, (2, 3, 288, 144), dtype=torch.uint8)
    assert _record.thumbnails(tall).shape == (2, 3, 96, 48)
    small = tall[:, :, :50, :20]
    assert _record.thumbnails(small) is small
    assert _record._evenly(torch.arange(10), 5).tolist() == [1, 3, 5, 7, 9]
    assert _record._evenly(torch.arange(3), 5).tolist() == [0, 1, 2]
    assert len(_record._evenly(torch.arange(0), 5)) == 0
