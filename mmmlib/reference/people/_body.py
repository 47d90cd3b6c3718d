"""A person in a pose: tapered elliptic cylinders in space, in metres, feet on the ground.

A body looks along the third axis; the first points to its left as it is seen from the front, the
second up.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmmlib.reference.people._wardrobe import Person, Surface

__all__ = ["Parts", "pose"]

Array = NDArray[Any]
FLAT = 0.006  # how far an end without rounding still bulges


class Parts(NamedTuple):
    """The parts of n bodies, each from a start (above) to an end.

    Attributes:
        start: Of the axis, (n, parts, 3).
        end: Of the axis, (n, parts, 3).
        width: Half the width at both ends, (n, parts, 2); 0 where a part is absent.
        depth: Half the depth at both ends, (n, parts, 2).
        cap: How far the ends bulge, (n, parts).
        rows: The rows of the texture at both ends, in [0, 1], (parts, 2).
        surface: The texture of each part, (parts,).
    """

    start: Array
    end: Array
    width: Array
    depth: Array
    cap: Array
    rows: Array
    surface: Array


class _Body:
    """Parts of n persons, gathered one by one in shares of the height."""

    def __init__(self, person: Person) -> None:
        self.person, self.n = person, len(person.height)
        self.rows: list[tuple[Any, ...]] = []

    def point(self, x: Any, y: Any, z: Any) -> Array:
        return np.stack([np.broadcast_to(axis, self.n) for axis in (x, y, z)], axis=1)

    def add(
        self,
        surface: Surface,
        start: Array,
        end: Array,
        width: tuple[Any, Any],
        depth: tuple[Any, Any] | None = None,
        *,
        cap: Any = None,
        rows: tuple[float, float] = (0.0, 1.0),
        there: Any = True,
    ) -> None:
        """Add a part to all, with width 0 where it is not ``there``; round unless told."""
        pair, deep = (
            [np.broadcast_to(each, self.n) * there for each in ends]
            for ends in (width, width if depth is None else depth)
        )
        bulge = (pair[0] + pair[1]) / 2 if cap is None else np.broadcast_to(cap, self.n)
        wide, thick = np.stack(pair, axis=1), np.stack(deep, axis=1)
        self.rows.append((start, end, wide, thick, bulge, rows, int(surface)))

    def parts(self) -> Parts:
        """All of them, in metres."""
        *shapes, rows, surface = zip(*self.rows, strict=True)
        height = self.person.height
        scaled = [np.stack(each, axis=1) for each in shapes]
        scaled = [each * height.reshape(-1, *[1] * (each.ndim - 1)) for each in scaled]
        return Parts._make([*scaled, np.array(rows), np.array(surface)])


def pose(person: Person, phase: Array, pace: Array) -> Parts:
    """Put persons in the middle of a step.

    Args:
        person: Measures, an array of n each.
        phase: Where in the step, in [0, 1).
        pace: How large the step is: 0 stands, 1 walks as the person does.

    Returns:
        The parts of each.
    """
    body = _Body(person)
    ankles = _legs(body, 2 * np.pi * phase, pace)
    _trunk(body, ankles)
    _head(body)
    hands = _arms(body, 2 * np.pi * phase, pace)
    _bags(body, hands)
    parts = body.parts()
    lowest = np.minimum(*(ankle[:, 1] for ankle in ankles)) - 0.040
    drop = np.zeros((body.n, 1, 3))
    drop[:, 0, 1] = lowest * person.height
    return parts._replace(start=parts.start - drop, end=parts.end - drop)


def _lean(person: Person, y: Any) -> Any:
    """How far forward the axis of the body is at a height."""
    return person.stoop * (y - 0.5)


def _lift(person: Person, y: float) -> Any:
    """The height of a point of the trunk: longer legs leave less of it."""
    hip = 0.515 * person.legs
    return hip + (y - 0.515) * (1 - hip) / 0.485


def _swung(body: _Body, origin: Array, angle: Any, out: Any, length: Any) -> Array:
    """The end of a limb that hangs from its origin, swung forward and outward."""
    reach = np.cos(angle) * length
    step = body.point(np.sin(out) * reach, -np.cos(out) * reach, np.sin(angle) * length)
    return origin + step


def _legs(body: _Body, angle: Array, pace: Array) -> tuple[Array, Array]:
    person = body.person
    girth, wide = person.girth**0.7, person.thigh
    knee, cuff = 0.030 * girth * (0.4 + 0.6 * wide), 0.019 * girth**0.6 * person.cuff
    ankles = []
    for side in (1, -1):
        turn = angle if side == 1 else angle + np.pi
        thigh = person.stride * pace * np.sin(turn)
        bend = 0.06 + pace * 1.0 * np.maximum(0, np.cos(turn)) ** 1.5
        hip = body.point(side * 0.046 * person.hips, 0.515 * person.legs, 0)
        middle = _swung(body, hip, thigh, side * 0.03, 0.24 * person.legs)
        ankle = _swung(body, middle, thigh - bend, 0.0, 0.235 * person.legs)
        upper, lower = (0.050 * girth * wide, knee), (knee, cuff)
        body.add(Surface.LEG, hip, middle, upper, rows=(0.0, 0.5))
        body.add(Surface.LEG, middle, ankle, lower, rows=(0.5, 1.0))
        tilt = np.minimum(thigh - bend + 0.25, 0.25)
        heel = ankle + body.point(0, -0.016, -0.018)
        toe = _swung(body, heel, np.pi / 2 + tilt, 0.0, 0.105)
        body.add(Surface.SHOE, heel, toe, (0.023, 0.018))
        ankles.append(ankle)
    return ankles[0], ankles[1]


def _trunk(body: _Body, ankles: tuple[Array, Array]) -> None:
    person = body.person
    girth, loose = person.girth, person.loose
    hip = (0.086 * person.hips * girth**0.6 + loose, 0.060 * girth + loose)
    levels = [  # height, half width, half depth, row of the texture
        (0.858, 0.034, 0.036, 0.0),
        (0.826, 0.090 * person.shoulders, 0.046, 0.08),
        (0.800, 0.106 * person.shoulders + loose, 0.054 + loose, 0.14),
        (0.735, 0.093 * person.shoulders * girth**0.4 + loose, 0.062 * girth**0.8 + loose, 0.35),
        (0.630, 0.078 * girth**0.9 + loose, 0.056 * girth**1.4 + loose, 0.68),
        (0.540, *hip, 1.0),
    ]
    points = [body.point(0, _lift(person, y), _lean(person, y) + 0.0 * girth) for y, *_ in levels]
    for i in range(len(levels) - 1):
        (_, *above, top), (_, *below, bottom) = levels[i : i + 2]
        width, depth = zip(above, below, strict=True)
        body.add(
            Surface.TORSO, points[i], points[i + 1], width, depth, cap=FLAT, rows=(top, bottom)
        )
    waist = points[-1]
    apart = abs(ankles[0][:, 2] - ankles[1][:, 2])
    _hem(body, Surface.TORSO, waist, hip, person.hem, apart, person.flare, rows=(0.94, 1.0))
    _hem(body, Surface.SKIRT, waist, [0.94 * each for each in hip], person.skirt, apart,
         1.3, rows=(0.1, 1.0))  # fmt: skip
    crotch = body.point(0, 0.475 * person.legs, 0)
    seat = [0.93 * (each - loose) for each in hip]
    body.add(Surface.SKIRT, waist, crotch, (seat[0], seat[0]), (seat[1], seat[1]), rows=(0, 0.2))


def _hem(
    body: _Body,
    surface: Surface,
    waist: Array,
    size: Any,
    level: Array,
    apart: Array,
    flare: Any,
    *,
    rows: tuple[float, float],
) -> None:
    """A garment that hangs from the waist to a level, and opens with the step."""
    below = body.point(0, np.where(level > 0, level, 0.5), 0)
    opened = np.clip(0.54 - level, 0, 0.3) * apart * 0.9
    width = (size[0], size[0] * (1 + (flare - 1) * np.clip((0.56 - level) / 0.2, 0, 1)))
    depth = (size[1], size[1] * flare + opened)
    body.add(surface, waist, below, width, depth, cap=FLAT, rows=rows, there=level > 0)


def _arms(body: _Body, angle: Array, pace: Array) -> tuple[Array, Array]:
    person = body.person
    girth, loose = person.girth**0.6, 0.7 * person.loose
    hands = []
    for side in (1, -1):
        turn = angle + np.pi if side == 1 else angle  # against the leg of this side
        busy = 1 - 0.6 * (person.handbag > 0) * (person.side == side)
        forward = person.swing * pace * busy * np.sin(turn) + 0.5 * person.stoop
        bend = person.elbow + 0.25 * pace * busy * np.maximum(0, np.sin(turn))
        y = _lift(person, 0.797)
        shoulder = body.point(side * 0.100 * person.shoulders, y, _lean(person, 0.8))
        out = side * (person.spread + 0.1 * (girth - 1))
        elbow = _swung(body, shoulder, forward, out, 0.165)
        wrist = _swung(body, elbow, forward + bend, 0.4 * out, 0.14)
        hand = _swung(body, wrist, forward + bend, 0.2 * out, 0.04)
        above = (0.027 * girth + loose, 0.025 * girth + loose)
        below = (0.025 * girth + loose, 0.018 * girth**0.5 + 0.8 * loose)
        body.add(Surface.ARM, shoulder, elbow, above, rows=(0.0, 0.5))
        body.add(Surface.ARM, elbow, wrist, below, rows=(0.5, 1.0))
        body.add(Surface.HAND, wrist, hand, (0.017, 0.016))
        hands.append(hand)
    return hands[0], hands[1]


def _head(body: _Body) -> None:
    person = body.person
    size, hair = person.head, person.hair
    lean = _lean(person, 0.9)

    def at(y: Any, z: Any) -> Array:
        return body.point(0, 1 - (1 - y) * size, lean + z)

    base = body.point(0, _lift(person, 0.835), lean)
    scarf = person.scarf
    body.add(Surface.NECK, at(0.885, 0), base, (0.027 + scarf, 0.030 + scarf), cap=FLAT)
    body.add(Surface.HEAD, at(0.952, 0.008), at(0.905, 0.012), (0.046 * size, 0.038 * size),
             (0.053 * size, 0.046 * size), cap=0.046 * size)  # fmt: skip
    wide, deep = 0.045 * size + hair, 0.052 * size + hair
    body.add(Surface.HAIR, at(0.956, -0.008), at(0.915, -0.014), (wide, 0.9 * wide),
             (deep, 0.8 * deep), cap=0.042 * size + hair, there=hair > 0)  # fmt: skip
    body.add(Surface.HAIR, at(0.95, -0.028), at(0.92 - person.long, -0.05),
             (wide, 0.052 + 0 * wide), (0.032, 0.022), there=person.long > 0)  # fmt: skip
    body.add(Surface.HAIR, at(0.985, -0.045), at(0.975, -0.05), (person.bun, person.bun))
    hat = person.hat
    body.add(Surface.HAT, at(0.978, 0.0), at(0.958, 0.0), (wide, wide + hat), (deep, deep + hat),
             cap=0.03 + hat, there=hat > 0)  # fmt: skip
    body.add(Surface.HAT, at(0.953, 0.03), at(0.945, 0.055 + person.brim), (0.03, 0.024),
             (0.01, 0.006), cap=FLAT, there=person.brim > 0)  # fmt: skip


def _bags(body: _Body, hands: tuple[Array, Array]) -> None:
    person = body.person
    pack, satchel, handbag, side = person.backpack, person.satchel, person.handbag, person.side
    behind = -(0.062 * person.girth**0.8 + person.loose + 0.035 * pack)
    top, bottom = (body.point(0, _lift(person, y), _lean(person, y) + behind) for y in (0.80, 0.60))
    body.add(Surface.BAG, top, bottom, (0.062 * pack, 0.078 * pack), (0.035 * pack, 0.055 * pack),
             cap=0.03)  # fmt: skip
    beside = side * (0.09 * person.hips * person.girth**0.6 + person.loose + 0.02 * satchel)
    body.add(Surface.BAG, body.point(beside, 0.575, -0.01), body.point(beside, 0.46, -0.01),
             (0.026 * satchel, 0.032 * satchel), (0.085 * satchel, 0.09 * satchel),
             cap=0.01)  # fmt: skip
    hand = np.where((side > 0)[:, None], *hands)
    body.add(Surface.BAG, hand + body.point(0, -0.03, 0), hand + body.point(0, -0.15, 0),
             (0.014 * handbag, 0.026 * handbag), (0.045 * handbag, 0.075 * handbag),
             cap=FLAT)  # fmt: skip
    body.add(Surface.HOOD, body.point(0, _lift(person, 0.86), _lean(person, 0.86) - 0.05),
             body.point(0, _lift(person, 0.81), _lean(person, 0.81) - 0.06),
             (0.05, 0.062), (0.024, 0.028), there=person.hood > 0)  # fmt: skip
