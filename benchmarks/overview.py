"""The short table of the README, in two languages, from the results and from published.json.

Seconds of ours and of the published form are of the same run on the same machine, and only these
two are divided by one another. What the released code took on another machine stands beside them
as it was recorded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import clustering, evaluation, losses, matching, memory, published, timing

__all__ = ["PAGES", "large", "overview", "written"]

ROOT = Path(__file__).parent.parent
PAGES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
BEGIN, END = "<!-- python -m benchmarks.tables writes this -->", "<!-- to here -->"
HEAD = {
    "en": ("step", "ours", "published form, same run", "times", "released code, another machine"),
    "zh": ("步骤", "本库", "论文写法，同一次运行", "倍数", "原作代码，另一台机器"),
}
SEARCH = {"en": "search for neighbours included", "zh": "含近邻搜索"}
AFTER = {"en": "neighbours already found", "zh": "近邻已求得"}
CLUSTERS = {"en": "clusters of {:,} images", "zh": "{:,} 张图像的聚类"}
BALANCED = {
    "en": "joint clusters of {:,} images, balanced (MMM)",
    "zh": "{:,} 张图像的跨模态联合聚类（MMM）",
}
PEAK = {
    "en": "peak memory of clustering {:,} images, besides their features",
    "zh": "{:,} 张图像聚类的内存峰值（不计特征本身）",
}
COST = {"en": "multi-memory cost, {} v {} clusters", "zh": "多记忆代价，{} 对 {} 个簇"}
UPDATE = {"en": "memory update, batch of {:,}", "zh": "记忆更新，批大小 {:,}"}
SCORES = {
    "en": "scores from {:,} x {:,} distances (RegDB)",
    "zh": "由 {:,} x {:,} 距离矩阵计算指标（RegDB）",
}
MMD = {
    "en": "class-wise MMD, forward and backward, {} classes",
    "zh": "按类 MMD，前向与反向，{} 类",
}
NCE = {"en": "cluster contrast, forward and backward", "zh": "簇对比损失，前向与反向"}
FAISS = {
    "en": "exact search among {:,} rows of width {}; beside it faiss",
    "zh": "{:,} 行、宽 {} 的精确搜索；对照为 faiss",
}
THREADS = {"en": (" (1 thread)", " ({} threads)"), "zh": ("（1 线程）", "（{} 线程）")}
MADE = {
    "en": "Ours and the published form: {ours}. The released code, on other features: {machine}; "
    "{versions}.",
    "zh": "本库与论文写法：{ours}。原作代码（另一组特征）：{machine}；{versions}。",
}


class Row(NamedTuple):
    """One line: texts by language, amounts in seconds or bytes, None where there is none."""

    text: dict[str, str]
    threads: int
    ours: float
    form: float | None = None
    recorded: float | None = None
    amount: str = "seconds"


def overview(language: str) -> str:
    """The table, and what it was made on."""
    lines = ["| " + " | ".join(HEAD[language]) + " |", "|---" * len(HEAD[language]) + "|"]
    lines += [_line(row, language) for row in _rows()]
    known = json.loads(published.RECORDED.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    made = MADE[language].format(ours=_machines(), machine=known["machine"], versions=versions)
    return "\n".join([*lines, "", made, ""])


def large() -> str:
    """What the largest clusterings took; their memory besides that of the features."""
    head = ("rows x width", "threads", "all (s)", "search (s)", "matrix product (s)",
            "features (MiB)", "peak besides them (MiB)", "noise", "made on")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for record in timing.recorded(clustering.RESULTS):
        if record["n"] < 100_000 or record["device"] != "cpu":
            continue
        n, dim, machine = record["n"], record["dim"], record["environment"]
        seconds = [record[name]["seconds"] for name in ("whole", "neighbours", "gemm")]
        cells = [
            f"{n:,} x {dim}", str(record["threads"]), *(f"{part:.3g}" for part in seconds),
            f"{4 * n * dim / 2**20:,.0f}", f"{record['whole']['rise'] / 2**20:,.0f}",
            f"{record['features']['noise']:.0%}", f"{machine['cpu']}, {machine['cores']} cores",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def written(page: str, language: str) -> str:
    """A page with its table made anew, between the two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page must hold {BEGIN!r} and {END!r}, got {page[:60]!r}")
    return f"{before}{BEGIN}\n{overview(language)}{END}{after}"


def _line(row: Row, language: str) -> str:
    one, many = THREADS[language]
    text = row.text[language] + (one if row.threads == 1 else many.format(row.threads))
    times = "" if row.form is None else f"{row.form / row.ours:.2g}"
    amounts = [_amount(value, row.amount) for value in (row.ours, row.form, row.recorded)]
    cells = [text, *amounts[:2], times, amounts[2]]
    return "| " + " | ".join(cells) + " |"


def _amount(value: float | None, kind: str) -> str:
    if value is None:
        return ""
    if kind == "bytes":
        return f"{value / 2**20:,.0f}\u00a0MiB"
    return f"{value:.3g}\u00a0s" if value >= 0.1 else f"{1e3 * value:.3g}\u00a0ms"


