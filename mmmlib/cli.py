"""The command line: ``mmmlib train``, and every phase of it alone."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mmmlib.reference._presets import PRESETS, preset_of
from mmmlib.reference.run import Run, Settings

if TYPE_CHECKING:
    from mmmlib.reference.data import DataSet

__all__ = ["main"]

FREE = ("data_dir", "device")  # what may differ when a run is taken up again
_LOST = ("peer", "gloo", "nccl", "timed out", "timeout", "connection")  # of a broken collective
_SMALLER = {
    "train": "--batch-size or --accumulate ask for less, --resume goes on after the last epoch",
    "evaluate": "--batch-size asks for less", "extract": "--batch-size asks for less",
}  # fmt: skip
LOADED = ("dataset", "data_dir", "seed", "height", "width", "trial", "allow_incomplete", "jitter")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it is done, 2 with one clear line when it can't be.

    Args:
        arguments: What follows the program's name; None for those of the process.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.action(options) or 0
    except (OSError, ValueError, ArithmeticError) as error:
        print(f"mmmlib {options.command}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        hint = _SMALLER.get(options.command, "take fewer or smaller images")
        print(f"mmmlib {options.command}: memory must suffice, got none left; {hint}",
              file=sys.stderr)  # fmt: skip
        return 2
    except ImportError as error:
        hint = "; pip install 'mmmlib[train]' brings what the training needs"
        hint *= "pip install" not in str(error)
        print(f"mmmlib {options.command}: {error}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; --resume goes on after the last whole epoch" * (options.command == "train")
        print(f"mmmlib {options.command}: interrupted{hint}", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmmlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = _command(commands, "train", _train, "train on a data set with a recipe")
    _add_settings(train, tuple(item.name for item in fields(Settings)))
    train.add_argument("--config", type=Path, help="args.json of an earlier run to start from")
    train.add_argument("--logs-dir", type=Path, default=Path("runs"), help="where runs are kept")
    train.add_argument("--quiet", action="store_true", help="print nothing")
    train.add_argument(
        "--tensorboard", action="store_true", help="write the metrics for TensorBoard as well"
    )
    train.add_argument(
        "--print-freq", type=int, default=10,
        help="steps from one line about the losses in log.txt to the next (default 10)",
    )  # fmt: skip
    train.add_argument(
        "--resume", nargs="?", const="auto", metavar="FOLDER",
        help="go on with the run of this folder; without one, with the last of the same settings",
    )  # fmt: skip

    report = _command(
        commands,
        "report",
        _report,
        "write report.html of runs again; compare several with the first",
    )
    report.add_argument(
        "run", type=Path, nargs="+", help="folder of a run; with several, files are passed over"
    )
    report.add_argument(
        "-o", "--out", type=Path, metavar="PAGE",
        help="where several are compared (default comparison.html beside the first)",
    )  # fmt: skip

    doctor = _command(
        commands, "doctor", _doctor, "count a data set; without one, what is installed"
    )
    doctor.add_argument("-d", dest="dataset", help="data set")
    doctor.add_argument("--data-dir", help="where it lies")
    doctor.add_argument("--trial", type=int, default=1, help="of RegDB's ten splits (default 1)")
    doctor.add_argument("--images", action="store_true", help="open every image")

    evaluate = _command(commands, "evaluate", _evaluate, "score a network by every protocol")
    _add_network(evaluate)
    evaluate.add_argument("--trials", type=int, default=10, help="galleries drawn (default 10)")
    evaluate.add_argument("--json", type=Path, help="write the results here as well")

    extract = _command(commands, "extract", _extract, "write the features of a data set")
    _add_network(extract)
    extract.add_argument("--split", choices=("train", "test"), default="train")
    _add_out(extract)

    cluster = _command(commands, "cluster", _cluster, "cluster features, each modality alone")
    cluster.add_argument("features", type=Path, help="file of features (.npz, .pt)")
    cluster.add_argument("--k1", type=int, default=30, help="neighbours (default 30)")
    cluster.add_argument("--k2", type=int, default=6, help="of the expansion (default 6)")
    cluster.add_argument("--eps", type=float, default=0.6, help="of DBSCAN (default 0.6)")
    cluster.add_argument("--min-samples", type=int, default=4, help="of DBSCAN (default 4)")
    _add_out(cluster)

    match = _command(commands, "match", _match, "match the clusters of two modalities")
    match.add_argument("features", type=Path, help="file of features")
    match.add_argument("labels", type=Path, help="file of their labels")
    match.add_argument("--matcher", default="multi-memory", help="default multi-memory")
    match.add_argument("--num-memories", type=int, default=4, help="per cluster (default 4)")
    _add_out(match)
    return parser


def _command(commands: Any, name: str, action: Any, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.set_defaults(action=action)
    return command


def _add_settings(command: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Flags of settings; only those given are among the options."""
    for item in fields(Settings):
        if item.name not in names:
            continue
        kind = next(
            (kind for kind in (int, float) if kind in (item.type, *get_args(item.type))), str
        )
        switch = item.type is bool
        default = "" if item.default in (None, MISSING) else f" (default {item.default})"
        value = {"action": "store_true"} if switch else {"type": kind}
        command.add_argument(
            *item.metadata["names"], dest=item.name, default=argparse.SUPPRESS,
            help=item.metadata["about"] + ("" if switch else default), **value,
        )  # fmt: skip


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=Path, help="file of weights, or folder of a run")
    _add_settings(command, (*LOADED, "device", "batch_size"))


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", type=Path, required=True, help="file to write: .npz, .pt")


