"""Pictures whose bands are two modalities.

The windows of a scene are the identities, and jittered, mirrored crops of a window are the images
of it, drawn independently in each modality: a patch has to be found again in the other spectrum.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from mmmlib._check import check_choice, check_count, check_number
from mmmlib.reference.data._files import say
from mmmlib.reference.data._table import DataSet, Images, Options


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
    check_choice("name", name, tuple(SCENES))
    scene = SCENES[name](None if data_dir is None else Path(data_dir), seed)
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


def load_scene(name: str, data_dir: Path | None, options: Options) -> DataSet:
    """The left columns of windows for training, the right ones for the test."""
    scene = SCENES[name](data_dir, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    visible, infrared = _both(scene, options, generator, (0, scene.train_columns))
    gallery, query = _both(scene, options, generator, (scene.train_columns, scene.columns()))
    bands = len(scene.infrared) > 1
    return DataSet(visible, infrared, query, gallery, "plain", name, bands)


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
        raise FileNotFoundError(f"data_dir must be a TIFF file, got {say(data_dir)}")
    try:
        bands = torch.from_numpy(imread(data_dir))
    except (TiffFileError, TypeError) as error:
        raise ValueError(f"data_dir must be a TIFF file, got {say(data_dir)}: {error}") from error
    if bands.ndim == 3 and bands.shape[-1] == 6:
        bands = bands.permute(2, 0, 1)
    if bands.ndim != 3 or len(bands) != 6 or bands.dtype != torch.uint8:
        raise ValueError(
            f"data_dir must hold 6 bands of uint8, got {bands.dtype} of shape "
            f"{tuple(bands.shape)} in {say(data_dir)}"
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


SCENES: dict[str, Callable[[Path | None, int], _Scene]] = {
    "hubble": _hubble_scene,
    "landsat": _landsat_scene,
    "synthetic": _synthetic_scene,
}
