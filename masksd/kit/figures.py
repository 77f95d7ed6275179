"""Figures of a run: loss curves, overlays of masks, and sheets of examples."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksd.kit.storage.files import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

PREDICTION_COLOUR = (230, 45, 90)
TRUTH_COLOUR = (20, 150, 70)
BoolArray = NDArray[np.bool_]
_STRIP = 256  # rows


class BranchView(NamedTuple):
    """What a masked branch saw of an example, and what it made of it."""

    name: str
    patches: BoolArray | None  # (h, w), True where hidden
    words: str | None  # the sentence with a box for each hidden word
    prediction: BoolArray  # (H, W)
    score: float  # IoU of the prediction


class SheetRow(NamedTuple):
    """One example on a sheet, an RGB image of (H, W) pixels."""

    image: Image.Image
    sentence: str
    truth: BoolArray  # (H, W)
    prediction: BoolArray  # (H, W)
    score: float  # IoU of the prediction
    relevance: NDArray[np.float32] | None = None  # (h, w), of each patch, if a branch ranked them
    branches: tuple[BranchView, ...] = ()

    def panels(self) -> list[tuple[Image.Image, str]]:
        """Return what is drawn of it, each with the line below: a score, or words."""
        shown = [
            (self.image, ""),
            (overlay(self.image, self.truth, TRUTH_COLOUR), ""),
            (overlay(self.image, self.prediction), f"IoU {self.score:.2f}"),
        ]
        if self.relevance is not None:
            low, high = float(self.relevance.min()), float(self.relevance.max())
            shown.append((heat(self.image, self.relevance), f"{low:.2g} to {high:.2g}"))
        for branch in self.branches:
            seen = self.image if branch.patches is None else covered(self.image, branch.patches)
            below = f"IoU {branch.score:.2f}"
            below += "" if branch.words is None else f": {branch.words}"
            shown.append((overlay(seen, branch.prediction), below))
        return shown


def overlay(
    image: Image.Image, mask: BoolArray, colour: tuple[int, int, int] = PREDICTION_COLOUR
) -> Image.Image:
    """Tint the masked pixels of an RGB image, draw the mask's edge and lighten the rest.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> mask = np.zeros((4, 6), dtype=bool)
        >>> overlay(Image.new("RGB", (6, 4)), mask).size
        (6, 4)
    """
    from PIL import Image

    pixels = np.asarray(image.convert("RGB"))
    if mask.shape != pixels.shape[:2]:
        raise ValueError(
            f"mask is {mask.shape} and image {pixels.shape[:2]} (H, W); resize the mask"
        )
    tint = np.asarray(colour, dtype=np.float32)
    shown = np.empty_like(pixels)
    for start in range(0, len(mask), _STRIP):  # a whole image in floats may fill the memory
        rows = slice(start, start + _STRIP)
        inside, light = mask[rows, :, None], pixels[rows].astype(np.float32)
        light = np.where(inside, 0.7 * light + 0.3 * tint, 0.5 * light + 0.5 * 255)
        shown[rows] = light.round().astype(np.uint8)
    padded = np.pad(mask, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    shown[mask & ~surrounded] = np.asarray(colour, dtype=np.uint8)
    return Image.fromarray(shown)


def draw_curves(records: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw losses, scores and the learning rate over steps as PNG.

    ``records`` are the lines of ``metrics.jsonl``: of training, with ``step``, ``loss``, ``lr`` and
    ``losses`` (unweighted, by name; None where a value was not finite), and of scoring, with
    ``step`` and ``scores``. The branches' losses have axes of their own.
    """
    from matplotlib.figure import Figure

    trained = [record for record in records if "loss" in record]
    scored = [record for record in records if "scores" in record]
    steps = [record["step"] for record in trained]
    names = sorted({name for record in trained for name in record["losses"]})
    losses = {name: [record["losses"].get(name) for record in trained] for name in names}
    seg = {"seg": losses.pop("seg")} if "seg" in losses else {}
    panels: list[tuple[str, dict[str, list[Any]], list[int]]] = [
        ("loss", {"all, weighted": [record["loss"] for record in trained], **seg}, steps),
        ("unweighted losses", losses, steps),
        (
            "mIoU, %",
            {"validation": [100 * record["scores"]["own"]["mIoU"] for record in scored]},
            [record["step"] for record in scored],
        ),
        ("learning rate", {"": [record["lr"] for record in trained]}, steps),
    ]
    shown = [panel for panel in panels if any(panel[1].values())]
    figure = Figure(figsize=(8, 1 + 2.2 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, curves, places) in zip(grid, shown, strict=True):
        for label, values in curves.items():
            floats = np.array(values, dtype=np.float64)  # None becomes NaN, a gap
            mark = "o" if len(floats) < 30 else None
            axes.plot(places, floats, label=label, marker=mark, markersize=4)
        axes.set_title(title, fontsize=13, loc="left")
        axes.margins(y=0.08)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=11)
        if len(curves) > 1 or title == "unweighted losses":
            axes.legend(frameon=False, fontsize=11)
    grid[-1].set_xlabel("step", fontsize=12)
    return save_figure(figure, path)


