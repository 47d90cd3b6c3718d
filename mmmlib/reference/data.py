"""Data sets as rows of one table: images in memory, with what is known about each.

A scene is a picture whose bands are two modalities. Its windows are the identities and jittered,
mirrored crops of a window are the images of it, drawn independently in each modality: a patch has
to be found again in the other spectrum.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from mmmlib._check import check_choice, check_count, check_number
from mmmlib.evaluation import Protocol

__all__ = [
    "DATA_SETS",
    "DataSet",
    "Images",
    "Options",
    "hubble_windows",
    "load",
    "patches",
    "synthetic_features",
    "windows",
]


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
    """

    visible: Images
    infrared: Images
    query: Images | None
    gallery: Images | None
    protocol: Protocol
    name: str


class Options(NamedTuple):
    """What a loader may be asked for; each uses what it understands.

    Attributes:
        seed: Decides every random choice.
        instances: Images of each window of a scene, in each modality.
        jitter: How far a crop strays from its window, in pixels; None for the scene's default.
        height: Height to which images from files are resized.
        width: Width to which images from files are resized.
    """

    seed: int = 0
    instances: int = 8
    jitter: int | None = None
    height: int = 288
    width: int = 144


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    instances: int = 8,
    jitter: int | None = None,
    height: int = 288,
    width: int = 144,
) -> DataSet:
    """Load a data set of the table by its name.

    Args:
        name: A key of ``DATA_SETS``. ``"hubble"`` needs scikit-image and no file, ``"landsat"`` a
            file, ``"folder"`` a directory, ``"synthetic"`` nothing.
        data_dir: Where it lies, if it lies in files.
        seed: Decides every random choice.
        instances: Images of each window of a scene, in each modality.
        jitter: How far a crop strays from its window, in pixels; None for the scene's default.
        height: Height to which images from files are resized.
        width: Width to which images from files are resized.

    Returns:
        All images in memory. Training and test identities are disjoint, and crops of a training
        window share no pixel with crops of a test window.

    Raises:
        ValueError: If the name is unknown, or the files do not hold what they should.
        FileNotFoundError: If the files are not there.

    Example:
        >>> synthetic = load("synthetic", instances=4)
        >>> synthetic.visible.pixels.shape, synthetic.query.pixels.shape
        (torch.Size([96, 1, 24, 24]), torch.Size([64, 1, 24, 24]))
    """
    check_choice("name", name, tuple(DATA_SETS))
    check_count("instances", instances)
    check_count("height", height)
    check_count("width", width)
    path = None if data_dir is None else Path(data_dir)
    return DATA_SETS[name](path, Options(seed, instances, jitter, height, width))


class _Scene(NamedTuple):
    visible: Tensor  # (channels, height, width)
    infrared: Tensor
    window: int
    margin: int
    train_columns: int
    jitter: int

    def columns(self) -> int:
        return (self.visible.shape[2] - 2 * self.margin) // self.window


