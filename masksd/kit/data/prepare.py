"""``masksd data prepare``: from the source files to an index, in memory or written to disk."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import warnings
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from masksd.kit.data.images import check_recorded_file, check_recorded_image
from masksd.kit.data.index import ARRAYS, METADATA, Index, load_index, open_index
from masksd.kit.data.layout import (
    Layout,
    count_difference,
    describe_sources,
    find_files,
    find_split_by,
    warn_of_shared_images,
)
from masksd.kit.data.records import (
    Annotation,
    BadRecords,
    DataError,
    ImageRecord,
    Ref,
    attempt,
    prefixed,
)
from masksd.kit.data.segmentation import check_segmentation


def prepare_data(
    root: str | Path,
    name: str,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    output: str | Path | None = None,
    skip_bad: bool = False,
    check_pictures: bool = False,
    progress: bool = True,
) -> tuple[Layout, Index]:
    """Check refs, objects and images, and write the index that opens in milliseconds.

    ``split_by``, ``images`` and ``output`` (the index) are found as :func:`find_files` does where
    they are None. ``skip_bad`` leaves out what is bad, with a warning that counts it; without it
    the first bad record is a DataError. ``check_pictures`` decodes every image and compares its
    size, instead of looking whether the file exists.
    """
    split_by = split_by or find_split_by(root, name)
    layout = find_files(root, name, split_by, images)
    default, output = layout.index, Path(output or layout.index)
    layout = dataclasses.replace(layout, index=output)

    def check_image(image: ImageRecord) -> None:
        try:
            check_recorded_file(layout.images, image)
        except DataError as error:
            raise DataError(
                f"{error}; name the folder of the images with --images, or "
                "leave its refs out with --skip-bad"
            ) from None
        if check_pictures:
            check_recorded_image(layout.images, image)

    _check_output(output, output == default)
    sources = describe_sources(layout)
    try:
        layout.kind.unpack(layout.files, layout.images)
    except OSError as error:
        raise ValueError(
            f"pictures cannot be unpacked into {layout.images} ({error.strerror}); name another "
            "folder with --images"
        ) from None
    gathered = gather_index(layout, BadRecords() if skip_bad else None, check_image, progress)
    try:
        gathered.save(layout, sources)
    except OSError as error:
        raise _unwritable(output, error) from None
    index = load_index(output)
    index.bad.warn()
    warn_of_shared_images({split: index.file_names(index.rows(split)) for split in index.splits})
    for split in index.splits:
        refs = index.refs[index.rows(split)]
        sentences = int(np.diff(refs["sentences"]).sum())
        difference = count_difference(name, split_by, split, len(refs), sentences)
        if difference:
            warnings.warn(difference, UserWarning, stacklevel=2)
    return layout, index


def _check_output(output: Path, ours_by_name: bool) -> None:
    """Refuse a place before minutes of work: one that is taken, or that cannot be written."""
    try:
        if output.is_dir():
            raise ValueError(
                f"output {output} is a folder; name a file, such as {output}.safetensors"
            )
        if output.exists() and not ours_by_name:
            with output.open("rb") as file:
                if METADATA.encode() not in file.read(200):
                    raise ValueError(
                        f"output {output} exists and is not an index; choose another --output"
                    )
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise _unwritable(output, error) from None


def _unwritable(output: Path, error: OSError) -> ValueError:
    return ValueError(
        f"output {output} cannot be written ({error.strerror}); choose another --output"
    )


def find_index(layout: Layout, bad: BadRecords | None = None) -> Index:
    """Open the prepared index, or read the sources where there is none; both give the same."""
    if layout.index.exists():
        return open_index(layout)
    if bad is not None or not all(path.is_file() for path in layout.files):
        return gather_index(layout, bad)
    found = (path.stat() for path in layout.files)
    return _gather_once(
        layout, *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)
    )


@functools.lru_cache(maxsize=1)
def _gather_once(layout: Layout, *stamps: tuple[int, ...]) -> Index:
    return gather_index(layout)


def gather_index(
    layout: Layout,
    bad: BadRecords | None = None,
    check_image: Callable[[ImageRecord], object] | None = None,
    progress: bool = False,
) -> Index:
    """Read the sources, check what the refs speak of, and put it into arrays.

    Bad records, and images for which ``check_image`` raises a DataError, go to ``bad`` and are left
    out; without it the first one is raised. It is always an error if no ref is left.
    """
    images, annotations, refs = layout.kind.read(layout.files, layout.images, bad)
    gathered = _Gathered()
    usable: dict[int, bool] = {}  # images by id
    objects: dict[int, int | None] = {}  # rows by id; None for what was left out

    def is_usable(image: ImageRecord) -> bool:
        if check_image is not None:
            check_image(image)
        return True

    for ref in tqdm(refs, desc=f"checking {layout.name}", unit="ref", disable=not progress):
        image = images[ref.image_id]
        if image.image_id not in usable:
            usable[image.image_id] = bool(attempt(bad, is_usable, image))
        if usable[image.image_id] and ref.ann_id not in objects:
            annotation = annotations[ref.ann_id]
            checked = attempt(bad, _check_object, annotation, image)
            objects[ref.ann_id] = checked and gathered.add_object(annotation, image, *checked)
        row = objects.get(ref.ann_id)
        if row is not None:
            gathered.add_ref(ref, row)
        elif bad is not None:  # it is: without it the first bad one was raised
            what = f"object {ref.ann_id}" if usable[image.image_id] else f"image {ref.image_id}"
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
        named = (0, False) if category is None else (category, True)
        spoken = self._extend("sentences", sentences)
        image = self.images[ref.image_id]
        self.rows["refs"].append((ref.ref_id, row, image, *named, split, spoken))

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


def _check_object(annotation: Annotation, image: ImageRecord) -> tuple[Any, int]:
    with prefixed(annotation.where):
        return check_segmentation(annotation.segmentation, image.height, image.width)
