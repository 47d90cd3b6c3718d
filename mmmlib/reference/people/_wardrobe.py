"""Who is drawn: the measures, clothes, prints and materials of a person, from a seed alone."""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "ROWS", "Crowd", "Material", "Person", "Surface", "draw_crowd"]

Array = NDArray[Any]
Generator = np.random.Generator

ROWS, COLUMNS = 24, 32  # texels of a surface: from above down; the back, then the front


class Material(IntEnum):
    """What a texel is made of; each has a colour and an infrared reflectance of its own."""

    SKIN = 0
    HAIR = 1
    UPPER = 2
    FRONT = 3
    BACK = 4
    INNER = 5
    LOWER = 6
    TRIM = 7
    SHOES = 8
    BAG = 9
    ACCENT = 10
    WEAVE = 11


class Surface(IntEnum):
    """What is wrapped in one texture; several parts of the body may share it."""

    TORSO = 0
    ARM = 1
    LEG = 2
    HEAD = 3
    SKIRT = 4
    HAIR = 5
    HAT = 6
    SHOE = 7
    BAG = 8
    NECK = 9
    HAND = 10
    HOOD = 11


PLAIN = {
    Surface.ARM: Material.SKIN, Surface.LEG: Material.LOWER, Surface.HEAD: Material.SKIN,
    Surface.SKIRT: Material.LOWER, Surface.HAIR: Material.HAIR, Surface.HAT: Material.ACCENT,
    Surface.SHOE: Material.SHOES, Surface.BAG: Material.BAG, Surface.NECK: Material.SKIN,
    Surface.HAND: Material.SKIN, Surface.HOOD: Material.UPPER, Surface.TORSO: Material.UPPER,
}  # fmt: skip


class Person(NamedTuple):
    """Measures of a body and its clothes: numbers of one person, or an array of many.

    Lengths are shares of the height unless said otherwise; 0 means that a thing is absent.

    Attributes:
        height: In metres.
        girth: 1 is usual.
        shoulders: Their width; 1 is usual.
        hips: Their width; 1 is usual.
        legs: Their length; 1 is usual.
        head: Its size; 1 is usual.
        stoop: How far the body leans forward.
        stride: Angle of the thigh at its farthest, radians.
        swing: Angle of the arm at its farthest, radians.
        elbow: How far it is bent, radians.
        spread: Angle of the arms away from the body, radians.
        loose: How far the upper garment stands away.
        hem: Where the upper garment ends above the ground.
        flare: Width of its hem, 1 is straight.
        hood: Size of a hood on the back.
        scarf: Thickness of a scarf.
        thigh: Width of the trousers above; 1 is usual.
        cuff: Their width below.
        skirt: Where a skirt ends above the ground.
        hair: How far the hair stands away.
        long: How far it falls.
        bun: Its radius.
        hat: Its thickness.
        brim: Length of its brim.
        backpack: Its size.
        satchel: The size of a bag at the hip.
        handbag: The size of a bag in the hand.
        side: The side of the latter two, 1 or -1.
    """

    height: Any
    girth: Any
    shoulders: Any
    hips: Any
    legs: Any
    head: Any
    stoop: Any
    stride: Any
    swing: Any
    elbow: Any
    spread: Any
    loose: Any
    hem: Any
    flare: Any
    hood: Any
    scarf: Any
    thigh: Any
    cuff: Any
    skirt: Any
    hair: Any
    long: Any
    bun: Any
    hat: Any
    brim: Any
    backpack: Any
    satchel: Any
    handbag: Any
    side: Any


class Crowd(NamedTuple):
    """Many persons.

    Attributes:
        people: Their measures, an array each.
        atlas: The material of each texel, (people, surfaces, ROWS, COLUMNS).
        albedo: Red, green, blue and infrared reflectance, (people, materials, 4).
    """

    people: Person
    atlas: Array
    albedo: Array


def draw_crowd(keys: list[list[int]]) -> Crowd:
    """Draw the person of each key; equal keys are the same person."""
    drawn = [_draw_person(np.random.default_rng(key)) for key in keys]
    people, atlas, albedo = zip(*drawn, strict=True)
    measures = Person(*(np.array(column) for column in zip(*people, strict=True)))
    return Crowd(measures, np.stack(atlas), np.stack(albedo))


