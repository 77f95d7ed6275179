"""Sources of one row an expression or an object: picture, sentences, mask, split."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from masksd.kit.data.images import read_mask, read_size
from masksd.kit.data.readers.refer import Records, check_records
from masksd.kit.data.records import BadRecords, DataError, attempt, check_file_name, parse_json
from masksd.kit.data.segmentation import encode_runs

PICTURE = ("picture", "image", "file_name")
SENTENCE = ("sentence", "sentences", "answer")
MASK = ("mask", "polygon", "rle", "segmentation")  # the names that a column may have
_SPLITS = {
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **{name.lower(): name for name in ("train", "test", "testA", "testB")},
}  # the words for a split, in lower case


class Rows:
    """Gathers rows, and numbers pictures, objects and refs in the order in which they come.

    Rows of one picture and one mask are one ref with several sentences.
    """

    def __init__(self, folder: Path, bad: BadRecords | None) -> None:
        self.folder, self.bad = folder, bad
        self.images: dict[str, tuple[str, dict[str, Any]]] = {}
        self.objects: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        self.refs: dict[tuple[str, str, str], tuple[str, dict[str, Any]]] = {}
        self.sentences = 0

    def add(
        self, row: Mapping[str, Any], where: str, split: str, size: tuple[int, int] | None = None
    ) -> None:
        """Take a row; ``split`` and ``size`` (of its picture) serve where it does not say them."""
        attempt(self.bad, self._add, row, where, split, size)

    def records(self) -> Records:
        """Check all rows as records of the refer format."""
        found = self.images.values(), self.objects.values(), self.refs.values()
        return check_records(*found, self.bad)

    def _add(
        self, row: Mapping[str, Any], where: str, split: str, size: tuple[int, int] | None
    ) -> None:
        name = check_file_name(_cell(row, PICTURE, where), where, field="picture", deep=True)
        said = _cell(row, SENTENCE, where)
        if isinstance(said, str) and said.lstrip().startswith("["):
            said = parse_json(said, f"{where}: field 'sentences' is")
        sentences = list(said) if isinstance(said, (list, tuple)) else [said]
        mask = _cell(row, MASK, where)
        key = mask if isinstance(mask, str) else json.dumps(mask, default=repr)
        split = row.get("split") or split
        if not isinstance(split, str):
            raise DataError(f"{where}: field 'split' is {split!r:.40}, expected a text")
        split = one_word(split)
        if name not in self.images:
            width, height = size or read_size(self.folder, name, where)
            entry = {"id": len(self.images) + 1, "width": width, "height": height}
            self.images[name] = where, {**entry, "file_name": name}
        image = self.images[name][1]
        if (name, key) not in self.objects:
            entry = {"id": len(self.objects) + 1, "image_id": image["id"]}
            entry["segmentation"] = self._segmentation(mask, image, where)
            self.objects[name, key] = where, entry
        ids = {"ann_id": self.objects[name, key][1]["id"], "image_id": image["id"]}
        new = {"ref_id": len(self.refs) + 1, **ids, "split": split, "sentences": []}
        ref = self.refs.setdefault((name, key, split), (where, new))[1]
        for sentence in sentences:
            if any(sentence == known["sent"] for known in ref["sentences"]):
                continue  # two rows that say the same
            self.sentences += 1
            ref["sentences"].append({"sent_id": self.sentences, "sent": sentence, "raw": sentence})

    def _segmentation(self, mask: Any, image: dict[str, Any], where: str) -> Any:
        """Turn a cell into COCO's segmentation; a tuple without parts is no object."""
        if isinstance(mask, str) and mask.lstrip()[:1] in ("[", "{"):
            mask = parse_json(mask, f"{where}: field 'mask' is")
        if isinstance(mask, str):
            name = check_file_name(mask, where, field="mask", deep=True)
            width, height = image["width"], image["height"]
            runs = encode_runs(read_mask(self.folder, name, (width, height), where))
            return {"size": [height, width], "counts": runs}
        if isinstance(mask, Mapping):
            counts = mask.get("counts")
            if isinstance(counts, bytes):
                counts = counts.decode("ascii", "replace")
            return {"size": mask.get("size"), "counts": counts}
        if not isinstance(mask, list):
            raise DataError(
                f"{where}: field 'mask' is {mask!r:.40}, expected the file of a mask, polygons, a "
                "run-length code, or [] for no object"
            )
        polygons = _polygons(mask) if mask else ()
        numbers = [number for polygon in polygons for number in polygon]
        if numbers and all(type(number) in (int, float) and 0 <= number <= 1 for number in numbers):
            raise DataError(
                f"{where}: field 'mask' has coordinates from 0 to 1, and they are pixels: multiply "
                "shares by the picture's width and height"
            )
        return polygons


def split_of(name: str) -> str:
    """Return the split that a name says, as "val" of "refcoco_val"; "train" where it says none."""
    words = [word.rstrip("0123456789").lower() for word in re.split(r"[^A-Za-z0-9]+", name)]
    found = list(dict.fromkeys(_SPLITS[word] for word in words if word in _SPLITS))
    if len(found) > 1:
        raise DataError(
            f"the name {name!r} says {' and '.join(found)}: name the split in a column 'split', or "
            "by one word"
        )
    return found[0] if found else "train"


def one_word(split: str) -> str:
    """Return a split by the word that is used here, as "val" for "validation"."""
    return _SPLITS.get(split.strip().lower(), split.strip())


def _cell(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    """Return the first column of these names that the row has."""
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    there = [name for name in names if name in row]
    if there:
        empty = "; write [] for no object" if names is MASK else ""
        raise DataError(f"{where}: field {there[0]!r} is empty{empty}")
    alone = "; a CSV has commas between its cells" if len(row) == 1 else ""
    raise DataError(
        f"{where}: no {names[0]!r}; wanted a column {' or '.join(map(repr, names))}, it has "
        f"{', '.join(map(repr, row))}{alone}"
    )


def _polygons(value: list[Any]) -> list[Any]:
    """Turn one polygon, of numbers or of points, into a list of one; flatten points."""
    if _is_points(value) or not all(isinstance(each, list) for each in value):
        value = [value]
    return [[*chain(*each)] if _is_points(each) else each for each in value]


def _is_points(value: list[Any]) -> bool:
    return all(isinstance(each, list) and len(each) == 2 for each in value) and bool(value)
