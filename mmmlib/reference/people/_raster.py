"""Parts to pixels: a depth buffer, textures and light, for many pictures at once."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmmlib.reference.people._body import Parts
from mmmlib.reference.people._wardrobe import COLUMNS, ROWS

__all__ = ["View", "draw"]

Array = NDArray[Any]


class View(NamedTuple):
    """How each of n persons is seen, along parallel rays.

    Attributes:
        yaw: 0 faces the camera, a quarter turn shows the left side; radians.
        pitch: How far the camera looks down, radians.
        roll: How far the picture is turned, radians.
        scale: Pixels a metre.
        column: Where the axis of the body stands.
        row: Where the feet stand.
    """

    yaw: Array
    pitch: Array
    roll: Array
    scale: Array
    column: Array
    row: Array


class _Flat(NamedTuple):
    """Parts as they are seen, (n, parts) each, in pixels."""

    x: Array
    y: Array
    z: Array
    along_x: Array  # unit vector of the axis
    along_y: Array
    length: Array
    rise: Array  # of the depth, along the axis
    half: Array  # width at both ends, (n, parts, 2)
    across_z: Array  # of the depth, with the place across
    toward: Array  # of the depth, with the place on the circle
    cosine: Array  # of the azimuth in the middle of the part
    sine: Array
    cap: Array


class _Buffer(NamedTuple):
    """The nearest part of each pixel, flat."""

    depth: Array
    part: Array
    along: Array  # 0 at the start of the part, 1 at its end
    across: Array  # -1 on its left edge in the picture, 1 on its right
    toward: Array  # share of the normal that looks at the camera


def draw(
    parts: Parts,
    view: View,
    atlas: Array,
    albedo: Array,
    light: Array,
    folds: Array,
    size: tuple[int, int],
    *,
    oversample: int = 2,
) -> Array:
    """Draw persons before nothing.

    Args:
        parts: Their bodies.
        view: How they are seen, in pixels of the finished picture.
        atlas: The material of each texel, (n, surfaces, ROWS, COLUMNS).
        albedo: What each material reflects, (n, materials, 3).
        light: Direction of the light in the picture and how much comes from everywhere, (n, 4).
        folds: Depth and phase of the folds of the clothes, (n, 2).
        size: Height and width of the pictures.
        oversample: Samples of each pixel along either side.

    Returns:
        Light times coverage in three channels, then coverage, (n, height, width, 4).
    """
    n, (height, width) = len(parts.start), size
    flat = _project(parts, view, oversample)
    big = (height * oversample, width * oversample)
    buffer = _fill(flat, n, big)
    hit = np.flatnonzero(buffer.part >= 0)
    image, part = hit // (big[0] * big[1]), buffer.part[hit]
    seen = _Buffer(*(each[hit] for each in buffer))
    shade = _shade(flat, seen, image, part, light, folds)
    colour = albedo[image, _material(parts, flat, seen, image, part, atlas)]
    picture = np.zeros((n * big[0] * big[1], 4), np.float32)
    picture[hit, :3] = colour * shade[:, None]
    picture[hit, 3] = 1
    return _average(picture.reshape(n, *big, 4), oversample)


def _average(picture: Array, oversample: int) -> Array:
    """The mean of each square of samples."""
    steps = range(oversample)
    samples = [picture[:, i::oversample, j::oversample] for i in steps for j in steps]
    total = samples[0].copy()
    for sample in samples[1:]:
        total += sample
    return total / np.float32(oversample**2)


def _project(parts: Parts, view: View, oversample: int) -> _Flat:
    sin, cos = np.sin(view.yaw)[:, None], np.cos(view.yaw)[:, None]
    scale = (view.scale * oversample)[:, None]
    start, end = (_seen(ends, view, oversample) for ends in (parts.start, parts.end))
    step = end - start
    length = np.hypot(step[..., 0], step[..., 1])
    on_end = length < 1e-3  # seen along its axis: any direction will do
    length = np.maximum(length, 1e-3)
    x = np.where(on_end, 0, step[..., 0] / length)
    y = np.where(on_end, 1, step[..., 1] / length)

    wide, deep = parts.width, parts.depth
    w, d = wide.mean(axis=2), deep.mean(axis=2)
    across = np.maximum(np.hypot(w * cos, d * sin), 1e-9)
    cap = np.maximum(parts.cap, abs(np.sin(view.pitch))[:, None] * d)
    flat = {
        **dict(zip("xyz", np.moveaxis(start, 2, 0), strict=True)),
        "along_x": x,
        "along_y": y,
        "length": length,
        "rise": step[..., 2],
        "half": np.hypot(wide * cos[..., None], deep * sin[..., None]) * scale[..., None],
        "across_z": (d**2 - w**2) * sin * cos / across * scale,
        "toward": w * d / across * scale,
        "cosine": w * cos / across,
        "sine": d * sin / across,
        "cap": np.maximum(cap * scale, 1e-6),
    }
    return _Flat(**{name: each.astype(np.float32) for name, each in flat.items()})


def _seen(points: Array, view: View, oversample: int) -> Array:
    """Column, row and nearness of points, in samples."""
    x, y, z = np.moveaxis(points, 2, 0)
    sin, cos = (turn(view.yaw)[:, None] for turn in (np.sin, np.cos))
    x, z = x * cos + z * sin, z * cos - x * sin
    sin, cos = (turn(view.pitch)[:, None] for turn in (np.sin, np.cos))
    y, z = y * cos - z * sin, y * sin + z * cos
    sin, cos = (turn(view.roll)[:, None] for turn in (np.sin, np.cos))
    x, y = x * cos - y * sin, x * sin + y * cos
    scale = view.scale[:, None]
    column, row = view.column[:, None] + x * scale, view.row[:, None] - y * scale
    return np.stack([column, row, z * scale], axis=2) * oversample


def _fill(flat: _Flat, n: int, size: tuple[int, int]) -> _Buffer:
    pixels = n * size[0] * size[1]
    depth, part = np.full(pixels, -np.inf, np.float32), np.full(pixels, -1, np.int8)
    buffer = _Buffer(depth, part, *(np.empty(pixels, np.float32) for _ in range(3)))
    for number in range(flat.x.shape[1]):
        images = np.flatnonzero(flat.half[:, number].max(axis=1) > 0)
        if len(images):
            _add(buffer, number, images, _Flat(*(each[images, number] for each in flat)), size)
    return buffer


def _box(one: _Flat, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that a part may touch in any picture."""
    reach = one.half.max(axis=1) + one.cap
    found = []
    for at, step, limit in ((one.y, one.along_y, size[0]), (one.x, one.along_x, size[1])):
        far = at + step * one.length
        low, high = (np.minimum(at, far) - reach).min(), (np.maximum(at, far) + reach).max()
        found.append(slice(*(int(np.clip(edge, 0, limit)) for edge in (low, high + 1))))
    return found[0], found[1]