def settings_from(options: dict[str, Any], config: Path | None = None) -> Settings:
    """Flags given, over those of an earlier run, over the presets of the data set and recipe."""
    names = {item.name for item in fields(Settings)}
    given = {name: value for name, value in options.items() if name in names}
    chosen = {**_settings_in(config), **given} if config else given
    dataset = chosen.get("dataset", Settings.dataset)
    if dataset not in PRESETS:
        raise ValueError(f"-d must be one of {', '.join(PRESETS)}, got {dataset!r}")
    preset = preset_of(dataset, chosen.get("recipe", Settings.recipe))
    if chosen.get("pretrained") is not None:
        preset["warm_up"] = 0
    return Settings(**{**preset, **chosen})


def _settings_in(config: Path) -> dict[str, Any]:
    try:
        earlier: dict[str, Any] = json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"config must be an args.json, got {config}: {error}") from error
    unknown = earlier.keys() - {item.name for item in fields(Settings)}
    if unknown:
        raise ValueError(f"config must hold settings of a run, got {', '.join(sorted(unknown))}")
    return earlier


def _train(options: argparse.Namespace) -> int:
    from mmmlib.reference import recipes
    from mmmlib.reference.report import write_report
    from mmmlib.reference.train import train

    settings, folder = _settings_and_folder(options)
    if settings.recipe not in recipes.RECIPES:
        known = ", ".join(recipes.RECIPES)
        raise ValueError(f"--recipe must be one of {known}, got {settings.recipe!r}")
    _check_device(settings.device)
    if folder is not None and (folder / "card.json").is_file():
        if not options.quiet:
            print(f"{folder} is finished")
        return 0
    loaded = _load(settings)
    resume, name = folder is not None, f"{settings.dataset}_{settings.recipe}"
    folder = folder or _new_folder(options.logs_dir / name)
    with _team(settings) as (own, first):
        run = Run(
            folder, settings, quiet=options.quiet, resume=resume, writes=first,
            tensorboard=options.tensorboard, print_freq=options.print_freq,
        )  # fmt: skip
        run.say(f"{settings.recipe} on {settings.dataset}, seed {settings.seed}, into {folder}")
        with _stoppable(run):
            train(loaded, recipes.RECIPES[settings.recipe], own, run)
        if run.stopping:
            run.say(f"stopped; mmmlib train --resume {folder} goes on")
            return 143
        if first:
            run.say(f"report: {write_report(folder)}")
    return 0


