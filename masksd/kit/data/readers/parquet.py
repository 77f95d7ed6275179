"""Parquet files as on the Hugging Face Hub, read some rows at a time.

Three layouts are known by their columns: rows with ``raw_anns`` and ``raw_image_info``, COCO's
records as text, whose images lie elsewhere (jxu124/refcoco); rows with a picture, expressions and a
segmentation (lmms-lab/RefCOCO); and rows with a picture and a list ``samples`` of objects
(moondream/refcoco-m). Pictures in the file are unpacked once by ``masksd data prepare``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from masksd.kit.data.images import check_stays_inside, size_of_bytes
from masksd.kit.data.readers.refer import Records, check_records
from masksd.kit.data.readers.rows import MASK, PICTURE, SENTENCE, Rows, one_word, split_of
from masksd.kit.data.records import BadRecords, DataError, attempt, parse_json, typed

_ROWS = 32  # at a time
_LARGEST_GROUP = 4 * 2**30  # bytes of a row group, as its file says
_RAW = ("raw_anns", "raw_image_info")
_COLUMNS = {*_RAW, *PICTURE, *SENTENCE, *MASK, "samples", "split", "ref_id", "ann_id", "image_id"}
_COLUMNS |= {"sent_ids", "category_id", "sentences"}
_PICTURE_FOLDER = "pictures"


def find_parquet(folder: Path) -> list[Path]:
    """List the parquet files of a folder and of ``data`` in it."""
    return [*sorted(folder.glob("*.parquet")), *sorted((folder / "data").glob("*.parquet"))]


def read_parquet(files: Sequence[Path], folder: Path, bad: BadRecords | None) -> Records:
    """Read parquet files; rows without a split have that of the file's name, or "train"."""
    rows, coco = Rows(folder, bad), _CocoRows(bad)
    for path in files:
        for where, row in _rows(path, _COLUMNS):
            if all(isinstance(row.get(name), str) for name in _RAW):
                attempt(bad, coco.add, row, where)
                continue
            picture = attempt(bad, _picture, row, where)
            if picture is None:
                continue
            name, data, size = picture
            if data and not (folder / name).is_file():
                raise DataError(
                    f"{where}: its picture lies in the file; unpack the pictures once with "
                    f"`masksd data prepare ROOT NAME`, into {folder / _PICTURE_FOLDER}"
                )
            several = row.get("samples")
            for number, sample in enumerate([row] if several is None else several):
                at = where if several is None else f"{where}: samples[{number}]"
                own = {**sample, "split": row.get("split")}
                own |= {} if name is None else {"picture": name}
                rows.add(own, at, split_of(path.stem), size)
    if coco.refs and rows.refs:
        raise DataError(
            f"{folder}: parquet files of two layouts, with COCO's records and with pictures: put "
            "them into folders of their own"
        )
    return coco.records() if coco.refs else rows.records()


def unpack_pictures(files: Sequence[Path], folder: Path) -> None:
    """Write the pictures that lie in the files, each once, named by what they hold."""
    place = folder / _PICTURE_FOLDER
    for path in files:
        for where, row in _rows(path, set(PICTURE)):
            try:
                name, data, _ = _picture(row, where)
            except DataError:
                continue  # to read it says what is wrong
            if data is None:
                continue
            target = folder / name
            if not (target.is_file() and target.stat().st_size == len(data)):
                place.mkdir(parents=True, exist_ok=True)
                check_stays_inside(folder, place)
                partial = target.with_suffix(".part")
                partial.unlink(missing_ok=True)
                with partial.open("xb") as file:  # "x" follows no link
                    file.write(data)
                partial.replace(target)


def _rows(path: Path, columns: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with those of the columns that there are, and the words that name them."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{path}: parquet files need pyarrow; install it with `pip install "
            "'masksd[train,parquet]'`"
        ) from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).total_byte_size
                if size > _LARGEST_GROUP:
                    raise DataError(f"{path}: a row group of {size} bytes; write smaller ones")
            known = [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(batch_size=_ROWS, columns=known):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except DataError:
        raise
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        first = str(error).partition("\n")[0]
        raise DataError(f"{path}: row {number}: not a readable parquet file: {first}") from None


def _picture(row: dict[str, Any], where: str) -> tuple[Any, bytes | None, tuple[int, int] | None]:
    """Return a row's picture: its name in the image folder; its bytes and size if it has them."""
    cell = row.get("image") or row.get("picture")
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes):
        width, height, kind = size_of_bytes(data, f"{where}: its picture")
        digest = hashlib.sha256(data).hexdigest()[:32]
        return f"{_PICTURE_FOLDER}/{digest}.{kind.lower()}", data, (width, height)
    name = cell.get("path") if isinstance(cell, dict) else cell
    return name or row.get("file_name"), None, None


class _CocoRows:
    """Rows that are refs, with COCO's records of their image and object as text."""

    def __init__(self, bad: BadRecords | None) -> None:
        self.bad = bad
        self.images: dict[Any, tuple[str, object]] = {}
        self.objects: dict[Any, tuple[str, object]] = {}
        self.refs: list[tuple[str, object]] = []

    def add(self, row: dict[str, Any], where: str) -> None:
        for name, known in zip(_RAW, (self.objects, self.images), strict=True):
            at = f"{where}: field {name!r}"
            found = parse_json(row[name], f"{at} is")
            for value in found if isinstance(found, list) else [found]:
                entry: dict[str, Any] = typed(value, dict, at)
                first, known_entry = known.setdefault(str(entry.get("id")), (at, entry))
                if known_entry != entry:
                    raise DataError(f"{at} has id {entry.get('id')}, which is another in {first}")
        if isinstance(row.get("split"), str):
            row = {**row, "split": one_word(row["split"])}
        self.refs.append((where, row))

    def records(self) -> Records:
        return check_records(self.images.values(), self.objects.values(), self.refs, self.bad)
