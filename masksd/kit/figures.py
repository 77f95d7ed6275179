"""Pictures of a run: loss curves, overlays of masks, and the sheet of examples."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksd.kit.files import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PREDICTION_COLOUR = (230, 45, 90)
TRUTH_COLOUR = (20, 150, 70)
BoolArray = NDArray[np.bool_]
_STRIP = 256  # rows


class SheetRow(NamedTuple):
    """One example on the sheet.

    Attributes:
        picture: RGB, ``(H, W)`` pixels.
        sentence: the expression.
        truth: bool ``(H, W)``.
        prediction: bool ``(H, W)``.
        relevance: float ``(h, w)``, the score of each patch; None where no branch ranked patches.
        masked: bool ``(h, w)``, the patches replaced by the mask token; None as above.
        score: IoU of the prediction, in [0, 1].
    """

    picture: Image.Image
    sentence: str
    truth: BoolArray
    prediction: BoolArray
    relevance: NDArray[np.float32] | None
    masked: BoolArray | None
    score: float


def overlay(
    picture: Image.Image, mask: BoolArray, colour: tuple[int, int, int] = PREDICTION_COLOUR
) -> Image.Image:
    """Tint the masked pixels of a picture and draw the edge of the mask.

    Args:
        picture: RGB, ``(H, W)`` pixels.
        mask: bool ``(H, W)``.
        colour: red, green, blue in 0..255.

    Returns:
        A new RGB picture of the same size.

    Raises:
        ValueError: if the sizes differ.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> mask = np.zeros((4, 6), dtype=bool)
        >>> overlay(Image.new("RGB", (6, 4)), mask).size
        (6, 4)
    """
    from PIL import Image

    pixels = np.asarray(picture.convert("RGB"))
    if mask.shape != pixels.shape[:2]:
        raise ValueError(
            f"mask is {mask.shape} and picture {pixels.shape[:2]} (H, W); resize the mask"
        )
    tint = np.asarray(colour, dtype=np.float32)
    shown = np.empty_like(pixels)
    for start in range(0, len(mask), _STRIP):  # a whole picture in floats may fill the memory
        rows = slice(start, start + _STRIP)
        inside, light = mask[rows, :, None], pixels[rows].astype(np.float32)
        light = np.where(inside, 0.7 * light + 0.3 * tint, 0.5 * light + 0.5 * 255)
        shown[rows] = light.round().astype(np.uint8)
    shown[_edge(mask)] = np.asarray(colour, dtype=np.uint8)
    return Image.fromarray(shown)


def _edge(mask: BoolArray) -> BoolArray:
    """Return the mask's pixels that have a neighbour outside it, ``(H, W)``."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def save_pictures(pictures: Mapping[Path, Image.Image]) -> None:
    """Write PNG files: all of them whole, or none.

    Args:
        pictures: by path.

    Raises:
        OSError: if one of the places cannot be written; then nothing has changed.
    """
    files = {}
    for path, picture in pictures.items():
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        files[path] = buffer.getvalue()
    write_files(files)


def draw_curves(records: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the losses and the learning rate over steps.

    Args:
        records: the training lines of ``metrics.jsonl``: ``step``, ``loss``, ``lr`` and
            ``losses`` (unweighted, by name); None where a value was not finite.
        path: of the PNG.

    Returns:
        ``path`` as a path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [record["step"] for record in records]
    curves = {"loss (weighted)": [record["loss"] for record in records]}
    for name in sorted({name for record in records for name in record["losses"]}):
        curves[f"{name} (unweighted)"] = [record["losses"].get(name) for record in records]
    for label, values in curves.items():
        floats = np.array(values, dtype=np.float64)  # None becomes NaN, a gap
        above.plot(steps, floats, label=label, color="black" if "(weighted" in label else None)
    above.set_ylabel("loss")
    above.set_ylim(bottom=0)
    above.legend(frameon=False)
    below.plot(steps, [record["lr"] for record in records], color="black")
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    below.ticklabel_format(axis="y", scilimits=(0, 0))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return save_figure(figure, path)


def draw_sheet(rows: Sequence[SheetRow], path: str | Path) -> Path:
    """Draw one example a row: expression, picture, truth, prediction, relevance, masked patches.

    Args:
        rows: the examples; the last two columns are left out where no row has them.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: if there is no row.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("a sheet needs at least one row")
    titles = ["picture", "truth", "prediction"]
    if any(row.masked is not None for row in rows):
        titles += ["relevance (LMVSD)", "masked patches"]
    columns = 1 + len(titles)
    figure = Figure(figsize=(1.75 * columns, 1.8 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, title in zip(grid[0, 1:], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for cells, row in zip(grid, rows, strict=True):
        caption = "\n".join(textwrap.wrap(row.sentence or "(no sentence)", 18)[:6])
        # a sentence may hold a dollar sign, which is not mathematics
        cells[0].text(0.0, 0.5, caption, fontsize=11, va="center", ha="left", parse_math=False)
        cells[0].text(0.0, 0.02, f"IoU {row.score:.2f}", fontsize=9, color="0.4")
        panels = [
            row.picture,
            overlay(row.picture, row.truth, TRUTH_COLOUR),
            overlay(row.picture, row.prediction),
        ]
        if row.relevance is not None and row.masked is not None:
            panels += [_heat(row.picture, row.relevance), _covered(row.picture, row.masked)]
        for axes, panel in zip(cells[1:], panels, strict=False):
            axes.imshow(np.asarray(panel))
    return save_figure(figure, path)


def _heat(picture: Image.Image, scores: NDArray[np.float32]) -> Image.Image:
    """Blend the patches' scores, ``(h, w)``, over a grey picture: dark is low, yellow is high."""
    from matplotlib import colormaps
    from PIL import Image

    low, high = float(scores.min()), float(scores.max())
    scaled = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    colours = (colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
    heat = Image.fromarray(colours).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), heat, 0.65)


def _covered(picture: Image.Image, masked: BoolArray) -> Image.Image:
    """Paint the masked patches, ``(h, w)``, grey."""
    from PIL import Image

    stencil = Image.fromarray(masked.astype(np.uint8) * 255)
    stencil = stencil.resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, (110, 110, 110)), picture, stencil)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib's own font knows few scripts; an empty box for a letter is good enough here
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=110)
    write_files({Path(path): buffer.getvalue()})
    return Path(path)