def draw_sheet(rows: Sequence[SheetRow], path: str | Path) -> Path:
    """Draw one example a row as PNG: image, truth, prediction and, where known, relevance.

    Then, for each masked branch, what it saw with the mask that it made of it.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("a sheet needs at least one row")
    titles = ["image", "truth", "prediction"]
    if rows[0].relevance is not None:
        titles.append("relevance")
    titles += [_title(branch) for branch in rows[0].branches]
    columns = 1 + len(titles)
    figure = Figure(figsize=(2.1 * columns, 2.35 * len(rows) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    _fill(grid, rows, titles, width=15, lines=6, y=0.5, fontsize=13, va="center")
    if rows[0].relevance is not None:
        below = grid[-1, titles.index("relevance") + 1].inset_axes([0.1, -0.34, 0.8, 0.07])
        bar = figure.colorbar(
            ScalarMappable(cmap="viridis"), cax=below, orientation="horizontal", ticks=[0, 1]
        )
        bar.ax.set_xticklabels(["least", "most"], fontsize=11)
    height = float(figure.get_figheight())  # room for titles of two lines, and below the bar
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0.25 / height, 1, 1 - 0.45 / height))
    return save_figure(figure, path)


def _title(branch: BranchView) -> str:
    seen = [("patches", branch.patches), ("words", branch.words)]
    hidden = " and ".join(name for name, value in seen if value is not None)
    return f"{branch.name.upper()}:\n{hidden} hidden"


def draw_cases(worst: Sequence[SheetRow], best: Sequence[SheetRow], path: str | Path) -> Path:
    """Draw the worst samples on the left and the best on the right of a PNG."""
    from matplotlib.figure import Figure

    count = max(len(worst), len(best))
    if count == 0:
        raise ValueError("a sheet of cases needs at least one sample")
    figure = Figure(figsize=(13, 2.0 * count + 0.5), layout="constrained")
    sides: Any = figure.subfigures(1, 2, wspace=0.03)
    for side, title, rows in zip(sides, ("worst", "best"), (worst, best), strict=True):
        side.suptitle(title, fontsize=13, fontweight="bold")
        grid = side.subplots(count, 4, squeeze=False, width_ratios=[1.0, 1.3, 1.3, 1.3])
        titles = ["image", "truth", "prediction"]
        _fill(grid, rows, titles, width=17, lines=7, y=0.95, fontsize=10, va="top")
    return save_figure(figure, path)


def _fill(
    grid: Any, rows: Sequence[SheetRow], titles: Sequence[str], width: int, lines: int, **style: Any
) -> None:
    """Fill a grid of axes: the expression in the first column, the panels in the others."""
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, title in zip(grid[0, 1:], titles, strict=True):
        axes.set_title(title, fontsize=13)
    for cells, row in zip(grid, rows, strict=False):
        caption = "\n".join(textwrap.wrap(row.sentence or "(no sentence)", width)[:lines])
        # a dollar sign in a sentence does not start mathematics
        cells[0].text(x=0.0, s=caption, parse_math=False, **style)
        for axes, (panel, below) in zip(cells[1:], row.panels(), strict=False):
            axes.imshow(np.asarray(panel))
            below = "\n".join(textwrap.wrap(below, 24)[:2])
            place = {"x": 0.5, "y": -0.03, "ha": "center", "va": "top"}
            axes.text(**place, s=below, fontsize=11, parse_math=False, transform=axes.transAxes)


def heat(image: Image.Image, scores: NDArray[np.float32]) -> Image.Image:
    """Blend the patches' scores, ``(h, w)``, over the image in grey: dark is low, yellow high."""
    from matplotlib import colormaps
    from PIL import Image

    low, high = float(scores.min()), float(scores.max())
    scaled = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    colours = (colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
    heat = Image.fromarray(colours).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB"), heat, 0.65)


def covered(image: Image.Image, masked: BoolArray) -> Image.Image:
    """Paint the masked patches, ``(h, w)``, grey."""
    from PIL import Image

    stencil = Image.fromarray(masked.astype(np.uint8) * 255)
    stencil = stencil.resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, (110, 110, 110)), image, stencil)


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib's own font knows few scripts; an empty box for a letter is good enough here
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=110)
    write_files({Path(path): buffer.getvalue()})
    return Path(path)
