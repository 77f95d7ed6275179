"""Scenes of the shapes data set: which objects, of what look, where.

Lengths are fractions of the image's side, x to the right and y downwards.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

KINDS = ("circle", "square", "triangle", "star", "cross", "diamond")
COLORS = {
    "red": (214, 32, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 222, 40),
    "green": (38, 158, 62),
    "blue": (36, 84, 214),
    "purple": (146, 44, 172),
    "black": (24, 24, 28),
}
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted")

# Who may see which layouts: a hash of the layout, modulo 10, belongs to exactly one split.
SPLITS = ("train", "val", "testA", "testB")
_BUCKETS = {"train": range(7), "val": range(7, 8), "testA": range(8, 9), "testB": range(9, 10)}
_CELLS = 6
# As testA and testB of RefCOCO (people, other things), the tests differ in the kinds referred to.
REFERRED_KINDS = {"train": KINDS, "val": KINDS, "testA": KINDS[:3], "testB": KINDS[3:]}


@dataclass(frozen=True)
class Level:
    """How hard the scenes of a level are."""

    objects: tuple[int, int]  # least and most objects an image
    kinds: int  # number of kinds they are drawn from
    colors: int  # number of colours
    textures: tuple[str, ...]  # that they are drawn from
    areas: dict[str, tuple[float, float]]  # of a small, a big object, in fractions of the image
    spacing: float  # least distance of two centres, in sums of radii; below 1 they may overlap
    copies: int  # objects of each of the two looks (colour and kind) of the main kind
    twins: float  # share of the other objects that may repeat a look
    visible: float  # least visible share of an object
    noise: float  # standard deviation of the pixel noise, in 8-bit steps
    means: tuple[float, float, float]  # weights of naming by attributes, by place, by relation


LEVELS = {
    "easy": Level(
        objects=(3, 5),
        kinds=2,
        colors=4,
        textures=("plain",),
        areas={"small": (0.028, 0.034), "big": (0.066, 0.085)},
        spacing=0.95,
        copies=1,
        twins=0.08,
        visible=0.97,
        noise=0.0,
        means=(0.85, 0.12, 0.03),
    ),
    "medium": Level(
        objects=(5, 7),
        kinds=3,
        colors=4,
        textures=TEXTURES,
        areas={"small": (0.018, 0.022), "big": (0.044, 0.058)},
        spacing=0.72,
        copies=1,
        twins=0.35,
        visible=0.8,
        noise=3.0,
        means=(0.5, 0.25, 0.25),
    ),
    "hard": Level(
        objects=(8, 10),
        kinds=3,
        colors=3,
        textures=TEXTURES,
        areas={"small": (0.012, 0.015), "big": (0.030, 0.040)},
        spacing=0.6,
        copies=2,
        twins=1.0,
        visible=0.6,
        noise=7.0,
        means=(0.3, 0.3, 0.4),
    ),
}


@dataclass(frozen=True)
class SceneObject:
    """One object: its look, its centre and its area as a fraction of the picture."""

    kind: str
    color: str
    size: str
    texture: str
    x: float
    y: float
    area: float

    @property
    def radius(self) -> float:
        """Distance of the farthest corner from the centre."""
        return _RADII[self.kind] * math.sqrt(self.area)

    def outline(self) -> list[tuple[float, float]]:
        """Corners in order, in fractions of the image."""
        scale = math.sqrt(self.area)
        return [(self.x + scale * x, self.y + scale * y) for x, y in _OUTLINES[self.kind]]


@dataclass(frozen=True)
class Scene:
    """Objects from back to front, and the seed of the image's background."""

    objects: tuple[SceneObject, ...]
    seed: int


def layout_signature(scene: Scene) -> tuple[tuple[int, int, str], ...]:
    """Describe where which kinds lie, on a grid of 6 x 6 cells; looks do not enter."""
    return tuple(
        sorted((int(each.x * _CELLS), int(each.y * _CELLS), each.kind) for each in scene.objects)
    )


def layout_split(scene: Scene) -> str:
    """Return the one split that may show the layout of a scene, whatever the seed."""
    digest = hashlib.sha256(repr(layout_signature(scene)).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 10
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def draw_scene(level: Level, split: str, draw: random.Random) -> Scene:
    """Draw a scene of a split: two objects share a kind that it refers to, and differ in colour."""
    while True:
        scene = _try_scene(level, split, draw)
        if scene is not None and layout_split(scene) == split:
            return scene


def _try_scene(level: Level, split: str, draw: random.Random) -> Scene | None:
    count = draw.randint(*level.objects)
    main = draw.choice(REFERRED_KINDS[split])
    kinds = [main, *draw.sample([kind for kind in KINDS if kind != main], level.kinds - 1)]
    colors = draw.sample(list(COLORS), level.colors)
    looks = [(main, color) for color in draw.sample(colors, 2)] * level.copies
    while len(looks) < count:
        look = (draw.choice(kinds), draw.choice(colors))
        if look not in looks or draw.random() < level.twins:
            looks.append(look)
    draw.shuffle(looks)
    objects: list[SceneObject] = []
    for kind, color in looks:
        placed = _place(kind, color, level, objects, draw)
        if placed is None:
            return None
        objects.append(placed)
    return Scene(tuple(objects), draw.getrandbits(32))


def _place(
    kind: str, color: str, level: Level, objects: list[SceneObject], draw: random.Random
) -> SceneObject | None:
    """Draw size, texture and a place at a distance from the objects there; None if none is free."""
    size = draw.choice(SIZES)
    area = draw.uniform(*level.areas[size])
    texture = draw.choice(level.textures)
    margin = SceneObject(kind, color, size, texture, 0, 0, area).radius + 0.01
    for _ in range(12):
        x, y = draw.uniform(margin, 1 - margin), draw.uniform(margin, 1 - margin)
        new = SceneObject(kind, color, size, texture, x, y, area)
        if all(
            math.hypot(x - each.x, y - each.y) > level.spacing * (margin + each.radius)
            for each in objects
        ):
            return new
    return None


def _ring(count: int, radius: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [2 * math.pi * (step + turn) / count for step in range(count)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]


def _raw_outlines() -> dict[str, list[tuple[float, float]]]:
    tips, dents = _ring(5), _ring(5, radius=0.5, turn=0.5)
    arm = 0.38  # half the width of the cross's bars
    corner = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turned = [corner, [(-y, x) for x, y in corner]]
    turned += [[(-x, -y) for x, y in part] for part in turned]
    return {
        "circle": _ring(48),
        "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        "triangle": _ring(3),
        "star": [point for pair in zip(tips, dents, strict=True) for point in pair],
        "cross": [point for part in turned for point in part],
        "diamond": [(0.0, -1.0), (0.66, 0.0), (0.0, 1.0), (-0.66, 0.0)],
    }


def _polygon_area(points: list[tuple[float, float]]) -> float:
    following = points[1:] + points[:1]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, following, strict=True))) / 2


# the corners of each kind around the origin, y downwards, scaled to an area of 1
_OUTLINES = {
    kind: [
        (x / math.sqrt(_polygon_area(points)), y / math.sqrt(_polygon_area(points)))
        for x, y in points
    ]
    for kind, points in _raw_outlines().items()
}
_RADII = {kind: max(math.hypot(x, y) for x, y in points) for kind, points in _OUTLINES.items()}
