"""The sheet of ``masksd data inspect``: pictures with their sentences and the outlined truth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksd.kit.data.index import Index
from masksd.kit.data.layout import Layout
from masksd.kit.data.refer import read_recorded
from masksd.kit.figures import save_figure

if TYPE_CHECKING:
    from PIL import Image

_COLUMNS = 4
_LINES = 5
_LINE_LENGTH = 36


class DataCell(NamedTuple):
    """One ref on the sheet.

    Attributes:
        title: what identifies it.
        picture: RGB, ``(H, W)`` pixels.
        sentences: its expressions.
        truth: uint8 ``(H, W)`` of 0 and 1.
    """

    title: str
    picture: Image.Image
    sentences: Sequence[str]
    truth: NDArray[np.uint8]


def draw_refs(index: Index, seed: int, count: int) -> list[int]:
    """Draw refs for a sheet, the same number of every split as far as that goes.

    Args:
        index: of the data set.
        seed: of the draw, at least 0.
        count: how many, at least 1.

    Returns:
        Rows of ``index.refs``, split by split.

    Raises:
        ValueError: a count below 1 or a negative seed.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"samples must be at least 1 and seed at least 0, got {count} and {seed}")
    shares = [len(part) for part in np.array_split(np.arange(count), len(index.splits))]
    drawn: list[int] = []
    for number, (split, share) in enumerate(zip(index.splits, shares, strict=True)):
        rows = index.rows(split)
        key = np.random.default_rng([seed, number])
        chosen = key.choice(rows, size=min(share, len(rows)), replace=False)
        drawn += np.sort(chosen).tolist()
    return drawn


def read_cell(layout: Layout, index: Index, row: int, text: str = "sent") -> DataCell:
    """Read what a sheet shows of a ref.

    Args:
        layout: of the data set.
        index: of the data set.
        row: of ``index.refs``.
        text: ``"sent"`` or ``"raw"``.

    Returns:
        Picture, sentences and truth.

    Raises:
        DataError: the picture is missing, damaged or of another size.
    """
    ref = index.refs[row]
    first, last = ref["sentences"].tolist()
    return DataCell(
        title=f"{index.splits[ref['split']]}, ref {ref['ref_id']}",
        picture=read_recorded(layout.images, index.image(int(ref["image"]))),
        sentences=[index.sentence(each, text) for each in range(first, last)],
        truth=index.mask(int(ref["object"])),
    )


def draw_data_sheet(cells: Sequence[DataCell], path: str | Path) -> Path:
    """Draw the cells, four a row.

    Args:
        cells: what to show.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: if there is no cell.
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not cells:
        raise ValueError("a sheet needs at least one ref")
    rows = -(-len(cells) // _COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.12)
    figure = Figure(figsize=(3.1 * _COLUMNS, 4.1 * rows), layout=layout)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, cell in zip(grid.flat, cells, strict=False):
        axes.imshow(np.asarray(cell.picture))
        if cell.truth.min() != cell.truth.max():  # else there is no edge to draw
            for colour, width in (("white", 3.0), ("#d81b60", 1.4)):
                axes.contour(cell.truth, levels=[0.5], colors=colour, linewidths=width)
        axes.set_title(cell.title, fontsize=9, color="0.4", loc="left")
        # an expression may hold a dollar sign, which is not mathematics
        axes.text(
            0.0, -0.03, _caption(cell.sentences), fontsize=10, va="top", ha="left",
            transform=axes.transAxes, parse_math=False,
        )  # fmt: skip
    return save_figure(figure, path)


def _caption(sentences: Sequence[str]) -> str:
    lines: list[str] = []
    for sentence in sentences:
        lines += textwrap.wrap(sentence, _LINE_LENGTH, initial_indent="• ", subsequent_indent="  ")
    more = [f"  ({len(lines) - _LINES + 1} more lines)"] if len(lines) > _LINES else []
    return "\n".join(lines[: _LINES - len(more)] + more)
