"""Which refs of a split can be used, and which of a training split have their masks used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from masksd.kit.data.images import check_recorded_file
from masksd.kit.data.index import Index
from masksd.kit.data.layout import Layout
from masksd.kit.data.records import BadRecords, DataError
from masksd.kit.randomness import keyed_generator, keyed_seed

Positions = NDArray[np.int64]  # places of refs in a split, in order


def count_labels(labels: int | float, refs: int) -> int:
    """Return how many of a split's refs keep their masks."""
    if labels > refs:
        raise ValueError(f"labels is {labels}, but the training split has {refs} refs with masks")
    return labels if isinstance(labels, int) else max(1, round(labels * refs))


def choose_refs(labels: int | float, refs: int, seed: int) -> tuple[Positions, Positions]:
    """Choose the refs whose masks are used, fewer ones among more; return them, and the others."""
    order = torch.randperm(refs, generator=keyed_generator(seed, "labels")).numpy()
    count = count_labels(labels, refs)
    return np.sort(order[:count]), np.sort(order[count:])


def mislabel(images: Positions, objects: Positions, share: float, seed: int) -> Positions:
    """Return the refs' objects, about this share of them replaced by another ref's of the image."""
    random = np.random.default_rng(keyed_seed(seed, "label noise"))
    draws, choices = random.random((2, len(objects)))
    wrong = objects.copy()
    for ref in np.flatnonzero(draws < share):
        others = np.unique(objects[(images == images[ref]) & (objects != objects[ref])])
        if len(others):
            wrong[ref] = others[int(choices[ref] * len(others))]
    return wrong


def select_split(
    index: Index, split: str, text: str, layout: Layout, bad: BadRecords | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Select the refs of a split, with the expressions that are not blank in ``text``.

    Returns rows of the refs, rows of their expressions ref by ref, and how many each ref has.
    ``bad`` takes these, and the refs whose image file cannot be found. Without it a blank
    expression is a DataError, and no image is looked for.
    """
    rows = index.rows(split)
    if bad is not None:
        rows = _with_images(index, rows, layout.images, bad)
    spans = index.refs["sentences"][rows]
    owners = np.repeat(np.arange(len(rows)), np.diff(spans)[:, 0])
    sentences = np.concatenate([np.arange(first, last) for first, last in spans.tolist()])
    texts = index.sentences[text][sentences]
    blank = texts[:, 0] == texts[:, 1]
    hint = "skip_bad (--skip-bad) leaves such sentences out"
    if blank.all():
        other = "raw" if text == "sent" else "sent"
        hint = f"no expression of split {split!r} has it: use text={other!r} (--text {other})"
    for position in np.flatnonzero(blank):
        ref_id = int(index.refs["ref_id"][rows[owners[position]]])
        sent_id = int(index.sentences["sent_id"][sentences[position]])
        reason = (
            f"{layout.refs}: ref_id {ref_id}: sent_id {sent_id}: field {text!r} is missing or "
            "blank; an expression needs a word"
        )
        if bad is None or blank.all():
            raise DataError(f"{reason}; {hint}")
        bad.add(reason)
    counts = np.bincount(owners[~blank], minlength=len(rows))
    return (rows[counts > 0], sentences[~blank], counts[counts > 0])


def _with_images(
    index: Index, rows: NDArray[np.int64], folder: Path, bad: BadRecords
) -> NDArray[np.int64]:
    images = index.refs["image"][rows]
    missing = []
    for image in np.unique(images).tolist():
        record = index.image(image)
        try:
            check_recorded_file(folder, record)
        except DataError as error:
            missing.append(image)
            bad.add(str(error))
    if missing and len(missing) == len(np.unique(images)):
        raise DataError(
            f"no ref of the split is left: none of its {len(missing)} images can be found, as in "
            f"{bad.reasons[-1]}; name their folder (--images)"
        )
    return rows[~np.isin(images, missing)]
