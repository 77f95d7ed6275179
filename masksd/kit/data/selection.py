"""Which refs and sentences of an index make up a split."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksd.kit.data.bad import BadRecords, DataError
from masksd.kit.data.index import Index
from masksd.kit.data.layout import Layout
from masksd.kit.data.pictures import find_picture


class Selection(NamedTuple):
    """Rows of an index.

    Attributes:
        refs: ``(N,)`` rows of ``index.refs``, in order.
        sentences: ``(M,)`` rows of ``index.sentences``, ref by ref.
        counts: ``(N,)`` how many of the sentences belong to each ref, at least 1.
    """

    refs: NDArray[np.int64]
    sentences: NDArray[np.int64]
    counts: NDArray[np.int64]


def select_split(
    index: Index, split: str, text: str, layout: Layout, bad: BadRecords | None = None
) -> Selection:
    """Select the refs of a split, with the sentences that are not blank.

    Args:
        index: of the data set.
        split: as its refs name it.
        text: ``"sent"`` or ``"raw"``.
        layout: of the data set.
        bad: takes the refs whose picture file cannot be found and the sentences that are blank in
            ``text``, which are left out; None raises for such a sentence, and looks for no picture.

    Returns:
        The rows.

    Raises:
        ValueError: an unknown split.
        DataError: a blank sentence, where ``bad`` is None.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.gather import gather_index
        >>> from masksd.kit.data.layout import find_files
        >>> from masksd.kit.data.shapes.build import ShapesConfig, build_shapes
        >>> small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
        >>> layout = find_files(
        ...     build_shapes(tempfile.mkdtemp(), small, progress=False), "shapes", "masksd")
        >>> selection = select_split(gather_index(layout), "val", "sent", layout)
        >>> selection.counts.sum() == len(selection.sentences)
        np.True_
    """
    rows = index.rows(split)
    if bad is not None:
        rows = _with_pictures(index, rows, layout.images, bad)
    spans = index.refs["sentences"][rows]
    sizes = spans[:, 1] - spans[:, 0]
    owners = np.repeat(np.arange(len(rows)), sizes)
    # the place of a sentence among those of its ref, added to where they start
    places = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    sentences = np.repeat(spans[:, 0], sizes) + places
    texts = index.sentences[text][sentences]
    blank = texts[:, 0] == texts[:, 1]
    for position in np.flatnonzero(blank):
        ref_id = int(index.refs["ref_id"][rows[owners[position]]])
        sent_id = int(index.sentences["sent_id"][sentences[position]])
        reason = (
            f"{layout.refs}: ref_id {ref_id}: sent_id {sent_id}: field {text!r} is missing or "
            "blank; an expression needs a word"
        )
        if bad is None:
            raise DataError(f"{reason}; skip_bad (--skip-bad) leaves such sentences out")
        bad.add(reason)
    counts = np.bincount(owners[~blank], minlength=len(rows))
    return Selection(rows[counts > 0], sentences[~blank], counts[counts > 0])


def _with_pictures(
    index: Index, rows: NDArray[np.int64], folder: Path, bad: BadRecords
) -> NDArray[np.int64]:
    images = index.refs["image"][rows]
    missing = []
    for image in np.unique(images).tolist():
        record = index.image(image)
        try:
            find_picture(folder / record.file_name)
        except DataError as error:
            missing.append(image)
            bad.add(f"picture {record.image_id}: {error}")
    return rows[~np.isin(images, missing)]
