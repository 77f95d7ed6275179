"""COCO segmentations to masks, safely: pycocotools crashes on numbers that nobody checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.data.records import DataError

_MAX_SIDE = 32_768


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, int]:
    """Check a COCO segmentation and bring it into the form that :func:`decode_mask` takes.

    Args:
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or a run-length code
            ``{"size": [height, width], "counts": str | list[int]}`` (column-major runs, starting
            with zeros).
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Returns:
        The list of polygons or the list of runs, and how many polygons were dropped because they
        have fewer than 6 or an odd count of numbers.

    Raises:
        DataError: no usable polygon, a coordinate that is not finite or far outside the picture,
            runs that do not cover the picture exactly.

    Example:
        >>> check_segmentation([[0, 0, 4, 0, 4, 4], [1, 1]], height=6, width=8)
        ([[0, 0, 4, 0, 4, 4]], 1)
        >>> check_segmentation({"size": [2, 3], "counts": [2, 4]}, height=2, width=3)
        ([2, 4], 0)
    """
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        raise DataError(f"a picture of {width}x{height} pixels; a side has 1 to {_MAX_SIDE}")
    if isinstance(segmentation, dict):
        return _check_runs(segmentation, height, width), 0
    if not isinstance(segmentation, list):
        raise DataError(f"segmentation is a {type(segmentation).__name__}, not a list or an object")
    bound = 2 * max(height, width)
    kept = []
    for polygon in segmentation:
        if not isinstance(polygon, list):
            raise DataError("segmentation: a polygon must be a list of numbers")
        for value in polygon:
            if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > bound:
                raise DataError(
                    f"segmentation: coordinate {value!r} is not a number within {bound} pixels"
                )
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            kept.append(polygon)
    if not kept:
        raise DataError("segmentation: no polygon of at least 3 points")
    return kept, len(segmentation) - len(kept)


def decode_mask(checked: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a segmentation that :func:`check_segmentation` returned.

    Several polygons are united: a pixel in two of them is 1. (Adding them up gives 2 there, and
    code that keeps ``== 1`` loses the overlap.)

    Args:
        checked: a list of polygons, or a list of runs.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Returns:
        ``(height, width)`` uint8, 1 on the object and 0 elsewhere.

    Example:
        >>> decode_mask([2, 2, 2], height=2, width=3)
        array([[0, 1, 0],
               [0, 1, 0]], dtype=uint8)
        >>> polygons, _ = check_segmentation([[0, 0, 2, 0, 2, 2, 0, 2]], 2, 3)
        >>> decode_mask(polygons, height=2, width=3)
        array([[1, 1, 0],
               [1, 1, 0]], dtype=uint8)
    """
    if checked and isinstance(checked[0], list):
        from pycocotools import mask as coco_mask

        code = coco_mask.merge(coco_mask.frPyObjects(checked, height, width))
        runs = _read_compressed(code["counts"].decode(), height * width)
    else:
        runs = checked
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def encode_runs(mask: NDArray[Any]) -> list[int]:
    """Write a mask as COCO's uncompressed run lengths.

    Args:
        mask: ``(H, W)``, zero or not.

    Returns:
        Lengths of the runs in column-major order, the first one (possibly 0) of zeros.

    Example:
        >>> encode_runs(np.array([[1, 0], [1, 0]]))
        [0, 2, 2]
    """
    flat = (np.asarray(mask) != 0).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def _check_runs(code: dict[str, Any], height: int, width: int) -> list[int]:
    if code.get("size") != [height, width]:
        raise DataError(
            f"segmentation: size is {code.get('size')!r}, the picture has [{height}, {width}]"
        )
    runs = code.get("counts")
    if isinstance(runs, str):
        runs = _read_compressed(runs, height * width)
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise DataError("segmentation: counts must be a string or a list of ints of at least 0")
    if sum(runs) != height * width:
        raise DataError(
            f"segmentation: the runs cover {sum(runs)} of {height * width} pixels of the picture"
        )
    return runs


def _read_compressed(text: str, limit: int) -> list[int]:
    """Undo COCO's string form: 5 bits a character, low ones first, each run (from the fourth on)
    stored as its difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise DataError(f"segmentation: character {character!r} has no meaning in counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if not 0 <= runs[-1] <= limit:
            raise DataError(f"segmentation: a run of {runs[-1]} in a picture of {limit} pixels")
        value = shift = 0
    if shift:
        raise DataError("segmentation: counts end within a number")
    return runs
