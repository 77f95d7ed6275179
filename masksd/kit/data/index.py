"""A data set in refer format as a few arrays: small, quick to open, shared by worker processes.

The arrays come from the sources in some seconds (:mod:`masksd.kit.data.gather`), or are mapped into
memory from a folder that ``masksd data prepare`` wrote, in some milliseconds. The folder holds
plain ``.npy`` files and ``index.json``, with size and SHA-256 of the sources; nothing in it is a
pickle. Only what refs speak of is kept: other objects and pictures stay where they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.errors import unknown_name
from masksd.kit.data.arrays import ARRAYS, contradiction
from masksd.kit.data.bad import BadRecords, DataError
from masksd.kit.data.layout import Layout
from masksd.kit.data.records import ImageRecord, check_file_name
from masksd.kit.data.segmentation import decode_mask

METADATA = "index.json"
_FORMAT = 2
_LEFT_OUT = "left-out.json"
_MAGIC = b"\x93NUMPY\x01\x00"


class Index:
    """Refs, sentences, objects and pictures of all splits, as arrays.

    Args:
        arrays: by the names of ``ARRAYS``, with its dtypes.
        splits: names of the splits; refs hold their numbers.
        bad: the records that were left out when it was made.
        folder: where the arrays are mapped from; None for arrays in memory.
        fingerprint: of that folder, see :func:`load_index`.

    Attributes:
        refs: the refs in the order of their file, a structured array.
        sentences: the sentences in the same order.
        images: the pictures that refs speak of.
        objects: the objects that refs speak of.

    Raises:
        DataError: arrays that contradict each other.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.gather import gather_index
        >>> from masksd.kit.data.layout import find_files
        >>> from masksd.kit.data.shapes.build import ShapesConfig, build_shapes
        >>> small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
        >>> root = build_shapes(tempfile.mkdtemp(), small, progress=False)
        >>> index = gather_index(find_files(root, "shapes", "masksd"))
        >>> index.splits, len(index.images)
        (('train', 'val', 'testA', 'testB'), 4)
        >>> ref = index.rows("val")[0]
        >>> index.mask(int(index.refs["object"][ref])).shape
        (96, 96)
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        splits: Sequence[str],
        bad: BadRecords,
        folder: Path | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.refs, self.sentences = arrays["refs"], arrays["sentences"]
        self.images, self.objects = arrays["images"], arrays["objects"]
        self.splits, self.bad = tuple(splits), bad
        self.folder, self.fingerprint = folder, fingerprint
        self._arrays = dict(arrays)
        for name, kind in ARRAYS.items():
            if arrays[name].dtype != np.dtype(kind) or arrays[name].ndim != 1:
                raise DataError(f"array {name!r} has another type than {kind}")
        wrong = contradiction(self._arrays, len(self.splits))
        if wrong:
            raise DataError(f"array {wrong!r} is damaged")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker as the name of the folder, where there is one, and its fingerprint."""
        if self.folder is not None:
            return load_index, (self.folder, self.fingerprint)
        return Index, (self._arrays, self.splits, self.bad)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of ``refs`` that belong to a split, in order.

        Raises:
            ValueError: an unknown split, with the nearest name.
        """
        if split not in self.splits:
            raise unknown_name("split", split, self.splits)
        return np.flatnonzero(self.refs["split"] == self.splits.index(split))

    def sentence(self, row: int, text: str) -> str:
        """Return a sentence.

        Args:
            row: of ``sentences``.
            text: ``"sent"`` or ``"raw"``.
        """
        return self._text(self.sentences[text][row])

    def image(self, row: int) -> ImageRecord:
        """Return the record of a picture by its row of ``images``."""
        entry = self.images[row]
        name = check_file_name(self._text(entry["name"]), f"{self.folder}: images[{row}]")
        return ImageRecord(int(entry["image_id"]), name, int(entry["width"]), int(entry["height"]))

    def mask(self, row: int) -> NDArray[np.uint8]:
        """Draw an object by its row of ``objects``: ``(H, W)`` uint8 of 0 and 1."""
        entry = self.objects[row]
        image = self.images[entry["image"]]
        return decode_mask(self.parts(row), int(image["height"]), int(image["width"]))

    def parts(self, row: int) -> list[Any]:
        """Return an object's list of polygons, or its list of runs, by its row of ``objects``."""
        entry = self.objects[row]
        start, end = entry["parts"].tolist()
        if entry["is_runs"]:
            return self._arrays["runs"][start:end].tolist()
        spans = self._arrays["polygons"]["points"][start:end].tolist()
        return [self._arrays["coordinates"][first:last].tolist() for first, last in spans]

    def save(self, folder: Path, layout: Layout, sources: Mapping[str, Any]) -> None:
        """Write the arrays and the metadata into a folder that exists.

        Args:
            folder: empty; put in its place by the caller when all is written.
            layout: of the data set.
            sources: what :func:`describe_sources` said before they were read.
        """
        digest = hashlib.sha256()
        for name, array in self._arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
            digest.update(np.ascontiguousarray(array).tobytes())
        left_out = {"count": self.bad.count, "reasons": self.bad.reasons}
        (folder / _LEFT_OUT).write_text(json.dumps(left_out, indent=0) + "\n")
        metadata = {
            "format": _FORMAT,
            "name": layout.name,
            "split_by": layout.split_by,
            "splits": self.splits,
            "rows": {name: len(array) for name, array in self._arrays.items()},
            "sources": sources,
            # not compared when it is opened: it makes another file of metadata for other arrays
            "sha256": digest.hexdigest(),
        }
        (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")

    def _text(self, span: NDArray[np.int64]) -> str:
        start, end = span.tolist()
        try:
            return self._arrays["text"][start:end].tobytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.folder}: array 'text' is damaged: {error}") from None


