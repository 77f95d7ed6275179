"""The evaluation protocols written out, pixel by pixel. Imports nothing of masksd.

A protocol takes one sample's logits as an array (channels, h, w) and its truth (H, W) at the
picture's own size, and returns (prediction, truth) as they are scored.
"""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def keys(x: float) -> float:
    """The cubic kernel with a = -0.75, from its two polynomials."""
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    if x < 2:
        return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
    return 0.0


def clamped(values: np.ndarray, y: int, x: int) -> float:
    height, width = values.shape
    return float(values[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])


def or_zero(values: np.ndarray, y: int, x: int) -> float:
    height, width = values.shape
    return float(values[y, x]) if 0 <= y < height and 0 <= x < width else 0.0


def cubic_at(values: np.ndarray, y: float, x: float, pixel) -> float:
    top, left = math.floor(y), math.floor(x)
    return sum(
        keys(y - row) * keys(x - column) * pixel(values, row, column)
        for row in range(top - 1, top + 3)
        for column in range(left - 1, left + 3)
    )


def linear_at(values: np.ndarray, y: float, x: float) -> float:
    top, left = math.floor(y), math.floor(x)
    return sum(
        (1 - abs(y - row)) * (1 - abs(x - column)) * clamped(values, row, column)
        for row in (top, top + 1)
        for column in (left, left + 1)
    )


def sampled(size: tuple[int, int], at) -> np.ndarray:
    return np.array([[at(y, x) for x in range(size[1])] for y in range(size[0])])


def corner_aligned(values: np.ndarray, size: int, at) -> np.ndarray:
    down = (values.shape[0] - 1) / (size - 1)
    across = (values.shape[1] - 1) / (size - 1)
    return sampled((size, size), lambda y, x: at(values, y * down, x * across))


def nearest(truth: np.ndarray, size: int) -> np.ndarray:
    height, width = truth.shape

    def pixel(y: int, x: int) -> bool:
        return truth[int((y + 0.5) * height / size), int((x + 0.5) * width / size)]

    return sampled((size, size), pixel).astype(bool)


def foreground(logits: np.ndarray) -> np.ndarray:
    return logits[0] if len(logits) == 1 else logits[1] - logits[0]


def cris(logits: np.ndarray, truth: np.ndarray, size: int, _: float):
    """sigmoid, bicubic to the input, inverse affine of the letterbox, above 0.35."""
    height, width = truth.shape
    probabilities = np.vectorize(sigmoid)(foreground(logits))
    at_input = corner_aligned(
        probabilities, size, lambda values, y, x: cubic_at(values, y, x, clamped)
    )
    scale = min(size / height, size / width)
    left, top = (size - scale * width) / 2, (size - scale * height) / 2
    back = sampled(
        truth.shape,
        lambda y, x: cubic_at(at_input, scale * y + top, scale * x + left, or_zero),
    )
    return back > 0.35, truth


def lavt(logits: np.ndarray, truth: np.ndarray, size: int, _: float):
    """Bilinear to the input, argmax of two classes (one channel: probability above 0.5)."""
    maps = [corner_aligned(channel, size, linear_at) for channel in logits]
    if len(maps) == 1:
        found = np.vectorize(sigmoid)(maps[0]) > 0.5
    else:
        found = np.argmax(np.stack(maps), axis=0) == 1
    return found, nearest(truth, size)


caris = lavt


def original(logits: np.ndarray, truth: np.ndarray, size: int, threshold: float):
    """Bilinear from the (squashed) input to the picture, with outer edges aligned; threshold."""
    values = foreground(logits)
    height, width = truth.shape

    def pixel(y: int, x: int) -> float:
        row = max((y + 0.5) * values.shape[0] / height - 0.5, 0)
        column = max((x + 0.5) * values.shape[1] / width - 0.5, 0)
        return sigmoid(linear_at(values, row, column))

    return sampled(truth.shape, pixel) > threshold, truth


RULES = {
    "cris": (lambda i, u: i / (u + 1e-6), (0.5, 0.6, 0.7, 0.8, 0.9), [">"]),
    "lavt": (lambda i, u: i / u if u else 0.0, (0.5, 0.6, 0.7, 0.8, 0.9), [">="]),
    "caris": (lambda i, u: i / u if u else 0.0, (0.5, 0.7, 0.9), [">="]),
    "original": (lambda i, u: i / u if u else 1.0, (0.5, 0.6, 0.7, 0.8, 0.9), [">", ">="]),
}
MASKS = {"cris": cris, "lavt": lavt, "caris": caris, "original": original}


def scores(
    name: str, samples: list[tuple[np.ndarray, np.ndarray]], size: int, threshold: float
) -> dict[str, float]:
    """Score (logits, truth) pairs."""
    iou_of, thresholds, comparisons = RULES[name]
    ious, plain, over, under = [], [], [], []
    total = {"i": 0, "u": 0, "p": 0, "t": 0}
    for logits, drawn in samples:
        found, truth = MASKS[name](logits, drawn, size, threshold)
        pairs = list(zip(found.ravel().tolist(), truth.ravel().tolist(), strict=True))
        i = sum(1 for p, t in pairs if p and t)
        u = sum(1 for p, t in pairs if p or t)
        p, t = sum(1 for p, _ in pairs if p), sum(1 for _, t in pairs if t)
        ious.append(iou_of(i, u))
        plain.append(i / u if u else 1.0)
        over.append((p - i) / p if p else 0.0)
        under.append((t - i) / t if t else 0.0)
        for key, value in zip("iupt", (i, u, p, t), strict=True):
            total[key] += value
    count = len(samples)
    result = {
        "mIoU": sum(ious) / count,
        "oIoU": total["i"] / total["u"],
        "gIoU": sum(plain) / count,
        "cIoU": total["i"] / total["u"],
        "mOver": sum(over) / count,
        "oOver": (total["p"] - total["i"]) / total["p"],
        "mUnder": sum(under) / count,
        "oUnder": (total["t"] - total["i"]) / total["t"],
        "samples": count,
    }
    for x in thresholds:
        for number, comparison in enumerate(comparisons):
            hits = sum(1 for iou in ious if (iou > x if comparison == ">" else iou >= x))
            result[f"Pr@{x}" + (f" ({comparison})" if number else "")] = hits / count
    return result
