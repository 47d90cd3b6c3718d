"""What every data set looks like once it is loaded."""

from typing import NamedTuple

from jaxtyping import Int, UInt8
from torch import Tensor

from mmmlib.evaluation import Protocol


class Images(NamedTuple):
    """Images of one modality and what is known about them, one row each.

    Attributes:
        pixels: The images.
        identities: Who or what is seen; None where nobody knows.
        cameras: The camera of each image; 0 where there is only one.
        names: A name for each image, ascending. Join by name, never by position.
    """

    pixels: UInt8[Tensor, "n channels height width"]
    identities: Int[Tensor, "n"] | None
    cameras: Int[Tensor, "n"]
    names: tuple[str, ...]


class DataSet(NamedTuple):
    """Training images of two modalities, and test images to search.

    Attributes:
        visible: Training images of the first modality.
        infrared: Training images of the second one.
        query: Infrared test images, with identities; None if there are none.
        gallery: Visible test images to find them in; None if there are none.
        protocol: How they are scored, by ``mmmlib.evaluation``.
        name: The name in the table.
        bands: Whether each channel of an infrared image is a band of its own, so that none of them
            may stand for all.
    """

    visible: Images
    infrared: Images
    query: Images | None
    gallery: Images | None
    protocol: Protocol
    name: str
    bands: bool = False


class Options(NamedTuple):
    """What a loader may be asked for; each uses what it understands.

    Attributes:
        seed: Decides every random choice.
        instances: Images of each window of a scene in each modality, of each rendered person by
            each camera.
        jitter: How far a crop strays from its window, in pixels; None for the scene's default.
        height: Height to which images from files are resized.
        width: Width to which images from files are resized.
        trial: Which of the ten splits of RegDB.
        allow_incomplete: Take a published data set as it is, not as it should be.
    """

    seed: int = 0
    instances: int = 8
    jitter: int | None = None
    height: int = 288
    width: int = 144
    trial: int = 1
    allow_incomplete: bool = False


SIDES = {
    "visible": "training, visible",
    "infrared": "training, infrared",
    "query": "test, infrared",
    "gallery": "test, visible",
}