def _draw_person(rng: Generator) -> tuple[Person, Array, Array]:
    top, sleeve = _draw_top(rng)
    bottom, leg = _draw_bottom(rng)
    head, bags = _draw_head(rng), _draw_bags(rng)
    person = Person(**_draw_body(rng), **top, **bottom, **head, **bags)
    atlas = np.empty((len(Surface), ROWS, COLUMNS), np.uint8)
    for surface, material in PLAIN.items():
        atlas[surface] = material
    weave = _draw_weave(rng, 0.15)
    for surface in (Surface.TORSO, Surface.HOOD):
        atlas[surface][weave] = Material.WEAVE
    _paint_torso(rng, atlas[Surface.TORSO], person)
    _paint_arms(rng, atlas[Surface.ARM], sleeve, weave)
    _paint_legs(rng, atlas, leg)
    _paint_head(rng, atlas[Surface.HEAD], person)
    if person.scarf:
        atlas[Surface.NECK] = Material.ACCENT
    if person.backpack or person.satchel:
        atlas[Surface.BAG, ROWS // 2 : -3, 3:13] = Material.ACCENT  # a pocket
    return person, atlas, _draw_albedo(rng)


def _chance(rng: Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _near(rng: Generator, middle: float, spread: float) -> float:
    """A normal number, at most two and a half spreads from the middle."""
    return middle + spread * float(np.clip(rng.standard_normal(), -2.5, 2.5))


def _some(rng: Generator, probability: float, low: float, high: float) -> float:
    """0, or with that probability a number from the interval."""
    there, value = _chance(rng, probability), float(rng.uniform(low, high))
    return value if there else 0.0


def _draw_body(rng: Generator) -> dict[str, float]:
    return {
        "height": _near(rng, 1.70, 0.09),
        "girth": float(np.exp(_near(rng, 0.03, 0.20))),
        "shoulders": _near(rng, 1.0, 0.09),
        "hips": _near(rng, 1.0, 0.11),
        "legs": _near(rng, 1.0, 0.045),
        "head": _near(rng, 1.0, 0.05),
        "stoop": _near(rng, 0.05, 0.06),
        "stride": _near(rng, 0.29, 0.06),
        "swing": _near(rng, 0.28, 0.10),
        "elbow": abs(_near(rng, 0.3, 0.2)),
        "spread": abs(_near(rng, 0.14, 0.06)),
    }


TOPS = {  # looseness, hem, flare, hood, sleeve, probability
    "t-shirt": (0.006, 0.47, 1.02, 0.0, 0.40, 0.24),
    "vest": (0.003, 0.48, 1.00, 0.0, 0.00, 0.06),
    "shirt": (0.007, 0.46, 1.05, 0.0, 0.97, 0.20),
    "hoodie": (0.014, 0.47, 0.97, 1.0, 0.97, 0.18),
    "jacket": (0.018, 0.45, 1.00, 0.0, 0.97, 0.16),
    "coat": (0.020, 0.33, 1.22, 0.0, 0.97, 0.16),
}


def _draw_top(rng: Generator) -> tuple[dict[str, float], float]:
    """Measures of the upper garment, and the share of the arm that it covers."""
    rows = np.array(list(TOPS.values()))
    loose, hem, flare, hood, sleeve, _ = rows[rng.choice(len(rows), p=rows[:, -1])].tolist()
    measures = {
        "loose": loose * rng.uniform(0.7, 1.4),
        "hem": hem + rng.uniform(-0.03, 0.03),
        "flare": flare * rng.uniform(0.95, 1.08),
        "hood": hood * rng.uniform(0.8, 1.2),
        "scarf": _some(rng, 0.12, 0.012, 0.024),
    }
    return measures, sleeve * float(rng.uniform(0.85, 1.03))


def _draw_bottom(rng: Generator) -> tuple[dict[str, float], float]:
    """Measures of the lower garment, and the share of the leg that it covers."""
    kind = rng.choice(["trousers", "shorts", "skirt"], p=[0.64, 0.18, 0.18])
    wide = rng.uniform(0.92, 1.30)
    skirt = rng.uniform(0.16, 0.36) if kind == "skirt" else 0.0
    measures = {
        "thigh": wide if kind != "skirt" else 0.92,
        "cuff": rng.uniform(0.85, 1.9) if kind == "trousers" else 0.85,
        "skirt": skirt,
    }
    length = {"trousers": 1.0, "shorts": rng.uniform(0.30, 0.55), "skirt": 0.0}
    return measures, float(length[str(kind)])


def _draw_head(rng: Generator) -> dict[str, float]:
    kind = rng.choice(["bald", "short", "long", "bun", "afro"], p=[0.08, 0.44, 0.28, 0.1, 0.1])
    volume = {"bald": 0.0, "short": 0.006, "long": 0.009, "bun": 0.005, "afro": 0.026}[str(kind)]
    hat = _some(rng, 0.18, 0.006, 0.014)
    brim = _some(rng, 0.5, 0.04, 0.07)
    length, bun = rng.uniform(0.10, 0.26), rng.uniform(0.018, 0.028)
    return {
        "hair": volume * rng.uniform(0.8, 1.3),
        "long": length if kind == "long" else 0.0,
        "bun": bun if kind == "bun" else 0.0,
        "hat": hat,
        "brim": brim if hat else 0.0,
    }


def _draw_bags(rng: Generator) -> dict[str, float]:
    kind = rng.choice(["none", "backpack", "satchel", "handbag"], p=[0.4, 0.26, 0.18, 0.16])
    size, side = float(rng.uniform(0.75, 1.25)), float(rng.choice([-1.0, 1.0]))
    sizes = {name: size if kind == name else 0.0 for name in ("backpack", "satchel", "handbag")}
    return {**sizes, "side": side}


def _grid() -> tuple[Array, Array]:
    """Row from 0 above to 1 below, and column from -1 to 1, of one side of a surface."""
    row = (np.arange(ROWS)[:, None] + 0.5) / ROWS
    column = (np.arange(COLUMNS // 2) + 0.5) / (COLUMNS // 4) - 1
    return np.broadcast_arrays(row, column)  # type: ignore[return-value]


def _draw_print(rng: Generator) -> tuple[Array, bool]:
    """Where one side of a garment is printed, and whether the print runs around the body."""
    row, column = _grid()
    at, size = rng.uniform(0.28, 0.6), rng.uniform(0.10, 0.2)
    prints = {  # probability, where, around
        "plain": (0.32, np.zeros_like(row, bool), False),
        "icon": (0.28, _draw_icon(rng), False),
        "block": (0.13, (abs(row - at) < size) & (abs(column) < 2.2 * size), False),
        "disc": (0.08, 0.7 * (row - at) ** 2 + (column / 2) ** 2 < size**2, False),
        "band": (0.10, abs(row - at) < 0.6 * size, True),
        "lower": (0.04, row > at + 0.1, True),
        "yoke": (0.05, row < at - 0.06, True),
    }
    shares, masks, around = zip(*prints.values(), strict=True)
    kind = int(rng.choice(len(prints), p=shares))
    return masks[kind], around[kind]


def _draw_icon(rng: Generator) -> Array:
    """Blocks of texels, mirrored half the time."""
    left, right = rng.random((2, 5, 3)) < 0.55
    if _chance(rng, 0.5):
        right = left[:, ::-1]
    icon = np.zeros((ROWS, COLUMNS // 2), bool)
    icon[4:19, 2:14] = np.kron(np.hstack([left, right]), np.ones((3, 2), bool))
    return icon


def _draw_weave(rng: Generator, plain: float) -> Array:
    """Where the cloth of a whole garment has its second colour."""
    row, column = np.indices((ROWS, COLUMNS))
    tall, wide = rng.choice([6, 8, 12]), rng.choice([4, 6, 8])
    down, across = row % tall < tall // 2, column % wide < wide // 2
    weaves = {
        "plain": np.zeros_like(down),
        "rings": down,
        "bars": across,
        "checks": down ^ across,
        "dots": down & across,
        "grid": (row % tall < 2) | (column % wide < 1),
        "slant": (row + column * tall // wide) % tall < tall // 2,
    }
    shares = [plain] + [(1 - plain) / (len(weaves) - 1)] * (len(weaves) - 1)
    kind = int(rng.choice(len(weaves), p=shares))
    return np.asarray(list(weaves.values())[kind])


def _paint_torso(rng: Generator, texture: Array, person: Person) -> None:
    row, column = _grid()
    back, front = np.hsplit(texture, 2)  # views
    on_front, around = _draw_print(rng)
    on_back, _ = _draw_print(rng)
    same = _chance(rng, 0.7)
    front[on_front] = Material.FRONT
    if around and same:
        back[on_front] = Material.FRONT
    else:
        back[on_back] = Material.BACK
    if _chance(rng, 0.5 if person.loose > 0.012 else 0.1):  # worn open
        front[abs(column) < rng.uniform(0.08, 0.3) + 0.1 * row] = Material.INNER
    if person.backpack:
        front[(abs(abs(column) - 0.5) < 0.11) & (row < 0.62)] = Material.BAG
    if person.satchel:
        for half, turn in ((front, 1), (back, 1)):
            strap = abs(column * person.side * turn - (2 * row - 0.95)) < 0.2
            half[strap & (row < 0.95)] = Material.BAG


def _paint_arms(rng: Generator, texture: Array, sleeve: float, weave: Array) -> None:
    cut = round(sleeve * ROWS)
    style, at = rng.choice(["same", "other", "ring"], p=[0.66, 0.2, 0.14]), rng.integers(3, 14)
    texture[:cut] = Material.TRIM if style == "other" else Material.UPPER
    if style == "same":
        texture[:cut][weave[:cut]] = Material.WEAVE
    if style == "ring":
        texture[at : at + 3][: max(cut - at, 0)] = Material.FRONT


def _paint_legs(rng: Generator, atlas: Array, length: float) -> None:
    leg = atlas[Surface.LEG]
    _, column = _grid()
    style = rng.choice(["weave", "stripe", "patch", "turn-up"], p=[0.7, 0.12, 0.1, 0.08])
    if style == "weave":
        weave = _draw_weave(rng, 0.25)
        for surface in (Surface.LEG, Surface.SKIRT):
            atlas[surface][weave] = Material.TRIM
    if style == "stripe":
        leg[:, np.tile(abs(column[0]) > 0.72, 2)] = Material.TRIM
    if style == "patch":
        leg[9:14] = Material.TRIM
    if style == "turn-up":
        leg[-4:] = Material.TRIM
        atlas[Surface.SKIRT, -4:] = Material.TRIM
    bare = Material.TRIM if _chance(rng, 0.3) else Material.SKIN  # tights
    leg[round(length * ROWS) :] = bare
    boots = rng.integers(4, 10) if _chance(rng, 0.25) else 0
    leg[ROWS - boots :] = Material.SHOES


def _paint_head(rng: Generator, texture: Array, person: Person) -> None:
    row, column = _grid()
    back, front = np.hsplit(texture, 2)
    if person.hair:
        front[row < rng.uniform(0.18, 0.32)] = Material.HAIR
        front[(abs(column) > 0.75) & (row < 0.6)] = Material.HAIR
        back[row < 0.85] = Material.HAIR
    front[(abs(row - 0.5) < 0.05) & (abs(abs(column) - 0.36) < 0.15)] = Material.HAIR
    if _chance(rng, 0.15):
        front[(row > 0.7) & (abs(column) < 0.8)] = Material.HAIR
    if _chance(rng, 0.12):
        front[abs(row - 0.5) < 0.07] = Material.SHOES  # glasses


SECOND = (
    Material.FRONT, Material.BACK, Material.INNER, Material.TRIM, Material.BAG, Material.WEAVE
)  # fmt: skip


def _draw_albedo(rng: Generator) -> Array:
    """Colours as people wear them; infrared reflectance without regard to the colour."""
    albedo = np.empty((len(Material), 4))
    for material in Material:
        albedo[material, :3] = _draw_colour(rng)
        albedo[material, 3] = rng.uniform(0.22, 0.95) ** 2
    tone = rng.uniform(0, 1)
    albedo[Material.SKIN] = [0.62 - 0.5 * tone, 0.42 - 0.36 * tone, 0.32 - 0.28 * tone, 0]
    albedo[Material.SKIN, 3] = rng.uniform(0.45, 0.7)
    albedo[Material.HAIR, :3] = np.array([1, 0.72, 0.5]) * rng.choice([0.02, 0.05, 0.12, 0.4])
    albedo[Material.HAIR, 3] = rng.uniform(0.05, 0.5)
    albedo[Material.SHOES, :3] *= 0.6
    for material in SECOND:
        _set_apart(rng, albedo, material)
    return albedo.astype(np.float32)


def _draw_colour(rng: Generator) -> Array:
    """Two of three are greys, or nearly."""
    hue, value = rng.random(), rng.uniform(0.06, 0.75)
    saturation = rng.uniform(0.3, 0.75) if _chance(rng, 0.35) else rng.uniform(0.0, 0.12)
    wheel = np.clip(abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value**1.5 * (1 - saturation * (1 - wheel))  # type: ignore[no-any-return]


def _set_apart(rng: Generator, albedo: Array, material: Material) -> None:
    """Draw again, some times, what can hardly be told from its ground.

    One dye in ten is not seen in the infrared, whatever its colour.
    """
    ground = albedo[Material.LOWER if material is Material.TRIM else Material.UPPER]
    unseen = material is not Material.BAG and _chance(rng, 0.1)
    for _ in range(4):
        if abs(np.sqrt(albedo[material, :3]) - np.sqrt(ground[:3])).max() < 0.25:
            albedo[material, :3] = _draw_colour(rng)
        if abs(np.sqrt(albedo[material, 3]) - np.sqrt(ground[3])) < 0.2:
            albedo[material, 3] = rng.uniform(0.22, 0.95) ** 2
    if unseen:
        albedo[material, 3] = ground[3]
