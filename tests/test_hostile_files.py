"""Files and command lines that nobody meant: one clear line and code 2, and no work lost."""

import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ordinary import ordinary, permissions_hold
from tally import count, many

from mmmlib.cli import main
from mmmlib.reference import data
from mmmlib.reference.models import TwoStreamCNN, read_weights

pillow = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.slow

STRANGE = (
    "Ünïcödé.jpg", "人.jpg", "a b  c.jpg", "-rf.jpg", "quote'\".jpg", "new\nline.jpg", "\u202e.jpg",
    "emoji🙂.jpg", "dot..jpg", "%s{0}.jpg", os.fsdecode(b"latin\xe9.jpg"), "e\u0301.jpg",
)  # fmt: skip


def spoken(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and what went to the standard error."""
    try:
        code = main(command)
    except SystemExit as left:  # argparse
        code = int(left.code or 0)
    return code, capsys.readouterr().err


def check_line(code: int, said: str, command: list[str]) -> None:
    """Done, or refused in one line that names the command."""
    assert code in (0, 2), (code, said)
    assert "Traceback" not in said
    if code == 2 and "usage:" not in said:
        lines = said.splitlines()
        assert len(lines) == 1, said
        assert lines[0].startswith(f"mmmlib {command[0]}: "), said
        assert len(lines[0]) < 2000


# Trees of images


def picture(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("RGB", (6, 8), (value, value // 2, 255 - value)).save(path)


def folder_tree(root: Path) -> None:
    for side in ("visible", "infrared"):
        for person in range(4):
            for image in range(2):
                picture(root / side / f"p{person}" / f"{image}.png", 20 * person + image)


def sysu_tree(root: Path) -> None:
    lists = {"train": (1, 2), "val": (3,), "test": (4, 5)}
    for name, people in lists.items():
        (root / "exp").mkdir(parents=True, exist_ok=True)
        (root / "exp" / f"{name}_id.txt").write_text(",".join(map(str, people)))
    for person in range(1, 6):
        for camera in range(1, 7):
            picture(root / f"cam{camera}" / f"{person:04d}" / "0001.jpg", 20 * person + camera)


def regdb_tree(root: Path) -> None:
    (root / "idx").mkdir(parents=True)
    for modality, word in (("Visible", "visible"), ("Thermal", "thermal")):
        for split, people in (("train", (1, 2)), ("test", (3, 4))):
            lines = []
            for label, person in enumerate(people):
                name = f"{modality}/{person}/a_{person}.bmp"
                picture(root / name, 30 * person)
                lines.append(f"{name} {label}")
            (root / "idx" / f"{split}_{word}_1.txt").write_text("\n".join(lines) + "\n")


def llcm_tree(root: Path) -> None:
    (root / "idx").mkdir(parents=True)
    (root / "idx" / "test_id.txt").write_text("3,4")
    for word in ("vis", "nir"):
        lines = []
        for person in (1, 2):
            name = f"{word}/cam1/{person:04d}/{person:04d}_c01_a.jpg"
            picture(root / name, 30 * person)
            lines.append(f"{name} {person - 1}")
        (root / "idx" / f"train_{word}.txt").write_text("\n".join(lines) + "\n")
        for person in (3, 4):
            picture(root / f"test_{word}" / "cam2" / f"{person:04d}" / "a.jpg", 30 * person)


TREES: dict[str, Callable[[Path], None]] = {
    "folder": folder_tree, "sysu": sysu_tree, "regdb": regdb_tree, "llcm": llcm_tree,
}  # fmt: skip


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def harm(root: Path, dice: random.Random) -> str:
    """Do one of the things that happen to trees; what it was."""
    files = files_in(root)
    if not files:
        return "nothing is left"
    path = dice.choice(files)
    kind = dice.choice(list(HARMS))
    HARMS[kind](path, dice)
    return kind


def _truncate(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) + 1)])


def _flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(8):
        if content:
            content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(bytes(content))


def _other_mode(path: Path, dice: random.Random) -> None:
    mode = dice.choice(["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
    kind = {"I;16": "PNG", "F": "TIFF", "CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    kind = "TIFF" if mode in ("I", "F") else kind
    pillow.new(mode, (5, 3)).save(path, format=kind)


def _rename(path: Path, dice: random.Random) -> None:
    path.rename(path.with_name(dice.choice(STRANGE)))


def _extra(path: Path, dice: random.Random) -> None:
    name = dice.choice([*STRANGE, "Thumbs.db", ".DS_Store", "._x.jpg", "readme.txt"])
    path.with_name(name).write_bytes(dice.randbytes(dice.choice([0, 1, 40])))


def _delete_folder(path: Path, dice: random.Random) -> None:
    shutil.rmtree(path.parent)


def _folder_for_file(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, dice: random.Random) -> None:
    target = dice.choice([path, path.parent, path.with_name("nowhere"), Path("/dev/null")])
    path.unlink()
    path.symlink_to(target)


def _text(path: Path, dice: random.Random) -> None:
    lists = [other for other in files_in(path.parents[1]) if other.suffix == ".txt"]
    words = [
        "",
        "x",
        "-1",
        "1,2,,3",
        "9" * 40,
        "a b c",
        "\x00",
        "1 1\n2",
        "../../etc/passwd 1",
        "½",
    ]
    for other in lists[:1] or [path]:
        other.write_text(dice.choice(words))


HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "missing": lambda path, dice: path.unlink(),
    "zero bytes": lambda path, dice: path.write_bytes(b""),
    "truncated": _truncate,
    "bytes flipped": _flip,
    "wrong mode": _other_mode,
    "renamed": _rename,
    "extra": _extra,
    "folder missing": _delete_folder,
    "folder for a file": _folder_for_file,
    "link": _link,
    "list": _text,
}


@pytest.mark.parametrize("name", TREES)
def test_a_damaged_tree_is_read_or_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for seed in range(many(8)):
        dice = random.Random(f"{name} {seed}")
        root = tmp_path / f"{seed}"
        TREES[name](root)
        for _ in range(dice.choice([1, 1, 2, 5])):
            harm(root, dice)
        count("fuzzed trees")
        command = ["doctor", "-d", name, "--data-dir", str(root), "--images"]
        code = main(command)
        found = capsys.readouterr()
        if found.err:
            check_line(code, found.err, command)
        else:
            assert code == (2 if "wrong: " in found.out else 0)
        try:
            loaded = data.load(name, root, height=4, width=3, allow_incomplete=True)
        except (OSError, ValueError) as error:
            said.append(str(error))
        else:
            check_images(loaded)
    assert all(line.startswith("data_dir must ") and "\n" not in line for line in said)


def check_images(loaded: Any) -> None:
    for side in (loaded.visible, loaded.infrared, loaded.query, loaded.gallery):
        if side is not None:
            n = len(side.names)
            assert side.pixels.shape == (n, 3, 4, 3)
            assert n > 0
            assert len(side.cameras) == n
            assert side.identities is None or len(side.identities) == n


# Checkpoints


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as a run leaves it."""
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth.tar"
    torch.save({"model": TwoStreamCNN(1, 1, dim=8).state_dict(), "epoch": 3}, path)
    return path


class Malicious:
    """Pickles that want a call."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind

    def __reduce__(self) -> tuple[Any, ...]:
        calls = {
            "os.mkdir": (os.mkdir, (str(self.path),)),
            "exec": (exec, (f"import os; os.mkdir({str(self.path)!r})",)),
            "eval": (eval, (f"__import__('os').mkdir({str(self.path)!r})",)),
            "Path.touch": (Path.touch, (self.path,)),
            "open": (open, (str(self.path), "w")),
        }
        return calls[self.kind]


EVIL = ("os.mkdir", "exec", "eval", "Path.touch", "open")


def commands_for(path: Path, target: Path) -> Iterator[list[str]]:
    """Every way in which a file of weights gets in."""
    yield ["evaluate", str(path), "-d", "synthetic"]
    yield ["extract", str(path), "-d", "synthetic", "-o", str(target / "features.npz")]
    yield ["train", "-d", "synthetic", "--pretrained", str(path), "--epochs", "0", "--quiet",
           "--logs-dir", str(target / "runs")]  # fmt: skip


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(
    kind: str, zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, trap = tmp_path / "evil.pth", tmp_path / "trap"
    torch.save(
        {"model": {"neck.weight": Malicious(trap, kind)}}, path,
        _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    for command in list(commands_for(path, tmp_path))[: 3 if zipped else 1]:
        count("malicious pickles")
        code, said = spoken(command, capsys)
        assert code == 2
        check_line(code, said, command)
        assert not trap.exists()


def test_a_run_is_not_resumed_from_a_malicious_pickle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "trap"
    assert main(["train", "-d", "synthetic", "--epochs", "0", "--warm-up", "0", "--iters", "1",
                 "--quiet", "--logs-dir", str(tmp_path)]) == 0  # fmt: skip
    (folder,) = tmp_path.glob("synthetic_*")
    (folder / "card.json").unlink()
    torch.save({"model": Malicious(trap, "os.mkdir")}, folder / "checkpoint.pth.tar")
    count("malicious pickles")
    command = ["train", "--resume", str(folder), "--quiet"]
    code, said = spoken(command, capsys)
    check_line(code, said, command)
    assert code == 2
    assert not trap.exists()


def damaged(content: bytes, dice: random.Random) -> bytes:
    kind = dice.choice(["truncated", "flipped", "zeros", "noise", "twice", "text", "empty"])
    place = dice.randrange(len(content))
    if kind == "flipped":
        return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
    return {
        "truncated": content[:place], "zeros": bytes(len(content)), "noise": dice.randbytes(300),
        "twice": content + content, "text": b"not a checkpoint", "empty": b"",
    }[kind]  # fmt: skip


def test_a_damaged_checkpoint_is_loaded_or_refused_in_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = weights.read_bytes()
    for seed in range(many(14)):
        path = tmp_path / f"{seed}.pth"
        path.write_bytes(damaged(content, random.Random(seed)))
        count("fuzzed checkpoints")
        try:
            read_weights(path)
        except ValueError as error:
            assert str(error).startswith("path must ")  # noqa: PT017
            command = next(commands_for(path, tmp_path))
            code, said = spoken(command, capsys)
            assert code == 2
            check_line(code, said, command)


def other_contents() -> dict[str, Any]:
    good = TwoStreamCNN(1, 1, dim=8).state_dict()
    return {
        "another width": {"model": TwoStreamCNN(1, 1, dim=9).state_dict()},
        "other channels": {"model": TwoStreamCNN(3, 3, dim=8).state_dict()},
        "one weight": {"model": {"neck.weight": torch.ones(8)}},
        "a weight less": {"model": dict(list(good.items())[:-9])},
        "a weight more": {"model": good | {"more": torch.ones(2)}},
        "a scalar": {"model": good | {"neck.weight": torch.tensor(1.0)}},
        "whole numbers": {"model": {name: value.long() for name, value in good.items()}},
        "no dictionary": [1, 2, 3],
        "a tensor": torch.ones(3),
        "nothing": {},
        "words": {"model": {"neck.weight": "ones"}},
        "numbers for names": {"model": {0: torch.ones(2)}},
        "not finite": {"model": good | {"neck.weight": torch.full((8,), float("nan"))}},
    }


@pytest.mark.parametrize("what", other_contents())
def test_weights_of_something_else_are_refused_in_one_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.pth"
    torch.save(other_contents()[what], path)
    for command in commands_for(path, tmp_path):
        count("checkpoints of another size")
        code, said = spoken(command, capsys)
        check_line(code, said, command)
        if what != "another width" or command[0] == "train":
            assert code == 2, command


def test_a_run_with_a_damaged_checkpoint_is_refused_and_keeps_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-d", "synthetic", "--epochs", "0", "--warm-up", "1", "--iters", "1",
                 "--quiet", "--logs-dir", str(tmp_path)]) == 0  # fmt: skip
    (folder,) = tmp_path.glob("synthetic_*")
    (folder / "card.json").unlink()
    path = folder / "checkpoint.pth.tar"
    content = path.read_bytes()
    state = torch.load(path, weights_only=True)
    others: list[Any] = [{}, {"model": state["model"]}, [1], state | {"model": {}},
                         state | {"views": torch.zeros(1, 3, dtype=torch.uint8)},
                         state | {"epoch": "three"}, state | {"rows": None},
                         state | {"optimizer": {}}]  # fmt: skip
    bad = [damaged(content, random.Random(seed)) for seed in range(many(8))]
    for other in others:
        buffer = io.BytesIO()
        torch.save(other, buffer)
        bad.append(buffer.getvalue())
    before = {name: (folder / name).read_bytes() for name in ("args.json", "metrics.csv")}
    for part in bad:
        if part[: len(content)] == content:
            continue  # more at the end: a whole checkpoint all the same
        path.write_bytes(part)
        count("fuzzed checkpoints")
        command = ["train", "--resume", str(folder), "--quiet"]
        code, said = spoken(command, capsys)
        check_line(code, said, command)
        if code == 0:
            (folder / "card.json").unlink()
            continue
        assert path.read_bytes() == part
        assert before == {name: (folder / name).read_bytes() for name in before}


# Files of features and labels


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    people = rng.normal(size=(6, 8))
    rows = {
        side: (people[np.arange(36) % 6] + 0.05 * rng.normal(size=(36, 8))).astype(np.float32)
        for side in ("visible", "infrared")
    }
    labels = {f"{side}_labels": np.arange(36) % 6 for side in rows}
    names = {f"{side}_names": np.array([f"{i}.jpg" for i in range(36)]) for side in rows}
    return rows | labels | names


def altered(name: str, value: np.ndarray, dice: random.Random) -> dict[str, Any]:
    """An array that is not what it should be."""
    first = value.astype(object) if value.dtype.kind == "U" else value.copy()
    options: dict[str, Any] = {
        "gone": None,
        "empty": value[:0],
        "a row less": value[:-1],
        "a row more": np.concatenate([value, value[:1]]),
        "flat": value.reshape(-1),
        "deep": value[None],
        "one number": np.array(3),
        "words": np.array(["x"] * len(value)),
        "complex": np.zeros(value.shape, np.complex64),
        "objects": np.array([None] * len(value), dtype=object),
        "bytes": np.frombuffer(bytes(len(value)), dtype="S1"),
        "dates": np.zeros(len(value), "datetime64[s]"),
        "records": np.zeros(len(value), [("a", int)]),
        "big-endian": first.astype(">f4") if value.dtype.kind in "fi" else value,
        "unsigned": np.zeros(value.shape, np.uint64),
        "wide": np.zeros(value.shape, np.longdouble),
    }
    if value.dtype.kind == "f":
        for bad in (np.nan, np.inf, 1e38):
            first = value.copy()
            first[dice.randrange(len(value))] = bad
            options[str(bad)] = first
    if value.dtype.kind == "i":
        for bad in (-7, 2**40, 2**62, 40):
            first = value.copy()
            first[dice.randrange(len(value))] = bad
            options[str(bad)] = first
    return options


def save(path: Path, arrays: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, **arrays)
    else:
        torch.save(
            {name: value.tolist() if value.dtype.kind in "UO" else torch.from_numpy(value)
             for name, value in arrays.items()}, path,
        )  # fmt: skip
    return path


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_arrays_that_are_not_features_or_labels_are_refused_in_one_line(
    features: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.npz"
    matchers = ["multi-memory", "vote", "progressive"]
    for name, value in features.items():
        for what, bad in altered(name, value, random.Random(name)).items():
            arrays = {key: part for key, part in features.items() if key != name}
            if bad is not None:
                arrays[name] = bad
            path = save(tmp_path / "in.npz", arrays)
            commands = [["match", str(path), str(path), "-o", str(target), "--matcher",
                         random.Random(what).choice(matchers)]]  # fmt: skip
            if not name.endswith("labels"):
                commands.append(["cluster", str(path), "-o", str(target), "--k1", "6"])
            for command in commands:
                count("fuzzed feature files")
                target.unlink(missing_ok=True)
                code, said = spoken(command, capsys)
                check_line(code, said, command)
                assert target.exists() == (code == 0)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_damaged_file_of_features_is_read_or_refused_in_one_line(
    suffix: str,
    features: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = save(tmp_path / f"whole{suffix}", features).read_bytes()
    target = tmp_path / "out.npz"
    for seed in range(many(14)):
        path = tmp_path / f"{seed}{suffix}"
        path.write_bytes(damaged(whole, random.Random(seed)))
        for command in (
            ["cluster", str(path), "-o", str(target), "--k1", "6"],
            ["match", str(path), str(path), "-o", str(target)],
        ):
            count("fuzzed feature files")
            target.unlink(missing_ok=True)
            code, said = spoken(command, capsys)
            check_line(code, said, command)
            assert target.exists() == (code == 0)


def test_pickled_features_are_refused_and_not_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "trap"
    evil = Malicious(trap, "os.mkdir")
    torch.save({"visible": evil}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"visible": evil}))
    (tmp_path / "c.npz").write_bytes(pickle.dumps({"visible": evil}))
    np.savez(tmp_path / "d.npz", visible=np.array([evil], dtype=object))
    for path in (*tmp_path.glob("*.pt"), *tmp_path.glob("*.npz")):
        count("malicious pickles")
        command = ["cluster", str(path), "-o", str(tmp_path / "out.npz")]
        code, said = spoken(command, capsys)
        assert code == 2
        check_line(code, said, command)
        assert not trap.exists()


def test_files_that_cannot_be_written_are_named_and_what_was_there_stays(
    features: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(tmp_path / "in.npz", features)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("kept")
    targets = ["missing/out.npz", "folder.npz", "file/out.npz", "out.txt", ".", "",
               "/proc/out.npz", f"{'x' * 300}.npz"]  # fmt: skip
    for target in targets:
        command = ["cluster", str(path), "--k1", "6", "-o", str(tmp_path / target)]
        if target == "/proc/out.npz":
            command[-1] = target
        count("fuzzed command lines")
        code, said = spoken(command, capsys)
        assert code == 2
        check_line(code, said, command)
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(tmp_path.glob("*.new")) == []


# Files that are not ours to read or to write


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Take rights from a file or folder; they are given back at the end."""
    if not permissions_hold(tmp_path):
        pytest.skip("here permissions keep nobody out")
    kept: list[tuple[Path, int]] = []

    def take(path: Path, mode: int) -> None:
        kept.append((path, path.stat().st_mode))
        path.chmod(mode)

    yield take
    for path, mode in reversed(kept):
        path.chmod(mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_in(folder)}


def refused_to_anybody(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that an ordinary user is refused with."""
    count("files and folders without permission")
    with ordinary():
        code, said = spoken(command, capsys)
    check_line(code, said, command)
    assert code == 2, said
    assert "ermission denied" in said, said
    return said


def test_a_read_only_folder_is_named_and_keeps_what_it_holds(
    features: dict[str, np.ndarray], weights: Path, tmp_path: Path,
    lock: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = str(save(tmp_path / "in.npz", features))
    locked = tmp_path / "locked folder"
    locked.mkdir()
    for name in ("out.npz", "out.pt", "out.json"):
        (locked / name).write_text("kept")
    lock(locked, 0o500)
    synthetic = [str(weights), "-d", "synthetic"]
    for command in (
        ["cluster", path, "--k1", "6", "-o", str(locked / "out.npz")],
        ["cluster", path, "--k1", "6", "-o", str(locked / "out.pt")],
        ["cluster", path, "--k1", "6", "-o", str(locked / "new.npz")],
        ["match", path, path, "-o", str(locked / "out.npz")],
        ["match", path, path, "-o", str(locked / "new.pt")],
        ["extract", *synthetic, "-o", str(locked / "out.npz")],
        ["evaluate", *synthetic, "--json", str(locked / "out.json")],
        ["train", "-d", "synthetic", "--epochs", "0", "--warm-up", "1", "--iters", "1", "--quiet",
         "--logs-dir", str(locked / "runs")],
    ):  # fmt: skip
        assert "locked folder" in refused_to_anybody(command, capsys)
    assert set(contents(locked).values()) == {b"kept"}
    assert len(files_in(locked)) == 3


def test_a_run_whose_folder_became_read_only_is_refused_and_stays(
    tmp_path: Path, lock: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-d", "synthetic", "--epochs", "0", "--warm-up", "1", "--iters", "1",
                 "--quiet", "--logs-dir", str(tmp_path / "runs")]) == 0  # fmt: skip
    (folder,) = (tmp_path / "runs").glob("synthetic_*")
    (folder / "card.json").unlink()
    (folder / "report.html").unlink(missing_ok=True)
    before = contents(folder)
    lock(folder, 0o500)
    lock(folder / "checkpoint.pth.tar", 0o400)
    for command in (["train", "--resume", str(folder), "--quiet"], ["report", str(folder)]):
        assert str(folder) in refused_to_anybody(command, capsys)
    assert contents(folder) == before


def test_files_that_may_not_be_read_are_named(
    features: dict[str, np.ndarray], weights: Path, tmp_path: Path,
    lock: Callable[[Path, int], None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, other = save(tmp_path / "secret.npz", features), tmp_path / "secret.pth"
    shutil.copy(weights, other)
    lock(path, 0)
    lock(other, 0)
    target = tmp_path / "out.npz"
    for command in (
        ["cluster", str(path), "-o", str(target)],
        ["match", str(path), str(path), "-o", str(target)],
        ["extract", str(other), "-d", "synthetic", "-o", str(target)],
        ["evaluate", str(other), "-d", "synthetic"],
    ):
        assert "secret" in refused_to_anybody(command, capsys)
    assert not target.exists()


@pytest.mark.parametrize("name", TREES)
def test_a_tree_that_may_not_be_read_is_refused_and_what_may_not_is_named(
    name: str, tmp_path: Path, lock: Callable[[Path, int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for number, mode in enumerate((0, 0o400)):  # not to be listed, not to be entered
        root = tmp_path / f"tree {number}"
        TREES[name](root)
        lock(root, mode)
        command = ["doctor", "-d", name, "--data-dir", str(root)]
        if name == "folder":
            command = ["extract", str(root), "-d", name, "--data-dir", str(root), "-o", "out.npz"]
        assert f"tree {number}" in refused_to_anybody(command, capsys)


# Command lines

WORDS = (
    "", "-1", "0", "1", "2", "3", "nan", "inf", "-inf", "1e400", "1e-400", "0.5", "x", "None",
    "9" * 30, "2.5", "--", "true", "cuda:99", "cpu", "mps:3", "meta", "../..", "/dev/null", "~",
    "%d", "\n", "synthetic", "hubble", "sysu", "mmm", "baseline", "fp16", "bf16", "paper", "🙂",
)  # fmt: skip


def flags_of(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    return sorted({word for word in words if word.startswith("-") and word.strip("-")})


@pytest.mark.parametrize("name", ["train", "evaluate", "extract", "cluster", "match", "doctor"])
def test_a_strange_command_line_is_refused_in_one_line(
    name: str,
    features: dict[str, np.ndarray],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training itself is left out here: see ``test_odd_settings...``."""
    monkeypatch.setattr("mmmlib.reference.train.train", lambda *_: {})
    monkeypatch.setattr("mmmlib.reference.report.write_report", lambda folder: folder)
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "in.npz", features)
    flags = [flag for flag in flags_of(name, capsys) if flag not in ("-h", "--help")]
    start = {
        "train": ["-d", "synthetic", "--quiet", "--logs-dir", str(tmp_path / "runs")],
        "evaluate": [str(weights), "-d", "synthetic"],
        "extract": [str(weights), "-d", "synthetic", "-o", str(tmp_path / "out.npz")],
        "cluster": [str(path), "-o", str(tmp_path / "out.npz"), "--k1", "6"],
        "match": [str(path), str(path), "-o", str(tmp_path / "out.npz")],
        "doctor": ["-d", "synthetic"],
    }[name]  # fmt: skip
    for seed in range(many(25)):
        dice = random.Random(f"{name} {seed}")
        command = [name, *start]
        for _ in range(dice.choice([1, 1, 2, 3])):
            command += [dice.choice(flags), dice.choice(WORDS)][: dice.choice([1, 2, 2, 2])]
        if any(word in command for word in ("hubble", "people")):
            continue  # they take a while to make
        count("fuzzed command lines")
        code, said = spoken(command, capsys)
        check_line(code, said, command)


ODD = (
    ["--height", "1"], ["--pad", "100"], ["--pad", "0"], ["--erase", "1"], ["--contrast", "1"],
    ["-b", "2"], ["-b", "3", "--num-instances", "1"], ["--num-instances", "500"], ["--k1", "1"],
    ["--k1", "5000"], ["--k2", "8"], ["--k2", "9"], ["--eps", "0"], ["--eps", "0.99"],
    ["--momentum", "0"], ["--momentum", "1"], ["--temp", "1e-30"], ["--temp", "1e30"],
    ["--lr", "1e30"], ["--lr", "1e-30"], ["--weight-decay", "1e9"], ["--features", "1"],
    ["--num-memories", "99"], ["--accumulate", "7"], ["--milestones", ""], ["--milestones", "0,0"],
    ["--views", "2"], ["--seed", "9223372036854775807"], ["--warm-up-temp", "1e-9"],
    ["--amp", "bf16"], ["--use-hard"], ["--no-mmlm"], ["--alpha", "1e9"], ["--beta", "0"],
    ["--joint-k1", "1", "--joint-k2", "1"], ["--joint-eps", "0"], ["--eval-step", "100"],
    ["--lambda-intra", "1e20"], ["--negative", "1"], ["--recipe", "oracle"], ["--trial", "99"],
    ["--jitter", "90"], ["--width", "1"],
)  # fmt: skip


@pytest.mark.parametrize("odd", ODD[:: 9 if many(1) == 1 else 1], ids=" ".join)
def test_odd_settings_train_or_are_refused_in_one_line(
    odd: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count("odd settings trained")
    command = ["train", "-d", "synthetic", "--recipe", "mmm", "--warm-up", "1", "--epochs", "2",
               "--iters", "2", "--quiet", "--logs-dir", str(tmp_path), *odd]  # fmt: skip
    code, said = spoken(command, capsys)
    check_line(code, said, command)
