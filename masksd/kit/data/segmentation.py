"""COCO segmentations to masks, safely: pycocotools crashes on numbers that nobody checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.kit.data.bad import DataError

_MAX_SIDE = 32_768
_MAX_POLYGONS = 4_096  # drawing takes time by the square of their number
_MAX_OUTLINE = 2_000_000  # pixels; drawing takes 40 bytes for each


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
            an outline without measure, runs that do not cover the picture exactly, or a
            segmentation that draws no pixel (of no area, or wholly outside).

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
    kept = _check_polygons(segmentation, 2 * max(height, width))
    from pycocotools import mask as coco_mask

    if not any(coco_mask.area(each) for each in coco_mask.frPyObjects(kept, height, width)):
        raise DataError(
            "segmentation: its polygons draw no pixel; they have no area or are outside the picture"
        )
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


def _check_polygons(polygons: list[Any], bound: int) -> list[list[float]]:
    """Return those that can be drawn; an error where drawing one would crash."""
    if len(polygons) > _MAX_POLYGONS:
        raise DataError(f"segmentation: {len(polygons)} polygons; at most {_MAX_POLYGONS} are read")
    kept = []
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise DataError(
                "segmentation: a polygon must be a list of numbers, and a segmentation a list of "
                f"polygons; got {polygon!r:.40} for a polygon"
            )
        for value in polygon:
            # false for NaN, too
            if type(value) not in (int, float) or not -bound <= value <= bound:
                raise DataError(
                    f"segmentation: coordinate {value!r:.40} is not a number within {bound} pixels"
                )
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
            outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
            kept.append(polygon)
    if not kept:
        raise DataError("segmentation: no polygon of at least 3 points")
    if outline > _MAX_OUTLINE:
        raise DataError(
            f"segmentation: an outline of {outline:.0f} pixels; at most {_MAX_OUTLINE} are drawn"
        )
    return kept


def _check_runs(code: dict[str, Any], height: int, width: int) -> list[int]:
    size, pixels = code.get("size"), height * width
    if size != [height, width]:
        swapped = " (its height and width are swapped)" if size == [width, height] else ""
        raise DataError(
            f"segmentation: size is {size!r:.40}, the picture has [{height}, {width}]{swapped}"
        )
    runs = code.get("counts")
    if isinstance(runs, str):
        runs = _read_compressed(runs, pixels)
    wanted = f"counts must be a string or a list of ints of at least 0 and at most {pixels}"
    if not isinstance(runs, list):
        raise DataError(f"segmentation: {wanted}, got {runs!r:.40}")
    for run in runs:
        if type(run) is not int or not 0 <= run <= pixels:
            raise DataError(f"segmentation: {wanted}, got a run of {run!r:.40}")
    if sum(runs) != pixels:
        raise DataError(
            f"segmentation: the runs cover {sum(runs)} of {pixels} pixels of the picture"
        )
    if not any(runs[1::2]):
        raise DataError("segmentation: its runs draw no pixel")
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
