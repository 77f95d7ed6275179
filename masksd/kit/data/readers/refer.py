"""The refer format: ``refs(...).p`` and ``instances.json``, checked; all readers end here.

In gRefCOCO a ref speaks of several objects, whose union is its truth, or of none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from masksd.kit.data.pickles import PickleError, read_pickle
from masksd.kit.data.readers.reviewed import drop_errors
from masksd.kit.data.records import (
    Annotation,
    BadRecords,
    DataError,
    ImageRecord,
    Ref,
    Sentence,
    add_once,
    attempt,
    check_file_name,
    entries,
    integer,
    read_json,
    text_or_blank,
    typed,
    unicode_text,
)

T = TypeVar("T")
Entries = Iterable[tuple[str, Any]]
"""Records as a file has them, each after the words that name it in an error."""


class Records(NamedTuple):
    """What a reader returns: images and objects by id, and refs in order."""

    images: dict[int, ImageRecord]
    annotations: dict[int, Annotation]
    refs: list[Ref]


def read_refer(files: Sequence[Path], folder: Path, bad: BadRecords | None) -> Records:
    """Read refs and instances, and leave out what files of reviewed expressions call wrong."""
    refs, instances, *reviewed = files
    images, annotations = read_instances(instances, bad)
    found = read_refs(refs, annotations, bad, images)
    return Records(images, annotations, drop_errors(found, images, reviewed))


def read_instances(
    path: Path, bad: BadRecords | None = None
) -> tuple[dict[int, ImageRecord], dict[int, Annotation]]:
    """Read ``instances.json``: images by image id, and objects by annotation id."""
    content: dict[str, Any] = typed(read_json(path), dict, f"{path}: the file")
    images = check_images(entries(content, "images", "id", str(path)), bad)
    found = entries(content, "annotations", "id", str(path))
    return images, check_annotations(found, images, bad)


def read_refs(
    path: Path,
    annotations: dict[int, Annotation],
    bad: BadRecords | None = None,
    images: Container[int] = (),
) -> list[Ref]:
    """Read ``refs(<split_by>).p``, or the same list as ``.json``, in the order of the file.

    They must agree with images and ``annotations``; unions that they speak of are added to these.
    """
    if path.suffix == ".json":
        content = read_json(path)
    else:
        try:
            content = read_pickle(path)
        except PickleError as error:
            raise DataError(str(error)) from None
    found = entries({"refs": content}, "refs", "ref_id", str(path))
    return check_refs(found, annotations, bad, images)


def check_images(
    found: Entries, bad: BadRecords | None, deep: bool = False
) -> dict[int, ImageRecord]:
    """Check records of images; return them by id. ``deep`` ones may lie in folders."""
    return _by_id(found, bad, "image_id", _image, deep)


def check_annotations(
    found: Entries, images: Container[int], bad: BadRecords | None
) -> dict[int, Annotation]:
    """Check records of objects; return them by id."""
    return _by_id(found, bad, "ann_id", _annotation, images)


def _by_id(
    found: Entries, bad: BadRecords | None, key: str, check: Callable[..., T], *more: object
) -> dict[int, T]:
    """Check records one by one, with ``check(entry, where, *more)``; return them by id."""
    records: dict[int, T] = {}
    for where, entry in found:
        record = attempt(bad, check, entry, where, *more)
        if record is not None:
            add_once(records, getattr(record, key), record, where, "id")
    return records


def check_refs(
    found: Entries,
    annotations: dict[int, Annotation],
    bad: BadRecords | None,
    images: Container[int],
) -> list[Ref]:
    """Check refs; unions of objects that they speak of are added to ``annotations``."""
    objects = _Objects(annotations, images)
    refs: dict[int, Ref] = {}
    sentences: dict[int, Sentence] = {}
    silent = 0
    for where, entry in found:
        several = isinstance(entry, dict) and type(entry.get("ann_id")) is list
        if several and entry.get("sentences") == []:  # as of some in gRefCOCO's val
            silent += 1
            continue
        ref = attempt(bad, _ref, entry, where, objects, bad)
        if ref is not None:
            add_once(refs, ref.ref_id, ref, where, "ref_id")
            for sentence in ref.sentences:
                add_once(sentences, sentence.sent_id, sentence, f"{where}: sentences", "sent_id")
    if silent:
        warnings.warn(f"{silent} refs without any sentence are left out", UserWarning, stacklevel=2)
    return list(refs.values())


def check_records(
    images: Entries, annotations: Entries, refs: Entries, bad: BadRecords | None
) -> Records:
    """Check records that a reader made; their images may lie in folders."""
    known = check_images(images, bad, deep=True)
    objects = check_annotations(annotations, known, bad)
    return Records(known, objects, check_refs(refs, objects, bad, known))


class _Objects:
    """Objects by id; a union gets an id of its own below all others, the same for all its refs."""

    def __init__(self, annotations: dict[int, Annotation], images: Container[int]) -> None:
        self.annotations, self.images = annotations, images
        self.unions: dict[tuple[int, ...], int] = {}
        self.lowest = min(annotations, default=0)

    def find(self, entry: dict[str, Any], where: str) -> int:
        """Return the id of what a ref speaks of."""
        image_id, listed = integer(entry, "image_id", where), entry.get("ann_id")
        if listed == -1:  # of no object
            listed = []
        if type(listed) is not list:
            ann_id = integer(entry, "ann_id", where)
            self._check(ann_id, image_id, where)
            return ann_id
        ids = {integer({"ann_id": each}, "ann_id", where) for each in listed} - {-1}
        for ann_id in ids:
            self._check(ann_id, image_id, where)
        if len(ids) == 1:
            return ids.pop()
        if image_id not in self.images:
            raise DataError(f"{where}: field 'image_id' is {image_id}, but there is no such image")
        key = (image_id, *sorted(ids))
        if key not in self.unions:
            self.unions[key] = union = min(self.lowest, 0) - 1 - len(self.unions)
            parts = tuple(self.annotations[each].segmentation for each in key[1:])
            self.annotations[union] = Annotation(union, image_id, parts, where)
        return self.unions[key]

    def _check(self, ann_id: int, image_id: int, where: str) -> None:
        annotation = self.annotations.get(ann_id)
        if annotation is None:
            raise DataError(f"{where}: field 'ann_id' is {ann_id}, which is not in instances.json")
        if annotation.image_id != image_id:
            raise DataError(
                f"{where}: field 'image_id' is {image_id}, but object {ann_id} belongs to "
                f"image {annotation.image_id} in instances.json"
            )


def _image(value: object, where: str, deep: bool) -> ImageRecord:
    entry: dict[str, Any] = typed(value, dict, where)
    return ImageRecord(
        image_id=integer(entry, "id", where),
        file_name=check_file_name(entry.get("file_name"), where, deep=deep),
        width=integer(entry, "width", where, least=1),
        height=integer(entry, "height", where, least=1),
    )


def _annotation(value: object, where: str, images: Container[int]) -> Annotation:
    entry: dict[str, Any] = typed(value, dict, where)
    segmentation = entry.get("segmentation")
    if type(segmentation) not in (list, dict, tuple):  # a tuple comes from our own readers alone
        raise DataError(f"{where}: field 'segmentation' must be a list or an object")
    if type(segmentation) is list and len(segmentation) == 1 and type(segmentation[0]) is dict:
        segmentation = segmentation[0]  # some data sets wrap a run-length code in a list
    ann_id, image_id = integer(entry, "id", where), integer(entry, "image_id", where)
    if image_id not in images:
        raise DataError(f"{where}: field 'image_id' is {image_id}, but there is no such image")
    return Annotation(ann_id, image_id, segmentation, where)


def _ref(value: object, where: str, objects: _Objects, bad: BadRecords | None) -> Ref:
    entry: dict[str, Any] = typed(value, dict, where)
    category = entry.get("category_id")
    if type(category) is list:  # of several objects
        category = None
    ref_id = integer(entry, "ref_id", where)
    category_id = None if category is None else integer(entry, "category_id", where)
    split = unicode_text(typed(entry.get("split"), str, f"{where}: field 'split'"), "split", where)
    ann_id = objects.find(entry, where)
    found = (
        attempt(bad, _sentence, item, at)
        for at, item in entries(entry, "sentences", "sent_id", where)
    )
    sentences = tuple(sentence for sentence in found if sentence is not None)
    if not sentences:
        raise DataError(f"{where}: field 'sentences' has no usable sentence")
    return Ref(ref_id, ann_id, entry["image_id"], category_id, split, sentences)


def _sentence(value: object, where: str) -> Sentence:
    entry: dict[str, Any] = typed(value, dict, where)
    sent_id = integer(entry, "sent_id", where)
    sent, raw = (text_or_blank(entry, field, where) for field in ("sent", "raw"))
    if not sent and not raw:
        raise DataError(
            f"{where}: fields 'sent' and 'raw' are both blank; an expression needs a word"
        )
    return Sentence(sent_id, sent, raw)