def _text(form: dict[str, str], *values: Any, also: dict[str, str] | None = None) -> dict[str, str]:
    joint = {"en": ", ", "zh": "，"}
    return {
        language: text.format(*values) + (joint[language] + also[language] if also else "")
        for language, text in form.items()
    }


def _rows() -> Iterator[Row]:
    yield from _clustering()
    yield from _matching()
    yield from _updates()
    yield from _evaluation()
    yield from _losses()


def _best(records: list[dict[str, Any]], **what: Any) -> Iterator[dict[str, Any]]:
    """The record of a configuration with the most threads, if there is one; on the CPU."""
    found = [row for row in records if {"device": "cpu", **what}.items() <= row.items()]
    yield from sorted(found, key=lambda row: row["threads"])[-1:]


def _clustering() -> Iterator[Row]:
    records = timing.recorded(clustering.RESULTS)
    for n, calm in ((8000, True), (22_258, False), (34_167, False)):
        for record in _best(records, n=n, dim=2048, calm=calm, balanced=False):
            yield from _two_ways(record, _known(n))
    for record in _best(records, n=8000, dim=2048, calm=True, balanced=True):
        form = record["opponents"]["published"]["seconds"]
        known = published.recorded("rows", n=8000, dim=2048, balanced=True)
        text = _text(BALANCED, 8000, also=SEARCH)
        yield Row(text, record["threads"], record["whole"]["seconds"], form, known)
    for record in _best(records, n=34_167, dim=2048, balanced=False):
        known = _known(34_167)
        peak = 2**20 * (known["peak"] - known["before"])
        yield Row(
            _text(PEAK, 34_167), record["threads"], record["whole"]["rise"], None, peak, "bytes"
        )
    for record in _best(records, n=200_000, dim=256, balanced=False):
        faiss = record["opponents"].get("faiss", {}).get("seconds")
        text = _text(FAISS, 200_000, 256)
        yield Row(text, record["threads"], record["neighbours"]["seconds"], faiss)


def _known(n: int) -> dict[str, Any]:
    """What was recorded of the plain clustering of so many rows."""
    known = json.loads(published.RECORDED.read_text())
    rows: list[dict[str, Any]] = [*known["rows"], *known["large"]]
    return next(row for row in rows if row["n"] == n and not row.get("balanced"))


def _two_ways(record: dict[str, Any], known: dict[str, Any]) -> Iterator[Row]:
    """With the search, and without; DBSCAN counts with ours and with the released code."""
    form = record["opponents"].get("published", {})
    ours = record["graph"]["seconds"] + record["dbscan"]["seconds"]
    yield Row(
        _text(CLUSTERS, record["n"], also=SEARCH), record["threads"], record["whole"]["seconds"],
        form.get("seconds"), known["seconds"] + known["dbscan"],
    )  # fmt: skip
    yield Row(
        _text(CLUSTERS, record["n"], also=AFTER), record["threads"], ours,
        form.get("rest"), known["rest"] + known["dbscan"],
    )  # fmt: skip


def _matching() -> Iterator[Row]:
    records = timing.recorded(matching.RESULTS)
    for record in _best(records, kind="match", visible=400, infrared=400):
        parts = record["parts"]
        yield Row(
            _text(COST, 400, 400), record["threads"], parts["memory_cost"]["seconds"],
            parts.get("published loop", {}).get("seconds"),
            published.recorded("memory_cost", n=400),
        )  # fmt: skip


def _updates() -> Iterator[Row]:
    for record in _best(timing.recorded(memory.RESULTS), batch=256, clusters=400):
        parts = record["parts"]
        yield Row(
            _text(UPDATE, 256), record["threads"], parts["sequential"]["seconds"],
            parts[memory.LOOP]["seconds"], published.recorded("update", batch=256),
        )  # fmt: skip


def _evaluation() -> Iterator[Row]:
    for record in _best(timing.recorded(evaluation.RESULTS), case="RegDB", scale=1.0):
        n, m = record["queries"], record["gallery"]
        yield Row(
            _text(SCORES, n, m), record["threads"], record["ranking"]["seconds"],
            record["published"]["seconds"], published.recorded("evaluation", queries=n, gallery=m),
        )  # fmt: skip


def _losses() -> Iterator[Row]:
    for record in _best(timing.recorded(losses.RESULTS)):
        for name, text in (
            ("class_mmd", _text(MMD, record["classes"])), ("cluster_nce", _text(NCE)),
        ):  # fmt: skip
            part = record["losses"][name]
            yield Row(text, record["threads"], part["ours"]["seconds"], part["plain"]["seconds"])


def _machines() -> str:
    """The machines of all results, versions included, each only once."""
    names = ("cpu", "cores", "python", "torch", "numpy")
    found = dict.fromkeys(
        ", ".join(f"{name} {record['environment'][name]}" for name in names)
        for module in (clustering, matching, memory, evaluation, losses)
        for record in timing.recorded(module.RESULTS)
        if record["device"] == "cpu"
    )
    return "; ".join(found)
