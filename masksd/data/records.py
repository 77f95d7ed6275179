"""The two files of the refer format, read and checked: ``refs(...).p`` and ``instances.json``.

Every error names the file, the record and the field, so that a bad entry can be found and repaired.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from masksd.data.pickles import PickleError, read_pickle

T = TypeVar("T")


class DataError(ValueError):
    """Data on disk that are missing, damaged or contradict themselves.

    Example:
        >>> isinstance(DataError("instances.json: images[3]: field 'width' is 0"), ValueError)
        True
    """


@dataclass(frozen=True, slots=True)
class Sentence:
    """One referring expression: its id and its text (never blank)."""

    sent_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Ref:
    """One referred object with its sentences (at least one)."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object of a picture; ``segmentation`` is COCO's: polygons or a run-length code."""

    ann_id: int
    image_id: int
    segmentation: Any


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One picture: its file in the image folder, width and height in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int


def read_instances(path: Path) -> tuple[dict[int, ImageRecord], dict[int, Annotation]]:
    """Read ``instances.json`` and check it.

    Args:
        path: the file, COCO's layout with ``images`` and ``annotations``.

    Returns:
        The pictures by image id and the objects by annotation id.

    Raises:
        DataError: unreadable JSON, a missing field, an id that is no int or comes twice, a size
            below 1, a file name with a separator or ``..``, an annotation of an unknown picture.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "instances.json"
        >>> _ = path.write_text('{"images": [{"id": 7, "file_name": "a.jpg", "width": 8,'
        ...                     ' "height": 6}], "annotations": []}')
        >>> read_instances(path)[0][7].width
        8
    """
    content: dict[str, Any] = _typed(_read_json(path), dict, f"{path}: the file")
    images: dict[int, ImageRecord] = {}
    for where, entry in _entries(content, "images", str(path)):
        image = ImageRecord(
            image_id=_integer(entry, "id", where),
            file_name=_file_name(entry, where),
            width=_integer(entry, "width", where, least=1),
            height=_integer(entry, "height", where, least=1),
        )
        _add(images, image.image_id, image, where, "id")
    annotations: dict[int, Annotation] = {}
    for where, entry in _entries(content, "annotations", str(path)):
        if type(entry.get("segmentation")) not in (list, dict):
            raise DataError(f"{where}: field 'segmentation' must be a list or an object")
        annotation = Annotation(
            _integer(entry, "id", where), _integer(entry, "image_id", where), entry["segmentation"]
        )
        if annotation.image_id not in images:
            raise DataError(f"{where}: field 'image_id' is {annotation.image_id}, no such picture")
        _add(annotations, annotation.ann_id, annotation, where, "id")
    return images, annotations


def read_refs(path: Path, annotations: dict[int, Annotation], text: str = "sent") -> list[Ref]:
    """Read ``refs(<split_by>).p`` (or the same list as ``.json``) and check it.

    Args:
        path: the file; ``.p`` goes through the restricted reader of :mod:`masksd.data.pickles`.
        annotations: the objects of ``instances.json``, which the refs must agree with.
        text: the field that holds the expression, ``"sent"`` (cleaned) or ``"raw"``.

    Returns:
        The refs in the order of the file.

    Raises:
        DataError: unreadable file, a missing field, an id that is no int or comes twice, a ref
            of an unknown object or of another picture, a blank expression.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "refs.json"
        >>> _ = path.write_text('[{"ref_id": 1, "ann_id": 5, "image_id": 7, "split": "val",'
        ...                     ' "sentences": [{"sent_id": 0, "sent": "left cat"}]}]')
        >>> read_refs(path, {5: Annotation(5, 7, [])})[0].sentences[0].text
        'left cat'
    """
    if path.suffix == ".json":
        content = _read_json(path)
    else:
        try:
            content = read_pickle(path)
        except PickleError as error:
            raise DataError(str(error)) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    refs: dict[int, Ref] = {}
    sentence_ids: dict[int, Sentence] = {}
    for where, entry in _entries({"refs": content}, "refs", str(path)):
        sentences = []
        for at, item in _entries(entry, "sentences", where):
            sentence = Sentence(_integer(item, "sent_id", at), _expression(item, text, at))
            _add(sentence_ids, sentence.sent_id, sentence, at, "sent_id")
            sentences.append(sentence)
        if not sentences:
            raise DataError(f"{where}: field 'sentences' is empty")
        ref = Ref(
            ref_id=_integer(entry, "ref_id", where),
            ann_id=_integer(entry, "ann_id", where),
            image_id=_integer(entry, "image_id", where),
            split=_typed(entry.get("split"), str, f"{where}: field 'split'"),
            sentences=tuple(sentences),
        )
        annotation = annotations.get(ref.ann_id)
        if annotation is None:
            raise DataError(f"{where}: field 'ann_id' is {ref.ann_id}, not in instances.json")
        if annotation.image_id != ref.image_id:
            raise DataError(
                f"{where}: field 'image_id' is {ref.image_id}, but object {ref.ann_id} belongs to "
                f"picture {annotation.image_id} in instances.json"
            )
        _add(refs, ref.ref_id, ref, where, "ref_id")
    return list(refs.values())


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def _entries(holder: dict[str, Any], field: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Pair every record of a list field with the words that name it in an error."""
    values: list[object] = _typed(holder.get(field), list, f"{where}: field {field!r}")
    named = [(f"{where}: {field}[{index}]", value) for index, value in enumerate(values)]
    return [(name, _typed(value, dict, name)) for name, value in named]


def _typed(value: object, kind: Callable[..., T], where: str) -> T:
    if type(value) is not kind:
        got = "missing" if value is None else f"of type {type(value).__name__}"
        raise DataError(f"{where} must be of type {getattr(kind, '__name__', kind)}, it is {got}")
    return value  # type: ignore[return-value]


def _integer(entry: dict[str, Any], field: str, where: str, least: int | None = None) -> int:
    value = _typed(entry.get(field), int, f"{where}: field {field!r}")
    if least is not None and value < least:
        raise DataError(f"{where}: field {field!r} is {value}, it must be at least {least}")
    return value


def _file_name(entry: dict[str, Any], where: str) -> str:
    name = _typed(entry.get("file_name"), str, f"{where}: field 'file_name'")
    if not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise DataError(f"{where}: field 'file_name' is {name!r}, a bare file name is expected")
    return name


def _expression(entry: dict[str, Any], field: str, where: str) -> str:
    text = _typed(entry.get(field), str, f"{where}: field {field!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {field!r} is no valid Unicode text") from None
    if not text.strip():
        raise DataError(f"{where}: field {field!r} is blank; an expression needs a word")
    return text


def _add(known: dict[int, T], key: int, value: T, where: str, field: str) -> None:
    if key in known:
        raise DataError(f"{where}: field {field!r} is {key}, which another record has already")
    known[key] = value
