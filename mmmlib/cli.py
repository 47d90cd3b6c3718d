"""The command line: ``mmmlib train``, ``mmmlib report`` and ``mmmlib doctor``."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

from mmmlib.reference.run import PRESETS, Run, Settings

__all__ = ["main"]


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
    except ImportError as error:
        hint = "pip install 'mmmlib[train]' brings what the training needs"
        print(f"mmmlib {options.command}: {error}; {hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmmlib {options.command}: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmmlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train on a data set with a recipe")
    train.set_defaults(action=_train)
    for item in fields(Settings):
        kind = next(
            (kind for kind in (int, float) if kind in (item.type, *get_args(item.type))), str
        )
        default = "" if item.default in (None, MISSING) else f" (default {item.default})"
        switch = item.type is bool
        value = {"action": "store_true"} if switch else {"type": kind}
        train.add_argument(
            *item.metadata["names"], dest=item.name, default=argparse.SUPPRESS,
            help=item.metadata["about"] + ("" if switch else default), **value,
        )  # fmt: skip
    train.add_argument("--config", type=Path, help="args.json of an earlier run to start from")
    train.add_argument("--logs-dir", type=Path, default=Path("runs"), help="where runs are kept")
    train.add_argument("--quiet", action="store_true", help="print nothing")

    report = commands.add_parser("report", help="write report.html of finished runs again")
    report.set_defaults(action=_report)
    report.add_argument("run", type=Path, nargs="+", help="folder of a run")

    doctor = commands.add_parser("doctor", help="count a data set; without one, what is installed")
    doctor.set_defaults(action=_doctor)
    doctor.add_argument("-d", dest="dataset", help="data set")
    doctor.add_argument("--data-dir", help="where it lies")
    doctor.add_argument("--trial", type=int, default=1, help="of RegDB's ten splits (default 1)")
    doctor.add_argument("--images", action="store_true", help="open every image")
    return parser


def settings_from(options: dict[str, Any], config: Path | None = None) -> Settings:
    """Flags given, over those of an earlier run, over the presets of the data set."""
    names = {item.name for item in fields(Settings)}
    given = {name: value for name, value in options.items() if name in names}
    earlier = json.loads(config.read_text()) if config else {}
    unknown = earlier.keys() - names
    if unknown:
        raise ValueError(f"config must hold settings of a run, got {', '.join(sorted(unknown))}")
    dataset = given.get("dataset", earlier.get("dataset", Settings.dataset))
    if dataset not in PRESETS:
        raise ValueError(f"-d must be one of {', '.join(PRESETS)}, got {dataset!r}")
    return Settings(**{**PRESETS[dataset], **earlier, **given})


def _train(options: argparse.Namespace) -> None:
    from mmmlib.reference import data, recipes
    from mmmlib.reference.report import write_report
    from mmmlib.reference.train import train

    settings = settings_from(vars(options), options.config)
    if settings.recipe not in recipes.RECIPES:
        known = ", ".join(recipes.RECIPES)
        raise ValueError(f"--recipe must be one of {known}, got {settings.recipe!r}")
    _check_device(settings.device)
    loaded = data.load(
        settings.dataset, settings.data_dir, seed=settings.seed, jitter=settings.jitter,
        height=settings.height, width=settings.width, trial=settings.trial,
        allow_incomplete=settings.allow_incomplete,
    )  # fmt: skip
    folder = _new_folder(options.logs_dir / f"{settings.dataset}_{settings.recipe}")
    run = Run(folder, settings, quiet=options.quiet)
    run.say(f"{settings.recipe} on {settings.dataset}, seed {settings.seed}, into {folder}")
    train(loaded, recipes.RECIPES[settings.recipe], settings, run)
    run.say(f"report: {write_report(folder)}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that torch can use here, got {device!r}") from error


def _new_folder(folder: Path) -> Path:
    """The folder, with a number behind it if an earlier run has it."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")
    return free


def _report(options: argparse.Namespace) -> None:
    from mmmlib.reference.report import write_report

    for folder in options.run:
        print(write_report(folder))


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
