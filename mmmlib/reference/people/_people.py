"""Rendered persons as a table of images, as files, and as one picture to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mmmlib._check import check_count, check_number
from mmmlib.reference.people._cameras import CAMERAS
from mmmlib.reference.people._shots import Rows, render

__all__ = [
    "INFRARED_CAMERAS",
    "VISIBLE_CAMERAS",
    "People",
    "contact_sheet",
    "render_people",
    "write_sysu_tree",
]

INFRARED_CAMERAS = tuple(number for number, camera in CAMERAS.items() if camera.infrared)
VISIBLE_CAMERAS = tuple(number for number, camera in CAMERAS.items() if not camera.infrared)


class People(NamedTuple):
    """Pictures of persons, one row each, and all that is known about them.

    Attributes:
        pixels: The images; those of an infrared camera have three equal channels.
        identities: Who is seen, from 1.
        cameras: 1, 2, 4 and 5 are visible, 3 and 6 infrared; 2 and 3 see the same place.
        yaw: How the person is turned, degrees in [0, 360): 0 faces the camera, 180 walks away.
        gait: Where in the step, in [0, 1).
        hidden: Share of the person in the image that something else covers.
        names: Path of each image in a tree of SYSU-MM01, ascending.
    """

    pixels: UInt8[Tensor, "n 3 height width"]
    identities: Int[Tensor, "n"]
    cameras: Int[Tensor, "n"]
    yaw: Float[Tensor, "n"]
    gait: Float[Tensor, "n"]
    hidden: Float[Tensor, "n"]
    names: tuple[str, ...]

    def infrared(self) -> Bool[Tensor, "n"]:
        """Which rows are of an infrared camera."""
        return torch.isin(self.cameras, torch.tensor(INFRARED_CAMERAS))

    def rows(self, index: Int[Tensor, "m"] | Bool[Tensor, "n"]) -> "People":
        """Some of the rows, by number or by mask."""
        kept = torch.arange(len(self.names))[index]
        names = tuple(self.names[row] for row in kept.tolist())
        return People._make([*(column[kept] for column in self[:-1]), names])


def render_people(
    identities: int | Sequence[int],
    images: int = 4,
    *,
    seed: int = 0,
    height: int = 96,
    width: int = 48,
    cameras: Sequence[int] = tuple(CAMERAS),
    yaw: float | None = None,
    occlusion: float = 0.2,
) -> People:
    """Render persons as six cameras see them, four visible ones and two of near infrared.

    A person has a build, a gait, a face of hair, skin and hat, clothes with prints on front and
    back, and perhaps a bag. Each material has a colour and, drawn without regard to it, a
    reflectance in the infrared: no colour says how grey a garment is there. What both modalities
    share is shape: build, cut of the clothes, where prints and straps are, hair, bag. An image adds
    a view, a step, folds, a place behind, light, exposure, blur and grain, in the manner of its
    camera, and now and then a passer-by, a thing in front, or a frame that cuts off the legs.

    Each image draws its chance from the seed, its identity, camera and number alone: it is the
    same however many others are asked for. Two calls that differ in ``yaw`` alone differ in the
    view alone.

    Args:
        identities: How many persons, numbered from 1; or the numbers of those wanted.
        images: Of each person by each camera.
        seed: Decides everything; another seed knows other persons and places.
        height: Of the images; the width is usually half of it.
        width: Of the images.
        cameras: Those wanted, of 1 to 6.
        yaw: One view for all images, in degrees; None draws one for each.
        occlusion: Share of the images with somebody or something before the person or close
            beside; a third as many have somebody behind.

    Returns:
        The images, ordered by camera, identity and number, as the files of a data set would be.

    Raises:
        ValueError: If a count is below 1, a camera or an identity is not to be had, or ``yaw`` or
            ``occlusion`` is out of range.

    Example:
        >>> people = render_people(3, 2, height=48, width=24)
        >>> people.pixels.shape, people.names[0]
        (torch.Size([36, 3, 48, 24]), 'cam1/0001/0001.jpg')
        >>> people.rows(people.infrared()).cameras.unique()
        tensor([3, 6])
    """
    wanted = _check(identities, cameras)
    counts = {"images": images, "height": height, "width": width}
    for name, count in counts.items():
        check_count(name, count)
    check_count("seed", seed, 0)
    check_number("occlusion", occlusion, 0, 1)
    if yaw is not None:
        check_number("yaw", yaw, -360, 360)
    grid = np.meshgrid(sorted(set(cameras)), wanted, np.arange(1, images + 1), indexing="ij")
    camera, identity, number = (axis.ravel() for axis in grid)
    shots = render(Rows(identity, camera, number), seed, (height, width), yaw, occlusion)
    pixels = torch.from_numpy(shots.pixels).permute(0, 3, 1, 2).contiguous()
    known = [torch.from_numpy(np.asarray(column, np.int64)) for column in (identity, camera)]
    seen = [torch.from_numpy(column.astype(np.float32)) for column in shots[1:]]
    names = tuple(
        f"cam{c}/{i:04d}/{n:04d}.jpg"
        for c, i, n in zip(camera.tolist(), identity.tolist(), number.tolist(), strict=True)
    )
    return People._make([pixels, *known, *seen, names])


def _check(identities: int | Sequence[int], cameras: Sequence[int]) -> list[int]:
    """The persons wanted, ascending."""
    bad = [number for number in cameras if number not in CAMERAS]
    if bad or not len(cameras):
        raise ValueError(f"cameras must be some of 1 to 6, got {tuple(cameras)}")
    if not isinstance(identities, Sequence):
        check_count("identities", identities)
        return list(range(1, identities + 1))
    for identity in identities:
        check_count("identities", identity)
    return sorted(set(identities))


def write_sysu_tree(
    people: People, folder: str | Path, *, test: float = 0.25, quality: int = 95
) -> None:
    """Write images as a data set in the layout of SYSU-MM01.

    ``cam1/0001/0001.jpg`` and so on, and the comma-separated identities of each part in
    ``exp/train_id.txt``, ``exp/val_id.txt`` and ``exp/test_id.txt``: the last identities are for
    the test, of the others every fifth, or of fewer than five the last, for validation (which
    trainings add to the first part).

    Args:
        people: What ``render_people`` returned.
        folder: Made if missing.
        test: Share of the identities for the test.
        quality: Of the JPEG files, from 1 to 95.

    Raises:
        ValueError: If the share is not in [0, 1], or the quality not in [1, 95].

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_sysu_tree(render_people(4, 1, height=32, width=16), folder)
        ...     print((Path(folder) / "exp" / "test_id.txt").read_text().strip())
        4
    """
    from PIL import Image

    check_number("test", test, 0, 1)
    check_number("quality", quality, 1, 95)
    root = Path(folder)
    for pixels, name in zip(people.pixels, people.names, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, quality=quality)
    everyone = sorted(set(people.identities.tolist()))
    known = everyone[: len(everyone) - round(test * len(everyone))]
    validation = known[4::5] or known[1:][-1:]
    parts = {
        "train": [identity for identity in known if identity not in validation],
        "val": validation,
        "test": everyone[len(known) :],
    }
    (root / "exp").mkdir(exist_ok=True)
    for part, members in parts.items():
        (root / "exp" / f"{part}_id.txt").write_text(",".join(map(str, members)) + "\n")


def contact_sheet(people: People, *, columns: int, gap: int = 2) -> UInt8[Tensor, "3 rows columns"]:
    """Lay images side by side on white, row by row.

    Args:
        people: Images in the order in which they are to be seen.
        columns: How many stand in a row.
        gap: Pixels between two images.

    Returns:
        One picture.

    Raises:
        ValueError: If ``columns`` is below 1.

    Example:
        >>> contact_sheet(render_people(2, 1, height=32, width=16), columns=6).shape
        torch.Size([3, 70, 110])
    """
    check_count("columns", columns)
    check_count("gap", gap, 0)
    n, _, height, width = people.pixels.shape
    rows = -(-n // columns)
    sheet = people.pixels.new_full((rows, columns, 3, height + gap, width + gap), 255)
    sheet.flatten(0, 1)[:n, :, gap:, gap:] = people.pixels
    sheet = sheet.permute(2, 0, 3, 1, 4).reshape(3, rows * (height + gap), columns * (width + gap))
    return torch.nn.functional.pad(sheet, (0, gap, 0, gap), value=255)
