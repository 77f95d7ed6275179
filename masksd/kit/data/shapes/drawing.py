"""Images of the shapes data set: a scene to pixels, and which pixels each object keeps."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masksd.kit.data.segmentation import decode_mask
from masksd.kit.data.shapes.scenes import COLORS, Level, Scene, SceneObject

_FINE = 3  # edges are drawn this many times finer, then averaged

RGB = tuple[int, ...]


def draw_image(scene: Scene, level: Level, size: int) -> Image.Image:
    """Draw a scene ``size`` pixels wide and high, from back to front, with smooth edges.

    The level's noise also decides between a flat, a shaded and a patterned background.
    """
    draw = random.Random(scene.seed)
    fine = _background(level, size * _FINE, draw)
    for item in scene.objects:
        _draw_object(fine, item, draw)
    image = fine.reduce(_FINE)
    if level.noise:
        noise = np.random.default_rng(scene.seed).normal(0, level.noise, (size, size, 3))
        noisy = np.asarray(image, dtype=np.float64) + noise
        image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    return image


def visible_masks(
    scene: Scene, size: int
) -> list[tuple[list[list[float]], NDArray[np.uint8], float]]:
    """Return what each object shows of itself: later objects cover earlier ones.

    For each object that is its polygon in pixels (COCO's form), the mask of what is visible
    ``(size, size)`` uint8, and the visible share of its pixels.
    """
    result = []
    covered = np.zeros((size, size), dtype=np.uint8)
    for item in reversed(scene.objects):
        polygon = [[round(value * size, 2) for point in item.outline() for value in point]]
        whole = decode_mask(polygon, size, size)
        seen = whole & (1 - covered)
        covered |= whole
        result.append((polygon, seen, float(seen.sum() / whole.sum())))
    return result[::-1]


def _background(level: Level, size: int, draw: random.Random) -> Image.Image:
    light = draw.randint(200, 236)
    tone = tuple(light + draw.randint(-10, 10) for _ in range(3))
    plain = Image.new("RGB", (size, size), tone)
    if level.noise == 0:
        return plain
    darker = Image.new("RGB", (size, size), tuple(value - draw.randint(25, 50) for value in tone))
    shade = Image.linear_gradient("L").rotate(draw.choice((0, 90, 180, 270))).resize((size, size))
    shaded = Image.composite(plain, darker, shade)
    if level.noise < 5:
        return shaded
    # hard: a coarse grid of random greys, enlarged, as cloth or ground would look
    cells = draw.randint(5, 12)
    greys = bytes(draw.randint(60, 200) for _ in range(cells * cells))
    cloth = Image.frombytes("L", (cells, cells), greys).resize(
        (size, size), draw.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    )
    return Image.blend(shaded, cloth.convert("RGB"), 0.3)


def _draw_object(canvas: Image.Image, item: SceneObject, draw: random.Random) -> None:
    side = canvas.width
    points = [(x * side, y * side) for x, y in item.outline()]
    color = COLORS[item.color]
    if item.texture == "plain":
        ImageDraw.Draw(canvas).polygon(points, fill=color)
        return
    reach = item.radius * side
    left, top = (int(at * side - reach) - 1 for at in (item.x, item.y))
    right, bottom = (int(at * side + reach) + 2 for at in (item.x, item.y))
    extent = (right - left, bottom - top)
    stencil = Image.new("L", extent)
    ImageDraw.Draw(stencil).polygon([(x - left, y - top) for x, y in points], fill=255)
    canvas.paste(_fabric(item.texture, color, extent, side, draw), (left, top), stencil)
    # a hem in the object's colour, or white parts would melt into the background
    ImageDraw.Draw(canvas).polygon(points, outline=color, width=_FINE)


def _fabric(
    texture: str, color: RGB, extent: tuple[int, int], side: int, draw: random.Random
) -> Image.Image:
    """A piece of cloth in the object's colour with white stripes or dots, the lesser part white."""
    cloth = Image.new("RGB", extent, color)
    pen = ImageDraw.Draw(cloth)
    step = side / 16
    width, height = extent
    white = (250, 250, 250)
    if texture == "striped":
        upright = draw.random() < 0.5
        for line in range(int(max(extent) / step) + 1):
            near, far = line * step, line * step + 0.4 * step
            pen.rectangle((near, 0, far, height) if upright else (0, near, width, far), fill=white)
        return cloth
    radius = 0.3 * step
    for row in range(int(height / step) + 2):
        for column in range(int(width / step) + 2):
            x, y = (column + 0.5 * (row % 2)) * step, row * step
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=white)
    return cloth
