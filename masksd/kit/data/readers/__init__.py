"""Readers: each turns a kind of source into the records of the refer format.

All that follows, indices, training, scoring, knows these records alone. A kind says by
which files it is recognised in the folder of a data set, and reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masksd.kit.data.readers.labelme import find_labelme, read_labelme
from masksd.kit.data.readers.parquet import find_parquet, read_parquet, unpack_pictures
from masksd.kit.data.readers.refer import Records, read_refer
from masksd.kit.data.readers.tables import find_tables, read_tables
from masksd.kit.data.records import BadRecords

__all__ = ["KINDS", "REFER", "Kind", "Records", "kinds_in"]


@dataclass(frozen=True)
class Kind:
    """A kind of source; ``unpack`` writes pictures that lie in its files into the image folder."""

    title: str
    find: Callable[[Path], list[Path]]
    read: Callable[[Sequence[Path], Path, BadRecords | None], Records]
    unpack: Callable[[Sequence[Path], Path], None] = lambda files, folder: None


REFER = Kind("refer format", lambda folder: [], read_refer)
KINDS = {
    "parquet": Kind(
        "parquet, as on the Hugging Face Hub", find_parquet, read_parquet, unpack_pictures
    ),
    "labelme": Kind("JSON of labelme, as ReasonSeg", find_labelme, read_labelme),
    "table": Kind("a table of picture, sentence, mask", find_tables, read_tables),
}  # by the name that stands for ``split_by``, since these sets have no splits by several people


def kinds_in(folder: Path) -> list[str]:
    """Return the names of the kinds whose files lie in a folder, the refer format apart."""
    return [name for name, kind in KINDS.items() if folder.is_dir() and kind.find(folder)]
