"""From features to clusters: seconds of each stage, memory, and what opponents take.

``python -m benchmarks.clustering``: every configuration in a fresh process, one record each. A
configuration that is measured again replaces its record.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import published, timing
from benchmarks.features import Features, make_features
from mmmlib._types import JaccardGraph, Neighbors
from mmmlib.clustering import _graph, cluster_features, dbscan, jaccard_graph
from mmmlib.evaluation import association_report
from mmmlib.neighbors import nearest, row_metric

RESULTS = Path(__file__).parent / "results" / "clustering.json"
RECORDED = Path(__file__).with_name("published.json")
SIZES = {"RegDB": 4120, "SYSU infrared": 11909, "SYSU visible": 22258, "SYSU both": 34167}
LARGE = ((100_000, 768), (200_000, 256))
EPS, MIN_SAMPLES = 0.6, 4
DENSE_LIMIT, LOOPS_LIMIT = 12_000, 8_000  # rows that opponents with n x n matrices are given
KEY = ("n", "dim", "threads", "device", "balanced", "calm")  # what one record is known by


@dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    n: int
    dim: int
    threads: int
    device: str = "cpu"
    balanced: bool = False  # query expansion balanced over the modalities
    calm: bool = False  # features with few outliers
    repeats: int = 3
    opponents: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int]:
        """Published k1 and k2."""
        return (40, 32) if self.balanced else (30, 6)


class Work(NamedTuple):
    """What is known once our own stages have run."""

    config: Configuration
    features: Features
    found: Neighbors
    graph: JaccardGraph
    labels: Tensor


def cluster(features: Features, config: Configuration) -> Tensor:
    """The public way from features to labels."""
    k1, k2 = config.sizes
    if not config.balanced:
        return cluster_features(features.rows, k1=k1, k2=k2, eps=EPS, min_samples=MIN_SAMPLES)
    graph = jaccard_graph(features.rows, k1=k1, k2=k2, groups=features.modality, max_distance=EPS)
    return dbscan(graph, eps=EPS, min_samples=MIN_SAMPLES)


def stages(features: Features, config: Configuration) -> tuple[Work, dict[str, Any]]:
    """The same, a stage at a time."""
    k1, k2 = config.sizes
    groups = features.modality if config.balanced else None
    options: dict[str, Any] = {"device": config.device, "repeats": config.repeats}
    found, neighbours = timing.measure(
        lambda: nearest(row_metric(features.rows, "paper"), k1), **options
    )
    metric = row_metric(features.rows, "paper")
    graph, jaccard = timing.measure(lambda: _graph(metric, found, k1, k2, groups, EPS), **options)
    labels, scan = timing.measure(
        lambda: dbscan(graph, eps=EPS, min_samples=MIN_SAMPLES), **options
    )
    record = {"neighbours": neighbours, "graph": jaccard, "dbscan": scan}
    return Work(config, features, found, graph, labels), record


def statistics(work: Work) -> dict[str, float]:
    """How much the features resemble those of a training."""
    index, labels = work.found.indices.cpu(), work.labels.cpu()
    n, visible = len(index), work.features.modality.cpu() == 0
    row, column = torch.arange(n).repeat_interleave(index.shape[1]), index.flatten()
    sides = [labels[visible], labels[~visible]]
    sides += [work.features.identities[side] for side in (visible, ~visible)]
    report = association_report(*sides)
    return {
        "identities": len(work.features.identities.unique()),
        "clusters": int(labels.max()) + 1,
        "noise": (labels < 0).double().mean().item(),
        "ari": report.ari_all,
        "ari_clustered": report.ari_all_clustered,
        "mutual": torch.isin(row * n + column, column * n + row).sum().item() / n,
        "in_degree": int(column.bincount().max()),
        "pairs": len(work.graph.indices) / n,
    }


def faiss_search(work: Work) -> dict[str, Any]:
    """Exact inner products by faiss; ``same`` is the share of equal positions."""
    if work.config.device != "cpu":
        return {"skipped": "on the CPU only"}
    try:
        import faiss
    except ImportError:
        return {"skipped": "faiss is not installed"}
    faiss.omp_set_num_threads(work.config.threads)
    rows = work.features.rows.numpy()
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    found, record = timing.measure(
        lambda: index.search(rows, work.config.sizes[0])[1], repeats=work.config.repeats
    )
    same = float((found == work.found.indices.numpy()).mean())
    return {**record, "same": same, "version": faiss.__version__}


def sklearn_sparse(work: Work) -> dict[str, Any]:
    """scikit-learn's DBSCAN on the same sparse graph."""
    return _sklearn(work, work.graph.to_scipy())


def sklearn_dense(work: Work) -> dict[str, Any]:
    """scikit-learn's DBSCAN on the matrix."""
    if work.config.n > DENSE_LIMIT:
        return {"skipped": f"more than {DENSE_LIMIT:,} rows"}
    return _sklearn(work, work.graph.to_dense().cpu().numpy())


def _sklearn(work: Work, distance: Any) -> dict[str, Any]:
    from sklearn.cluster import DBSCAN

    theirs = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed")
    labels, record = timing.measure(
        lambda: theirs.fit_predict(distance), repeats=work.config.repeats
    )
    return {**record, "same": float((labels == work.labels.cpu().numpy()).mean())}