def patches(
    image: UInt8[Tensor, "channels height width"],
    *,
    window: int,
    margin: int,
    jitter: int,
    instances: int,
    generator: torch.Generator,
    columns: tuple[int, int] | None = None,
) -> Images:
    """Cut jittered and mirrored crops of the windows of a picture.

    The windows tile the picture inside a margin, row by row; the number of a window is the
    identity of its crops. A crop is the window moved by up to ``jitter`` pixels in each direction,
    uniformly, and mirrored with probability one half.

    Args:
        image: The bands of one modality.
        window: Edge of a window in pixels.
        margin: Pixels left free around all windows, at least ``jitter``.
        jitter: The farthest a crop is moved, in pixels.
        instances: Crops of each window.
        generator: Draws the crops.
        columns: Only the windows of the columns from the first to below the second; their crops
            never reach into other columns.

    Returns:
        The crops by window, then instance, named ``<window>_<instance>``.

    Raises:
        ValueError: If the jitter exceeds the margin or the picture is too small for a window.

    Example:
        >>> picture = torch.randint(256, (1, 40, 60), dtype=torch.uint8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> cut = patches(
        ...     picture, window=16, margin=4, jitter=2, instances=3, generator=generator
        ... )
        >>> cut.pixels.shape, cut.identities.unique().tolist()
        (torch.Size([18, 1, 16, 16]), [0, 1, 2, 3, 4, 5])
    """
    check_count("instances", instances)
    check_number("jitter", jitter, 0, margin)
    height, width = image.shape[1:]
    n_rows, n_columns = ((size - 2 * margin) // window for size in (height, width))
    if n_rows < 1 or n_columns < 1:
        raise ValueError(
            f"image must be at least {window + 2 * margin} pixels high and wide, "
            f"got {height} x {width}"
        )
    start, stop = columns or (0, n_columns)
    left = 0 if start == 0 else margin + start * window
    right = width if stop == n_columns else margin + stop * window

    grid = torch.arange(n_rows * n_columns).view(n_rows, n_columns)[:, start:stop]
    identities = grid.flatten().repeat_interleave(instances)
    row = margin + window * (identities // n_columns)
    column = margin + window * (identities % n_columns)
    row = row + _integers(-jitter, jitter, len(row), generator)
    lowest = (left - column).clamp(min=-jitter)
    highest = (right - window - column).clamp(max=jitter)
    column = column + _integers(lowest, highest, len(column), generator)
    mirrored = torch.rand(len(column), generator=generator) < 0.5

    steps = torch.arange(window)
    across = torch.where(mirrored[:, None], steps.flip(0), steps) + column[:, None]
    down = steps + row[:, None]
    pixels = image[:, down[:, :, None], across[:, None, :]].transpose(0, 1).contiguous()
    return Images(pixels, identities, torch.zeros_like(identities), _names(identities, instances))


def _integers(
    lowest: int | Tensor, highest: int | Tensor, n: int, generator: torch.Generator
) -> Tensor:
    """Uniform integers, both ends included."""
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    return (lowest + uniform * (highest - lowest + 1)).floor().long()


def _names(identities: Tensor, instances: int) -> tuple[str, ...]:
    digits = len(str(instances - 1))
    return tuple(
        f"{identity:06d}_{row % instances:0{digits}d}"
        for row, identity in enumerate(identities.tolist())
    )


def windows(
    name: str,
    data_dir: str | Path | None = None,
    *,
    instances: int = 8,
    seed: int = 0,
    jitter: int | None = None,
    window: int | None = None,
) -> tuple[Images, Images]:
    """Cut crops of all windows of a scene in both modalities, for studies of matching.

    Args:
        name: A scene: ``"hubble"``, ``"landsat"`` or ``"synthetic"``.
        data_dir: The file of the scene, if it lies in one.
        instances: Crops of each window, in each modality.
        seed: Decides the crops.
        jitter: How far a crop strays from its window, in pixels; None for the scene's default.
        window: Edge of a window; None for the scene's default.

    Returns:
        Visible and infrared images; equal identities are the same window.

    Example:
        >>> visible, infrared = windows("synthetic", instances=2)
        >>> len(visible.names), bool((visible.identities == infrared.identities).all())
        (80, True)
    """
    check_choice("name", name, tuple(_SCENES))
    scene = _SCENES[name](None if data_dir is None else Path(data_dir), seed)
    scene = scene if window is None else scene._replace(window=window)
    generator = torch.Generator().manual_seed(seed)
    visible, infrared = _both(scene, Options(seed, instances, jitter), generator, None)
    return visible, infrared


def hubble_windows(
    instances: int = 8, seed: int = 0, *, jitter: int | None = None
) -> tuple[Images, Images]:
    """Cut crops of all 340 windows of the Hubble deep field in both modalities.

    Args:
        instances: Crops of each window, in each modality.
        seed: Decides the crops.
        jitter: How far a crop strays from its window, in pixels; None for the scene's default.

    Returns:
        Visible and infrared images; equal identities are the same window.

    Example:
        >>> visible, infrared = hubble_windows(instances=1)
        >>> visible.pixels.shape
        torch.Size([340, 1, 48, 48])
    """
    return windows("hubble", instances=instances, seed=seed, jitter=jitter)


def _both(
    scene: _Scene, options: Options, generator: torch.Generator, columns: tuple[int, int] | None
) -> list[Images]:
    return [
        patches(
            image,
            window=scene.window,
            margin=scene.margin,
            jitter=scene.jitter if options.jitter is None else options.jitter,
            instances=options.instances,
            generator=generator,
            columns=columns,
        )
        for image in (scene.visible, scene.infrared)
    ]


def _load_scene(name: str, data_dir: Path | None, options: Options) -> DataSet:
    """The left columns of windows for training, the right ones for the test."""
    scene = _SCENES[name](data_dir, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    visible, infrared = _both(scene, options, generator, (0, scene.train_columns))
    gallery, query = _both(scene, options, generator, (scene.train_columns, scene.columns()))
    return DataSet(visible, infrared, query, gallery, "plain", name)


def _hubble_scene(data_dir: Path | None, seed: int) -> _Scene:
    """The Hubble deep field: blue (short wavelengths) and red (long ones, partly infrared)."""
    from skimage.data import hubble_deep_field

    picture = hubble_deep_field()  # type: ignore[no-untyped-call]
    bands = torch.from_numpy(picture).permute(2, 0, 1)  # red, green, blue
    return _Scene(bands[2:], bands[:1], window=48, margin=8, train_columns=11, jitter=8)


def _landsat_scene(data_dir: Path | None, seed: int) -> _Scene:
    """A GeoTIFF of six bands: blue, green, red; near infrared and two short-wave infrared ones."""
    from tifffile import TiffFileError, imread

    if data_dir is None or not data_dir.is_file():
        raise FileNotFoundError(f"data_dir must be a TIFF file, got {_say(data_dir)}")
    try:
        bands = torch.from_numpy(imread(data_dir))
    except (TiffFileError, TypeError) as error:
        raise ValueError(f"data_dir must be a TIFF file, got {_say(data_dir)}: {error}") from error
    if bands.ndim == 3 and bands.shape[-1] == 6:
        bands = bands.permute(2, 0, 1)
    if bands.ndim != 3 or len(bands) != 6 or bands.dtype != torch.uint8:
        raise ValueError(
            f"data_dir must hold 6 bands of uint8, got {bands.dtype} of shape "
            f"{tuple(bands.shape)} in {_say(data_dir)}"
        )
    return _Scene(bands[:3], bands[3:], window=20, margin=6, train_columns=11, jitter=4)


def _synthetic_scene(data_dir: Path | None, seed: int) -> _Scene:
    """A smooth random texture, and its negative in which bright and dark are scaled unlike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 26, 62, generator=generator)
    texture = interpolate(coarse, (104, 248), mode="bicubic").clamp(0, 1)[0]
    grain = 0.05 * torch.randn(2, *texture.shape, generator=generator)
    visible, infrared = (
        (band + noise).clamp(0, 1) * 255
        for band, noise in zip((texture, (1 - texture) ** 2), grain, strict=True)
    )
    return _Scene(visible.byte(), infrared.byte(), window=24, margin=4, train_columns=6, jitter=2)


_SCENES: dict[str, Callable[[Path | None, int], _Scene]] = {
    "hubble": _hubble_scene,
    "landsat": _landsat_scene,
    "synthetic": _synthetic_scene,
}


def _say(path: Path | None) -> str:
    return "None" if path is None else f"'{path.as_posix()}'"


_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


class _File(NamedTuple):
    name: str
    identity: str | None
    path: Path


def _load_folder(data_dir: Path | None, options: Options) -> DataSet:
    """Images in ``visible/<identity>/`` and ``infrared/<identity>/``, or directly in the two.

    Identities are the names of the sub-folders of both, sorted and numbered together. Test images
    lie in ``test/visible`` and ``test/infrared``; without a folder ``test`` the last half of the
    identities is held out. Without identities there is no test set.
    """
    if data_dir is None or not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir must be a directory, got {_say(data_dir)}")
    train, test = _list_sides(data_dir), None
    if (data_dir / "test").is_dir():
        test = _list_sides(data_dir / "test")
        if not _known(*test):
            raise ValueError(
                f"data_dir must hold a folder for each identity in test, got {_say(data_dir)} "
                "with images alone"
            )
    elif _known(*train):
        people = sorted({str(file.identity) for side in train for file in side})
        kept = set(people[: (len(people) + 1) // 2])
        test = tuple([file for file in side if file.identity not in kept] for side in train)
        train = tuple([file for file in side if file.identity in kept] for side in train)
    sides = (*train, *reversed(test)) if test and all(test) else train
    found = {file.identity for side in sides for file in side if file.identity is not None}
    numbers = {identity: number for number, identity in enumerate(sorted(found))}
    read = [_read(side, numbers, options) for side in sides]
    query, gallery = read[2:] or (None, None)
    return DataSet(read[0], read[1], query, gallery, "plain", "folder")


def _known(*sides: list[_File]) -> bool:
    return all(file.identity is not None for side in sides for file in side)


def _list_sides(root: Path) -> tuple[list[_File], ...]:
    """The images of both modalities by name, and of whom each is."""
    return tuple(_list_side(root, side) for side in ("visible", "infrared"))


def _list_side(root: Path, side: str) -> list[_File]:
    folder = root / side
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir must hold visible and infrared, got {_say(root)} without {side}"
        )
    files = []
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden:
            identity = name.parts[0] if len(name.parts) > 1 else None
            files.append(_File(name.as_posix(), identity, path))
    if len({file.identity is None for file in files}) != 1:
        seen = "both" if files else "no image"
        raise ValueError(
            f"data_dir must hold images in {side}, all of them in folders of identities or none, "
            f"got {seen} in {_say(folder)}"
        )
    return sorted(files)


def _read(files: list[_File], numbers: dict[str, int], options: Options) -> Images:
    pixels = torch.empty(len(files), 3, options.height, options.width, dtype=torch.uint8)
    for row, file in enumerate(files):
        pixels[row] = _read_image(file.path, options.height, options.width)
    identities = None
    if _known(files):
        identities = torch.tensor([numbers[str(file.identity)] for file in files])
    cameras = torch.zeros(len(files), dtype=torch.int64)
    return Images(pixels, identities, cameras, tuple(file.name for file in files))


def _read_image(path: Path, height: int, width: int) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"8 bits a channel are needed, its mode is {image.mode}")
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"data_dir must hold readable images, got {_say(path)}: {error}"
        ) from error
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


DATA_SETS: dict[str, Callable[[Path | None, Options], DataSet]] = {
    **{name: partial(_load_scene, name) for name in _SCENES},
    "folder": _load_folder,
}


def synthetic_features(
    n_identities: int,
    *,
    instances: int = 8,
    dim: int = 64,
    modality_gap: float = 0.5,
    cameras: int = 2,
    camera_shift: float = 0.2,
    modes: int = 3,
    mode_spread: float = 0.5,
    noise: float = 0.3,
    absent: float = 0.0,
    seed: int = 0,
) -> tuple[
    Float[Tensor, "n_visible dim"],
    Float[Tensor, "n_infrared dim"],
    Int[Tensor, "n_visible"],
    Int[Tensor, "n_infrared"],
]:
    r"""Draw features of two modalities whose truth is known.

    A row is the normalised sum of the centre of its identity (norm 1), one of the pose modes of
    the identity, which both modalities share, the shift of its camera, the offset of its modality
    and noise. Each term is Gaussian with the expected norm of its argument. The rows are ordered
    by identity; instance :math:`i` of an identity is seen by camera :math:`i` modulo ``cameras``.

    Args:
        n_identities: How many identities there are.
        instances: Rows of each identity in each modality.
        dim: Width of the rows.
        modality_gap: Norm of the offset between the modalities.
        cameras: Cameras of each modality; no camera sees both.
        camera_shift: Norm of the offset of each camera.
        modes: Poses of each identity; each row shows one at random.
        mode_spread: Norm of the offset of each pose.
        noise: Norm of what no row shares with another.
        absent: Share of the identities that lack one modality, in turn the infrared and the
            visible one.
        seed: Decides all draws.

    Returns:
        Visible and infrared features as unit rows, then the identities of both.

    Raises:
        ValueError: If a count is below 1 or ``absent`` is no share.

    Example:
        >>> visible, infrared, visible_identities, infrared_identities = synthetic_features(
        ...     3, instances=2, absent=0.5)
        >>> visible_identities.tolist(), infrared_identities.tolist()
        ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2])
    """
    counts = {
        "n_identities": n_identities,
        "instances": instances,
        "dim": dim,
        "cameras": cameras,
        "modes": modes,
    }
    for name, count in counts.items():
        check_count(name, count)
    check_number("absent", absent, 0, 1)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, norm: float) -> Tensor:
        return torch.randn(*shape, dim, generator=generator) * (norm / math.sqrt(dim))

    centres = normal(n_identities, 1, norm=1.0)
    poses = centres + normal(n_identities, modes, norm=mode_spread)
    lonely = torch.randperm(n_identities, generator=generator)[: int(absent * n_identities)]
    sides = []
    for side in range(2):
        present = torch.ones(n_identities, dtype=torch.bool)
        present[lonely[1 - side :: 2]] = False
        identities = present.nonzero()[:, 0].repeat_interleave(instances)
        n = len(identities)
        pose = torch.randint(modes, (n,), generator=generator)
        camera = torch.arange(n) % instances % cameras
        rows = poses[identities, pose] + normal(n, norm=noise)
        rows = rows + normal(1, norm=modality_gap) + normal(cameras, norm=camera_shift)[camera]
        sides.append((normalize(rows, dim=1), identities))
    (visible, visible_identities), (infrared, infrared_identities) = sides
    return visible, infrared, visible_identities, infrared_identities
