"""What the contract of ``tests/test_contract.py`` calls: a case for every public name.

A case is data: a function, its tensors, and what their axes mean. ``axes`` and ``out`` are words,
one an axis: equal words are one axis, ``_`` is an axis of no meaning. A word with a colon says what
the values are: ``:c`` numbers of entries of axis ``c``, ``:label`` labels whose numbers mean
nothing, ``:order`` numbers that only the given order of rows explains, ``:bool`` a mask, ``:share``
a number in [0, 1], ``:weight`` one of 0 or above.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmmlib import (
    assignment,
    clustering,
    confidence,
    distributed,
    evaluation,
    losses,
    matching,
    neighbors,
    sampling,
)
from mmmlib import memory as memories
from mmmlib._types import ClusterMatch, JaccardGraph, SubPrototypes
from mmmlib.reference import augment, models
from mmmlib.reference.models import TwoStreamCNN

MODULES = (
    "neighbors", "assignment", "distributed", "clustering", "memory", "matching", "losses",
    "confidence", "evaluation", "sampling", "plots", "_types", "reference.data",
    "reference.people", "reference.doctor", "reference.augment", "reference.models",
    "reference.recipes", "reference.train", "reference.run", "reference.report", "cli",
)  # fmt: skip


FAR = "a label beyond what can be numbered"  # where labels are only compared
ANY = (
    "another device", "an axis more", "an axis less", "torch.int64", "torch.bool",
    "torch.complex64", "sparse",
)  # fmt: skip


class Case(NamedTuple):
    """A public function or class, how it is called, and what may be done to its input.

    Attributes:
        of: What is called by a user; its signature names the options.
        axes: The meaning of each tensor, in the order of the arguments.
        out: The meaning of every tensor that comes out; None for one that has none.
        options: Given in every call.
        call: Calls it with the tensors and options; ``of`` itself if not given.
        make: Makes other tensors than random ones of those axes.
        still: Axes whose order counts.
        fitted: Whether labels must name every cluster (``clustering.relabel`` makes them so).
        infinite: Whether infinity is a valid result.
        forbids: Whether infinity is a valid input.
        takes: What else is taken, of what is bad elsewhere (words of ``test_contract.wrong``).
    """

    of: Callable[..., Any]
    axes: dict[str, str]
    out: tuple[str | None, ...]
    options: dict[str, Any] = {}  # noqa: RUF012
    call: Callable[..., Any] | None = None
    make: Callable[[torch.Generator], dict[str, Any]] | None = None
    still: str = ""
    fitted: bool = False
    infinite: bool = False
    forbids: bool = False
    takes: tuple[str, ...] = ()

    def run(self, tensors: dict[str, Any], **options: Any) -> Any:
        """Call it; positional arguments by position."""
        given = self.options | options
        if self.call is not None:
            return self.call(**tensors, **given)
        parameters = inspect.signature(self.of).parameters
        places = [name for name in tensors if parameters[name].kind.name != "KEYWORD_ONLY"]
        named = {name: value for name, value in tensors.items() if name not in places}
        return self.of(*(tensors[name] for name in places), **named, **given)

    def tensors(self, seed: int = 0) -> dict[str, Any]:
        """The tensors, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        if self.make is not None:
            return self.make(generator)
        return {name: random_tensor(words, generator) for name, words in self.axes.items()}


SIZES = {"n": 24, "m": 20, "c": 4, "e": 3, "d": 8, "k": 5, "h": 6, "w": 5, "_": 3}


def random_tensor(words: str, generator: torch.Generator) -> Tensor:
    """Random values of the axes that the words name."""
    *axes, kind = words.split() if ":" in words else [*words.split(), ""]
    shape = [SIZES[axis] for axis in axes]
    if kind == "":
        return torch.randn(shape, generator=generator)
    if kind in (":share", ":weight"):
        return torch.rand(shape, generator=generator)
    if kind == ":bool":
        return torch.rand(shape, generator=generator) < 0.4
    n = SIZES.get(kind[1:], SIZES["c"])
    labels = torch.arange(-1, shape[0] - 1) % (n + 1) - 1 if axes else torch.zeros(0)
    return labels[torch.randperm(len(labels), generator=generator)]


