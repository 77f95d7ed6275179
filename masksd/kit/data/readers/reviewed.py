"""Expressions that people reviewed and found wrong, left out: the files of Ref-L4's authors.

``refcoco_val_reviewed.json`` and its like have COCO's layout, an image an expression: ``images`` of
``id``, ``file_name`` and ``caption``, and ``annotations`` of ``image_id``, ``caption_quality`` (0
where the expression is wrong) and perhaps ``original_id``, the object that it is said of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from masksd.kit.data.records import DataError, ImageRecord, Ref, entries, integer, read_json, typed

Said = set[tuple[str, str, int | None]]  # file name, expression, object where it is told


def drop_errors(
    refs: list[Ref], images: Mapping[int, ImageRecord], files: Sequence[Path]
) -> list[Ref]:
    """Leave out the expressions that files call wrong, and refs that have no other."""
    for path in files:
        wrong, known = _read(path)
        kept, met = [], False
        for ref in refs:
            left = []
            name = images[ref.image_id].file_name if ref.image_id in images else ""
            for sentence in ref.sentences:
                texts = {_plain(text) for text in (sentence.sent, sentence.raw)}
                keys = {(name, text, of) for text in texts for of in (ref.ann_id, None)}
                met = met or not keys.isdisjoint(known)
                if keys.isdisjoint(wrong):
                    left.append(sentence)
            if left:
                kept.append(dataclasses.replace(ref, sentences=tuple(left)))
        if refs and not met:
            raise DataError(
                f"{path}: none of its expressions is one of the refs; it belongs to another data "
                "set, or its 'file_name' and 'caption' are written otherwise"
            )
        if refs and not kept:
            raise DataError(
                f"{path}: it calls every expression of the refs wrong; is it of this data?"
            )
        refs = kept
    return refs


def _read(path: Path) -> tuple[Said, Said]:
    """Return what a file calls wrong, and all that it speaks of."""
    content: dict[str, Any] = typed(read_json(path), dict, f"{path}: the file")
    told: dict[int, tuple[str, str]] = {}
    for where, entry in _dicts(content, "images", path):
        name, caption = (
            typed(entry.get(field), str, f"{where}: field {field!r}")
            for field in ("file_name", "caption")
        )
        told[integer(entry, "id", where)] = name, _plain(caption)
    wrong: Said = set()
    known: Said = {(*each, None) for each in told.values()}
    for where, entry in _dicts(content, "annotations", path):
        image_id = integer(entry, "image_id", where)
        if image_id not in told:
            raise DataError(f"{where}: field 'image_id' is {image_id}, which no image has")
        of = integer(entry, "original_id", where) if "original_id" in entry else None
        if not integer(entry, "caption_quality", where):
            wrong.add((*told[image_id], of))
    return wrong, known


def _dicts(content: dict[str, Any], field: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, entry in entries(content, field, "id", str(path)):
        yield where, typed(entry, dict, where)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
