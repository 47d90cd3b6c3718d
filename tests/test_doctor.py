"""``mmmlib doctor``: what it counts, what it finds, and how it ends."""

from pathlib import Path

import pytest
from test_data_layouts import counts, draw, regdb, sysu  # noqa: F401

from mmmlib.cli import main
from mmmlib.reference import doctor
from mmmlib.reference.doctor import examine, surroundings

pytest.importorskip("PIL.Image")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = main(["doctor", *arguments])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


@pytest.mark.usefixtures("counts")
def test_a_right_tree_is_counted_and_ends_with_0(sysu: Path, capsys) -> None:  # noqa: F811
    code, lines, err = run(capsys, "-d", "sysu", "--data-dir", str(sysu), "--images")
    assert (code, err) == (0, "")
    assert lines == [
        "training, visible       3 identities      22 images  cameras 1 2 4 5",
        "training, infrared      3 identities      12 images  cameras 3 6",
        "test, infrared          2 identities       8 images  cameras 3 6",
        "test, visible           2 identities      17 images  cameras 1 2 4 5",
        "official layout, 0.0 GB in memory at 288 x 144",
    ]


@pytest.mark.usefixtures("counts")
def test_every_finding_has_its_line_and_the_end_is_2(sysu: Path, capsys) -> None:  # noqa: F811
    for path in sysu.glob("cam3/0003/*"):
        path.unlink()
    draw(sysu / "cam1/0501/0009.jpg")
    code, lines, err = run(capsys, "-d", "sysu", "--data-dir", str(sysu))
    assert (code, err) == (2, "")
    assert lines[5:] == [
        "wrong: training, infrared: 10 images, 12 are published: 2 missing",
        "wrong: test, visible: 18 images, 17 are published: 1 too many",
    ]


@pytest.mark.usefixtures("counts")
def test_broken_images_are_found_when_they_are_opened(sysu: Path, capsys) -> None:  # noqa: F811
    broken = [sysu / "cam2/0003/0001.jpg", sysu / "cam6/0501/0002.jpg"]
    broken[0].write_bytes(broken[0].read_bytes()[:300])
    broken[1].write_bytes(b"")
    arguments = ["-d", "sysu", "--data-dir", str(sysu)]
    assert run(capsys, *arguments)[0] == 0
    code, lines, _ = run(capsys, *arguments, "--images")
    assert code == 2
    found = [line for line in lines if line.startswith("wrong: ")]
    assert len(found) == 2
    for line, path in zip(found, broken, strict=True):
        assert line.startswith(f"wrong: '{path.as_posix()}' is no readable image: ")


@pytest.mark.usefixtures("counts")
def test_the_trial_of_regdb_is_an_option(regdb: Path, capsys) -> None:  # noqa: F811
    (regdb / "idx/test_visible_2.txt").write_text("")
    arguments = ["-d", "regdb", "--data-dir", str(regdb)]
    assert run(capsys, *arguments)[0] == 0
    code, lines, _ = run(capsys, *arguments, "--trial", "2")
    assert code == 2
    assert "wrong: test, visible: no image of camera 1" in lines


def test_what_is_not_published_is_only_counted(tmp_path: Path, capsys) -> None:
    draw(tmp_path / "visible" / "1.png")
    draw(tmp_path / "visible" / "2.png")
    draw(tmp_path / "infrared" / "1.png")
    code, lines, _ = run(capsys, "-d", "folder", "--data-dir", str(tmp_path))
    assert code == 0
    assert lines == [
        "training, visible       0 identities       2 images  cameras 0",
        "training, infrared      0 identities       1 images  cameras 0",
    ]
    assert len(examine("synthetic", None).counts) == 4


def test_errors_of_the_doctor_are_one_line(tmp_path: Path, capsys) -> None:
    missing = tmp_path / "nowhere"
    code, lines, err = run(capsys, "-d", "sysu", "--data-dir", str(missing))
    assert (code, lines) == (2, [])
    assert err == (
        f"mmmlib doctor: data_dir must be a directory, got '{missing.as_posix()}'; expected in it: "
        "cam1 to cam6 and exp, or the prepared rgb_modify and ir_modify\n"
    )
    assert run(capsys, "-d", "sky")[2].startswith("mmmlib doctor: name must be ")


def test_without_a_data_set_it_says_what_is_installed(capsys) -> None:
    code, lines, _ = run(capsys)
    assert code == 0
    names = [line.split()[0] for line in lines]
    assert names == list(surroundings())
    assert {"mmmlib", "torch", "gpu", "faiss"} <= set(names)


def test_two_installed_faiss_are_said_to_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "1.9")
    assert surroundings()["faiss"] == "faiss-cpu 1.9, faiss-gpu 1.9; two of them clash: keep one"
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert surroundings()["faiss"] == "not installed, and not needed"


def test_errors_of_a_wrong_tree_keep_it_from_training(
    sysu: Path,  # noqa: F811
    tmp_path: Path,
    capsys,
) -> None:
    arguments = [
        "train", "-d", "sysu", "--data-dir", str(sysu), "--recipe", "oracle", "--quiet",
        "--logs-dir", str(tmp_path / "runs"), "--height", "32", "--width", "16", "--pad", "2",
        "--warm-up", "0", "--epochs", "1", "--iters", "1", "-b", "8", "--num-instances", "2",
    ]  # fmt: skip
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("mmmlib train: data_dir must hold sysu as it is published, got ")
    assert message.endswith("--allow-incomplete takes it as it is)\n")
    assert not (tmp_path / "runs").exists()
    assert main([*arguments, "--allow-incomplete"]) == 0
    folder = tmp_path / "runs/sysu_oracle"
    assert '"allow_incomplete": true' in (folder / "args.json").read_text()
    assert "--allow-incomplete --" in (folder / "report.html").read_text()
    again = ["train", "--config", str(folder / "args.json"), "--logs-dir", str(tmp_path / "again")]
    assert main([*again, "--quiet"]) == 0
