"""What a data set holds: counts, lengths of expressions, areas of objects, a sheet of samples.

This is what ``masksd data inspect`` shows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from masksd.kit.data.images import read_recorded_image
from masksd.kit.data.index import Index
from masksd.kit.data.layout import PUBLISHED, Layout
from masksd.kit.figures import save_figure
from masksd.kit.printing import align_columns

_COLUMNS = 4  # of the sheet
_LINES = 5  # of a caption
_LINE_LENGTH = 36


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """How much a split holds."""

    images: int
    objects: int
    refs: int
    sentences: int


class Spread(NamedTuple):
    """How some numbers are spread; all 0 where there are none."""

    least: float
    median: float
    mean: float
    p95: float
    most: float


@dataclass(frozen=True, slots=True)
class SplitSurvey:
    """What a split looks like."""

    words: Spread  # an expression, as spaces divide them
    over_15: float  # share of expressions with more words; CRIS's 17 tokens hold 15
    over_20: float  # the same; G-Ref's 22 tokens hold 20
    area: Spread  # share of the image that an object covers
    several_polygons: int  # objects of more than one polygon
    run_lengths: int  # objects given by run lengths
    dropped_polygons: int  # that cannot be drawn


class DataCell(NamedTuple):
    """One ref on the sheet: its image, its expressions, and its truth ``(H, W)`` of 0 and 1."""

    title: str
    image: Image.Image
    sentences: Sequence[str]
    truth: NDArray[np.uint8]


def count_split(index: Index, split: str) -> SplitCounts:
    """Count what a split holds."""
    refs = index.refs[index.rows(split)]
    return SplitCounts(
        images=len(np.unique(refs["image"])),
        objects=len(np.unique(refs["object"])),
        refs=len(refs),
        sentences=int(np.diff(refs["sentences"]).sum()),
    )


def survey_split(
    index: Index, split: str, text: str = "sent", progress: bool = False
) -> SplitSurvey:
    """Measure a split: an object of several refs counts once, blank expressions never."""
    refs = index.refs[index.rows(split)]
    rows = [row for first, last in refs["sentences"].tolist() for row in range(first, last)]
    sentences = [index.sentence(row, text).split() for row in rows]
    words = np.array([len(each) for each in sentences if each])
    areas, several = [], 0
    objects = np.unique(refs["object"])
    for row in tqdm(objects.tolist(), desc=split, unit="object", disable=not progress):
        image = index.images[index.objects["image"][row]]
        height, width = int(image["height"]), int(image["width"])
        parts = index.parts(row)
        is_runs = bool(index.objects["is_runs"][row])
        several += not is_runs and len(parts) > 1
        areas.append(_area(parts, is_runs, height, width) / (height * width))
    return SplitSurvey(
        words=_spread(words),
        over_15=float((words > 15).mean()) if len(words) else 0.0,
        over_20=float((words > 20).mean()) if len(words) else 0.0,
        area=_spread(np.array(areas)),
        several_polygons=several,
        run_lengths=int(index.objects["is_runs"][objects].sum()),
        dropped_polygons=int(index.objects["dropped"][objects].sum()),
    )


def _area(parts: list[Any], is_runs: bool, height: int, width: int) -> int:
    """Count the pixels of an object without drawing it; overlaps of polygons count once."""
    if is_runs:
        return sum(parts[1::2])
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))))


def _spread(values: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(0, 0, 0, 0, 0)
    least, median, p95, most = np.quantile(values, [0, 0.5, 0.95, 1])
    return Spread(float(least), float(median), float(values.mean()), float(p95), float(most))


def format_counts(name: str, split_by: str, counts: Mapping[str, SplitCounts]) -> str:
    """Lay counts out as a table, one split a line, with the published ones where they are known."""
    published = PUBLISHED.get((name, split_by), {})
    lines = [["split", "images", "objects", "refs", "sentences"]]
    if published:
        lines[0] += ["refs published", "sentences published"]
    for split, found in counts.items():
        line = [split, found.images, found.objects, found.refs, found.sentences]
        if published:
            size = published.get(split)
            line += ["-", "-"] if size is None else [size.refs, size.sentences or "-"]
        lines.append(list(map(str, line)))
    return align_columns(lines)


def format_surveys(surveys: Mapping[str, SplitSurvey]) -> str:
    """Lay surveys out as a table, one split a column."""
    each = list(surveys.values())
    steps = ("least", "median", "mean", "95 %", "most")
    lines = [["", *surveys]]
    for place, step in enumerate(steps):
        lines.append([f"words: {step}", *(_short(one.words[place]) for one in each)])
    lines.append(["over 15 words, %", *(_short(100 * one.over_15) for one in each)])
    lines.append(["over 20 words, %", *(_short(100 * one.over_20) for one in each)])
    for place, step in enumerate(steps):
        label = f"area, % of the image: {step}"
        lines.append([label, *(_short(100 * one.area[place]) for one in each)])
    lines.append(["objects of several polygons", *(str(one.several_polygons) for one in each)])
    lines.append(["objects of run lengths", *(str(one.run_lengths) for one in each)])
    lines.append(["polygons dropped", *(str(one.dropped_polygons) for one in each)])
    return align_columns(lines)


def _short(value: float) -> str:
    return f"{value:.2f}".removesuffix(".00")


def draw_refs(index: Index, seed: int, count: int) -> list[int]:
    """Draw rows of refs for a sheet, the same number of every split as far as that goes."""
    if count < 1 or seed < 0:
        raise ValueError(f"samples must be at least 1 and seed at least 0, got {count} and {seed}")
    shares = [len(part) for part in np.array_split(np.arange(count), len(index.splits))]
    drawn: list[int] = []
    for number, (split, share) in enumerate(zip(index.splits, shares, strict=True)):
        rows = index.rows(split)
        random = np.random.default_rng([seed, number])
        chosen = random.choice(rows, size=min(share, len(rows)), replace=False)
        drawn += np.sort(chosen).tolist()
    return drawn


def read_cell(layout: Layout, index: Index, row: int, text: str = "sent") -> DataCell:
    """Read what a sheet shows of a ref, given by its row."""
    ref = index.refs[row]
    first, last = ref["sentences"].tolist()
    return DataCell(
        title=f"{index.splits[ref['split']]}, ref {ref['ref_id']}",
        image=read_recorded_image(layout.images, index.image(int(ref["image"]))),
        sentences=[index.sentence(each, text) for each in range(first, last)],
        truth=index.mask(int(ref["object"])),
    )


def draw_data_sheet(cells: Sequence[DataCell], path: str | Path) -> Path:
    """Draw images with expressions and the outlined truth as a PNG, four a row."""
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
        axes.imshow(np.asarray(cell.image))
        if cell.truth.min() != cell.truth.max():  # else there is no edge to draw
            for color, width in (("white", 3.0), ("#d81b60", 1.4)):
                axes.contour(cell.truth, levels=[0.5], colors=color, linewidths=width)
        axes.set_title(cell.title, fontsize=9, color="0.4", loc="left")
        # an expression may hold a dollar sign, which does not start a formula
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


def spread_indices(total: int, limit: int) -> list[int]:
    """Choose ``limit`` of ``range(total)``, evenly spread and always the same; 0 takes all."""
    if not limit or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]
