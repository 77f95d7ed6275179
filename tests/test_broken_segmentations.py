"""Polygons and run lengths of every odd kind are drawn right or are one error, never a crash."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from masksd.kit.data.records import DataError
from masksd.kit.data.segmentation import check_segmentation, decode_mask, encode_runs

HEIGHT, WIDTH = 10, 8
SIZE = [HEIGHT, WIDTH]
PIXELS = HEIGHT * WIDTH


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def drawn(*boxes: Sequence[int]) -> np.ndarray:
    """The picture with boxes of whole pixels: left, top, right, bottom."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of the runs down the columns, by walking: the first is of zeros."""
    runs, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def packed(runs: list[int]) -> str:
    """COCO's string of runs, straight from its description: 5 bits a character, low ones first."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | (32 if more else 0)) + 48)
    return text


MASK, COLUMN = drawn((2, 3, 5, 9)), drawn((2, 3, 3, 9))
READ: dict[str, tuple[Any, np.ndarray, int]] = {
    "box": ([box(2, 3, 5, 9)], MASK, 0),
    "box-drawn-the-other-way-round": ([[2, 3, 2, 9, 5, 9, 5, 3]], MASK, 0),
    "box-that-is-closed": ([[*box(2, 3, 5, 9), 2, 3]], MASK, 0),
    "box-with-points-that-repeat": ([[2, 3, 2, 3, 5, 3, 5, 3, 5, 9, 2, 9]], MASK, 0),
    "box-of-floats": ([box(2.0, 3.0, 5.0, 9.0)], MASK, 0),
    "two-boxes": ([box(0, 0, 2, 2), box(5, 5, 8, 10)], drawn((0, 0, 2, 2), (5, 5, 8, 10)), 0),
    "two-that-overlap": ([box(1, 1, 5, 5), box(3, 3, 7, 7)], drawn((1, 1, 5, 5), (3, 3, 7, 7)), 0),
    "the-same-twice": ([box(2, 3, 5, 9)] * 2, MASK, 0),
    "partly-outside": ([box(-4, -4, 3, 2)], drawn((0, 0, 3, 2)), 0),
    "larger-than-the-picture": ([box(-9, -9, 19, 19)], drawn((0, 0, 8, 10)), 0),
    "the-whole-picture": ([box(0, 0, 8, 10)], drawn((0, 0, 8, 10)), 0),
    "one-of-them-outside": ([box(2, 3, 5, 9), box(10, 12, 14, 15)], MASK, 0),
    "one-of-them-without-area": ([box(2, 3, 5, 9), [1, 1, 1, 1, 1, 1]], MASK, 0),
    "one-of-them-a-line": ([box(2, 3, 5, 9), [0, 0, 1, 1]], MASK, 1),
    "one-of-them-of-an-odd-count": ([box(2, 3, 5, 9), [*box(0, 0, 1, 1), 7]], MASK, 1),
    "one-of-them-empty": ([[], box(2, 3, 5, 9)], MASK, 1),
    "runs": ({"size": SIZE, "counts": runs_of(MASK)}, MASK, 0),
    "packed-runs": ({"size": SIZE, "counts": packed(runs_of(MASK))}, MASK, 0),
    "runs-from-the-first-pixel": (
        {"size": SIZE, "counts": [0, 3, PIXELS - 3]},
        drawn((0, 0, 1, 3)),
        0,
    ),
    "runs-of-nothing-between": (
        {"size": SIZE, "counts": [23, 2, 0, 4, 51]},
        drawn((2, 3, 3, 9)),
        0,
    ),
    "runs-that-end-with-nothing": ({"size": SIZE, "counts": [74, 6, 0]}, drawn((7, 4, 8, 10)), 0),
    "runs-with-other-fields": (
        {"size": SIZE, "counts": [74, 6], "area": "?"},
        drawn((7, 4, 8, 10)),
        0,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_odd_segmentation_is_drawn_right(name: str) -> None:
    segmentation, expected, dropped = READ[name]
    checked, count = check_segmentation(segmentation, HEIGHT, WIDTH)
    assert count == dropped
    mask = decode_mask(checked, HEIGHT, WIDTH)
    assert mask.dtype == np.uint8
    assert mask.flags.c_contiguous
    assert mask.tolist() == expected.tolist()


def test_outline_that_crosses_itself() -> None:
    # two triangles that meet in the middle of 40 x 40: left and right are in, top and bottom out
    checked, _ = check_segmentation([[0, 0, 40, 40, 40, 0, 0, 40]], 40, 40)
    mask = decode_mask(checked, 40, 40)
    rows, columns = np.indices(mask.shape) + 0.5
    from_middle = np.abs(columns - 20) - np.abs(rows - 20)
    assert mask[from_middle > 1.5].all()
    assert not mask[from_middle < -1.5].any()


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "segmentation is a NoneType"),
    "text": ("polygon", "segmentation is a str"),
    "number": (7, "segmentation is a int"),
    "truth": (True, "segmentation is a bool"),
    "no-polygon": ([], "no polygon of at least 3 points"),
    "polygon-without-its-outer-brackets": (
        box(2, 3, 5, 9),
        "a segmentation a list of polygons; got 2",
    ),
    "brackets-too-many": ([[box(2, 3, 5, 9)]], "coordinate [2, 3, 5, 3"),
    "points-in-brackets": ([[[2, 3], [5, 3], [5, 9]]], "coordinate [2, 3] is not a number"),
    "points-with-names": ([[{"x": 2, "y": 3}] * 3], "coordinate {'x': 2, 'y': 3} is not a number"),
    "polygon-that-is-an-object": ([{"points": box(2, 3, 5, 9)}], "must be a list of numbers"),
    "polygon-of-text": (["2,3,5,3"], "got '2,3,5,3' for a polygon"),
    "box-of-four-numbers": ([[2, 3, 5, 9]], "no polygon of at least 3 points"),
    "odd-count": ([[*box(2, 3, 5, 9), 1]], "no polygon of at least 3 points"),
    "no-area": ([[2, 3, 2, 3, 2, 3]], "draw no pixel"),
    "a-line-there-and-back": ([[2, 3, 7, 3, 2, 3]], "draw no pixel"),
    "too-thin": ([[2.1, 3.1, 2.2, 3.1, 2.2, 3.2]], "draw no pixel"),
    "outside-on-the-right": ([box(9, 2, 15, 5)], "draw no pixel; they have no area or lie outside"),
    "outside-above": ([box(1, -9, 5, -3)], "draw no pixel"),
    "all-outside": ([box(9, 2, 15, 5), box(1, 12, 5, 18)], "draw no pixel"),
    "nan": ([[*box(2, 3, 5, 9), float("nan"), 1]], "coordinate nan is not a number within 20"),
    "inf": ([[*box(2, 3, 5, 9), float("inf"), 1]], "coordinate inf"),
    "minus-inf": ([[*box(2, 3, 5, 9), 1, float("-inf")]], "coordinate -inf"),
    "far-away": ([box(2, 3, 5, 1e9)], "coordinate 1000000000.0 is not a number within 20 pixels"),
    "beyond-floats": (
        [box(2, 3, 5, 10**400)],
        "coordinate 10000000000000000000",
    ),
    "coordinate-of-text": ([[*box(2, 3, 5, 9), "1", 1]], "coordinate '1'"),
    "coordinate-of-truth": ([[*box(2, 3, 5, 9), True, 1]], "coordinate True"),
    "coordinate-of-nothing": ([[*box(2, 3, 5, 9), None, 1]], "coordinate None"),
    "too-many-polygons": ([box(2, 3, 5, 9)] * 5000, "5000 polygons; at most 4096 are read"),
    "outline-without-end": ([[0, 0, 8, 10] * 110_000], "an outline of 2200000 pixels"),
    "no-counts": ({"size": SIZE}, "counts must be a string or a list of ints"),
    "no-size": ({"counts": [80]}, "size is None, but the image has [10, 8]"),
    "size-of-another-picture": (
        {"size": [10, 9], "counts": [90]},
        "size is [10, 9], but the image",
    ),
    "size-that-is-swapped": ({"size": [8, 10], "counts": [80]}, "its height and width are swapped"),
    "size-of-text": ({"size": "10x8", "counts": [80]}, "size is '10x8'"),
    "size-of-nothing": ({"size": [0, 0], "counts": []}, "size is [0, 0]"),
    "runs-too-short": ({"size": SIZE, "counts": [20, 3]}, "the runs cover 23 of 80 pixels"),
    "runs-too-long": ({"size": SIZE, "counts": [20, 61]}, "the runs cover 81 of 80 pixels"),
    "runs-of-no-count": ({"size": SIZE, "counts": []}, "the runs cover 0 of 80 pixels"),
    "run-below-zero": ({"size": SIZE, "counts": [40, -10, 50]}, "got a run of -10"),
    "run-beyond-the-picture": (
        {"size": SIZE, "counts": [2**32 + 80, 0]},
        "got a run of 4294967376",
    ),
    "run-beyond-floats": ({"size": SIZE, "counts": [10**400]}, "got a run of 1000000000"),
    "run-of-a-float": ({"size": SIZE, "counts": [20.0, 60]}, "got a run of 20.0"),
    "run-of-nan": ({"size": SIZE, "counts": [float("nan")]}, "got a run of nan"),
    "run-of-truth": ({"size": SIZE, "counts": [79, True]}, "got a run of True"),
    "run-of-text": ({"size": SIZE, "counts": ["80"]}, "got a run of '80'"),
    "runs-of-nothing-only": ({"size": SIZE, "counts": [80]}, "its runs draw no pixel"),
    "runs-that-are-an-object": ({"size": SIZE, "counts": {"0": 80}}, "counts must be a string"),
    "packed-of-nothing": ({"size": SIZE, "counts": ""}, "the runs cover 0 of 80 pixels"),
    "packed-with-a-space": ({"size": SIZE, "counts": "` P2"}, "character ' ' has no meaning"),
    "packed-with-unicode": ({"size": SIZE, "counts": "é"}, "character 'é' has no meaning"),
    "packed-too-short": ({"size": SIZE, "counts": packed([20, 3])}, "the runs cover 23 of 80"),
    "packed-too-long": ({"size": SIZE, "counts": packed([20, 61])}, "the runs cover 81 of 80"),
    "packed-below-zero": ({"size": SIZE, "counts": packed([-3, 83])}, "a run of -3"),
    "packed-beyond-the-picture": ({"size": SIZE, "counts": packed([81])}, "a run of 81"),
    "packed-beyond-64-bits": ({"size": SIZE, "counts": "o" * 30 + "0"}, "has no meaning in counts"),
    "packed-that-ends-within-a-number": ({"size": SIZE, "counts": "`1P"}, "counts end within"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_segmentation_is_one_error_with_its_reason(name: str) -> None:
    segmentation, says = BAD[name]
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        check_segmentation(segmentation, HEIGHT, WIDTH)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 250
    assert time.process_time() - start < 2


@pytest.mark.parametrize(("height", "width"), [(0, 8), (10, 0), (-1, 8), (40_000, 8), (8, 2**31)])
def test_size_of_a_picture_that_cannot_be(height: int, width: int) -> None:
    with pytest.raises(
        DataError, match=f"an image of {width}x{height} pixels; a side must have 1 to"
    ):
        check_segmentation([box(0, 0, 5, 5)], height, width)


# -- anything at all -------------------------------------------------------------------------------
numbers = st.one_of(
    st.integers(-20, 20),
    st.floats(-21, 21),
    st.floats(),
    st.integers(),
    st.sampled_from([10**400, -(2**31), 2**32 - 1, 2**63, 1e308, -0.0, 20.000001]),
)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5)
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
polygons = st.lists(st.lists(numbers, max_size=14) | json_values, max_size=4)
near_polygons = st.lists(
    st.lists(st.floats(-20, 20, allow_nan=False), min_size=5, max_size=30), max_size=5
)
run_lists = st.lists(st.integers(-2, 80) | json_values, max_size=8)
codes = st.fixed_dictionaries(
    {"size": st.just(SIZE) | json_values},
    optional={
        "counts": run_lists
        | json_values
        | st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30)
        | run_lists.map(lambda runs: packed([run for run in runs if type(run) is int]))
    },
)


# by pycocotools' own decoder, which only the tests use
old_numpy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@old_numpy
@given(segmentation=json_values | polygons | near_polygons | codes)
@settings(max_examples=600, deadline=None)
@example(segmentation=[[float("nan")] * 6])
@example(segmentation=[[0, 0, 1, 1, 2]])
@example(segmentation={"size": [10.0, 8.0], "counts": [70, 10]})
def test_anything_is_an_error_or_a_mask(segmentation: Any) -> None:
    try:
        checked, dropped = check_segmentation(segmentation, HEIGHT, WIDTH)
    except DataError as error:
        assert str(error).startswith("segmentation")  # noqa: PT017
        return
    mask = decode_mask(checked, HEIGHT, WIDTH)
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask.any()
    assert set(np.unique(mask)) <= {0, 1}
    assert dropped >= 0
    if isinstance(segmentation, list):
        parts = coco_mask.decode(coco_mask.frPyObjects(checked, HEIGHT, WIDTH))
        assert np.array_equal(mask, parts.max(axis=2))  # the union


@old_numpy
@given(
    runs=st.lists(st.integers(0, 40), min_size=2, max_size=20).filter(lambda r: any(r[1::2])),
    height=st.integers(1, 12),
)
def test_packed_runs_are_those_of_coco(runs: list[int], height: int) -> None:
    runs = [*runs, -sum(runs) % height]
    width = max(1, sum(runs) // height)
    for counts in (runs, packed(runs)):
        checked, _ = check_segmentation({"size": [height, width], "counts": counts}, height, width)
        mask = decode_mask(checked, height, width)
        code = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        assert np.array_equal(mask, coco_mask.decode(code))
    assert runs_of(mask) == encode_runs(mask)
