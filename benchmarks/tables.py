"""Write the tables of the docs from the recorded results: ``python -m benchmarks.tables``.

Those in README.md and README.zh-CN.md too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import (
    clustering,
    distributed,
    evaluation,
    kills,
    losses,
    matching,
    memory,
    overview,
    papers,
    reliability,
    timing,
    training,
    windows,
)
from benchmarks.association import report as association
from benchmarks.association import tried
from benchmarks.training import spread

DOCS = Path(__file__).parent.parent / "docs" / "generated"
ROWS = {
    "baseline": "`baseline`",
    "adca": "`adca`",
    "pgm": "`pgm`",
    "mbccm": "`mbccm`",
    "mmm": "`mmm`",
    "mmm-1": "`mmm`, one memory instead of four",
    "adca+mmm": "`adca+mmm`",
    "mmm-shared": "`mmm-shared`",
    "mmm-shared-1": "`mmm-shared`, one memory instead of four",
    "mmm-whitened": "`mmm-whitened`",
    "mmm-unshared": "`mmm-shared` without contrast of matched labels",
    "oracle": "`oracle`: true labels",
}
SCORES = ("rank_1", "mean_ap", "ari_all", "pair_precision")
COMPARED = ("baseline", "adca", "pgm", "mbccm", "adca+mmm", "mmm-shared", "mmm-whitened", "oracle")
TRAINING_HEAD = (
    "| training | seeds | Rank-1 (%) | mAP (%) | ARI-all | pair precision (%) |",
    "|---|---|---|---|---|---|",
)
WINDOWS_HEAD = (
    "| memories | assignment | right (%) | damaged: precision (%) | recall (%) |",
    "|---|---|---|---|---|",
)


def training_table(runs: list[dict[str, Any]]) -> str:
    """One table for each data set: mean and standard deviation over the seeds."""
    lines: list[str] = []
    for dataset in ("people", "hubble", "landsat"):
        own = [row for row in runs if row["dataset"] == dataset and _of_today(row)]
        lines += [f"**{dataset}**", "", *TRAINING_HEAD]
        lines += [
            _training_row(text, [row for row in own if row["name"] == name])
            for name, text in ROWS.items()
            if any(row["name"] == name for row in own)
        ]
        random = [row["random"]["rank_1"] for row in own]
        lines += ["", f"Random network: Rank-1 {spread(random)} %." if random else "No runs.", ""]
    return "\n".join(lines)


def _of_today(run: dict[str, Any]) -> bool:
    """Whether a run has the settings that its row of the table would have now."""
    settings = training.settings_of(run["name"], run["dataset"], None, run["seed"])
    return training.is_run(run, run["name"], settings)


def _training_row(text: str, rows: list[dict[str, Any]]) -> str:
    last = {key: [row["last"][key] for row in rows] for key in SCORES}
    cells = [spread(values, key != "ari_all") for key, values in last.items()]
    seeds = ", ".join(str(row["seed"]) for row in rows)
    return f"| {text} | {seeds} | " + " | ".join(cells) + " |"


def compared_table(runs: list[dict[str, Any]]) -> str:
    """What each recipe has more than ``mmm``: paired by seed, the mean and its 95% interval."""
    head = "| data set | training | seeds | Rank-1 (points more than `mmm`) | mAP |"
    lines = [head, "|---" * 5 + "|"]
    for dataset in ("people", "hubble", "landsat"):
        own = [row for row in runs if row["dataset"] == dataset and _of_today(row)]
        for name in COMPARED:
            apart = [
                association.paired(_by_seed(own, name, score), _by_seed(own, "mmm", score))
                for score in SCORES[:2]
            ]
            seeds = _by_seed(own, name, SCORES[0]).keys() & _by_seed(own, "mmm", SCORES[0]).keys()
            cells = [
                f"{part.mean:+.1f} [{part.low:+.1f}, {part.high:+.1f}]" for part in apart if part
            ]
            if cells:
                text = ", ".join(map(str, sorted(seeds)))
                lines.append(_line((dataset, ROWS[name], text, *cells)))
    return "\n".join([*lines, ""])


def _by_seed(runs: list[dict[str, Any]], name: str, score: str) -> dict[int, float]:
    """A score of a recipe in percent, by seed."""
    return {row["seed"]: 100 * row["last"][score] for row in runs if row["name"] == name}


def windows_table(rows: list[dict[str, Any]]) -> str:
    """Right matches of true clusters; precision and recall of damaged ones."""
    lines = list(WINDOWS_HEAD)
    for memories in (1, 4):
        for assignment in windows.ASSIGNMENTS:
            what = {"memories": memories, "assignment": assignment}
            own = [row for row in rows if what.items() <= row.items()]
            cells = [
                spread([row[key] for row in own if key in row])
                for key in ("right", "precision", "recall")
            ]
            lines.append(f"| {memories} | {assignment} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def clustering_tables(records: list[dict[str, Any]]) -> str:
    """Seconds, memory, opponents and features of every configuration."""
    if not records:
        return "No runs.\n"
    lines = []
    for title, head, cells in CLUSTERING:
        rows = [(_configuration(record), *cells(record)) for record in records]
        lines += [
            f"**{title}**",
            "",
            _line(("rows x width", *head)),
            "|---" * (len(head) + 1) + "|",
        ]
        lines += [*(_line(row) for row in rows if any(row[1:])), ""]
    return "\n".join([*lines, *timing.machines(records), ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _configuration(record: dict[str, Any]) -> str:
    names = {n: name for name, n in clustering.SIZES.items()}
    words = [f"{record['n']:,} x {record['dim']}", names.get(record["n"], "")]
    words += ["balanced"] * record["balanced"] + ["calm"] * record["calm"]
    words += [f"threads: {record['threads']}" if record["device"] == "cpu" else record["device"]]
    return ", ".join(word for word in words if word)


def _seconds(record: dict[str, Any]) -> list[str]:
    parts = [record[name]["seconds"] for name in ("neighbours", "graph", "dbscan", "whole", "gemm")]
    cells = [f"{part:.3g}" for part in parts]
    if "gemm_half" in record:
        cells[-1] += f" (float16: {record['gemm_half']['seconds']:.3g})"
    ratio = record["whole"]["seconds"] / record["gemm"]["seconds"]
    return [*cells, f"{ratio:.2f}", f"{record['others']:.0%}"]


def _memory(record: dict[str, Any]) -> list[str]:
    n, whole = record["n"], record["whole"]
    sizes = [4 * n * record["dim"], whole["rise_with_features"], whole["rise"], 8 * n * n]
    return [*(f"{size / 2**20:,.0f}" for size in sizes), f"{whole['rise'] / n / 1024:.1f}"]


def _opponents(record: dict[str, Any]) -> list[str]:
    own = {"faiss": "neighbours", "published": "whole"}
    cells = []
    for name in clustering.OPPONENTS:
        part = record["opponents"].get(name, {})
        ours = record[own.get(name, "dbscan")]["seconds"]
        cells.append(
            f"{part['seconds']:.3g} ({part['seconds'] / ours:.1f})" if "seconds" in part else ""
        )
    part = record["opponents"].get("published", {})
    return [*cells, f"{part['seconds'] / part['recorded']:.2f}" if "recorded" in part else ""]


def _features(record: dict[str, Any]) -> list[str]:
    about = record["features"]
    return [
        f"{about['noise']:.1%}", f"{about['ari']:.2f}", f"{about['ari_clustered']:.2f}",
        f"{about['mutual']:.1f}", str(about["in_degree"]), f"{about['pairs']:.0f}",
        f"{about['clusters']} / {about['identities']}",
    ]  # fmt: skip


# Title, head and cells of each table.
CLUSTERING = (
    ("Seconds",
     ("neighbours", "graph", "DBSCAN", "all", "product", "all / product", "others' CPU"), _seconds),
    ("Peak memory (MiB)",
     ("features", "rise with them", "rise over them", "two n x n matrices", "KiB a row over them"),
     _memory),
    ("Opponents: seconds (times ours)",
     ("faiss, search", "scikit-learn, dense", "scikit-learn, sparse", "published form, all",
      "that / recorded"), _opponents),
    ("Features",
     ("noise", "ARI", "ARI clustered", "mutual", "largest in-degree", "pairs a row",
      "clusters / identities"), _features),
)  # fmt: skip


def tables() -> dict[str, str]:
    """The text of every generated file."""
    recorded = json.loads(windows.RESULTS.read_text())["rows"]
    return {
        "association.md": association.text(association.load_records(association.RESULTS)),
        "association_tried.md": tried.table(),
        "clustering.md": clustering_tables(timing.recorded(clustering.RESULTS)),
        "compared.md": compared_table(training.finished(training.RESULTS)),
        "distributed.md": distributed.table(timing.recorded(distributed.RESULTS)),
        "evaluation.md": evaluation.table(timing.recorded(evaluation.RESULTS)),
        "kills.md": kills.table(json.loads(kills.RESULTS.read_text())),
        "large.md": overview.large(),
        "losses.md": losses.table(timing.recorded(losses.RESULTS)),
        "matching.md": matching.tables(timing.recorded(matching.RESULTS)),
        "memory.md": memory.table(timing.recorded(memory.RESULTS)),
        "overview.md": overview.overview("en"),
        "papers.md": papers.tables(training.finished(papers.RESULTS)),
        "reliability.md": reliability.table(),
        "tree.md": training.tree_table(training.finished(training.TREE_RESULTS)),
        "training.md": training_table(training.finished(training.RESULTS)),
        "windows.md": windows_table(recorded),
    }


def main() -> None:
    """Write the files."""
    DOCS.mkdir(exist_ok=True)
    for name, text in tables().items():
        (DOCS / name).write_text(text)
    for language, page in overview.PAGES.items():
        page.write_text(overview.written(page.read_text(), language))


if __name__ == "__main__":
    main()