def _settings_and_folder(options: argparse.Namespace) -> tuple[Settings, Path | None]:
    """The settings, and the folder of the run to go on with, if there is one."""
    if options.resume in (None, "auto"):
        settings = settings_from(vars(options), options.config)
        return settings, _last_of(settings, options.logs_dir) if options.resume else None
    folder = Path(options.resume)
    if not (folder / "args.json").is_file():
        raise FileNotFoundError(
            f"--resume must name the folder of a run, got {folder} without args.json"
        )
    earlier = _settings_in(folder / "args.json")
    given = {name: value for name, value in vars(options).items() if name in earlier}
    other = [name for name in given if name not in FREE and given[name] != earlier[name]]
    if other:
        flag = Settings.__dataclass_fields__[other[0]].metadata["names"][-1]
        raise ValueError(
            f"{flag} must be as it was, {earlier[other[0]]}, to resume, got {given[other[0]]}"
        )
    return Settings(**{**earlier, **given}), folder


def _last_of(settings: Settings, logs_dir: Path) -> Path | None:
    """The newest run of these settings."""
    wanted = {name: value for name, value in asdict(settings).items() if name not in FREE}
    found: list[tuple[float, Path]] = []
    for path in logs_dir.glob(f"{settings.dataset}_{settings.recipe}*/args.json"):
        earlier = _settings_in(path)
        if wanted == {name: value for name, value in earlier.items() if name not in FREE}:
            found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