def people(n: int, generator: torch.Generator, classes: int = 4, dim: int = 16) -> Tensor:
    """Rows around a few far centres, in random order of the centres."""
    centres = normalize(torch.randn(classes, dim, generator=generator), dim=1)
    own = torch.arange(n) % classes
    return centres[own] + 0.08 * torch.randn(n, dim, generator=generator)


def _graph(generator: torch.Generator) -> JaccardGraph:
    return clustering.jaccard_graph(people(24, generator), k1=6, k2=2, max_distance=0.9)


def _match(generator: torch.Generator) -> ClusterMatch:
    return matching.match_costs(torch.rand(4, 3, generator=generator), assignment="balanced")


def _dense(**given: Any) -> Tensor:
    return clustering.jaccard_graph(given.pop("features"), **given).to_dense()


def _cluster_memory(prototypes: Any, features: Any, labels: Any, **options: Any) -> Any:
    bank = memories.ClusterMemory(prototypes, **options)
    logits = bank(features).detach()
    bank.update(features, labels)
    return logits, bank.prototypes


def _multi_memory(sub_prototypes: Any, features: Any, labels: Any, **options: Any) -> Any:
    bank = memories.MultiMemory(sub_prototypes, **options)
    logits = bank(features).detach()
    bank.update(features, labels)
    return logits, bank.values


def _instance_memory(features: Any, labels: Any, rows: Any, indices: Any, **options: Any) -> Any:
    bank = memories.InstanceMemory(features, labels=labels, **options)
    logits, near = bank(rows).detach(), bank.neighbors(rows)
    bank.update(rows, indices)
    return logits, near, bank.features


def _shared(match: Any, visible_labels: Any, infrared_labels: Any, **options: Any) -> Any:
    return (
        *match.shared_labels(visible_labels, infrared_labels, **options)[:2],
        match.to_infrared_labels(visible_labels), match.to_visible_labels(infrared_labels),
    )  # fmt: skip


def _sampler(visible_labels: Any, infrared_labels: Any, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator} | options
    return list(sampling.PairSampler(visible_labels, infrared_labels, **options))


