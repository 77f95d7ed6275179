"""Two reports on the same samples: paired differences with bootstrap intervals.

Several expressions share a picture and stand or fall together, so pictures are drawn, not samples
(the cluster bootstrap; percentile intervals, Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masksd.kit.data.records import DataError
from masksd.kit.scores.clusters import (
    LOWER_IS_BETTER,
    Floats,
    Rows,
    pair_rows,
    picture_draws,
    picture_sums,
    scores_of_sums,
)
from masksd.kit.scores.protocols import Protocol, get_protocol
from masksd.kit.scores.report import read_report, read_samples

_SETTINGS = ("threshold", "fit", "split", "limit", "version")


class Difference(NamedTuple):
    """One score of two models.

    Attributes:
        a: score of the first, in [0, 1].
        b: score of the second.
        difference: ``b - a``.
        low: lower end of its 95 % interval.
        high: upper end of it.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_rows` finds.

    Attributes:
        differences: by name of the score.
        samples: how many were paired.
        pictures: how many they are on.
        resamples: how often pictures were drawn.
        checkpoints: folders of the two models, as the reports name them; "" of rows.
        notes: how the reports differ in what was scored and how, a line each.
    """

    differences: dict[str, Difference]
    samples: int
    pictures: int
    resamples: int
    checkpoints: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()

    def verdict(self, name: str) -> str:
        """Say in words what an interval allows to say.

        Args:
            name: of the score.

        Example:
            >>> found = Comparison({"mIoU": Difference(0.5, 0.6, 0.1, 0.02, 0.2)}, 8, 4, 1000)
            >>> found.verdict("mIoU")
            'B is better'
        """
        _, _, _, low, high = self.differences[name]
        if low <= 0 <= high:
            return "no difference could be shown"
        return "B is better" if (low > 0) != (name in LOWER_IS_BETTER) else "A is better"


def compare_reports(
    a: str | Path, b: str | Path, *, sentences: str = "own", resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two reports sample by sample.

    Args:
        a: folder that ``masksd evaluate --output`` wrote.
        b: another one, of the same data, split, protocol and input size.
        sentences: the kind of sentence that is compared.
        resamples: how often pictures are drawn.
        seed: of the draws.

    Raises:
        DataError: a folder that is no report or is damaged, reports by different protocols, by an
            older definition of one or at different sizes, or samples that are in one of them only,
            by name.
    """
    reports = [read_report(folder) for folder in (a, b)]
    for field in ("protocol", "input_size") if _at_input(reports[0]) else ("protocol",):
        first, second = (report[field] for report in reports)
        if first != second:
            raise DataError(
                f"{a} has {field} {first!r} and {b} has {second!r}: these scores are not "
                "comparable; score both models alike"
            )
    rows = [read_samples(folder, sentences) for folder in (a, b)]
    found = compare_rows(
        rows[0],
        rows[1],
        get_protocol(reports[0]["protocol"]),
        names=(str(a), str(b)),
        resamples=resamples,
        seed=seed,
    )
    return replace(
        found,
        checkpoints=(reports[0]["checkpoint"], reports[1]["checkpoint"]),
        notes=(*_settings_notes(reports[0], reports[1]), *_sentence_notes(rows[0], rows[1])),
    )


def compare_rows(
    a: Rows,
    b: Rows,
    protocol: Protocol,
    *,
    names: tuple[str, str] = ("A", "B"),
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare the samples of two evaluations.

    Args:
        a: one row a sample, as :class:`masksd.kit.evaluation.scoring.Evaluation` holds them.
        b: the same samples in any order.
        protocol: whose Pr@X and empty IoU are taken.
        names: of the two, for errors.
        resamples: how often pictures are drawn, at least 100.
        seed: of the draws, at least 0; equal seeds give equal intervals.

    Returns:
        mIoU, oIoU, Pr@X, mOver and mUnder (:class:`masksd.kit.scores.metrics.SegmentationScores`)
        of both with the difference and its interval.

    Raises:
        DataError: a sample that comes twice, is in one of them only, or has another truth.
        ValueError: fewer than two pictures, or options out of range.

    Example:
        >>> sample = {"sent_id": 1, "ref_id": 1, "sentence": "cat", "intersection": 1, "union": 4,
        ...           "predicted_area": 2, "truth_area": 3, "iou": 0.25}
        >>> one = [{**sample, "image_id": n, "ref_id": n} for n in range(9)]
        >>> two = [{**row, "intersection": 2, "union": 3, "iou": 2 / 3} for row in one]
        >>> found = compare_rows(one, two, get_protocol("original"), resamples=100)
        >>> found.verdict("mIoU"), found.pictures
        ('B is better', 9)
    """
    for name, value, least in (("resamples", resamples, 100), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    rows = pair_rows(a, b, names)
    sums, pictures = picture_sums(rows, protocol)
    if pictures < 2:
        raise ValueError("an interval needs samples of at least two pictures")
    parts: list[list[Floats]] = [[], []]
    for weights in picture_draws(pictures, resamples, seed):
        for part, side in zip(parts, sums, strict=True):
            part.append(weights @ side)  # both models on the same pictures: the pairs stay pairs
    drawn = [scores_of_sums(np.concatenate(part), protocol) for part in parts]
    whole = [scores_of_sums(side.sum(axis=0)[None], protocol) for side in sums]
    differences = {}
    for name in whole[0]:
        first, second = (float(side[name][0]) for side in whole)
        low, high = np.percentile(drawn[1][name] - drawn[0][name], [2.5, 97.5])
        differences[name] = Difference(first, second, second - first, float(low), float(high))
    return Comparison(differences, len(rows[0]), pictures, resamples)


def format_comparison(found: Comparison) -> list[list[str]]:
    """Lay out a comparison in per cent: lines of cells, the first one names the columns.

    Example:
        >>> found = Comparison({"mIoU": Difference(0.5, 0.6, 0.1, 0.02, 0.2)}, 8, 4, 1000)
        >>> format_comparison(found)[1]
        ['mIoU', '50.00', '60.00', '+10.00', '[+2.00, +20.00]', 'B is better']
    """
    lines = [["", "A", "B", "B - A", "95 % interval", "verdict"]]
    for name, (a, b, difference, low, high) in found.differences.items():
        cells = [f"{100 * a:.2f}", f"{100 * b:.2f}", f"{100 * difference:+.2f}"]
        interval = f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        lines.append([name, *cells, interval, found.verdict(name)])
    return lines


def _at_input(report: Mapping[str, Any]) -> bool:
    return get_protocol(report["protocol"]).scored_at == "input"


def _settings_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each setting of two reports that differs; the data field by field."""
    for field in _SETTINGS:
        if a[field] != b[field]:
            yield f"{field}: A {a[field]}, B {b[field]}"
    for field in sorted(a["data"].keys() | b["data"].keys()):
        first, second = a["data"].get(field), b["data"].get(field)
        if first != second:
            yield f"data, {field}: A {first}, B {second}"


def _sentence_notes(a: Rows, b: Rows) -> Iterator[str]:
    """Yield a line where samples of one name were told other sentences."""
    told = {(row["ref_id"], row["sent_id"]): row["sentence"] for row in a}
    other = [row for row in b if told[row["ref_id"], row["sent_id"]] != row["sentence"]]
    if other:
        ref, sentence = other[0]["ref_id"], other[0]["sent_id"]
        yield (
            f"sentence: of {len(other)} samples, as of ref {ref} sentence {sentence}: "
            f"A {told[ref, sentence]!r}, B {other[0]['sentence']!r}"
        )
