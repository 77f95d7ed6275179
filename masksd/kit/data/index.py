"""A data set in refer format as a few arrays: small, quick to open, shared by worker processes.

The arrays come from the sources in some seconds (:func:`masksd.kit.data.prepare.gather_index`), or
in milliseconds from the safetensors file of ``masksd data prepare``. Tables are stored there as the
bytes of their rows; the header holds size and SHA-256 of the sources.

A number that leads out of an array, or a coordinate that is not finite, would crash or read
elsewhere when a mask is drawn, so all of them are checked whenever an index is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.errors import one_line, unknown_name
from masksd.kit.data.layout import Layout, digest, stamp
from masksd.kit.data.records import BadRecords, DataError, ImageRecord, check_file_name
from masksd.kit.data.segmentation import MAX_POLYGONS, MAX_SIDE, decode_mask
from masksd.kit.storage.files import write_files

_FORMAT = 3
METADATA = "masksd_index"  # the entry of the file's header
_SPAN = ("<i8", (2,))  # where something starts and ends in another array
# rows of one array name rows of another
ARRAYS: Mapping[str, Any] = {
    "refs": [
        ("ref_id", "<i8"),
        ("object", "<i4"),
        ("image", "<i4"),
        ("category_id", "<i8"),
        ("has_category", "?"),
        ("split", "<i4"),
        ("sentences", *_SPAN),
    ],
    "sentences": [("sent_id", "<i8"), ("sent", *_SPAN), ("raw", *_SPAN)],  # in text
    "images": [("image_id", "<i8"), ("width", "<i4"), ("height", "<i4"), ("name", *_SPAN)],
    "objects": [
        ("ann_id", "<i8"),
        ("image", "<i4"),
        ("is_runs", "?"),
        ("parts", *_SPAN),  # in runs, or in polygons
        ("dropped", "<i4"),  # unusable polygons
    ],
    "polygons": [("points", *_SPAN)],  # in coordinates
    "coordinates": "<f8",
    "runs": "<i8",
    "text": "u1",  # UTF-8
}
_MAX_OUTLINE = 4_000_000  # pixels along both axes; drawing takes memory for each


class Index:
    """Refs, expressions, objects and images of all splits, as the arrays of ``ARRAYS``.

    ``path`` and ``fingerprint`` are of the file that the arrays are mapped from, None for arrays in
    memory. Arrays that contradict each other are a DataError.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        splits: Sequence[str],
        bad: BadRecords,
        path: Path | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.refs, self.sentences = arrays["refs"], arrays["sentences"]
        self.images, self.objects = arrays["images"], arrays["objects"]
        self.splits, self.bad = tuple(splits), bad
        self.path, self.fingerprint = path, fingerprint
        self._arrays = dict(arrays)
        for name, kind in ARRAYS.items():
            if arrays[name].dtype != np.dtype(kind) or arrays[name].ndim != 1:
                raise DataError(f"array {name!r} is not one-dimensional of type {kind}")
        wrong = _contradiction(self._arrays, len(self.splits))
        if wrong:
            raise DataError(f"array {wrong!r} is damaged")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker as the path of the file, where there is one, and its fingerprint."""
        if self.path is not None:
            return load_index, (self.path, self.fingerprint)
        return Index, (self._arrays, self.splits, self.bad)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of ``refs`` that belong to a split, in order."""
        if split not in self.splits:
            error = unknown_name("split", split, self.splits)
            raise ValueError(
                f"{error}. Name one that is there, as with --eval-split or --split"
                if len(self.splits) == 1
                else str(error)
            )
        return np.flatnonzero(self.refs["split"] == self.splits.index(split))

    @property
    def no_object(self) -> NDArray[np.bool_]:
        """Whether each ref speaks of no object, so that its truth is empty."""
        objects = self.objects[self.refs["object"]]
        return np.asarray(objects["is_runs"] & (np.diff(objects["parts"])[:, 0] == 1))

    def sentence(self, row: int, text: str) -> str:
        """Return an expression by its row of ``sentences``; ``text`` is ``"sent"`` or ``"raw"``."""
        return self._text(self.sentences[text][row])

    def image(self, row: int) -> ImageRecord:
        """Return the record of an image by its row of ``images``."""
        entry = self.images[row]
        name = check_file_name(self._text(entry["name"]), f"{self.path}: images[{row}]", deep=True)
        return ImageRecord(int(entry["image_id"]), name, int(entry["width"]), int(entry["height"]))

    def file_names(self, refs: NDArray[np.int64]) -> set[str]:
        """Return the names of the image files of rows of ``refs``."""
        return {self.image(row).file_name for row in np.unique(self.refs["image"][refs]).tolist()}

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

    def save(self, layout: Layout, sources: Mapping[str, Any]) -> None:
        """Write ``layout.index``; ``sources`` is from before they were read."""
        from safetensors.numpy import save

        whole = hashlib.sha256()
        tensors = {}
        for name, array in self._arrays.items():
            whole.update(np.ascontiguousarray(array).tobytes())
            tensors[name] = array
            if array.dtype.names is not None:
                tensors[name] = array.view("u1").reshape(len(array), array.dtype.itemsize)
        metadata = {
            "format": _FORMAT,
            "name": layout.name,
            "split_by": layout.split_by,
            "splits": self.splits,
            "sources": sources,
            "left_out": {"count": self.bad.count, "reasons": self.bad.reasons},
            # not compared when it is opened: it gives other arrays another fingerprint
            "sha256": whole.hexdigest(),
        }
        write_files({layout.index: save(tensors, metadata={METADATA: json.dumps(metadata)})})

    def _text(self, span: NDArray[np.int64]) -> str:
        start, end = span.tolist()
        try:
            return self._arrays["text"][start:end].tobytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: array 'text' is damaged: {error}") from None