def _add(buffer: _Buffer, number: int, images: Array, one: _Flat, size: tuple[int, int]) -> None:
    """Draw one part of some pictures where it is nearer than what is there."""
    rows, columns = _box(one, size)
    ux, uy = one.along_x[:, None, None], one.along_y[:, None, None]
    flip = np.where(uy < 0, np.float32(-1), np.float32(1))  # across points to the right
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) - one.x[:, None]
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) - one.y[:, None]
    x, y = x[:, None, :], y[:, :, None]
    length, cap = one.length[:, None, None], one.cap[:, None, None]
    along = (x * ux + y * uy) / length
    inner = np.clip(along, 0, 1)
    beyond = (along - inner) * (length / cap)
    first, last = one.half[:, 0, None, None], one.half[:, 1, None, None]
    across = (x * (uy * flip) - y * (ux * flip)) / (first + (last - first) * inner)
    square = 1 - across * across - beyond * beyond

    image, row, column = np.nonzero(square > 0)
    toward = np.sqrt(square[image, row, column])
    across, inner = across[image, row, column], inner[image, row, column]
    depth = one.z[image] + one.rise[image] * inner
    depth += one.across_z[image] * across + one.toward[image] * toward
    pixel = (images[image] * size[0] + row + rows.start) * size[1] + column + columns.start
    near = depth > buffer.depth[pixel]
    pixel = pixel[near]
    buffer.depth[pixel], buffer.part[pixel] = depth[near], number
    for values, target in zip((inner, across, toward), buffer[2:], strict=True):
        target[pixel] = values[near]


def _material(
    parts: Parts, flat: _Flat, seen: _Buffer, image: Array, part: Array, atlas: Array
) -> Array:
    """What each pixel is made of: the texture at its place on the body."""
    cosine, sine = flat.cosine[image, part], flat.sine[image, part]
    left = cosine * seen.across - sine * seen.toward
    front = sine * seen.across + cosine * seen.toward > 0
    start, end = parts.rows[part].T
    row = ((start + (end - start) * seen.along) * (ROWS - 1e-3)).astype(np.intp)
    column = ((left + 1) * (COLUMNS / 4 - 1e-3)).astype(np.intp) + front * (COLUMNS // 2)
    material: Array = atlas[image, parts.surface[part], row, np.clip(column, 0, COLUMNS - 1)]
    return material


def _shade(
    flat: _Flat, seen: _Buffer, image: Array, part: Array, light: Array, folds: Array
) -> Array:
    """How much light each pixel sends back, as a share of its albedo."""
    x, y, z, ambient = light[image].T
    ux, uy = flat.along_x[image, part], flat.along_y[image, part]
    side = np.where(uy < 0, -seen.across, seen.across)
    lit = x * uy * side - y * ux * side + z * seen.toward
    lit = ambient + (1 - ambient) * np.maximum(lit, 0)
    amount, phase = folds[image].T
    wave = np.sin(phase + 9 * seen.along + (3 + part % 3) * seen.across + 2.4 * part)
    shade: Array = lit * (1 + amount * wave)
    return shade.astype(np.float32)
