"""A folder of pictures with a CSV or JSONL file: picture, sentence, mask and, if wanted, split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from masksd.kit.data.readers.refer import Records
from masksd.kit.data.readers.rows import Rows, split_of
from masksd.kit.data.records import BadRecords, DataError, attempt, parse_json, typed

_LONGEST_LINE = 16 * 2**20  # characters


def find_tables(folder: Path) -> list[Path]:
    """List the tables of a folder."""
    return sorted(path for end in ("csv", "jsonl") for path in folder.glob(f"*.{end}"))


def read_tables(files: Sequence[Path], folder: Path, bad: BadRecords | None) -> Records:
    """Read tables; rows without a split have that of the file's name, or "train"."""
    rows = Rows(folder, bad)
    for path in files:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                read = _csv if path.suffix == ".csv" else _lines
                for where, row in read(file, path, bad):
                    rows.add(row, where, split_of(path.stem))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error}") from None
    return rows.records()


def _csv(
    file: io.TextIOBase, path: Path, bad: BadRecords | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_bounded(file, path), strict=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            whole = attempt(bad, _whole, row, where)
            if whole is not None:
                yield where, whole
    except csv.Error as error:
        where = f"{path}: after line {reader.line_num}"
        raise DataError(f"{where}: not valid CSV: {error}") from None


def _whole(row: dict[Any, Any], where: str) -> dict[str, Any]:
    """Return a row, or refuse one with more cells than the header has."""
    if None in row:
        count = len(row) - 1
        raise DataError(
            f"{where}: {count + len(row[None])} cells, but the header has {count}; put a cell that "
            "has a comma into double quotes"
        )
    return row


def _lines(
    file: io.TextIOBase, path: Path, bad: BadRecords | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_bounded(file, path), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            row = attempt(bad, _object, line, where)
            if row is not None:
                yield where, row


def _object(line: str, where: str) -> dict[str, Any]:
    return typed(parse_json(line, f"{where}:"), dict, where)


def _bounded(file: io.TextIOBase, path: Path) -> Iterator[str]:
    """Yield lines of at most some megabytes, whatever a file holds."""
    lines = iter(lambda: file.readline(_LONGEST_LINE), "")
    for number, line in enumerate(lines, start=1):
        if len(line) == _LONGEST_LINE:
            raise DataError(f"{path}: line {number}: longer than {_LONGEST_LINE} characters")
        yield line
