"""One picture after another: who stands where before which camera, and what stands between."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from mmmlib.reference.people._body import pose
from mmmlib.reference.people._cameras import CAMERAS, MARGIN, WIDTHS, draw_scene, expose
from mmmlib.reference.people._raster import View, draw
from mmmlib.reference.people._wardrobe import Crowd, Person, draw_crowd

__all__ = ["Rows", "Shots", "render"]

Array = NDArray[Any]

# The first number after the seed says what a random stream is for.
PERSON, PASSER, PLACE, SHOT = range(4)
PASSERS = 24
CHUNK = 32  # pictures at once


class Rows(NamedTuple):
    """What is to be rendered: identity, camera and number of each picture."""

    identity: Array
    camera: Array
    number: Array


class Shots(NamedTuple):
    """Pictures and what is known about them.

    Attributes:
        pixels: (n, height, width, 3), uint8.
        yaw: Degrees.
        phase: Of the step, in [0, 1).
        hidden: Share of the person in the picture that something else covers.
    """

    pixels: Array
    yaw: Array
    phase: Array
    hidden: Array


class _Draws(NamedTuple):
    """Uniform numbers in [0, 1), the chance in each picture; each used for one thing."""

    yaw: Array
    phase: Array
    pace: Array
    pitch: Array
    roll: Array
    zoom: Array
    right: Array
    down: Array
    cut: Array
    cut_size: Array
    light_x: Array
    light_y: Array
    ambient: Array
    fold: Array
    fold_phase: Array
    exposure: Array
    colour: Array
    blur: Array
    motion: Array
    crop_x: Array
    crop_y: Array
    passes: Array
    passer: Array
    passer_yaw: Array
    passer_phase: Array
    passer_x: Array
    passer_near: Array
    stands: Array
    thing_kind: Array
    thing_x: Array
    thing_size: Array
    thing_red: Array
    thing_green: Array
    thing_blue: Array
    thing_infrared: Array


def render(
    rows: Rows, seed: int, size: tuple[int, int], yaw: float | None, occlusion: float
) -> Shots:
    """Render the pictures of all rows, each from its own random stream."""
    people, index = np.unique(rows.identity, return_inverse=True)
    crowd = draw_crowd([[seed, PERSON, int(each)] for each in people])
    passers = draw_crowd([[seed, PASSER, each] for each in range(PASSERS)])
    scenes = _draw_scenes(seed, set(rows.camera.tolist()), size)
    shots = []
    for start in range(0, len(rows.identity), CHUNK):
        part = slice(start, start + CHUNK)
        some = Rows(*(column[part] for column in rows))
        chance, grain = _draw_chance(seed, some, size)
        turn = _turn(chance.yaw) if yaw is None else np.full(len(some.camera), yaw / 360 % 1)
        chance = chance._replace(yaw=turn)
        shots.append(
            _shoot(some, chance, grain, (crowd, index[part]), passers, scenes, size, occlusion)
        )
    if not shots:
        return Shots(np.empty((0, *size, 3), np.uint8), *np.empty((3, 0)))
    return Shots(*(np.concatenate(each) for each in zip(*shots, strict=True)))


def _draw_scenes(seed: int, cameras: set[int], size: tuple[int, int]) -> dict[int, Array]:
    """What stands behind, by camera."""
    places = {number: CAMERAS[number] for number in sorted(cameras)}
    return {
        number: draw_scene([seed, PLACE, camera.place], camera.outdoor, *size)
        for number, camera in places.items()
    }


def _draw_chance(seed: int, rows: Rows, size: tuple[int, int]) -> tuple[_Draws, Array]:
    """The numbers of each picture, and its grain, from a stream of its own."""
    uniform = np.empty((len(rows.identity), len(_Draws._fields)))
    grain = np.empty((len(rows.identity), *size, 3), np.float32)
    for row, key in enumerate(zip(*(column.tolist() for column in rows), strict=True)):
        rng = np.random.default_rng([seed, SHOT, *key])
        uniform[row] = rng.random(uniform.shape[1])
        rng.standard_normal(dtype=np.float32, out=grain[row])
    return _Draws(*uniform.T), grain


def _normal(uniform: Array) -> Array:
    return np.clip(ndtri(uniform), -2.5, 2.5)  # type: ignore[no-any-return]


def _pick(crowd: Crowd, index: Array, cameras: Array) -> tuple[Person, Array, Array]:
    """Measures, textures and what materials reflect in the light of a camera."""
    albedo = crowd.albedo[index]
    albedo = np.where(_is_infrared(cameras)[:, None, None], albedo[..., 3:], albedo[..., :3])
    return Person(*(each[index] for each in crowd.people)), crowd.atlas[index], albedo


def _shoot(
    rows: Rows,
    chance: _Draws,
    grain: Array,
    who: tuple[Crowd, Array],
    passers: Crowd,
    scenes: dict[int, Array],
    size: tuple[int, int],
    occlusion: float,
) -> Shots:
    person, atlas, albedo = _pick(*who, rows.camera)
    view = _stand(rows, chance, person, size)
    light, folds = _light(rows, chance)
    body = pose(person, chance.phase, _pace(chance.pace))
    layer = draw(body, view, atlas, albedo, light, folds, size)
    picture = _behind(rows, chance, scenes, size)
    _cast_shadow(picture, view, person)

    passing = np.flatnonzero(chance.passes < 0.8 * occlusion)
    passer = _draw_passer(passing, rows, chance, passers, view, size)
    far = chance.passer_near[passing] < 0.4
    _lay(picture, passing[far], passer[far])
    shown = _lay(picture, np.arange(len(picture)), layer)
    before = shown.copy()
    shown[passing[~far]] *= 1 - _lay(picture, passing[~far], passer[~far])
    thing = np.flatnonzero(chance.stands < 0.5 * occlusion)
    shown[thing] *= 1 - _lay(picture, thing, _draw_thing(thing, rows, chance, size))

    hidden = 1 - shown.sum(axis=(1, 2)) / np.maximum(before.sum(axis=(1, 2)), 1e-6)
    camera = np.stack([chance.exposure, chance.colour, chance.blur, chance.motion], axis=1)
    pixels = expose(picture, rows.camera, _normal(camera), grain)
    return Shots(pixels, 360 * chance.yaw, chance.phase, hidden)


def _lay(picture: Array, images: Array, layer: Array) -> Array:
    """Lay a layer over some pictures; returns its coverage."""
    cover = layer[..., 3:]
    picture[images] = picture[images] * (1 - cover) + layer[..., :3]
    return cover[..., 0].copy()


def _pace(uniform: Array) -> Array:
    """Some stand, most walk."""
    return np.where(uniform < 0.2, 0.3, 0.8 + 0.2 * uniform)


def _turn(uniform: Array) -> Array:
    """Most persons are seen from the front, the back or a side, within some degrees."""
    edges = np.array([0, 0.36, 0.5, 0.86, 1])
    side = np.searchsorted(edges, uniform, "right") - 1
    within = (uniform - edges[side]) / (edges[side + 1] - edges[side])
    return (side / 4 + 0.035 * _normal(within)) % 1


def _is_infrared(cameras: Array) -> Array:
    return np.isin(cameras, [number for number, camera in CAMERAS.items() if camera.infrared])


def _column(cameras: Array, name: str) -> Array:
    return np.array([getattr(CAMERAS[number], name) for number in cameras.tolist()])


def _stand(rows: Rows, chance: _Draws, person: Person, size: tuple[int, int]) -> View:
    """Where persons stand in the frame that a detector drew, now and then a wrong one."""
    height, width = size
    pitch = np.radians(_column(rows.camera, "pitch") + 2 * _normal(chance.pitch))
    tall = 0.45 * 1.70 + 0.55 * person.height
    zoom = 0.90 * height / tall * np.exp(0.012 * _normal(chance.zoom))
    cut = np.where(chance.cut < 0.06, 0.12 + 0.2 * chance.cut_size, 0)  # the legs are cut off
    zoom = zoom / (1 - cut)
    feet = height * (0.965 + 0.006 * _normal(chance.down) + 0.95 * cut / (1 - cut))
    column = width * (0.5 + 0.01 * _normal(chance.right))
    roll = np.radians(0.7) * _normal(chance.roll)
    return View(2 * np.pi * chance.yaw, pitch, roll, zoom, column, feet)


def _light(rows: Rows, chance: _Draws) -> tuple[Array, Array]:
    """Direction and share of the light that comes from everywhere; folds of the clothes."""
    light = _column(rows.camera, "light")
    light = light + 0.25 * np.stack(
        [_normal(chance.light_x), _normal(chance.light_y), np.zeros(len(light))], axis=1
    )
    light /= np.linalg.norm(light, axis=1, keepdims=True)
    ambient = _column(rows.camera, "ambient") + 0.06 * _normal(chance.ambient)
    folds = np.stack([0.10 * chance.fold, 2 * np.pi * chance.fold_phase], axis=1)
    return np.column_stack([light, np.clip(ambient, 0, 0.9)]), folds


def _behind(rows: Rows, chance: _Draws, scenes: dict[int, Array], size: tuple[int, int]) -> Array:
    """A piece of the place of each camera."""
    height, width = size
    picture = np.empty((len(rows.camera), height, width, 3), np.float32)
    left = (chance.crop_x * (WIDTHS - 1) * width).astype(int)
    top = (chance.crop_y * 2 * round(MARGIN * height)).astype(int)
    for i, camera in enumerate(rows.camera.tolist()):
        piece = scenes[camera][top[i] : top[i] + height, left[i] : left[i] + width]
        picture[i] = piece[..., 3:] if CAMERAS[camera].infrared else piece[..., :3]
    return picture


def _cast_shadow(picture: Array, view: View, person: Person) -> None:
    """Darken the floor under the feet."""
    _, height, width, _ = picture.shape
    row, column = np.arange(height) + 0.5, np.arange(width) + 0.5
    reach = view.scale * 0.28 * person.girth**0.5
    x = (column - view.column[:, None]) / reach[:, None]
    y = (row - view.row[:, None] + 0.01 * height) / (0.3 * reach[:, None])
    dark = 0.55 * np.exp(-(x[:, None, :] ** 2) - y[:, :, None] ** 2)
    picture *= (1 - dark)[..., None].astype(np.float32)


def _draw_passer(
    images: Array, rows: Rows, chance: _Draws, passers: Crowd, view: View, size: tuple[int, int]
) -> Array:
    """Somebody else, beside the person, in some of the pictures."""
    if not len(images):
        return np.empty((0, *size, 4), np.float32)
    some, cameras = _Draws(*(each[images] for each in chance)), rows.camera[images]
    beside = View(*(each[images] for each in view))
    person, atlas, albedo = _pick(passers, (some.passer * PASSERS).astype(int), cameras)
    near = np.where(some.passer_near < 0.4, 0.9, 1.06)
    aside = (2 * some.passer_x - 1 + np.sign(some.passer_x - 0.5)) * 0.22 * size[1]
    aside += np.sign(aside) * 0.12 * size[1]
    beside = beside._replace(
        yaw=2 * np.pi * some.passer_yaw,
        scale=beside.scale * near,
        column=beside.column + aside,
        row=beside.row + (near - 1) * 0.5 * size[0],
    )
    part = Rows(rows.identity[images], cameras, rows.number[images])
    light, folds = _light(part, some)
    parts = pose(person, some.passer_phase, _pace(some.passer_yaw))
    return draw(parts, beside, atlas, albedo, light, folds, size)


def _draw_thing(images: Array, rows: Rows, chance: _Draws, size: tuple[int, int]) -> Array:
    """A table, a pillar or the edge of a door before the person."""
    some = _Draws(*(each[images] for each in chance))
    row, column = ((np.arange(n) + 0.5) / n for n in size)
    low = some.thing_kind < 0.55  # stands on the floor, wide; the others go from top to bottom
    top = np.where(low, 0.62 + 0.28 * some.thing_size, -1.0)
    wide = np.where(low, 0.4 + 0.9 * some.thing_size, 0.10 + 0.16 * some.thing_size)
    middle = np.where(low, some.thing_x, np.where(some.thing_x < 0.5, 0.1, 0.9) +
                      0.5 * (some.thing_x - 0.5))  # fmt: skip
    inside = abs(column - middle[:, None]) < wide[:, None] / 2
    cover = (inside[:, None, :] & (row > top[:, None])[:, :, None]).astype(np.float32)
    colour = np.stack([some.thing_red, some.thing_green, some.thing_blue], axis=1)
    infrared = _is_infrared(rows.camera[images])[:, None]
    colour = np.where(infrared, some.thing_infrared[:, None], 0.25 * colour + 0.1)
    shade = (1.1 - 0.35 * row[:, None] + 0 * column)[..., None]
    layer = (colour[:, None, None, :] * shade * cover[..., None]).astype(np.float32)
    return np.concatenate([layer, cover[..., None]], axis=3)
