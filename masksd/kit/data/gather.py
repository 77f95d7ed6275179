"""From the two source files to an :class:`~masksd.kit.data.index.Index` in memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from masksd.kit.data.arrays import ARRAYS
from masksd.kit.data.bad import BadRecords, DataError, attempt
from masksd.kit.data.index import Index, open_index
from masksd.kit.data.layout import Layout
from masksd.kit.data.records import Annotation, ImageRecord, Ref, read_instances, read_refs
from masksd.kit.data.segmentation import check_segmentation


def find_index(layout: Layout, bad: BadRecords | None = None) -> Index:
    """Open the prepared index where there is one, else read the sources; both give the same.

    Args:
        layout: of the data set.
        bad: takes bad records of the sources, which are left out; None raises the first.

    Returns:
        The index.

    Raises:
        DataError: damaged data, or an index that is older than its sources.
    """
    return open_index(layout) if layout.index.exists() else gather_index(layout, bad)


def gather_index(
    layout: Layout,
    bad: BadRecords | None = None,
    check_picture: Callable[[ImageRecord], object] | None = None,
    progress: bool = False,
) -> Index:
    """Read refs and instances, check what the refs speak of, and put it into arrays.

    Args:
        layout: of the data set.
        bad: takes bad records, which are left out; None raises the first.
        check_picture: called once for each picture that refs speak of; raises ``DataError`` for a
            bad one.
        progress: show a bar.

    Returns:
        The index, in memory.

    Raises:
        DataError: unreadable files, no ref that is left, and without ``bad`` any bad record.
    """
    images, annotations = read_instances(layout.instances, bad)
    refs = read_refs(layout.refs, annotations, bad)
    gathered = _Gathered()
    pictures: dict[int, bool] = {}  # whether it is fine, by id
    objects: dict[int, int | None] = {}  # rows by id; None for what was left out
    for ref in tqdm(refs, desc=f"checking {layout.name}", unit="ref", disable=not progress):
        image = images[ref.image_id]
        if image.image_id not in pictures:
            passed = check_picture is None or attempt(bad, _checked, check_picture, image)
            pictures[image.image_id] = bool(passed)
        if pictures[image.image_id] and ref.ann_id not in objects:
            annotation = annotations[ref.ann_id]
            checked = attempt(bad, _segmentation, annotation, image, layout.instances)
            objects[ref.ann_id] = checked and gathered.add_object(annotation, image, *checked)
        row = objects.get(ref.ann_id)
        if row is not None:
            gathered.add_ref(ref, row)
        elif bad is not None:  # it is: without it the first bad one was raised
            what = f"object {ref.ann_id}" if pictures[image.image_id] else f"picture {ref.image_id}"
            bad.add(f"{layout.refs}: ref_id {ref.ref_id}: {what} was left out")
    if not gathered.rows["refs"]:
        why = "" if bad is None else bad.summary()
        raise DataError(f"{layout.refs}: no ref is left: {why or 'the file holds none'}")
    return gathered.index(BadRecords() if bad is None else bad)


class _Gathered:
    """Rows of the arrays while they grow."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {name: [] for name in ARRAYS}
        # millions of numbers, which as Python objects take four times the memory
        self.rows |= {"coordinates": array("d"), "runs": array("q")}
        self.text = bytearray()
        self.texts: dict[str, tuple[int, int]] = {}  # their places in it: each is kept once
        self.splits: dict[str, int] = {}  # their numbers
        self.images: dict[int, int] = {}  # their rows by id

    def add_object(
        self, annotation: Annotation, image: ImageRecord, checked: Any, dropped: int
    ) -> int:
        if image.image_id not in self.images:
            self.images[image.image_id] = len(self.images)
            name = self._add_text(image.file_name)
            self.rows["images"].append((image.image_id, image.width, image.height, name))
        is_runs = not isinstance(checked[0], list)
        if is_runs:
            parts = self._extend("runs", checked)
        else:
            spans = [(self._extend("coordinates", polygon),) for polygon in checked]
            parts = self._extend("polygons", spans)
        place = self.images[image.image_id]
        self.rows["objects"].append((annotation.ann_id, place, is_runs, parts, dropped))
        return len(self.rows["objects"]) - 1

    def add_ref(self, ref: Ref, row: int) -> None:
        split = self.splits.setdefault(ref.split, len(self.splits))
        sentences = [
            (each.sent_id, self._add_text(each.sent), self._add_text(each.raw))
            for each in ref.sentences
        ]
        category = ref.category_id
        self.rows["refs"].append(
            (
                ref.ref_id,
                row,
                self.images[ref.image_id],
                0 if category is None else category,
                category is not None,
                split,
                self._extend("sentences", sentences),
            )
        )

    def index(self, bad: BadRecords) -> Index:
        arrays = {name: np.array(self.rows[name], dtype=kind) for name, kind in ARRAYS.items()}
        arrays["text"] = np.frombuffer(bytes(self.text), dtype=np.uint8)
        return Index(arrays, list(self.splits), bad)

    def _extend(self, name: str, values: Sequence[Any]) -> tuple[int, int]:
        start = len(self.rows[name])
        self.rows[name].extend(values)
        return start, start + len(values)

    def _add_text(self, text: str) -> tuple[int, int]:
        if text not in self.texts:
            start = len(self.text)
            self.text += text.encode()
            self.texts[text] = start, len(self.text)
        return self.texts[text]


def _checked(check: Callable[[ImageRecord], object], image: ImageRecord) -> bool:
    check(image)
    return True


def _segmentation(annotation: Annotation, image: ImageRecord, path: Path) -> tuple[Any, int]:
    try:
        return check_segmentation(annotation.segmentation, image.height, image.width)
    except DataError as error:
        raise DataError(f"{path}: annotation {annotation.ann_id}: {error}") from None
