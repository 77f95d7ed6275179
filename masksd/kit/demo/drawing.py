"""What the page shows of a model's answers: pictures and short texts."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from masksd.errors import one_line
from masksd.kit.demo.explorer import Explorer, Picture
from masksd.kit.evaluation.examples import iou
from masksd.kit.evaluation.perturbation import GRID
from masksd.kit.figures import covered, heat, overlay, png_bytes

CELLS = [f"{chr(ord('A') + column)}{row + 1}" for row in range(GRID) for column in range(GRID)]
"""Names of the patches that can be hidden: columns are letters, rows are numbers."""
SIDE = 640
"""Pixels of the longer side of a picture on the page."""


_EDGE: dict[str, Any] = {"stroke_width": 2, "stroke_fill": "white"}
Drawn = list[tuple[Image.Image, str]]


class Asked(NamedTuple):
    """What the controls of the page say."""

    picture: Picture | None
    sentence: str
    hidden: tuple[int, ...]
    threshold: float

    @classmethod
    def of(
        cls, picture: Picture | None, sentence: str | None, cells: Sequence[str], threshold: float
    ) -> Asked:
        """Take the controls' values; hidden patches come by their names.

        Example:
            >>> Asked.of(None, "the red circle", ["B1", "A1"], 0.35).hidden
            (0, 1)
        """
        return cls(picture, sentence or "", tuple(sorted(map(CELLS.index, cells))), threshold)


def toggled(picture: Picture | None, cells: Sequence[str], place: Sequence[int]) -> list[str]:
    """Hide the patch at pixel (x, y) of the picture on the page, or show it again.

    Example:
        >>> square = Picture(Image.new("RGB", (96, 96)))
        >>> toggled(square, ["A1"], (639, 0)), toggled(square, ["A1"], (79, 79))
        (['A1', 'H1'], [])
    """
    if picture is None:
        return list(cells)
    sides = enlarged(picture.image).size
    column, row = (
        max(0, min(at * GRID // side, GRID - 1)) for at, side in zip(place, sides, strict=True)
    )
    cell = CELLS[row * GRID + column]
    return [each for each in cells if each != cell] if cell in cells else [*cells, cell]


def draw_mask(explorer: Explorer, asked: Asked) -> tuple[Image.Image | None, list[str]]:
    """Draw the mask over the picture with its hidden patches, and say what is to be said."""
    if asked.picture is None:
        return None, ["no picture yet; upload one"]
    shown = asked.picture.hide(asked.hidden, explorer.checkpoint.config.mean)
    try:
        found = explorer.find(asked.picture, asked.hidden, asked.sentence)
    except ValueError as error:
        return _ruled(enlarged(shown)), [shortened(error)]
    mask = found.probabilities > asked.threshold
    lines = [shortened(note) for note in found.notes]
    lines.append(f"{mask.mean():.1%} of the picture found")
    return _ruled(enlarged(overlay(shown, mask))), lines


def draw_words(explorer: Explorer, asked: Asked) -> Drawn:
    """Draw the mask without each word, with its IoU to the whole sentence's mask."""
    if asked.picture is None:
        return []
    try:
        whole = explorer.find(asked.picture, asked.hidden, asked.sentence).probabilities
    except ValueError:  # draw_mask says it
        return []
    shown = asked.picture.hide(asked.hidden, explorer.checkpoint.config.mean)
    drawn = []
    for word, without in explorer.without_words(asked.picture, asked.hidden, asked.sentence):
        if without is None:
            drawn.append((enlarged(shown, 320), f"without “{word}” no known word is left"))
            continue
        masks = without > asked.threshold, whole > asked.threshold
        drawn.append(
            (enlarged(overlay(shown, masks[0])), f"without “{word}”: IoU {iou(*masks):.2f}")
        )
    return drawn


def draw_step(explorer: Explorer, asked: Asked, number: int) -> Drawn:
    """Draw relevance, masked patches and masked words of a training step."""
    if asked.picture is None:
        return []
    try:
        step = explorer.next_step(asked.picture, asked.hidden, asked.sentence, number)
    except ValueError:  # draw_mask says it
        return []
    square = enlarged(step.square)
    words = " ".join(f"[{word}]" if masked else word for word, masked in step.words)
    said = f"masked words, in brackets: {words}" if words else "no word is masked"
    if step.relevance is None or step.patches is None:
        return [(square, f"no patch is masked; {said}")]
    return [
        (heat(square, step.relevance), "relevance of each patch: dark is low, yellow high"),
        (covered(square, step.patches), f"masked patches, grey; {said}"),
    ]


def figures(drawn: Drawn, name: str) -> str:
    """Lay pictures with captions out as HTML, as many in a row as fit.

    Example:
        >>> figures([(Image.new("RGB", (1, 1)), "<b>")], "a")[-50:]
        '...&lt;b&gt;</figcaption></figure></div>'
    """
    parts = []
    for image, caption in drawn:
        data, text = base64.b64encode(png_bytes(image)).decode(), html.escape(caption)
        parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    return f'<h3>{html.escape(name)}</h3><div class="figures">{"".join(parts)}</div>'


def about(explorer: Explorer) -> str:
    """Say which model it is, as Markdown."""
    config = explorer.checkpoint.config
    steps = f"{config.model}, {config.step} steps"
    if explorer.stands_in:
        steps += f"; shown is what the default would mask, since {explorer.stands_in}"
    return f"**{explorer.name}**\n\n{steps}"


def enlarged(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Scale a picture so that its longer side has so many pixels.

    Example:
        >>> enlarged(Image.new("RGB", (40, 20)), 80).size
        (80, 40)
    """
    scale = side / max(image.size)
    width, height = (max(1, round(each * scale)) for each in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _ruled(image: Image.Image) -> Image.Image:
    """Draw the borders of the patches that can be hidden, with their letters and numbers."""
    image = image.copy()
    draw = ImageDraw.Draw(image, "RGBA")
    width, height = image.size
    for at in range(GRID):
        x, y = at * width // GRID, at * height // GRID
        draw.line([(x, 0), (x, height)], fill=(0, 0, 0, 60))
        draw.line([(0, y), (width, y)], fill=(0, 0, 0, 60))
        column, row = CELLS[at][0], CELLS[at * GRID][1]
        for place, name, anchor in (
            ((x + width // GRID // 2, 3), column, "ma"),
            ((4, y + height // GRID // 2), row, "lm"),
        ):
            draw.text(place, name, "black", None, anchor, font_size=16, **_EDGE)
    return image


def shortened(message: object) -> str:
    """Bring a message onto one line of bounded length: it may quote a whole sentence."""
    line = one_line(message)
    return line if len(line) <= 300 else f"{line[:200]} … {line[-99:]}"
