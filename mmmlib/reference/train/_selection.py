"""Which epoch's network is the result: the last one, or one that held-out images speak for."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmmlib.reference.data import DataSet, Images
from mmmlib.reference.run import Settings
from mmmlib.reference.train._plan import Epoch
from mmmlib.reference.train._score import features_of

LEAST = 8  # held-out images of a modality below which nothing can be told


class HeldOut(NamedTuple):
    """Training images that are neither clustered nor trained on."""

    visible: Images
    infrared: Images


def hold_out(data: DataSet, settings: Settings) -> tuple[DataSet, HeldOut | None]:
    """The data to train on, and the images held out, if the settings ask for any.

    Raises:
        ValueError: If too few would be held out.
    """
    if settings.select == "last":
        return data, None
    generator = torch.Generator().manual_seed(settings.seed)
    kept, held = [], []
    for name, images in (("visible", data.visible), ("infrared", data.infrared)):
        n = round(settings.held_out * len(images.names))
        if n < LEAST:
            raise ValueError(
                f"--held-out must hold out at least {LEAST} {name} images, got "
                f"{settings.held_out:g} of {len(images.names)}"
            )
        rows = torch.randperm(len(images.names), generator=generator)
        held.append(rows_of(images, rows[:n].sort().values))
        kept.append(rows_of(images, rows[n:].sort().values))
    return data._replace(visible=kept[0], infrared=kept[1]), HeldOut(*held)


def rows_of(images: Images, rows: Tensor) -> Images:
    """Some of the images."""
    identities = None if images.identities is None else images.identities[rows]
    names = tuple(images.names[row] for row in rows.tolist())
    return Images(images.pixels[rows], identities, images.cameras[rows], names)


def agreement(model: nn.Module, held: HeldOut, plan: Epoch, settings: Settings) -> float:
    """How far the two modalities agree about images that nobody trained on.

    Each held-out image is named twice in the shared label space: by the nearest memory of its own
    modality, and by the nearest memory of the other. Cohen's kappa of the two namings, the mean
    over both modalities: 0 is what chance would give. No identity is read.
    """
    memories = [plan.memories[side].prototypes for side in ("visible", "infrared")]
    clusters = [torch.arange(len(memory), device=memory.device) for memory in memories]
    shared = plan.match.shared_labels(clusters[0], clusters[1])[:2]
    found = []
    for own, images in enumerate(held):
        features = features_of(model, images, settings, infrared=own == 1)
        names = [
            labels[(features @ memory.T).argmax(dim=1)].cpu()
            for labels, memory in zip(shared, memories, strict=True)
        ]
        found.append(kappa(names[0], names[1]))
    return sum(found) / len(found)


def kappa(first: Tensor, second: Tensor) -> float:
    """Agreement of two namings beyond chance; 0 where both know one name only."""
    n = 1 + int(torch.cat([first, second]).max())
    shares = [names.bincount(minlength=n).double() / len(names) for names in (first, second)]
    chance = float(shares[0] @ shares[1])
    same = float((first == second).double().mean())
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


class Choice(NamedTuple):
    """The epoch chosen so far, with its weights on the CPU."""

    epoch: int
    agreement: float
    weights: dict[str, Tensor]


def better(choice: Choice | None, model: nn.Module, epoch: int, value: float) -> Choice:
    """The epoch if it is no worse than the one chosen so far, else that one."""
    if choice is not None and value < choice.agreement:
        return choice
    weights = {name: part.detach().cpu().clone() for name, part in model.state_dict().items()}
    return Choice(epoch, value, weights)


def chosen(choice: Choice | None) -> str:
    """What the card says about it."""
    if choice is None:
        return "the last epoch"
    return f"epoch {choice.epoch}, by pseudo-validation on held-out training images"


def choice_of(state: dict[str, Any]) -> Choice | None:
    """What a checkpoint holds of it."""
    return Choice(**state["choice"]) if state.get("choice") else None
