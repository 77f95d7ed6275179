"""COCO segmentations to masks, safely: pycocotools crashes on numbers that nobody checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.kit.data.records import DataError

MAX_SIDE = 32_768
MAX_POLYGONS = 4_096  # drawing takes time by the square of their number
_MAX_OUTLINE = 2_000_000  # pixels; drawing takes 40 bytes for each


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, int]:
    """Check a COCO segmentation, so that :func:`decode_mask` can draw it.

    It is a list of polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or a run-length code
    ``{"size": [height, width], "counts": str | list[int]}`` (column-major, starting with zeros).
    A tuple of them is their union, an empty one no object. Returns the list of polygons or of runs,
    and how many polygons were dropped because they have fewer than 6 or an odd count of numbers.
    What cannot be drawn safely, or draws no pixel, is a DataError.
    """
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise DataError(f"an image of {width}x{height} pixels; a side must have 1 to {MAX_SIDE}")
    if isinstance(segmentation, tuple):
        return _check_union(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _check_runs(segmentation, height, width), 0
    if not isinstance(segmentation, list):
        raise DataError(
            f"segmentation is a {type(segmentation).__name__}, expected a list or an object"
        )
    kept = _check_polygons(segmentation, 2 * max(height, width))
    from pycocotools import mask as coco_mask

    if not any(coco_mask.area(each) for each in coco_mask.frPyObjects(kept, height, width)):
        raise DataError(
            "segmentation: its polygons draw no pixel; they have no area or lie outside the image"
        )
    return kept, len(segmentation) - len(kept)


def _check_union(parts: tuple[Any, ...], height: int, width: int) -> tuple[Any, int]:
    if len(parts) > MAX_POLYGONS:
        raise DataError(f"a union of {len(parts)} objects; at most {MAX_POLYGONS} are read")
    if parts and all(isinstance(part, list) for part in parts):
        return check_segmentation([polygon for part in parts for polygon in part], height, width)
    mask, dropped = np.zeros((height, width), dtype=np.uint8), 0
    for part in parts:
        checked, left_out = check_segmentation(part, height, width)
        mask |= decode_mask(checked, height, width)
        dropped += left_out
    return encode_runs(mask), dropped


def decode_mask(checked: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a checked list of polygons or of runs: ``(height, width)`` uint8 of 0 and 1.

    Several polygons are united: a pixel in two of them is 1. (Adding them up gives 2 there, and
    code that keeps ``== 1`` loses the overlap.)
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
    """Write a mask ``(H, W)`` as COCO's run lengths: column-major, the first one of zeros."""
    flat = (np.asarray(mask) != 0).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def _check_polygons(polygons: list[Any], bound: int) -> list[list[float]]:
    """Return those that can be drawn; a DataError where drawing one would crash."""
    if len(polygons) > MAX_POLYGONS:
        raise DataError(f"segmentation: {len(polygons)} polygons; at most {MAX_POLYGONS} are read")
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
            f"segmentation: size is {size!r:.40}, but the image has [{height}, {width}]{swapped}"
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
        raise DataError(f"segmentation: the runs cover {sum(runs)} of {pixels} pixels of the image")
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
            raise DataError(f"segmentation: a run of {runs[-1]} in an image of {limit} pixels")
        value = shift = 0
    if shift:
        raise DataError("segmentation: counts end within a number")
    return runs
