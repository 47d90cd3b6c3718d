"""The page about one run."""

from pathlib import Path
from typing import Any

from mmmlib.reference.report import _pictures
from mmmlib.reference.report._charts import CHARTS, curves, phase_bars, phase_table
from mmmlib.reference.report._page import charts, code, figure, numbers, section, table, write_page
from mmmlib.reference.report._read import Row, RunFolder, read_run
from mmmlib.reference.run import command_of

SCORES = (("rank_1", "Rank-1"), ("mean_ap", "mAP"), ("mean_inp", "mINP"))


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from what a run left in its folder.

    Args:
        folder: Of a run: ``args.json``, ``env.json`` and ``metrics.csv`` have to be there; pictures
            are drawn of ``epochs`` and ``report.npz``, where they are and matplotlib is.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder is not that of a run.
        ValueError: If the run has not scored anything yet.

    Example:
        >>> import tempfile
        >>> from mmmlib.reference.run import Run, Settings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(Path(folder), Settings(), quiet=True)
        ...     run.log({"epoch": 0, "stage": "random", "rank_1": 0.1, "mean_ap": 0.05})
        ...     write_report(Path(folder)).name
        'report.html'
    """
    run = read_run(folder)
    title = f"{run.settings['recipe']} on {run.settings['dataset']}"
    parts = (_result(run), _curves(run.rows), _drawn(run), _times(run.rows), _reference(run))
    return write_page(folder / "report.html", title, "".join(parts))


def _result(run: RunFolder) -> str:
    """What came out, and how it was chosen."""
    seconds = sum(row.get("seconds") or 0 for row in run.rows)
    chosen = run.card.get("selected", "the last epoch")
    said = (
        f'<p class="soft">seed {run.settings["seed"]}, {len(run.rows) - 1} epochs, '
        f"{seconds:,.0f} s of training and evaluation. Numbers are those of {chosen}; no epoch was "
        "picked by its test result.</p>"
    )
    return said + numbers(_headlines(run)) + _protocols(run.card) + _test_selected(run.card)


def headline(run: RunFolder) -> Row:
    """The scores of the network that is the result."""
    results = run.card.get("results") or []
    return {**run.rows[-1], **(results[0] if results else {})}


def _headlines(run: RunFolder) -> list[tuple[str, str, str]]:
    first, last = run.rows[0], headline(run)
    found = []
    for key, name in SCORES:
        if last.get(key) is not None:
            random = first.get(key)
            remark = "" if random is None else f"random network {random:.1%}"
            found.append((name, f"{last[key]:.1%}", remark))
    if last.get("ari_all") is not None:
        found.append(
            ("ARI, both modalities", f"{last['ari_all']:.3f}", "last epoch; 1 is the truth")
        )
    return found


def _protocols(card: dict[str, Any]) -> str:
    """Every protocol and direction."""
    keys = ("rank_1", "rank_5", "rank_10", "rank_20", "mean_ap", "mean_inp")
    rows = [
        (
            result["protocol"], result["direction"], *(f"{result[key]:.2%}" for key in keys),
            result["trials"],
            f"± {result['rank_1_std']:.2%}" if result["trials"] > 1 else "",
        )
        for result in card.get("results", ())
    ]  # fmt: skip
    head = ("protocol", "direction", "Rank-1", "Rank-5", "Rank-10", "Rank-20", "mAP", "mINP",
            "trials", "Rank-1 over trials")  # fmt: skip
    return table(head, rows) if rows else ""


def _test_selected(card: dict[str, Any]) -> str:
    best = card.get("test_selected")
    if not best:
        return ""
    return (
        f'<p class="soft">Not a result: epoch {best["epoch"]} is the best on the test images '
        f"themselves, with Rank-1 {best['rank_1']:.2%} and mAP {best['mean_ap']:.2%}. Published "
        "programs often keep that one; here it is looked at and never used.</p>"
    )


def _curves(rows: list[Row]) -> str:
    losses = {
        key: key.removeprefix("loss_") for row in rows for key in row if key.startswith("loss_")
    }
    found = [curves(rows, *chart) for chart in CHARTS]
    found.append(curves(rows, "Losses", "Mean of each part, before its weight.", losses, False))
    return section("Epoch by epoch", charts(found))


def _drawn(run: RunFolder) -> str:
    """The pictures, or why there are none."""
    try:
        parts = (
            section("Clusters and their match", charts(_pictures.cluster_figures(run))),
            section("Distances", charts(_pictures.distance_figures(run))),
            section("Training identities", _wide(_pictures.identity_figures(run)),
                    "At even distances among those of both modalities, not chosen by how well "
                    "they came out."),
            section("Searches", _wide(_pictures.retrieval_figures(run)),
                    "Infrared queries at even distances among all, not chosen by their result."),
        )  # fmt: skip
    except ImportError as error:
        return section("Pictures", f'<p class="soft">None without matplotlib ({error}).</p>')
    return "".join(parts)


def _wide(figures: Any) -> str:
    """Figures over the whole width, which scroll where there is not enough of it."""
    return "".join(f'<div class="wide">{each}</div>' for each in figures)


def _times(rows: list[Row]) -> str:
    bars = phase_bars(rows)
    if not bars:
        return ""
    total = table(("phase", "seconds", "an epoch", "share"), phase_table(rows))
    shown = figure("Seconds an epoch", "Features extracted, clustered, matched; training; scoring.",
                   bars)  # fmt: skip
    return section("Where the time went", charts([shown, f"<div>{total}</div>"]))


def _reference(run: RunFolder) -> str:
    """Every number, the command, the machine."""
    columns = list(dict.fromkeys(
        key for row in run.rows for key in row if not key.startswith(("loss_", "seconds_"))
    ))  # fmt: skip
    every = table(
        [name.replace("_", " ") for name in columns],
        [[row.get(name) for name in columns] for row in run.rows],
    )
    command = run.card.get("command") or command_of(run.settings)
    machine = [(name, str(value)) for name, value in run.machine.items() if value is not None]
    return (
        section("Every epoch", every)
        + section("The same run again", code(command))
        + section("Made with", table(("what", "version"), machine, text=True))
    )
