"""Two reports on the same samples: paired differences with bootstrap intervals.

Percentile intervals of the cluster bootstrap over images (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masksd.kit.data.records import DataError
from masksd.kit.scores.bootstrap import LOWER_IS_BETTER, bootstrap, pair_rows
from masksd.kit.scores.metrics import Rows
from masksd.kit.scores.protocols import Protocol, get_protocol
from masksd.kit.scores.report import read_report, read_samples

_SETTINGS = ("threshold", "fit", "split", "limit", "version")


class Difference(NamedTuple):
    """One score of models A and B, ``b - a``, and its 95 % interval."""

    a: float
    b: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The differences by score, and what was compared."""

    differences: dict[str, Difference]
    samples: int
    images: int
    resamples: int
    checkpoints: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()  # how the settings of the reports differ, a line each

    def verdict(self, name: str) -> str:
        """Say what the interval of a score allows to say."""
        _, _, _, low, high = self.differences[name]
        if low <= 0 <= high:
            return "no difference could be shown"
        return "B is better" if (low > 0) != (name in LOWER_IS_BETTER) else "A is better"


def compare_reports(
    a: str | Path, b: str | Path, *, sentences: str = "own", resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two folders of ``masksd evaluate --output`` on one kind of sentence."""
    first, second = read_report(a), read_report(b)
    protocol = get_protocol(first["protocol"])
    for field in ("protocol", "input_size") if protocol.scored_at == "input" else ("protocol",):
        if first[field] != second[field]:
            raise DataError(
                f"{a} has {field} {first[field]!r} and {b} has {second[field]!r}: these scores "
                "are not comparable; score both models alike"
            )
    rows_a, rows_b = read_samples(a, sentences), read_samples(b, sentences)
    found = compare_rows(
        rows_a, rows_b, protocol, names=(str(a), str(b)), resamples=resamples, seed=seed
    )
    return replace(
        found,
        checkpoints=(first["checkpoint"], second["checkpoint"]),
        notes=(*_settings_notes(first, second), *_sentence_notes(rows_a, rows_b)),
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
    """Compare the samples of two evaluations, in any order; ``names`` are for errors."""
    rows = pair_rows(a, b, names)
    scores, drawn, images = bootstrap(rows, protocol, resamples=resamples, seed=seed)
    differences = {}
    for name, first in scores[0].items():
        second = scores[1][name]
        low, high = np.percentile(drawn[1][name] - drawn[0][name], [2.5, 97.5])
        differences[name] = Difference(first, second, second - first, float(low), float(high))
    return Comparison(differences, len(rows[0]), images, resamples)


def format_comparison(found: Comparison) -> list[list[str]]:
    """Lay out a comparison in per cent: lines of cells, the first one names the columns."""
    lines = [["", "A", "B", "B - A", "95 % interval", "verdict"]]
    for name, (a, b, difference, low, high) in found.differences.items():
        cells = [f"{100 * a:.2f}", f"{100 * b:.2f}", f"{100 * difference:+.2f}"]
        interval = f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        lines.append([name, *cells, interval, found.verdict(name)])
    return lines


def _settings_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each setting that differs; those of the data field by field."""
    pairs = {field: (a[field], b[field]) for field in _SETTINGS}
    for field in sorted(a["data"].keys() | b["data"].keys()):
        pairs[f"data, {field}"] = (a["data"].get(field), b["data"].get(field))
    for field, (first, second) in pairs.items():
        if first != second:
            yield f"{field}: A {first}, B {second}"


def _sentence_notes(a: Rows, b: Rows) -> Iterator[str]:
    """Yield a line if the models were given different sentences for the same samples."""
    given = {(row["ref_id"], row["sent_id"]): row["sentence"] for row in a}
    other = [row for row in b if given[row["ref_id"], row["sent_id"]] != row["sentence"]]
    if other:
        ref, sentence = other[0]["ref_id"], other[0]["sent_id"]
        yield (
            f"sentence: of {len(other)} samples, as of ref {ref} sentence {sentence}: "
            f"A {given[ref, sentence]!r}, B {other[0]['sentence']!r}"
        )