def published_loops(work: Work) -> dict[str, Any]:
    """The published form; ``same`` is the share of our pairs that it gives the same distance."""
    config = work.config
    if config.n > LOOPS_LIMIT or config.device != "cpu":
        return {"skipped": f"more than {LOOPS_LIMIT:,} rows, or not on the CPU"}
    (k1, k2), rows = config.sizes, work.features.rows
    groups = work.features.modality.numpy() if config.balanced else None
    ranked, search = timing.measure(lambda: published.neighbours(rows, k1))
    dense, rest = timing.measure(lambda: published.distance(rows, ranked, k2, groups))
    pairs = work.graph.to_scipy().tocoo()
    same = np.isclose(dense[pairs.row, pairs.col], pairs.data, atol=1e-5).mean()
    record = {
        "neighbours": search["seconds"], "rest": rest["seconds"], "rise": rest["rise"],
        "seconds": search["seconds"] + rest["seconds"], "same": float(same),
        "others": max(search["others"], rest["others"]),
    }  # fmt: skip
    known = published.recorded("rows", n=config.n, dim=config.dim, balanced=config.balanced)
    return record if known is None else {**record, "recorded": known}


OPPONENTS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "faiss": faiss_search,
    "sklearn-dense": sklearn_dense,
    "sklearn-sparse": sklearn_sparse,
    "published": published_loops,
}


def features_of(config: Configuration, n: int) -> Features:
    """Features on the device."""
    made = make_features(n, config.dim, calm=config.calm)
    device = config.device
    return made._replace(rows=made.rows.to(device), modality=made.modality.to(device))


def run(config: Configuration) -> dict[str, Any]:
    """Measure one configuration in this process."""
    torch.set_num_threads(config.threads)
    cluster(features_of(config, min(config.n, 600)), config)  # imports and compiles everything
    timing.release()
    before = timing.resident()
    features = features_of(config, config.n)
    timing.release()
    begin = timing.clocks()
    labels, whole = timing.measure(
        lambda: cluster(features, config), device=config.device, repeats=config.repeats
    )
    whole["rise_with_features"] = whole["peak"] - before
    work, record = stages(features, config)
    if not torch.equal(labels, work.labels):
        raise RuntimeError("the stages and the whole gave different labels")
    products = {"gemm": timing.gemm(features.rows)}
    if config.device != "cpu":
        products["gemm_half"] = timing.gemm(features.rows.half())
    opponents = {name: OPPONENTS[name](work) for name in config.opponents}
    parts = [whole, *record.values(), *products.values(), *opponents.values()]
    return {
        **asdict(config), "whole": whole, **record, **products, "opponents": opponents,
        "others": max(timing.since(begin)[1], timing.busiest(parts)), "features": statistics(work),
        "environment": timing.metadata(),
    }  # fmt: skip


def describe(record: dict[str, Any]) -> str:
    """A few lines about one record."""
    whole, product_seconds = record["whole"]["seconds"], record["gemm"]["seconds"]
    parts = [f"{name} {record[name]['seconds']:.3f}" for name in ("neighbours", "graph", "dbscan")]
    about = record["features"]
    lines = [
        timing.title(record, f"{record['n']:,} x {record['dim']}")
        + ", balanced" * record["balanced"] + ", calm" * record["calm"],
        f"  {whole:.3f} s = {whole / product_seconds:.2f} of the matrix product's "
        f"{product_seconds:.3f} s: {', '.join(parts)}",
        f"  peak over features {record['whole']['rise'] / 2**20:.1f} MiB, with them "
        f"{record['whole']['rise_with_features'] / 2**20:.1f} MiB",
        f"  {about['clusters']} clusters of {about['identities']} identities, noise "
        f"{about['noise']:.1%}, ARI {about['ari']:.2f} (clustered {about['ari_clustered']:.2f}), "
        f"mutual {about['mutual']:.1f}, in-degree {about['in_degree']}",
        *(f"  {name}: {describe_opponent(part)}" for name, part in record["opponents"].items()),
    ]  # fmt: skip
    return "\n".join(lines + timing.noisy(record))


def describe_opponent(part: dict[str, Any]) -> str:
    """One line about one opponent."""
    if "skipped" in part:
        return f"skipped, {part['skipped']}"
    text = f"{part['seconds']:.3f} s, {part['same']:.2%} the same"
    if "recorded" in part:
        text += (
            f", {part['seconds'] / part['recorded']:.2f} of the released code's recorded seconds"
        )
    return text


def configurations(options: argparse.Namespace) -> list[Configuration]:
    """What the command line asks for."""
    common = {"device": options.device, "calm": options.calm, "balanced": options.balanced}
    chosen = tuple(options.opponents)
    sizes = [(n, options.dim, options.repeats) for n in options.sizes]
    sizes += [(*size, 1) for size in LARGE] * options.large
    found = [
        Configuration(n, dim, threads, repeats=repeats, opponents=chosen, **common)
        for n, dim, repeats in sizes
        for threads in options.threads
    ]
    rows = json.loads(RECORDED.read_text())["rows"] if options.published else []
    return found + [
        Configuration(row["n"], row["dim"], threads, balanced=row["balanced"], calm=True,
                      opponents=("published",))
        for row in rows
        for threads in options.threads
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep as JSON after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES.values()))
    parser.add_argument("--large", action="store_true", help="also " + " and ".join(
        f"{n:,} x {dim}" for n, dim in LARGE))  # fmt: skip
    parser.add_argument("--published", action="store_true", help="also what published.json holds")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--balanced", action="store_true", help="over the modalities: k1=40, k2=32")
    parser.add_argument("--calm", action="store_true", help="features with few outliers")
    parser.add_argument("--opponents", nargs="*", choices=OPPONENTS, default=list(OPPONENTS))
    timing.add_options(parser, RESULTS, repeats=3)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run(Configuration(**json.loads(options.child)))))
        return
    for config in configurations(options):
        record = timing.in_fresh_process("benchmarks.clustering", config)
        timing.keep(record, options.json, KEY, describe)


if __name__ == "__main__":
    main()
