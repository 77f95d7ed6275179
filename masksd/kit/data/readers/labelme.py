"""Pictures with a JSON file each, as labelme writes them and ReasonSeg is published.

``text`` holds the expressions of all shapes together; where there is none, each label is an
expression and its shapes are one object. ReasonSeg leaves shapes labelled "ignore" out of scoring;
here they are background, larger shapes below smaller ones as its authors draw them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masksd.kit.data.images import read_size
from masksd.kit.data.readers.refer import Records
from masksd.kit.data.readers.rows import Rows, split_of
from masksd.kit.data.records import (
    BadRecords,
    DataError,
    attempt,
    check_file_name,
    entries,
    parse_json,
    prefixed,
    read_bytes,
    typed,
)
from masksd.kit.data.segmentation import check_segmentation, decode_mask, encode_runs

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".JPG", ".JPEG", ".PNG")
_LARGEST = 256 * 2**20  # bytes; labelme can put the picture into its file
_LOOKED_AT = 65_536  # bytes that tell what a file is


def find_labelme(folder: Path) -> list[Path]:
    """List the JSON files that have shapes or a picture beside them, one folder deep."""
    files = [path for pattern in ("*.json", "*/*.json") for path in sorted(folder.glob(pattern))]
    shapes = {path for path in files if _has_shapes(path)}
    if not shapes:
        return []
    return [path for path in files if path in shapes or _picture_named(path.stem, path.parent)]


def _has_shapes(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b'"shapes"' in file.read(_LOOKED_AT)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _picture_named(stem: str, folder: Path) -> str | None:
    names = (f"{stem}{suffix}" for suffix in _PICTURES)
    return next((name for name in names if (folder / name).is_file()), None)


def read_labelme(files: Sequence[Path], folder: Path, bad: BadRecords | None) -> Records:
    """Read files of labelme; the folder that one lies in is its split, if it has such a name."""
    rows = Rows(folder, bad)
    ignored = sum(filter(None, (attempt(bad, _read, path, folder, rows) for path in files)))
    if ignored:
        warnings.warn(
            f"{ignored} areas labelled 'ignore' are background here, and left out of the scores "
            "in the paper of ReasonSeg",
            UserWarning,
            stacklevel=2,
        )
    return rows.records()


def _read(path: Path, folder: Path, rows: Rows) -> int:
    """Add what a file holds to the rows; return how many of its areas are ignored."""
    content: dict[str, Any] = typed(_parse(path), dict, str(path))
    picture = _picture(content, path, folder)
    width, height = read_size(folder, picture, str(path))
    text = content.get("text")
    objects: dict[str, list[Any]] = {} if text is None else {"": []}
    ignored: list[Any] = []
    for where, entry in entries(content, "shapes", "id", str(path)):
        shape: dict[str, Any] = typed(entry, dict, where)
        label = typed(shape.get("label"), str, f"{where}: field 'label'")
        if label.lower() == "flag":  # of old files, without meaning
            continue
        polygon = _polygon(shape, where)
        if "ignore" in label.lower() and (text is not None or label.lower() == "ignore"):
            ignored.append(polygon)
        else:
            objects.setdefault(label if text is None else "", []).append(polygon)
    for label, polygons in objects.items():
        mask = _mask(polygons, ignored, (height, width), str(path)) if polygons else []
        row = {"picture": picture, "sentences": label if text is None else text, "mask": mask}
        rows.add(row, str(path), split_of(path.parent.name), (width, height))
    return len(ignored)


def _picture(content: dict[str, Any], path: Path, folder: Path) -> str:
    """Find the picture beside a file: of its own name, else the one that it names."""
    inside = path.parent.relative_to(folder) if path.is_relative_to(folder) else Path()
    name = _picture_named(path.stem, folder / inside)
    if name is None:
        name = check_file_name(content.get("imagePath"), str(path), field="imagePath")
    return (inside / name).as_posix()


def _polygon(shape: dict[str, Any], where: str) -> list[Any]:
    points: list[Any] = typed(shape.get("points"), list, f"{where}: field 'points'")
    for point in points:
        if type(point) is not list or len(point) != 2:
            raise DataError(f"{where}: field 'points' has {point!r:.40}, expected [x, y]")
    kind = shape.get("shape_type", "polygon")
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    elif kind != "polygon":
        raise DataError(f"{where}: a {kind!r:.40} has no area that is read; expected a polygon")
    return [number for point in points for number in point]


def _mask(wanted: list[Any], ignored: list[Any], size: tuple[int, int], where: str) -> Any:
    """Return the union as polygons or, where areas are ignored, as a run-length code."""
    if not ignored:
        return wanted
    drawn: list[tuple[Any, bool]] = []
    for polygon in [*wanted, *ignored]:
        with prefixed(where):
            area = decode_mask(check_segmentation([polygon], *size)[0], *size) > 0
        drawn.append((area, len(drawn) < len(wanted)))
    mask = np.zeros(size, dtype=bool)
    for area, inside in sorted(drawn, key=lambda each: -int(each[0].sum())):
        mask[area] = inside
    return {"size": list(size), "counts": encode_runs(mask)}


def _parse(path: Path) -> object:
    data = read_bytes(path, _LARGEST)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")  # some files of ReasonSeg
    return parse_json(text, f"{path}:")