def _augmented(function: Callable[..., Any]) -> Case:
    def call(images: Any, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return function(images, options.pop("generator", generator), **options)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        return {"images": torch.rand(5, 3, 12, 8, generator=generator)}

    out = ("n _ h w",) * (2 if function is augment.two_views else 1)
    return Case(function, {"images": "n _ h w"}, out, call=call, make=make, still="n _ h w")


def _two_sides(of: Callable[..., Any], **options: Any) -> Case:
    out = ("v :r", "r :v", "v r :bool", "v r", "v r")
    axes = {"visible": "v d", "infrared": "r d"}
    return Case(of, axes, out, options, infinite=True, takes=("an axis more",))


SIZES |= {"v": 7, "r": 5}


def _mixed(generator: torch.Generator) -> dict[str, Any]:
    sides = (torch.randn(n, 3, 8, generator=generator) for n in (7, 5))
    weights = torch.tensor([0.5, 0.5, 0.0])
    return {
        name: SubPrototypes(values * (weights > 0)[:, None], weights.expand(len(values), 3).clone())
        for name, values in zip(("visible", "infrared"), sides, strict=True)
    }


def _blobs(*names: str, **more: int) -> Callable[[torch.Generator], dict[str, Any]]:
    """Well separated rows under the first names, n and m of them; ids under the others."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        rows = people(44, generator)
        found: dict[str, Any] = {}
        for name, part in zip(names, (rows[:24], rows[24:]), strict=False):
            found[name] = part
        for name, n in more.items():
            found[name] = torch.arange(24) // n % 2
        return found

    return make


def _match_case(assignment: str) -> Case:
    axes = {"cost": "v r"}
    out = ("v :r", "r :v", "v r :bool", "v r", "v r")
    options = {"assignment": assignment}
    return Case(matching.match_costs, axes, out, options, infinite=True, forbids=True)


def _pairs(generator: torch.Generator) -> dict[str, Any]:
    tensors = {name: random_tensor(words, generator) for name, words in _SIDES.items()}
    return tensors | {"pairs": torch.tensor([[0, 1], [1, 1], [3, 0]])}


_SIDES = {"visible": "n d", "visible_labels": "n :c", "infrared": "m d", "infrared_labels": "m :c"}


def _joined(generator: torch.Generator) -> dict[str, Any]:
    first, second = (random_tensor(f"{axis} :e", generator) for axis in "nm")
    match = matching.match_costs(torch.rand(3, 3, generator=generator))
    return {"labels": [first, second], "matches": {(0, 1): match}}


CASES: dict[str, Case] = {
    "neighbors.knn": Case(
        neighbors.knn, {"features": "n d"}, ("n k :n", "n k"), {"k": 5},
    ),
    "neighbors.knn gallery": Case(
        neighbors.knn, {"features": "n d", "gallery": "m d"}, ("n k :m", "n k"), {"k": 5},
    ),
    "neighbors.knn code": Case(
        neighbors.knn, {"features": "n d"}, ("n k :n", "n k"), {"k": 5, "form": "code"},
    ),
    "assignment.linear_assignment": Case(
        assignment.linear_assignment, {"cost": "v r"}, ("v :r", None, None), forbids=True,
    ),
    "assignment.capacitated_assignment": Case(
        assignment.capacitated_assignment, {"cost": "v r"}, ("v :r", None, None), {"capacity": 2},
        forbids=True,
    ),
    "distributed.gather_rows": Case(
        distributed.gather_rows, {"tensors": "n d"}, ("n d",),
        call=lambda tensors, **options: distributed.gather_rows(tensors, **options), takes=ANY,
    ),
    "distributed.same_everywhere": Case(
        distributed.same_everywhere, {"tensors": "n d"}, (),
        call=lambda tensors, **options: distributed.same_everywhere(tensors, **options), takes=ANY,
    ),
    "clustering.jaccard_graph": Case(
        clustering.jaccard_graph, {"features": "n d"}, ("n n",), {"k1": 6, "k2": 3}, _dense,
    ),
    "clustering.jaccard_graph groups": Case(
        clustering.jaccard_graph, {"features": "n d", "groups": "n :label"}, ("n n",),
        {"k1": 6, "k2": 3}, _dense, _blobs("features", groups=2),
    ),
    "clustering.dbscan": Case(
        clustering.dbscan, {"graph": ""}, ("n :label",), {"eps": 0.6, "min_samples": 2},
        make=lambda generator: {"graph": _graph(generator)},
    ),
    "clustering.suggest_eps": Case(
        clustering.suggest_eps, {"graph": ""}, ("n",),
        make=lambda generator: {"graph": _graph(generator)},
    ),
    "clustering.sweep_eps": Case(
        clustering.sweep_eps, {"graph": ""}, ("_ n :label", "_", "_"), {"eps": [0.3, 0.5]},
        make=lambda generator: {"graph": _graph(generator)},
    ),
    "clustering.cluster_features": Case(
        clustering.cluster_features, {"features": "n d"}, ("n :label",),
        {"k1": 6, "k2": 2, "min_samples": 2}, make=_blobs("features"),
    ),
    "clustering.cross_modality_cluster": Case(
        clustering.cross_modality_cluster, {"visible": "n d", "infrared": "m d"},
        ("n :label", "m :label", None), {"k1": 8, "k2": 4, "min_samples": 2},
        make=_blobs("visible", "infrared"),
    ),
    "clustering.camera_cluster": Case(
        clustering.camera_cluster, {"features": "n d", "cameras": "n :label"}, ("n :label",),
        {"k1": 4, "k2": 2, "min_samples": 2, "temperature": 1.0},
        make=_blobs("features", cameras=4),
    ),
    "clustering.prototypes": Case(
        clustering.prototypes, {"features": "n d", "labels": "n :c", "weights": "n :weight"},
        ("c d",), fitted=True,
    ),
    "clustering.cross_modality_prototypes": Case(
        clustering.cross_modality_prototypes, _SIDES, ("c d",), fitted=True,
    ),
    "clustering.sub_prototypes": Case(
        clustering.sub_prototypes, {"features": "n d", "labels": "n :c"}, ("c _ d", "c _"),
        {"memories": 2}, fitted=True,
    ),
    "clustering.sub_prototypes groups": Case(
        clustering.sub_prototypes, {"features": "n d", "labels": "n :c", "groups": "n :label"},
        ("c _ d", "c _"), fitted=True,
    ),
    "clustering.relabel": Case(
        clustering.relabel, {"labels": "n :label"}, ("n :label", None),
        call=lambda labels: clustering.relabel(labels),
    ),
    "clustering.track_labels": Case(
        clustering.track_labels, {"previous": "n :label", "labels": "n :label"},
        ("n :label", None),
    ),
    "clustering.describe_labels": Case(clustering.describe_labels, {"labels": "n :label"}, ()),
    "memory.update_memory": Case(
        memories.update_memory, {"memory": "c d", "features": "n d", "labels": "n :c"}, ("c d",),
        {"momentum": 0.2}, still="n",
    ),
    "memory.update_memory mean": Case(
        memories.update_memory,
        {"memory": "c d", "features": "n d", "labels": "n :c", "groups": "n :label",
         "weights": "n :share"},
        ("c d",), {"momentum": 0.2, "rule": "mean"},
    ),
    "memory.update_memory hardest": Case(
        memories.update_memory, {"memory": "c d", "features": "n d", "labels": "n :c"}, ("c d",),
        {"momentum": 0.2, "rule": "hardest"},
    ),
    "memory.update_memory soft": Case(
        memories.update_memory, {"memory": "c d", "features": "n d", "labels": "n c :share"},
        ("c d",), {"momentum": 0.2}, still="n",
    ),
    "memory.ClusterMemory": Case(
        memories.ClusterMemory, {"prototypes": "c d", "features": "n d", "labels": "n :c"},
        ("n c", "c d"), call=_cluster_memory, still="n",
    ),
    "memory.MultiMemory": Case(
        memories.MultiMemory, {"sub_prototypes": "c _ d", "features": "n d", "labels": "n :c"},
        ("n c", "c _ d"), call=_multi_memory, still="n",
    ),
    "memory.InstanceMemory": Case(
        memories.InstanceMemory,
        {"features": "m d", "labels": "m :c", "rows": "n d", "indices": "n :m"},
        ("n c", "n m :bool", "m d"), call=_instance_memory, infinite=True,
    ),
    "matching.memory_cost": Case(
        matching.memory_cost, {"visible": "v _ d", "infrared": "r _ d"}, ("v r",), still="_",
    ),
    "matching.memory_cost mixed": Case(
        matching.memory_cost, {"visible": "", "infrared": ""}, ("v r",), {"exact": True},
        make=_mixed,
    ),
    "matching.multi_memory_match": _two_sides(matching.multi_memory_match),
    "matching.match_clusters": _two_sides(matching.match_clusters),
    "matching.bilateral_match": _two_sides(matching.bilateral_match),
    "matching.progressive_match": _two_sides(matching.progressive_match),
    "matching.nearest_match": _two_sides(matching.nearest_match),
    "matching.mutual_match": _two_sides(matching.mutual_match),
    "matching.transport_match": _two_sides(matching.transport_match),
    **{f"matching.match_costs {rule}": _match_case(rule)
       for rule in ("nearest", "mutual", "one_to_one", "balanced", "progressive", "bilateral")},
    "matching.match_costs confidence": Case(
        matching.match_costs, {"cost": "v r", "confidence": "v r :share"},
        ("v :r", "r :v", "v r :bool", "v r", "v r"), {"min_confidence": 0.2}, infinite=True,
        forbids=True,
    ),
    "matching.transport_plan": Case(
        matching.transport_plan,
        {"cost": "v r", "visible_mass": "v :weight", "infrared_mass": "r :weight"},
        ("v r", "v", "r"), {"regularisation": 0.1}, forbids=True,
    ),
    "matching.transport_plan unmatched": Case(
        matching.transport_plan, {"cost": "v r"}, ("v r", "v", "r"),
        {"regularisation": 0.1, "unmatched": 0.2}, forbids=True,
    ),
    "matching.vote_labels": Case(
        matching.vote_labels, _SIDES, ("c :c", "c :c", "c c :bool", "c c", "c c"),
        {"threshold": 0.1}, fitted=True, takes=("a gap",),
    ),
    "matching.reverse_labels": Case(
        matching.reverse_labels, {"features": "n d", "labels": "n :e", "prototypes": "c d"},
        ("n :c",), takes=(FAR,),
    ),
    "matching.unify_labels": Case(
        matching.unify_labels, {"features": "n d", "gallery": "m d", "gallery_labels": "m :c"},
        ("n :c",), {"k": 3, "smooth": 0, "temperature": 0.05}, takes=(FAR,),
    ),
    "matching.rank_labels": Case(
        matching.rank_labels,
        {"features": "n d", "gallery": "m d", "gallery_labels": "m :c", "shallow": "n k",
         "gallery_shallow": "m k"},
        ("n :c",), {"k": 5, "smooth": 0}, takes=(FAR,),
    ),
    "matching.propagate_labels": Case(
        matching.propagate_labels,
        {"labels": "n :c", "other_labels": "m :c", "affinity": "n m :weight",
         "own_affinity": "n n :weight"},
        ("n :c", "m :c", "n c", "m c"), fitted=True, takes=("sparse", "a gap"),
    ),
    "matching.propagate_labels soft": Case(
        matching.propagate_labels,
        {"labels": "n c :share", "other_labels": "m c :share", "affinity": "n m :weight"},
        ("n :c", "m :c", "n c", "m c"), takes=("sparse affinity",),
    ),
    "matching.match_from_labels": Case(
        matching.match_from_labels,
        {"visible_labels": "n :c", "infrared_labels": "m :e", "to_infrared": "n :e",
         "to_visible": "m :c"},
        (None, None, None, "c e", "c e"), infinite=True, fitted=True, takes=("a gap",),
    ),
    "matching.join_matches": Case(
        matching.join_matches, {"labels": "", "matches": ""}, ("n :label", "m :label"),
        make=_joined,
    ),
    "losses.cluster_nce": Case(
        losses.cluster_nce, {"logits": "n c", "labels": "n :c", "weights": "n :weight"}, ("",),
    ),
    "losses.soft_cross_entropy": Case(
        losses.soft_cross_entropy,
        {"logits": "n c", "targets": "n c :share", "weights": "n :weight"}, ("",),
    ),
    "losses.modality_agnostic_nce": Case(
        losses.modality_agnostic_nce,
        {"logits": "n c", "labels": "n :c", "groups": "n :label", "weights": "n :weight"}, ("",),
    ),
    "losses.consistency_loss": Case(
        losses.consistency_loss, {"first": "n c", "second": "n c", "weights": "n :weight"}, ("",),
    ),
    "losses.neighbor_loss": Case(
        losses.neighbor_loss,
        {"logits": "n m", "neighbors_mask": "n m :bool", "weights": "n :weight"}, ("",),
    ),
    "losses.prototype_alignment": Case(
        losses.prototype_alignment,
        {"features": "n d", "labels": "n :c", "prototypes": "c d", "weights": "n :weight"}, ("",),
        infinite=True,
    ),
    "losses.mmd": Case(
        losses.mmd,
        {"first": "n d", "second": "m d", "first_weights": "n :weight",
         "second_weights": "m :weight"}, ("",),
    ),
    "losses.class_mmd": Case(
        losses.class_mmd,
        _SIDES | {"visible_weights": "n :weight", "infrared_weights": "m :weight"},
        ("",), takes=(FAR,),
    ),
    "losses.class_mmd pairs": Case(
        losses.class_mmd, _SIDES | {"pairs": "_ _ :order"}, ("",), make=_pairs, still="c",
        takes=(FAR,),
    ),
    "losses.soft_cluster_alignment": Case(
        losses.soft_cluster_alignment,
        {"visible": "n d", "visible_labels": "n :c", "visible_prototypes": "c d",
         "infrared": "m d", "infrared_labels": "m :c", "infrared_prototypes": "c d",
         "visible_weights": "n :weight", "infrared_weights": "m :weight"}, ("",), infinite=True,
        takes=("a row more visible_prototypes", "a row more infrared_prototypes"),
    ),
    "losses.batch_hard_triplet": Case(
        losses.batch_hard_triplet,
        {"features": "n d", "labels": "n :label", "weights": "n :weight"},
        ("",),
    ),
    "losses.weighted_triplet": Case(
        losses.weighted_triplet, {"features": "n d", "labels": "n :label", "weights": "n :weight"},
        ("",),
    ),
    "confidence.clean_probability": Case(
        confidence.clean_probability, {"losses": "n", "visited": "n :bool"}, ("n",),
        takes=("an axis more",),
    ),
    "confidence.clean_probability beta": Case(
        confidence.clean_probability, {"losses": "n"}, ("n",), {"mixture": "beta"},
        takes=("an axis more",),
    ),
    "confidence.neighbor_confidence": Case(
        confidence.neighbor_confidence,
        {"neighbors": "n _ :m", "neighbor_labels": "m :c", "labels": "n :c"}, ("n c", "n"),
        make=lambda generator: {
            "neighbors": torch.stack(
                [torch.randperm(20, generator=generator)[:3] for _ in range(24)]
            ),
            "neighbor_labels": random_tensor("m :c", generator),
            "labels": random_tensor("n :c", generator),
        }, fitted=True, takes=("a gap",),
    ),
    "confidence.NeighborConfidence": Case(
        confidence.NeighborConfidence, {"found": "", "labels": "n :c"}, ("n c",),
        call=lambda found, labels, **options: found.soft_targets(labels, **options),
        make=lambda generator: {
            "found": confidence.NeighborConfidence(torch.rand(24, 4, generator=generator), None),
            "labels": random_tensor("n :c", generator),
        }, still="n c",
    ),
    "confidence.reliable_labels": Case(
        confidence.reliable_labels,
        {"labels": "n :label", "tight_labels": "n :label", "loose_labels": "n :label"},
        ("n :label", "n", "n"),
    ),
    "evaluation.evaluate": Case(
        evaluation.evaluate,
        {"query": "n d", "gallery": "m d", "query_identities": "n :label",
         "gallery_identities": "m :label"}, ("_", "_", "_"), {"max_rank": 5},
    ),
    "evaluation.evaluate sysu": Case(
        evaluation.evaluate,
        {"query": "n d", "gallery": "m d", "query_identities": "n :label",
         "gallery_identities": "m :label", "query_cameras": "n :label",
         "gallery_cameras": "m :label"}, ("_",) * 4,
        {"max_rank": 5, "protocol": "llcm", "trials": 2}, still="m",
    ),
    "evaluation.ranking_metrics": Case(
        evaluation.ranking_metrics,
        {"distance": "n m", "query_identities": "n :label", "gallery_identities": "m :label"},
        ("_",), {"max_rank": 5}, forbids=True,
    ),
    "evaluation.association_report": Case(
        evaluation.association_report,
        {"visible_labels": "n :label", "infrared_labels": "m :label",
         "visible_identities": "n :label", "infrared_identities": "m :label"}, (),
    ),
    "evaluation.average_trials": Case(
        evaluation.average_trials, {"trials": ""}, (None,) * 4,
        make=lambda generator: {"trials": [
            evaluation.RankingMetrics(torch.rand(4, generator=generator), 0.5, 0.4, 9, 8, 7)
            for _ in range(3)
        ]},
    ),
    "evaluation.draw_gallery": Case(
        evaluation.draw_gallery, {"identities": "n :label", "cameras": "n :label"}, (None,),
        {"protocol": "llcm", "trial": 0}, still="n",
    ),
    "sampling.PairSampler": Case(
        sampling.PairSampler, {"visible_labels": "n :label", "infrared_labels": "m :label"},
        (None,) * 2, {"clusters": 2, "instances": 2, "batches": 1}, _sampler, still="n m",
    ),
    "_types.ClusterMatch": Case(
        ClusterMatch, {"match": "", "visible_labels": "n :v", "infrared_labels": "m :r"},
        ("n :label", "m :label", "n :r", "m :v"), call=_shared,
        make=lambda generator: {
            "match": _match(generator),
            "visible_labels": torch.randint(-1, 4, (24,), generator=generator),
            "infrared_labels": torch.randint(-1, 3, (20,), generator=generator),
        }, still="v r",
    ),
    "_types.JaccardGraph": Case(
        JaccardGraph, {"graph": ""}, ("n n",),
        call=lambda graph, **options: graph.to_dense(**options),
        make=lambda generator: {"graph": _graph(generator)},
    ),
    **{f"reference.augment.{name}": _augmented(getattr(augment, name))
       for name in augment.__all__},
    "reference.models.gem": Case(
        models.gem, {"x": "n _ h w"}, ("n _",),
        make=lambda generator: {"x": torch.rand(24, 3, 6, 5, generator=generator)}, still="h w",
        infinite=True, takes=("another device", "torch.int64", "torch.bool"),
    ),
    "reference.models.gradient_features": Case(
        models.gradient_features, {"pixels": "n _ h w"}, ("n _",),
        make=lambda generator: {"pixels": torch.rand(24, 1, 16, 12, generator=generator)},
        still="_ h w", takes=("torch.int64", "torch.bool"),
    ),
    "reference.models.extract_features": Case(
        models.extract_features, {"pixels": "n _ h w :share"}, ("n _",),
        call=lambda pixels, **options: models.extract_features(
            TwoStreamCNN(1, 1, dim=8, generator=torch.Generator().manual_seed(0)).eval(), pixels,
            **options,
        ),
        make=lambda generator: {"pixels": torch.rand(24, 1, 16, 12, generator=generator)},
        still="_ h w", infinite=True, takes=("torch.int64", "torch.bool"),
    ),
}  # fmt: skip

# Names without a case, and why. Counted in docs/reliability.md.
TUPLE = "a named tuple: holds what a function returns, computes nothing"
TABLE = "a table of constants"
FILES = "reads or writes files: tests/test_hostile_files.py"
DRAWN = "makes a picture; tests/test_plots.py holds what it shows"
RUNS = "runs the training: tests/test_faults.py and tests/test_train.py"
OPTED_OUT: dict[str, str] = {
    **dict.fromkeys(
        (
            "assignment.Assignment",
            "clustering.EpsSuggestion",
            "clustering.EpsSweep",
            "clustering.Relabelled",
            "clustering.TrackedLabels",
            "confidence.ReliableLabels",
            "evaluation.AssociationReport",
            "evaluation.Evaluation",
            "evaluation.RankingMetrics",
            "matching.JoinedLabels",
            "matching.PropagatedLabels",
            "_types.CrossModalityClusters",
            "_types.Neighbors",
            "_types.SubPrototypes",
            "_types.TransportPlan",
            "reference.data.Count",
            "reference.data.DataSet",
            "reference.data.Images",
            "reference.data.Options",
            "reference.data.Photo",
            "reference.data.Tree",
            "reference.people.People",
            "reference.doctor.Examination",
            "reference.models.Embedding",
            "reference.recipes.Part",
            "reference.recipes.Recipe",
            "reference.train.Labels",
            "reference.train.Step",
        ),
        TUPLE,
    ),
    **dict.fromkeys(
        (
            "reference.data.DATA_SETS",
            "reference.data.PUBLISHED",
            "reference.people.INFRARED_CAMERAS",
            "reference.people.VISIBLE_CAMERAS",
            "reference.recipes.RECIPES",
            "reference.train.LOSSES",
            "reference.run.PRESETS",
        ),
        TABLE,
    ),
    **dict.fromkeys(
        (
            "plots.cluster_sizes",
            "plots.distance_histograms",
            "plots.identity_strip",
            "plots.k_distance_curve",
            "plots.match_heat_map",
            "plots.pca_scatter",
            "plots.retrieval_strip",
            "plots.training_curves",
            "reference.people.contact_sheet",
        ),
        DRAWN,
    ),
    **dict.fromkeys(
        (
            "reference.data.count_photos",
            "reference.data.findings",
            "reference.data.load",
            "reference.data.read_tree",
            "reference.people.write_sysu_tree",
            "reference.doctor.examine",
            "reference.models.load_resnet50",
            "reference.models.load_weights",
            "reference.models.read_weights",
            "reference.report.compare_runs",
            "reference.report.write_comparison",
            "reference.report.write_report",
            "cli.main",
        ),
        FILES,
    ),
    **dict.fromkeys(
        (
            "reference.recipes.ablated",
            "reference.train.train",
            "reference.run.Laps",
            "reference.run.Run",
            "reference.run.Settings",
            "reference.run.command_of",
            "reference.run.environment",
            "reference.models.TwoStreamCNN",
            "reference.models.TwoStreamResNet50",
        ),
        RUNS,
    ),
    "distributed.Group": "the name of a type",
    "reference.data.hubble_windows": "takes no tensor: tests/test_data.py",
    "reference.data.patches": "takes one scene: tests/test_data.py",
    "reference.data.windows": "takes one scene: tests/test_data.py",
    "reference.data.synthetic_features": "takes numbers only: tests/test_data.py",
    "reference.people.render_people": "takes numbers only: tests/test_people.py",
    "reference.doctor.surroundings": "takes nothing: tests/test_doctor.py",
}
