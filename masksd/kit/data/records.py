"""The two files of the refer format, read and checked: ``refs(...).p`` and ``instances.json``.

Every error names the file, the record, its id and the field, so that a bad entry can be found and
repaired. With a :class:`BadRecords` bad entries are left out and noted instead; a file that cannot
be read, or an id that comes twice, is always an error.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from masksd.kit.data.pickles import PickleError, read_pickle
from masksd.kit.data.text.cleaning import is_blank

P = ParamSpec("P")
T = TypeVar("T")

_LARGEST_ID = 2**63 - 1
_LONGEST_TEXT = 10_000  # characters; nobody says so much of an object
_LONGEST_NAME = 255  # bytes, of a file on any common file system
_REASONS_SHOWN = 3
_REASONS_KEPT = 1_000


class DataError(ValueError):
    """Data on disk that are missing, damaged or contradict themselves.

    The message names the file, the record and what is wrong.
    """


class BadRecords:
    """The records that were left out because the user asked to go on (``skip_bad``).

    Attributes:
        reasons: of the first 1,000 records, one line each: file, id and reason.
        count: how many records were left out, with those whose reason is not kept.
    """

    def __init__(self, reasons: Iterable[str] = (), count: int | None = None) -> None:
        given = list(reasons)
        self.reasons = given[:_REASONS_KEPT]
        self.count = len(given) if count is None else count

    def add(self, reason: str) -> None:
        """Note one record: file, id and what is wrong."""
        self.count += 1
        if len(self.reasons) < _REASONS_KEPT:
            self.reasons.append(reason)

    def summary(self) -> str:
        """Return the count and the first reasons in one line; "" where nothing was left out."""
        if not self.reasons:
            return ""
        rest = self.count - _REASONS_SHOWN
        more = f"; and {rest} more" if rest > 0 else ""
        records = "bad record" if self.count == 1 else "bad records"
        return f"{self.count} {records} left out: {'; '.join(self.reasons[:_REASONS_SHOWN])}{more}"

    def warn(self) -> None:
        """Emit the summary, if there is one, as a ``UserWarning``."""
        if self.reasons:
            warnings.warn(self.summary(), UserWarning, stacklevel=3)


def attempt(
    bad: BadRecords | None, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | None:
    """Return what ``read`` returns; where it raises a DataError, note that in ``bad`` if given."""
    try:
        return read(*args, **kwargs)
    except DataError as error:
        if bad is None:
            raise
        bad.add(str(error))
        return None


@dataclass(frozen=True, slots=True)
class Sentence:
    """One referring expression, cleaned and as written; one of the two may be blank, as ""."""

    sent_id: int
    sent: str
    raw: str


@dataclass(frozen=True, slots=True)
class Ref:
    """One referred object with its expressions (at least one); ``category_id`` may be missing."""

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int | None
    split: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object of an image; ``segmentation`` is COCO's: polygons or a run-length code."""

    ann_id: int
    image_id: int
    segmentation: Any


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: its file in the image folder, width and height in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int


def read_instances(
    path: Path, bad: BadRecords | None = None
) -> tuple[dict[int, ImageRecord], dict[int, Annotation]]:
    """Read ``instances.json``: the images by image id and the objects by annotation id.

    Bad records go to ``bad``; without it the first one is a DataError.
    """
    content: dict[str, Any] = _typed(_read_json(path), dict, f"{path}: the file")
    images: dict[int, ImageRecord] = {}
    for where, entry in _entries(content, "images", "id", str(path)):
        image = attempt(bad, _image, entry, where)
        if image is not None:
            _add(images, image.image_id, image, where, "id")
    annotations: dict[int, Annotation] = {}
    for where, entry in _entries(content, "annotations", "id", str(path)):
        annotation = attempt(bad, _annotation, entry, where, images)
        if annotation is not None:
            _add(annotations, annotation.ann_id, annotation, where, "id")
    return images, annotations


def read_refs(
    path: Path, annotations: dict[int, Annotation], bad: BadRecords | None = None
) -> list[Ref]:
    """Read ``refs(<split_by>).p`` (or the same list as ``.json``), in the order of the file.

    The refs must agree with ``annotations``. Bad records go to ``bad``; without it the first one is
    a DataError.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "refs.json"
        >>> _ = path.write_text('[{"ref_id": 1, "ann_id": 5, "image_id": 7, "split": "val",'
        ...                     ' "sentences": [{"sent_id": 0, "sent": "left cat"}]}]')
        >>> read_refs(path, {5: Annotation(5, 7, [])})[0].sentences[0].sent
        'left cat'
    """
    if path.suffix == ".json":
        content = _read_json(path)
    else:
        try:
            content = read_pickle(path)
        except PickleError as error:
            raise DataError(str(error)) from None
    refs: dict[int, Ref] = {}
    sentences: dict[int, Sentence] = {}
    for where, entry in _entries({"refs": content}, "refs", "ref_id", str(path)):
        ref = attempt(bad, _ref, entry, where, annotations, bad)
        if ref is not None:
            _add(refs, ref.ref_id, ref, where, "ref_id")
            for sentence in ref.sentences:
                _add(sentences, sentence.sent_id, sentence, f"{where}: sentences", "sent_id")
    return list(refs.values())


