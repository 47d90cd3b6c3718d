"""What a network is worth: features, retrieval by protocol, and agreement with the truth."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmmlib.distributed import gather_rows
from mmmlib.evaluation import Evaluation, Protocol, association_report, evaluate
from mmmlib.reference.data import DataSet, Images
from mmmlib.reference.models import extract_features
from mmmlib.reference.run import Settings
from mmmlib.reference.train._team import share_of

if TYPE_CHECKING:
    from mmmlib.reference.train._plan import Epoch

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
DIRECTIONS = ("infrared to visible", "visible to infrared")


def precision(settings: Settings) -> AbstractContextManager[None]:
    """Half precision inside, if the settings ask for it."""
    device = torch.device(settings.device).type
    kind = _HALF.get(settings.amp, torch.bfloat16)
    half: AbstractContextManager[None] = torch.autocast(
        device, dtype=kind, enabled=settings.amp != "off"
    )
    return half


def features_of(model: nn.Module, images: Images, settings: Settings, *, infrared: bool) -> Tensor:
    """Unit features of all images, on every process; each computes its share of them."""
    with precision(settings):
        rows = extract_features(
            model, share_of(images.pixels), infrared=infrared, batch_size=settings.batch_size
        )
    (features,) = gather_rows(rows)
    return features


def score(
    model: nn.Module, data: DataSet, plan: "Epoch | None", settings: Settings, *, test: bool = True
) -> dict[str, float]:
    """Retrieval on the test images, and what the labels are worth where identities are known."""
    row = {} if plan is None else _clusters(plan) | _agreement(plan, data)
    return row | retrieval(model, data, settings) if test else row


def _clusters(plan: "Epoch") -> dict[str, float]:
    labels = plan.labels
    row: dict[str, float] = {
        "visible_clusters": int(labels.visible.max()) + 1,
        "infrared_clusters": int(labels.infrared.max()) + 1,
        "visible_noise": (labels.visible < 0).float().mean().item(),
        "infrared_noise": (labels.infrared < 0).float().mean().item(),
    }
    if plan.matching:
        row["matched"] = plan.match.matched.any(dim=1).float().mean().item()
    if "joint" in plan.memories:
        row["joint_clusters"] = len(plan.memories["joint"].prototypes)
    return row


def _agreement(plan: "Epoch", data: DataSet) -> dict[str, float]:
    if data.visible.identities is None or data.infrared.identities is None:
        return {}
    labels = plan.labels
    report = association_report(
        labels.shared_visible.cpu(), labels.shared_infrared.cpu(),
        data.visible.identities, data.infrared.identities,
    )  # fmt: skip
    return {
        "ari_visible": _ari(labels.visible, data.visible.identities),
        "ari_infrared": _ari(labels.infrared, data.infrared.identities),
        "ari_all": report.ari_all,
        "pair_precision": report.precision,
        "pair_recall": report.recall,
    }


def _ari(labels: Tensor, identities: Tensor) -> float:
    """Agreement of the clusters of one modality alone with the truth."""
    return association_report(
        labels.cpu(), labels[:0].cpu(), identities, identities[:0]
    ).ari_visible


def retrieval(model: nn.Module, data: DataSet, settings: Settings) -> dict[str, float]:
    """Infrared test images searched among the visible ones."""
    found = search(model, data, settings, every=False)
    return {
        name: value
        for result in found.values()
        for name, value in (
            ("rank_1", result.rank_1), ("mean_ap", result.mean_ap), ("mean_inp", result.mean_inp),
            *((f"rank_{k}", result.cmc[k - 1].item()) for k in (5, 10, 20)),
        )
    }  # fmt: skip


Tested = tuple[tuple[Tensor, Images], tuple[Tensor, Images]]  # features: queries, gallery


def test_features(model: nn.Module, data: DataSet, settings: Settings) -> Tested | None:
    """Features of the test images, infrared ones first; None without any of known identity."""
    query, gallery = data.query, data.gallery
    if query is None or gallery is None or query.identities is None or gallery.identities is None:
        return None
    return (
        (features_of(model, query, settings, infrared=True), query),
        (features_of(model, gallery, settings, infrared=False), gallery),
    )


def search(
    model: nn.Module,
    data: DataSet,
    settings: Settings,
    *,
    every: bool = True,
    trials: int = 10,
    tested: Tested | None = None,
) -> dict[tuple[Protocol, str], Evaluation]:
    """Search the test images by every protocol and direction of the data set, or by the main one.

    Features are extracted once, if they are not given. SYSU-MM01's protocols know one direction.
    """
    sides = tested or test_features(model, data, settings)
    if sides is None:
        return {}
    return {
        (protocol, direction): _evaluate(sides[turned], sides[not turned], protocol, trials)
        for protocol, direction, turned in (_tasks(data) if every else _tasks(data)[:1])
    }


def _tasks(data: DataSet) -> list[tuple[Protocol, str, bool]]:
    """Protocol, direction, and whether visible images search; the main one first."""
    if not data.protocol.startswith("sysu"):
        return [(data.protocol, DIRECTIONS[0], False), (data.protocol, DIRECTIONS[1], True)]
    tasks: list[tuple[Protocol, str, bool]] = [(data.protocol, DIRECTIONS[0], False)]
    indoor = data.gallery is not None and bool(torch.isin(data.gallery.cameras, _INDOOR).any())
    return [*tasks, ("sysu-indoor", DIRECTIONS[0], False)] if indoor else tasks


_INDOOR = torch.tensor([1, 2])


def _evaluate(
    query: tuple[Tensor, Images], gallery: tuple[Tensor, Images], protocol: Protocol, trials: int
) -> Evaluation:
    persons = [images.identities for _, images in (query, gallery)]
    return evaluate(
        query[0], gallery[0], *(side for side in persons if side is not None),
        query_cameras=query[1].cameras, gallery_cameras=gallery[1].cameras, protocol=protocol,
        trials=trials,
    )  # fmt: skip


def plain(found: dict[tuple[Protocol, str], Evaluation]) -> list[dict[str, Any]]:
    """The results as plain values, a dict for each protocol and direction."""
    return [
        {
            "protocol": protocol, "direction": direction, "trials": len(result.trials),
            "queries": result.trials[0].n_queries, "gallery": result.trials[0].n_gallery,
            **{f"rank_{k}": result.cmc[k - 1].item() for k in (1, 5, 10, 20)},
            "mean_ap": result.mean_ap, "mean_inp": result.mean_inp,
            "rank_1_std": result.rank_1_std, "mean_ap_std": result.mean_ap_std,
            "mean_inp_std": result.mean_inp_std,
            "by_trial": [
                {"rank_1": trial.rank(1), "mean_ap": trial.mean_ap, "mean_inp": trial.mean_inp}
                for trial in result.trials
            ],
        }
        for (protocol, direction), result in found.items()
    ]  # fmt: skip


def line(result: dict[str, Any]) -> str:
    """One result as the published scripts print it."""
    ranks = " | ".join(f"Rank-{k}: {result[f'rank_{k}']:.2%}" for k in (1, 5, 10, 20))
    text = f"{result['protocol']}, {result['direction']}: {ranks}"
    text += f" | mAP: {result['mean_ap']:.2%} | mINP: {result['mean_inp']:.2%}"
    if result["trials"] == 1:
        return text
    return f"{text} ({result['trials']} trials, Rank-1 ± {result['rank_1_std']:.2%})"
