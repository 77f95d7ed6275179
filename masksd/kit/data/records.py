"""Records of the refer format, and the checks of their fields.

Every error names the file, the record, its id and the field. With a :class:`BadRecords` bad entries
are noted instead; a file that cannot be read, or an id that comes twice, is always an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from masksd.kit.data.text.cleaning import is_blank

P = ParamSpec("P")
T = TypeVar("T")

_LARGEST_ID = 2**63 - 1
_LONGEST_TEXT = 10_000  # characters; nobody says so much of an object
_LONGEST_NAME = 255  # bytes, of a file on any common file system
_DEEPEST = 8  # folders in a name
_REASONS_SHOWN = 3
_REASONS_KEPT = 1_000


class DataError(ValueError):
    """Data on disk that are missing, damaged or contradict themselves.

    The message names the file, the record and what is wrong.
    """


class BadRecords:
    """Records left out by ``skip_bad``: their count, and the reasons of the first 1,000."""

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


@contextlib.contextmanager
def prefixed(where: str) -> Iterator[None]:
    """Begin the message of a DataError with ``where``, unless it does so already."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None


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
    """An object: COCO's segmentation, or a tuple of such for a union, which may be empty."""

    ann_id: int
    image_id: int
    segmentation: Any
    where: str = ""  # the words that name it in an error


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image: its file in the image folder, width and height in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int


def check_file_name(
    name: object, where: str, *, field: str = "file_name", deep: bool = False
) -> str:
    """Return a file name that stays in the image folder; a ``deep`` one may be "train/1.jpg"."""
    told = f"{where}: field {field!r}"
    text = unicode_text(typed(name, str, told), field, where)
    separators = "/\\:\0" if os.name == "nt" else "/\\\0"
    for part in text.split("/", _DEEPEST) if deep else [text]:
        size = len(part.encode())
        if size > _LONGEST_NAME:
            raise DataError(f"{told} has {size} bytes, at most {_LONGEST_NAME} are allowed")
        if not part or part in (".", "..") or set(part) & set(separators):
            kind = "a file name within the folder" if deep else "a bare file name"
            raise DataError(f"{told} is {text!r}, expected {kind}")
    return text


def text_or_blank(entry: dict[str, Any], field: str, where: str) -> str:
    """Return a text that has a word, or ""."""
    if entry.get(field) is None:
        return ""
    text = unicode_text(typed(entry[field], str, f"{where}: field {field!r}"), field, where)
    if len(text) > _LONGEST_TEXT:
        raise DataError(
            f"{where}: field {field!r} has {len(text)} characters, at most {_LONGEST_TEXT} are read"
        )
    return "" if is_blank(text) else text


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return what a file holds; a DataError where it has more bytes than the limit."""
    try:
        if limit is not None and path.stat().st_size > limit:
            raise DataError(f"{path}: larger than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def parse_json(text: str | bytes, where: str) -> Any:
    """Return what a text of JSON holds; ``where`` begins the error, as in "a.json:"."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} not valid JSON: {error}") from None


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds."""
    return parse_json(read_bytes(path), f"{path}:")


def entries(
    holder: dict[str, Any], field: str, key: str, where: str
) -> Iterator[tuple[str, object]]:
    """Yield every record of a list field with the words that name it in an error."""
    values: list[object] = typed(holder.get(field), list, f"{where}: field {field!r}")
    for index, value in enumerate(values):
        identity = value.get(key) if type(value) is dict else None
        # a number too large to print is reported by its own check
        small = type(identity) is int and abs(identity) <= _LARGEST_ID
        named = f" ({key} {identity})" if small else ""
        yield f"{where}: {field}[{index}]{named}", value


def typed(value: object, kind: Callable[..., T], where: str) -> T:
    """Return a value if it is of a type, else raise a DataError."""
    if type(value) is not kind:
        got = "is missing" if value is None else f"is of type {type(value).__name__}"
        raise DataError(f"{where} must be of type {getattr(kind, '__name__', kind)}, but {got}")
    return value  # type: ignore[return-value]


def integer(entry: dict[str, Any], field: str, where: str, least: int | None = None) -> int:
    """Return a field that is a whole number of 64 bits."""
    value = typed(entry.get(field), int, f"{where}: field {field!r}")
    if abs(value) > _LARGEST_ID:
        raise DataError(f"{where}: field {field!r} does not fit in 64 bits")
    if least is not None and value < least:
        raise DataError(f"{where}: field {field!r} is {value}, expected at least {least}")
    return value


def unicode_text(text: str, field: str, where: str) -> str:
    """Return a text that can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {field!r} is not valid Unicode text") from None
    return text


def add_once(known: dict[int, T], key: int, value: T, where: str, field: str) -> None:
    """Add a record under its id; a DataError where another has it."""
    if key in known:
        raise DataError(f"{where}: field {field!r} is {key}, which another record already has")
    known[key] = value
