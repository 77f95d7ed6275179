"""What a data set holds, in numbers: sizes, lengths of sentences, areas of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from masksd.kit.data.catalog import PUBLISHED
from masksd.kit.data.index import Index


class Spread(NamedTuple):
    """How some numbers are spread; all 0 where there are none."""

    least: float
    median: float
    mean: float
    p95: float
    most: float


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """How much a split holds.

    Attributes:
        images: pictures that its refs speak of.
        objects: objects that its refs speak of.
        refs: its refs.
        sentences: their sentences.
    """

    images: int
    objects: int
    refs: int
    sentences: int


@dataclass(frozen=True, slots=True)
class SplitSurvey:
    """What a split looks like.

    Attributes:
        words: words a sentence, as spaces divide them.
        over_15: share of the sentences with more than 15 words, in [0, 1]; CRIS's 17 tokens hold
            at most 15.
        over_20: the same for more than 20 words; G-Ref's 22 tokens hold at most 20.
        area: share of the picture that an object covers, in [0, 1].
        several_polygons: objects of more than one polygon.
        run_lengths: objects given by run lengths.
        dropped_polygons: polygons that cannot be drawn and were dropped.
    """

    words: Spread
    over_15: float
    over_20: float
    area: Spread
    several_polygons: int
    run_lengths: int
    dropped_polygons: int


def count_split(index: Index, split: str) -> SplitCounts:
    """Count a split.

    Args:
        index: of the data set.
        split: as its refs name it.

    Returns:
        The counts.

    Raises:
        ValueError: an unknown split.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.gather import gather_index
        >>> from masksd.kit.data.layout import find_files
        >>> from masksd.kit.data.shapes.build import ShapesConfig, build_shapes
        >>> small = ShapesConfig(train=1, val=2, test_a=1, test_b=1)
        >>> root = build_shapes(tempfile.mkdtemp(), small, progress=False)
        >>> index = gather_index(find_files(root, "shapes", "masksd"))
        >>> count_split(index, "val").images
        2
        >>> survey_split(index, "val").words.least >= 2
        True
    """
    refs = index.refs[index.rows(split)]
    spans = refs["sentences"]
    return SplitCounts(
        images=len(np.unique(refs["image"])),
        objects=len(np.unique(refs["object"])),
        refs=len(refs),
        sentences=int((spans[:, 1] - spans[:, 0]).sum()),
    )


def survey_split(
    index: Index, split: str, text: str = "sent", progress: bool = False
) -> SplitSurvey:
    """Measure the sentences and objects of a split; an object of several refs counts once.

    Args:
        index: of the data set.
        split: as its refs name it.
        text: which form of the sentences is counted, ``"sent"`` or ``"raw"``; blank ones are not.
        progress: show a bar.

    Returns:
        The numbers.

    Raises:
        ValueError: an unknown split.
    """
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


def format_counts(name: str, split_by: str, counts: Mapping[str, SplitCounts]) -> str:
    """Lay counts out as a table, with the published ones where they are known.

    Args:
        name: of the data set.
        split_by: whose split it is.
        counts: by split.

    Returns:
        Lines of aligned columns, one split a line.

    Example:
        >>> print(format_counts("mine", "unc", {"val": SplitCounts(1, 2, 3, 4)}))
        split  images  objects  refs  sentences
        val         1        2     3          4
    """
    published = PUBLISHED.get((name, split_by), {})
    head = ["split", "images", "objects", "refs", "sentences"]
    rows = []
    for split, found in counts.items():
        row = [split, found.images, found.objects, found.refs, found.sentences]
        if published:
            size = published.get(split)
            row += ["-", "-"] if size is None else [size.refs, size.sentences or "-"]
        rows.append(row)
    if published:
        head += ["refs published", "sentences published"]
    return _table(head, rows)


def format_surveys(surveys: Mapping[str, SplitSurvey]) -> str:
    """Lay surveys out as a table, one split a column.

    Args:
        surveys: by split.

    Returns:
        Lines of aligned columns.

    Example:
        >>> one = Spread(1, 3, 3.5, 8, 16)
        >>> area = Spread(0.01, 0.1, 0.15, 0.5, 0.9)
        >>> print(format_surveys({"val": SplitSurvey(one, 0.25, 0, area, 2, 1, 0)}))
                                         val
        words: least                       1
        words: median                      3
        words: mean                     3.50
        words: 95 %                        8
        words: most                       16
        over 15 words, %                  25
        over 20 words, %                   0
        area, % of the picture: least      1
        area, % of the picture: median    10
        area, % of the picture: mean      15
        area, % of the picture: 95 %      50
        area, % of the picture: most      90
        objects of several polygons        2
        objects of run lengths             1
        polygons dropped                   0
    """
    steps = ("least", "median", "mean", "95 %", "most")
    each = list(surveys.values())
    rows: list[list[object]] = []
    for place, step in enumerate(steps):
        rows.append([f"words: {step}", *(_short(one.words[place]) for one in each)])
    rows.append(["over 15 words, %", *(_short(100 * one.over_15) for one in each)])
    rows.append(["over 20 words, %", *(_short(100 * one.over_20) for one in each)])
    for place, step in enumerate(steps):
        label = f"area, % of the picture: {step}"
        rows.append([label, *(_short(100 * one.area[place]) for one in each)])
    rows.append(["objects of several polygons", *(one.several_polygons for one in each)])
    rows.append(["objects of run lengths", *(one.run_lengths for one in each)])
    rows.append(["polygons dropped", *(one.dropped_polygons for one in each)])
    return _table(["", *surveys], rows)


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


def _short(value: float) -> str:
    rounded = round(value, 2)
    return f"{rounded:.0f}" if rounded == int(rounded) else f"{rounded:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