def open_index(layout: Layout) -> Index:
    """Open the index of a data set; a DataError unless it belongs to the sources as they are now.

    The sources are not read: size and time of change are compared, and only where the time differs
    (after copying, say) the SHA-256.
    """
    index, sources = _read(layout.index)
    for role, paths in layout.sources.items():
        known, found = sources[role], stamp(paths)
        if found == {key: known[key] for key in found}:
            continue
        if found["bytes"] != known["bytes"] or digest(paths) != known["sha256"]:
            where = paths[0] if paths else layout.refs.parent
            raise DataError(
                f"{layout.index} does not belong to {where} as it is now; run `masksd data prepare "
                f"ROOT {layout.name} --split-by {layout.split_by}` again, or name another index "
                "(--index)"
            )
    return index


def load_index(path: Path, fingerprint: str | None = None) -> Index:
    """Open an index without looking at its sources; a fingerprint must be the one it has."""
    index, _ = _read(path)
    if fingerprint not in (None, index.fingerprint):
        raise DataError(f"{path}: the index was rewritten while it was open; open the data again")
    return index


def _read(path: Path) -> tuple[Index, dict[str, Any]]:
    """Map the arrays of an index into memory; return it with what it knows of its sources."""
    from safetensors import SafetensorError, safe_open

    try:
        # through torch, which maps the file; numpy's side of safetensors copies it
        with safe_open(path, "pt") as file:
            content = (file.metadata() or {})[METADATA]
            metadata = json.loads(content)
            _check_metadata(metadata)
            arrays = {
                name: _as_rows(file.get_tensor(name).numpy(), np.dtype(kind))
                for name, kind in ARRAYS.items()
            }
        left_out = metadata["left_out"]
        bad = BadRecords(map(str, left_out["reasons"]), int(left_out["count"]))
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        return Index(arrays, metadata["splits"], bad, path, fingerprint), metadata["sources"]
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        SafetensorError,
    ) as error:
        raise DataError(
            f"{path} is not a readable index ({one_line(error)}); run `masksd data prepare` again, "
            "or remove it to read the sources"
        ) from None


def _check_metadata(metadata: dict[str, Any]) -> None:
    if metadata["format"] != _FORMAT:
        raise DataError(f"format {metadata['format']!r}, expected {_FORMAT}")
    if not all(type(name) is str for name in metadata["splits"]):
        raise DataError("its splits are not strings")
    for role in ("refs", "instances"):
        if metadata["sources"][role].keys() != {"bytes", "mtime_ns", "sha256"}:
            raise DataError(f"it does not say which {role} it was made from")


