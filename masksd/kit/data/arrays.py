"""The arrays of an index: their types, and what they must agree on.

A number that leads out of an array, or a coordinate that is not finite, would crash or read
elsewhere when a mask is drawn, so all of them are checked whenever an index is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPAN = ("<i8", (2,))  # where something starts and ends in another array
# every array has one dimension or is (n, 2); rows of one name rows of another
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
_MAX_SIDE = 32_768
_MAX_PARTS = 4_096  # polygons of an object; drawing takes time by the square of their number
_MAX_OUTLINE = 4_000_000  # pixels along both axes; drawing takes memory for each


def contradiction(arrays: Mapping[str, NDArray[Any]], splits: int) -> str | None:
    """Look for numbers that lead out of another array, or that no mask can be drawn from.

    Args:
        arrays: by the names of ``ARRAYS``, with its dtypes, one-dimensional.
        splits: how many splits there are.

    Returns:
        The name of a damaged array; None where all is right.

    Example:
        >>> empty = {name: np.zeros(0, dtype=kind) for name, kind in ARRAYS.items()}
        >>> contradiction(empty, 0) is None
        True
        >>> contradiction(empty | {"runs": np.array([-1])}, 0)
        'runs'
    """
    refs, sentences, images = arrays["refs"], arrays["sentences"], arrays["images"]
    objects, polygons, runs = arrays["objects"], arrays["polygons"], arrays["runs"]
    coordinates, text = arrays["coordinates"], arrays["text"]
    checks: list[tuple[str, Callable[[], Any]]] = [  # in this order: later ones rely on earlier
        ("images", lambda: _spans(images["name"], len(text))),
        ("images", lambda: (images["width"] > 0) & (images["width"] <= _MAX_SIDE)),
        ("images", lambda: (images["height"] > 0) & (images["height"] <= _MAX_SIDE)),
        ("sentences", lambda: _spans(sentences["sent"], len(text))),
        ("sentences", lambda: _spans(sentences["raw"], len(text))),
        # false for NaN, too
        ("coordinates", lambda: coordinates.min(initial=0) >= -2 * _MAX_SIDE),
        ("coordinates", lambda: coordinates.max(initial=0) <= 2 * _MAX_SIDE),
        ("polygons", lambda: _spans(polygons["points"], len(coordinates))),
        ("polygons", lambda: np.diff(polygons["points"]) >= 6),
        ("polygons", lambda: np.diff(polygons["points"]) % 2 == 0),
        ("polygons", lambda: _outlines(polygons["points"], coordinates) <= _MAX_OUTLINE),
        ("runs", lambda: (runs >= 0) & (runs <= _MAX_SIDE**2)),
        ("objects", lambda: _rows(objects["image"], len(images))),
        ("objects", lambda: np.diff(objects["parts"]) > 0),
        ("objects", lambda: _spans(objects["parts"][~objects["is_runs"]], len(polygons))),
        ("objects", lambda: np.diff(objects["parts"][~objects["is_runs"]]) <= _MAX_PARTS),
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
    """Return how long each polygon's outline is, along both axes together, but for its last side.

    The last side leads back to the first point, so the others are at least half of it all.
    """
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
    """Whether each object's runs cover its picture exactly."""
    sums = np.concatenate([[0], np.cumsum(runs)])
    of = images[objects["image"]]
    covered = sums[objects["parts"][:, 1]] - sums[objects["parts"][:, 0]]
    return np.asarray(covered == of["width"].astype(np.int64) * of["height"])