def describe_sources(layout: Layout) -> dict[str, Any]:
    """Return size in bytes, time of change (ns) and SHA-256 of refs and instances, by role."""
    return {
        role: {**_stamp(path), "sha256": _digest(path)}
        for role, path in (("refs", layout.refs), ("instances", layout.instances))
    }


def open_index(layout: Layout) -> Index:
    """Open the index of a data set, if it belongs to the sources as they are now.

    The sources are not read: size and time of change are compared, and only where the time differs
    (after copying, say) the SHA-256.

    Args:
        layout: of the data set; ``layout.index`` must exist.

    Returns:
        The index; its arrays are mapped into memory and read when they are needed.

    Raises:
        DataError: no index, a damaged one, or one that is older than its sources.
    """
    metadata, _ = _metadata(layout.index)
    fix = (
        f"run `masksd data prepare {layout.name} ROOT --split-by {layout.split_by}` again, or name "
        "another index (--index)"
    )
    for role, path in (("refs", layout.refs), ("instances", layout.instances)):
        known, found = metadata["sources"][role], _stamp(path)
        if found == {key: known[key] for key in found}:
            continue
        if found["bytes"] != known["bytes"] or _digest(path) != known["sha256"]:
            raise DataError(f"{layout.index} does not belong to {path} as it is now; {fix}")
    return load_index(layout.index)


def load_index(folder: Path, fingerprint: str | None = None) -> Index:
    """Open an index without looking at its sources; see :func:`open_index`.

    Args:
        folder: of the index.
        fingerprint: SHA-256 of the metadata that it must have; None takes any.

    Returns:
        The index, with the fingerprint.

    Raises:
        DataError: no index, a damaged one, or another one than was wanted.
    """
    metadata, found = _metadata(folder)
    if fingerprint not in (None, found):
        raise DataError(f"{folder}: the index was rewritten while it was open; open the data again")
    try:
        arrays = {
            name: _map(folder / f"{name}.npy", np.dtype(kind), metadata["rows"][name])
            for name, kind in ARRAYS.items()
        }
        left_out = json.loads((folder / _LEFT_OUT).read_bytes())
        bad = BadRecords(map(str, left_out["reasons"]), int(left_out["count"]))
        return Index(arrays, metadata["splits"], bad, folder, found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, error) from None


def _metadata(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata and their SHA-256."""
    try:
        content = (folder / METADATA).read_bytes()
        metadata: dict[str, Any] = json.loads(content)
        if metadata["format"] != _FORMAT:
            raise DataError(f"format {metadata['format']!r} is not {_FORMAT}")
        if not all(type(name) is str for name in metadata["splits"]):
            raise DataError("splits are no names")
        for name in ARRAYS:
            if type(metadata["rows"][name]) is not int or metadata["rows"][name] < 0:
                raise DataError(f"rows of {name} are no number")
        for role in ("refs", "instances"):
            if metadata["sources"][role].keys() != {"bytes", "mtime_ns", "sha256"}:
                raise DataError(f"sources say nothing of {role}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, error) from None
    return metadata, hashlib.sha256(content).hexdigest()


def _map(path: Path, kind: np.dtype[Any], rows: int) -> NDArray[Any]:
    """Map the rows of a ``.npy`` file; type and length are known, so its header is not trusted."""
    size = path.stat().st_size
    offset = size - rows * kind.itemsize
    with path.open("rb") as file:
        start = file.read(10)  # magic, version 1.0, length of the header
    if start[:8] != _MAGIC or offset != 10 + int.from_bytes(start[8:], "little"):
        raise DataError(f"{path.name} ({size} bytes) does not hold {rows} rows")
    if not rows:
        return np.zeros(0, dtype=kind)  # nothing that could be mapped
    # a plain array on the mapped memory: numpy's own class is slower for every row
    return np.asarray(np.memmap(path, dtype=kind, mode="r", offset=offset, shape=(rows,)))


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"{folder} is no index that can be read ({error}); run `masksd data prepare` again, or "
        "remove the folder to read the sources"
    )


def _stamp(path: Path) -> dict[str, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