def _as_rows(array: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """View the bytes of a table as its rows; leave other arrays alone."""
    if kind.names is None:
        return array
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != kind.itemsize:
        raise DataError(f"its rows are not of {kind.itemsize} bytes")
    return array.view(kind)[:, 0]


def _contradiction(arrays: Mapping[str, NDArray[Any]], splits: int) -> str | None:
    """Name an array whose numbers lead out of another one or cannot be drawn; None for none."""
    refs, sentences, images = arrays["refs"], arrays["sentences"], arrays["images"]
    objects, polygons, runs = arrays["objects"], arrays["polygons"], arrays["runs"]
    coordinates, text = arrays["coordinates"], arrays["text"]
    checks: list[tuple[str, Callable[[], Any]]] = [  # in this order: later ones rely on earlier
        ("images", lambda: _spans(images["name"], len(text))),
        ("images", lambda: (images["width"] > 0) & (images["width"] <= MAX_SIDE)),
        ("images", lambda: (images["height"] > 0) & (images["height"] <= MAX_SIDE)),
        ("sentences", lambda: _spans(sentences["sent"], len(text))),
        ("sentences", lambda: _spans(sentences["raw"], len(text))),
        # false for NaN, too
        ("coordinates", lambda: coordinates.min(initial=0) >= -2 * MAX_SIDE),
        ("coordinates", lambda: coordinates.max(initial=0) <= 2 * MAX_SIDE),
        ("polygons", lambda: _spans(polygons["points"], len(coordinates))),
        ("polygons", lambda: np.diff(polygons["points"]) >= 6),
        ("polygons", lambda: np.diff(polygons["points"]) % 2 == 0),
        ("polygons", lambda: _outlines(polygons["points"], coordinates) <= _MAX_OUTLINE),
        ("runs", lambda: (runs >= 0) & (runs <= MAX_SIDE**2)),
        ("objects", lambda: _rows(objects["image"], len(images))),
        ("objects", lambda: np.diff(objects["parts"]) > 0),
        ("objects", lambda: _spans(objects["parts"][~objects["is_runs"]], len(polygons))),
        ("objects", lambda: np.diff(objects["parts"][~objects["is_runs"]]) <= MAX_POLYGONS),
        ("objects", lambda: _spans(objects["parts"][objects["is_runs"]], len(runs))),
        ("runs", lambda: _covered(objects[objects["is_runs"]], images, runs)),
        ("refs", lambda: _rows(refs["object"], len(objects))),
        ("refs", lambda: refs["image"] == objects["image"][refs["object"]]),
        ("refs", lambda: _rows(refs["split"], splits)),
        ("refs", lambda: _spans(refs["sentences"], len(sentences))),
        ("refs", lambda: np.diff(refs["sentences"]) > 0),
    ]
    return next((name for name, check in checks if not np.all(check())), None)


def _spans(spans: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
    starts, ends = spans[:, 0], spans[:, 1]
    return (starts >= 0) & (starts <= ends) & (ends <= limit)


def _outlines(points: NDArray[np.int64], coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each polygon's length along both axes, without its last side (at most half of it)."""
    sums = np.zeros(max(len(coordinates) - 1, 0))  # in place: these are the largest arrays
    np.subtract(coordinates[2:], coordinates[:-2], out=sums[1:])
    np.abs(sums, out=sums)
    np.cumsum(sums, out=sums)
    return np.asarray(sums[points[:, 1] - 2] - sums[points[:, 0]])


def _rows(rows: NDArray[Any], limit: int) -> NDArray[np.bool_]:
    return (rows >= 0) & (rows < limit)


def _covered(
    objects: NDArray[Any], images: NDArray[Any], runs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each object's runs cover its image exactly."""
    sums = np.concatenate([[0], np.cumsum(runs)])
    of = images[objects["image"]]
    covered = sums[objects["parts"][:, 1]] - sums[objects["parts"][:, 0]]
    return np.asarray(covered == of["width"].astype(np.int64) * of["height"])