def check_file_name(name: object, where: str) -> str:
    """Return a file name if it leads nowhere but into the image folder, else raise a DataError."""
    field = f"{where}: field 'file_name'"
    text = _unicode(_typed(name, str, field), "file_name", where)
    size = len(text.encode())
    if size > _LONGEST_NAME:
        raise DataError(f"{field} has {size} bytes, at most {_LONGEST_NAME} are allowed")
    separators = "/\\:\0" if os.name == "nt" else "/\\\0"
    if not text or text in (".", "..") or set(text) & set(separators):
        raise DataError(f"{field} is {text!r}, expected a bare file name")
    return text


def _image(value: object, where: str) -> ImageRecord:
    entry: dict[str, Any] = _typed(value, dict, where)
    return ImageRecord(
        image_id=_integer(entry, "id", where),
        file_name=check_file_name(entry.get("file_name"), where),
        width=_integer(entry, "width", where, least=1),
        height=_integer(entry, "height", where, least=1),
    )


def _annotation(value: object, where: str, images: dict[int, ImageRecord]) -> Annotation:
    entry: dict[str, Any] = _typed(value, dict, where)
    segmentation = entry.get("segmentation")
    if type(segmentation) not in (list, dict):
        raise DataError(f"{where}: field 'segmentation' must be a list or an object")
    if type(segmentation) is list and len(segmentation) == 1 and type(segmentation[0]) is dict:
        segmentation = segmentation[0]  # some data sets wrap a run-length code in a list
    ann_id, image_id = _integer(entry, "id", where), _integer(entry, "image_id", where)
    if image_id not in images:
        raise DataError(f"{where}: field 'image_id' is {image_id}, but there is no such image")
    return Annotation(ann_id, image_id, segmentation)


def _ref(
    value: object, where: str, annotations: dict[int, Annotation], bad: BadRecords | None
) -> Ref:
    entry: dict[str, Any] = _typed(value, dict, where)
    if type(entry.get("ann_id")) is list:
        raise DataError(
            f"{where}: field 'ann_id' is a list: refs of several or of no objects, as in gRefCOCO, "
            "are not supported; a ref must have one object"
        )
    category = entry.get("category_id")
    ref_id, ann_id = _integer(entry, "ref_id", where), _integer(entry, "ann_id", where)
    image_id = _integer(entry, "image_id", where)
    category_id = None if category is None else _integer(entry, "category_id", where)
    split = _unicode(_typed(entry.get("split"), str, f"{where}: field 'split'"), "split", where)
    annotation = annotations.get(ann_id)
    if annotation is None:
        raise DataError(f"{where}: field 'ann_id' is {ann_id}, which is not in instances.json")
    if annotation.image_id != image_id:
        raise DataError(
            f"{where}: field 'image_id' is {image_id}, but object {ann_id} belongs to "
            f"image {annotation.image_id} in instances.json"
        )
    found = (
        attempt(bad, _sentence, item, at)
        for at, item in _entries(entry, "sentences", "sent_id", where)
    )
    sentences = tuple(sentence for sentence in found if sentence is not None)
    if not sentences:
        raise DataError(f"{where}: field 'sentences' has no usable sentence")
    return Ref(ref_id, ann_id, image_id, category_id, split, sentences)


def _sentence(value: object, where: str) -> Sentence:
    entry: dict[str, Any] = _typed(value, dict, where)
    sent_id = _integer(entry, "sent_id", where)
    sent, raw = (_text(entry, field, where) for field in ("sent", "raw"))
    if not sent and not raw:
        raise DataError(
            f"{where}: fields 'sent' and 'raw' are both blank; an expression needs a word"
        )
    return Sentence(sent_id, sent, raw)


def _text(entry: dict[str, Any], field: str, where: str) -> str:
    """Return a text that has a word, or ""."""
    if entry.get(field) is None:
        return ""
    text = _unicode(_typed(entry[field], str, f"{where}: field {field!r}"), field, where)
    if len(text) > _LONGEST_TEXT:
        raise DataError(
            f"{where}: field {field!r} has {len(text)} characters, at most {_LONGEST_TEXT} are read"
        )
    return "" if is_blank(text) else text


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def _entries(
    holder: dict[str, Any], field: str, key: str, where: str
) -> Iterator[tuple[str, object]]:
    """Yield every record of a list field with the words that name it in an error."""
    values: list[object] = _typed(holder.get(field), list, f"{where}: field {field!r}")
    for index, value in enumerate(values):
        identity = value.get(key) if type(value) is dict else None
        # a number too large to print is reported by its own check
        small = type(identity) is int and abs(identity) <= _LARGEST_ID
        named = f" ({key} {identity})" if small else ""
        yield f"{where}: {field}[{index}]{named}", value


def _typed(value: object, kind: Callable[..., T], where: str) -> T:
    if type(value) is not kind:
        got = "is missing" if value is None else f"is of type {type(value).__name__}"
        raise DataError(f"{where} must be of type {getattr(kind, '__name__', kind)}, but {got}")
    return value  # type: ignore[return-value]


def _integer(entry: dict[str, Any], field: str, where: str, least: int | None = None) -> int:
    value = _typed(entry.get(field), int, f"{where}: field {field!r}")
    if abs(value) > _LARGEST_ID:
        raise DataError(f"{where}: field {field!r} does not fit in 64 bits")
    if least is not None and value < least:
        raise DataError(f"{where}: field {field!r} is {value}, expected at least {least}")
    return value


def _unicode(text: str, field: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {field!r} is not valid Unicode text") from None
    return text


def _add(known: dict[int, T], key: int, value: T, where: str, field: str) -> None:
    if key in known:
        raise DataError(f"{where}: field {field!r} is {key}, which another record already has")
    known[key] = value
