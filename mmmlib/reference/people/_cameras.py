"""Six cameras: where they stand, what they see behind a person, and what they make of light."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

__all__ = ["CAMERAS", "MARGIN", "WIDTHS", "Camera", "draw_scene", "expose"]

Array = NDArray[Any]

MARGIN = 0.06  # how far a scene goes beyond a picture above and below, in heights
WIDTHS = 6  # how many pictures wide a scene is
ALIKE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Camera(NamedTuple):
    """A camera; cameras of one place see the same walls.

    Attributes:
        infrared: Near infrared, grey, with a lamp of its own.
        place: Where it stands.
        outdoor: Whether that is outside.
        pitch: How far it looks down, degrees.
        response: What red, green and blue light gives in each channel.
        gain: White balance.
        exposure: 1 shows reflectance as it is.
        gamma: Exponent from light to grey value.
        black: Grey value of no light.
        blur: Width of the lens blur, in hundredths of the height.
        noise: Grain where the picture is grey, in grey values of 1.
        light: Where the light comes from in the picture: right, down, from the camera.
        ambient: Share of the light that comes from everywhere.
        fall: How much darker the corners are.
    """

    infrared: bool
    place: int
    outdoor: bool
    pitch: float
    response: tuple[tuple[float, float, float], ...]
    gain: tuple[float, float, float]
    exposure: float
    gamma: float
    black: float
    blur: float
    noise: float
    light: tuple[float, float, float]
    ambient: float
    fall: float


CAMERAS: dict[int, Camera] = {
    1: Camera(False, 1, False, 14, ((0.90, 0.10, 0.00), (0.05, 0.90, 0.05), (0.02, 0.08, 0.90)),
              (1.15, 1.00, 0.82), 1.10, 0.46, 0.02, 0.40, 0.010, (-0.5, -0.3, 0.8), 0.50, 0.15),
    2: Camera(False, 2, False, 8, ((0.75, 0.20, 0.05), (0.15, 0.75, 0.10), (0.08, 0.20, 0.72)),
              (0.90, 1.04, 1.00), 0.95, 0.48, 0.06, 0.60, 0.014, (0.6, -0.4, 0.7), 0.55, 0.25),
    3: Camera(True, 2, False, 8, ALIKE, (1.0, 1.0, 1.0), 0.95, 0.56, 0.02, 0.60, 0.016,
              (0.0, -0.1, 1.0), 0.15, 0.45),
    4: Camera(False, 3, True, 11, ((1.15, -0.1, -0.05), (-0.08, 1.16, -0.08), (-0.04, -0.12, 1.16)),
              (0.98, 1.00, 1.10), 1.25, 0.42, 0.00, 0.40, 0.010, (0.8, -0.4, 0.4), 0.35, 0.05),
    5: Camera(False, 4, True, 5, ((0.80, 0.15, 0.05), (0.10, 0.82, 0.08), (0.05, 0.15, 0.80)),
              (0.86, 0.96, 1.22), 0.85, 0.52, 0.05, 0.70, 0.018, (-0.7, -0.3, 0.6), 0.60, 0.10),
    6: Camera(True, 5, True, 6, ALIKE, (1.0, 1.0, 1.0), 0.95, 0.54, 0.04, 0.50, 0.020,
              (0.35, -0.2, 0.9), 0.30, 0.30),
}  # fmt: skip


def draw_scene(key: list[int], outdoor: bool, height: int, width: int) -> Array:
    """Draw the place behind persons: a floor, a wall and what stands before it.

    Args:
        key: Decides everything.
        outdoor: Bushes instead of posters.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.

    Returns:
        Red, green, blue and infrared reflectance, wider and higher than a picture.
    """
    rng = np.random.default_rng(key)
    margin = round(MARGIN * height)
    row = (np.arange(-margin, height + margin)[:, None] + 0.5) / height
    column = (np.arange(WIDTHS * width)[None, :] + 0.5) / height
    edge = rng.uniform(0.62, 0.76)
    wall, floor = (_draw_stuff(rng, 0.25, 0.65) for _ in range(2))
    scene = np.where((row < edge)[..., None], wall, floor) * np.ones((*column.shape[1:], 1))
    depth = np.maximum(row - edge, 0)
    tiles = (depth * rng.uniform(8, 14) % 1 < 0.12) | (
        (column - 1.5) / (0.4 + depth) * 3 % 1 < 0.05
    )
    scene *= np.where((row > edge) & tiles, rng.uniform(0.7, 0.95), 1)[..., None]
    _furnish(rng, scene, row, column, edge)
    if outdoor:
        _grow(rng, scene, row - edge)
    light = 0.8 + 0.4 * _cloud(rng, 5, scene.shape[:2])
    grain = 0.95 + 0.1 * _cloud(rng, 60, scene.shape[:2])
    return (scene * (light * grain)[..., None]).astype(np.float32)


def _grow(rng: np.random.Generator, scene: Array, below: Array) -> None:
    """Bushes before the wall: dark green, and bright in the infrared."""
    size = scene.shape[:2]
    where = 0.7 * _cloud(rng, 8, size) + 0.3 * _cloud(rng, 30, size) + 0.5 * below
    leaves = np.array([0.08, 0.13, 0.06, 0.40]) * rng.uniform(0.8, 1.2)
    speckled = leaves * (0.8 + 0.4 * _cloud(rng, 50, size))[..., None]
    share = np.clip((where - 0.42) * 8, 0, 1) * np.clip(1 - below * 30, 0, 1)
    scene += share[..., None] * (speckled - scene)


def _draw_stuff(rng: np.random.Generator, low: float, high: float) -> Array:
    """A dull colour, and an infrared reflectance of its own."""
    grey = rng.uniform(low, high) ** 1.5
    return np.array([*(grey * rng.uniform(0.8, 1.15, 3)), rng.uniform(0.1, 0.6)])


def _furnish(
    rng: np.random.Generator, scene: Array, row: Array, column: Array, edge: float
) -> None:
    """Doors and pillars that stand on the floor, windows and posters that do not."""
    for _ in range(3 * WIDTHS):
        left, wide = rng.uniform(0, column.max()), rng.choice([0.04, 0.1, 0.25, 0.4])
        top, tall = rng.uniform(-0.1, 0.5), rng.uniform(0.1, 0.4)
        bottom = edge + rng.uniform(0, 0.03) if rng.random() < 0.5 else min(top + tall, edge)
        inside = (row > top) & (row < bottom) & (column > left) & (column < left + wide)
        scene[inside] *= rng.uniform(0.65, 1.0)
        scene[inside] += 0.15 * _draw_stuff(rng, 0.1, 0.8)


def _cloud(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Array:
    """Smooth noise in [0, 1]; the same at any size."""
    coarse = rng.random((cells, 3 * cells))
    factors = (size[0] / coarse.shape[0], size[1] / coarse.shape[1])
    return np.asarray(zoom(coarse, factors, order=1, grid_mode=True, mode="nearest"))


def expose(light: Array, cameras: Array, draws: Array, grain: Array) -> Array:
    """Make pictures of light.

    Args:
        light: What arrives, (n, height, width, 3); an infrared camera has the same in all three.
        cameras: The camera of each.
        draws: Exposure, colour, blur and motion of each, normal numbers, (n, 4).
        grain: Normal numbers of the size of the pictures; an infrared camera uses the first.

    Returns:
        Grey values, uint8.
    """
    used = [CAMERAS[number] for number in cameras.tolist()]
    height, width = light.shape[1:3]
    infrared = np.array([camera.infrared for camera in used])

    def column(name: str) -> Array:
        return np.array([getattr(each, name) for each in used], np.float32)[:, None, None, None]

    exposure, colour, blur, motion = draws.astype(np.float32).T
    warm = 0.05 * colour[:, None] * np.array([1, 0, -1], np.float32) * ~infrared[:, None]
    gain = np.array([camera.gain for camera in used], np.float32) * (1 + warm)
    response = np.array([camera.response for camera in used], np.float32)
    matrix = response.transpose(0, 2, 1) * gain[:, None, :]
    matrix *= np.exp(0.16 * exposure)[:, None, None]

    picture = (light.reshape(len(used), -1, 3) @ matrix).reshape(light.shape)
    picture *= column("exposure") * _corners(height, width) ** column("fall")
    sigma = column("blur")[:, 0, 0, 0] / 100 * height * np.exp(0.25 * blur)
    picture = _blurred(picture, sigma, 1)
    picture = _blurred(picture, np.hypot(sigma, 0.006 * height * np.maximum(motion, 0)), 2)
    picture = np.maximum(picture, 0) ** column("gamma")
    grain = np.where(infrared[:, None, None, None], grain[..., :1], grain)
    picture = column("black") + (1 - column("black")) * picture
    picture += grain * (column("noise") * (0.5 + 0.5 * picture))
    return np.asarray(np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _corners(height: int, width: int) -> Array:
    """1 in the middle, falling to the corners."""
    row, column = (np.linspace(-1, 1, size, dtype=np.float32) for size in (height, width))
    return (1 - 0.4 * (row[:, None] ** 2 + column**2))[..., None]


def _blurred(pictures: Array, sigma: Array, axis: int) -> Array:
    """A Gaussian of its own width for each picture, along one axis, edges repeated."""
    reach = max(1, round(0.03 * pictures.shape[1]))
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / np.maximum(sigma, 0.05)[:, None]) ** 2)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    room = [(0, 0)] * 4
    room[axis] = (reach, reach)
    padded, size = np.pad(pictures, room, mode="edge"), pictures.shape[axis]
    result = np.zeros_like(pictures)
    for step in range(2 * reach + 1):
        part = padded[:, step : step + size] if axis == 1 else padded[:, :, step : step + size]
        result += part * weights[:, step, None, None, None]
    return result