@contextmanager
def _team(settings: Settings) -> Iterator[tuple[Settings, bool]]:
    """The settings of this process and whether it is the first; under torchrun it joins them."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield settings, True
        return
    import torch

    # What optimisers import anyway. Imported while processes are joined it keeps their threads
    # beyond the end of the group, and the interpreter then aborts now and then when it ends.
    import torch._dynamo
    from torch import distributed

    device = settings.device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(seconds=_patience())
    )
    try:
        yield replace(settings, device=device), distributed.get_rank() == 0
        distributed.barrier()  # nobody leaves while another still talks
    except (ConnectionError, RuntimeError) as error:
        known = isinstance(error, ConnectionError)
        if not known and not any(word in str(error).lower() for word in _LOST):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(
            "all processes must go on to the end, got one that is gone or silent; --resume goes on "
            f"after the last whole epoch ({reason})"
        ) from error
    finally:
        distributed.destroy_process_group()


def _patience() -> float:
    """Seconds that a process waits for the others: ``MMMLIB_TIMEOUT``, or ten minutes."""
    text = os.environ.get("MMMLIB_TIMEOUT", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ValueError(f"MMMLIB_TIMEOUT must be seconds above 0 and below 1e6, got {text!r}")
    return seconds


@contextmanager
def _stoppable(run: Run) -> Iterator[None]:
    """A SIGTERM ends the training after the epoch that runs."""
    try:
        before = signal.signal(signal.SIGTERM, run.stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load(settings: Settings) -> "DataSet":
    from mmmlib.reference import data

    options = {name: getattr(settings, name) for name in LOADED if name != "dataset"}
    return data.load(settings.dataset, options.pop("data_dir"), **options)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that torch can use here, got {device!r}") from error


def _new_folder(folder: Path) -> Path:
    """The folder, with a number behind it if an earlier run has it.

    One that was killed before it had written a file has none.
    """
    number, free = 1, folder
    while free.is_file() or any(path.suffix != ".new" for path in free.glob("*")):
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")
    return free


def _report(options: argparse.Namespace) -> None:
    from mmmlib.reference.report import compare_runs, write_comparison, write_report

    folders = [path for path in options.run if len(options.run) == 1 or not path.is_file()]
    if options.out is not None and len(folders) < 2:
        raise ValueError(f"--out must be left out with a single run, got {str(options.out)!r}")
    for folder in folders:
        print(write_report(folder))
    if len(folders) > 1:
        for line in compare_runs(folders):
            print(line)
        print(write_comparison(folders, options.out or folders[0].parent / "comparison.html"))


def _doctor(options: argparse.Namespace) -> int:
    """Print counts and findings; 2 if anything is wrong."""
    from mmmlib.reference.doctor import examine, surroundings

    if options.dataset is None:
        for name, value in surroundings().items():
            print(f"{name:14} {value}")
        return 0
    found = examine(options.dataset, options.data_dir, trial=options.trial, images=options.images)
    wrong = [f"wrong: {finding}" for finding in found.findings]
    for line in (*found.counts, *wrong):
        print(line)
    return 2 if found.findings else 0


def _settings_of_network(options: argparse.Namespace) -> Settings:
    """Those of the run that a checkpoint is from, under the flags given."""
    folder = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
    config = folder / "args.json"
    there = config.is_file()
    if not there and "dataset" not in options:
        raise ValueError(f"-d must be given for {options.checkpoint} without args.json beside it")
    settings = settings_from(vars(options), config if there else None)
    trained = _settings_in(config) if there else asdict(settings)
    trial = trained.get("trial", 1)
    if trained["dataset"] == settings.dataset == "regdb" and trial != settings.trial:
        raise ValueError(
            f"--trial must be the one that was trained on, {trial}, got {settings.trial}: the test "
            "of another trial holds persons of the training"
        )
    return settings


def _network_and_data(options: argparse.Namespace) -> tuple[Any, "DataSet", Settings]:
    from mmmlib.reference._phases import load_network

    settings = _settings_of_network(options)
    _check_device(settings.device)
    model = load_network(options.checkpoint, settings.device)
    return model, _load(settings), settings


def _evaluate(options: argparse.Namespace) -> None:
    from mmmlib._check import check_count
    from mmmlib.reference.run import check_writable, write_json
    from mmmlib.reference.train._score import line, plain, search

    check_count("--trials", options.trials)
    if options.json:
        check_writable(options.json)
    model, data, settings = _network_and_data(options)
    found = plain(search(model, data, settings, trials=options.trials))
    if not found:
        raise ValueError(f"-d must have test images of known identity, got {settings.dataset}")
    for result in found:
        print(line(result))
    if options.json:
        write_json(options.json, {"checkpoint": str(options.checkpoint), "results": found})


def _extract(options: argparse.Namespace) -> None:
    from mmmlib.reference._phases import check_target, extract, write_arrays

    check_target(options.out)
    model, data, settings = _network_and_data(options)
    content = extract(model, data, options.split, settings.batch_size)
    write_arrays(options.out, content)
    shapes = ", ".join(f"{len(content[side])} {side}" for side in ("visible", "infrared"))
    print(f"{options.out}: {shapes} rows of {content['visible'].shape[1]}")


def _cluster(options: argparse.Namespace) -> None:
    from mmmlib.reference._phases import check_target, cluster, read_arrays, write_arrays

    check_target(options.out)
    content, said = cluster(
        read_arrays(options.features), k1=options.k1, k2=options.k2, eps=options.eps,
        min_samples=options.min_samples,
    )  # fmt: skip
    write_arrays(options.out, content)
    for line in said:
        print(line)


def _match(options: argparse.Namespace) -> None:
    from mmmlib.reference._phases import MATCHERS, check_target, match, read_arrays, write_arrays

    check_target(options.out)
    if options.matcher not in MATCHERS:
        known = ", ".join(MATCHERS)
        raise ValueError(f"--matcher must be one of {known}, got {options.matcher!r}")
    files = read_arrays(options.features), read_arrays(options.labels)
    content, said = match(*files, options.matcher, options.num_memories)
    write_arrays(options.out, content)
    print(said)
