"""Comparisons equal a loop over draws, cover the truth, and refuse what is not comparable."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksd.kit.data.records import DataError
from masksd.kit.scores.compare import compare_reports, compare_rows
from masksd.kit.scores.protocols import PROTOCOLS, get_protocol
from masksd.kit.scores.report import REPORT, Report, report_files

Row = dict[str, Any]


def made_rows(
    key: list[int], pictures: int, shift: float = 0.0, spread: float = 0.0
) -> tuple[list[Row], list[Row]]:
    """Draw two evaluations whose samples share the luck of their picture."""
    random = np.random.default_rng(key)
    sides: tuple[list[Row], list[Row]] = ([], [])
    sentence = 0
    for picture in range(pictures):
        luck = random.normal(0, spread)  # of B on this picture
        base = random.uniform(0.3, 0.7)
        for _ in range(int(random.integers(1, 5))):
            sentence += 1
            truth = int(random.integers(50, 400))
            for side, mean in zip(sides, (base, base + shift + luck), strict=True):
                share = float(np.clip(mean + random.normal(0, 0.1), 0, 1))
                inter = round(share * truth)
                predicted = inter + int(random.integers(0, 60))
                union = truth + predicted - inter
                side.append(
                    {
                        "ref_id": sentence // 2,
                        "sent_id": sentence,
                        "image_id": picture,
                        "sentence": f"thing {sentence}",
                        "intersection": inter,
                        "union": union,
                        "predicted_area": predicted,
                        "truth_area": truth,
                        "iou": inter / union,
                    }
                )
    return sides


def plain_scores(rows: list[Row], name: str) -> dict[str, float]:
    """The scores of some samples, written out."""
    protocol = PROTOCOLS[name]
    union = sum(row["union"] for row in rows)
    n = len(rows)
    found = {
        "mIoU": sum(row["iou"] for row in rows) / n,
        "oIoU": sum(row["intersection"] for row in rows) / union,
        "gIoU": sum(row["intersection"] / row["union"] for row in rows) / n,
        "cIoU": sum(row["intersection"] for row in rows) / union,
        "mOver": sum((r["predicted_area"] - r["intersection"]) / r["predicted_area"] for r in rows)
        / n,
        "mUnder": sum((r["truth_area"] - r["intersection"]) / r["truth_area"] for r in rows) / n,
    }
    for x in protocol.thresholds:
        strict = protocol.comparisons[0] == ">"
        hits = [row["iou"] > x if strict else row["iou"] >= x for row in rows]
        found[f"Pr@{x}"] = sum(hits) / n
    return found


@pytest.mark.parametrize("name", ["cris", "lavt", "caris"])
def test_intervals_equal_a_loop_over_draws(name: str) -> None:
    a, b = made_rows([1], pictures=9, shift=0.1)
    found = compare_rows(a, b[::-1], get_protocol(name), resamples=200, seed=5)
    assert (found.samples, found.images, found.resamples) == (len(a), 9, 200)
    random = np.random.default_rng([5, 9])
    draws = random.integers(9, size=(200, 9))  # the pictures of each resample
    differences: dict[str, list[float]] = {}
    for drawn in draws.tolist():
        sides = [[row for p in drawn for row in rows if row["image_id"] == p] for rows in (a, b)]
        first, second = (plain_scores(rows, name) for rows in sides)
        for key in first:
            differences.setdefault(key, []).append(second[key] - first[key])
    assert found.differences.keys() == differences.keys()
    for key, difference in found.differences.items():
        ordered = sorted(differences[key])
        for value, q in ((difference.low, 0.025), (difference.high, 0.975)):
            place = q * (len(ordered) - 1)
            low = ordered[int(place)]
            high = ordered[min(int(place) + 1, len(ordered) - 1)]
            assert value == pytest.approx(low + (place - int(place)) * (high - low), abs=1e-12)
        whole = plain_scores(a, name)[key], plain_scores(b, name)[key]
        assert (difference.a, difference.b) == pytest.approx(whole, abs=1e-12)
        assert difference.difference == pytest.approx(whole[1] - whole[0], abs=1e-12)


def test_draws_in_chunks_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = made_rows([2], pictures=12)
    whole = compare_rows(a, b, get_protocol("cris"), resamples=500)
    monkeypatch.setattr("masksd.kit.scores.bootstrap._CHUNK", 12 * 7)
    assert compare_rows(a, b, get_protocol("cris"), resamples=500) == whole
    assert compare_rows(a, b, get_protocol("cris"), resamples=500, seed=1) != whole


def test_intervals_cover_the_truth_though_samples_of_a_picture_go_together() -> None:
    runs = 150
    covered = {"mIoU": 0, "oIoU": 0, "mUnder": 0}
    for run in range(runs):  # no difference on average, but every picture has its luck
        a, b = made_rows([3, run], pictures=60, spread=0.08)
        found = compare_rows(a, b, get_protocol("lavt"), resamples=400, seed=run)
        for key in covered:
            covered[key] += found.differences[key].low <= 0 <= found.differences[key].high
    for key, count in covered.items():
        # 95 % of 150 is 142.5, its deviation 2.7; percentile intervals are a little too short
        assert 132 <= count <= 150, (key, count)


def test_verdicts_say_who_is_better_or_that_nothing_was_shown() -> None:
    a, b = made_rows([4], pictures=40, shift=0.2)
    better = compare_rows(a, b, get_protocol("original"), resamples=300)
    worse = compare_rows(b, a, get_protocol("original"), resamples=300)
    for name in ("mIoU", "oIoU", "mUnder"):  # of which less is better
        assert better.verdict(name) == "B is better"
        assert worse.verdict(name) == "A is better"
    same = compare_rows(a, a, get_protocol("original"), resamples=300)
    for name, difference in same.differences.items():
        assert tuple(difference)[2:] == (0, 0, 0)
        assert same.verdict(name) == "no difference could be shown"


def test_ten_thousand_draws_take_seconds() -> None:
    a, b = made_rows([5], pictures=1500)
    start = time.perf_counter()
    found = compare_rows(a, b, get_protocol("original"))
    assert found.resamples == 10_000
    assert time.perf_counter() - start < 20  # a quarter of a second on a core that is free


def test_rows_that_do_not_pair_are_named() -> None:
    a, b = made_rows([6], pictures=4)
    lavt = get_protocol("lavt")
    sentence = b[-1]["sent_id"]
    with pytest.raises(DataError, match=rf"1 samples are in one only: ref \d+ sentence {sentence}"):
        compare_rows(a, b[:-1], lavt, names=("one", "two"))
    with pytest.raises(DataError, match=r"in two only: ref .* and \d+ more"):
        compare_rows(a[:1], b, lavt, names=("one", "two"))
    with pytest.raises(DataError, match=r"B: a sample .* comes twice"):
        compare_rows(a, [*b, b[0]], lavt)
    wrong = [{**b[0], "truth_area": 1}, *b[1:]]
    with pytest.raises(DataError, match=r"'truth_area' is \d+ in A and 1 in B; the data are not"):
        compare_rows(a, wrong, lavt)
    with pytest.raises(ValueError, match="at least two images"):
        compare_rows(a[:1], b[:1], lavt)
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 100"):
        compare_rows(a, b, lavt, resamples=10)


def write(
    folder: Path, rows: list[Row], protocol: str = "lavt", size: int = 64, **changes: Any
) -> Path:
    report = Report(
        title="made",
        protocol=protocol,
        input_size=size,
        fit="squash",
        trained_fit="squash",
        threshold=0.5,
        checkpoint="run",
        data={},
        split="val",
        limit=0,
        version="0",
        scores={"own": {"all": {"mIoU": 0.5, "samples": len(rows)}}},
    )
    report = dataclasses.replace(report, **changes)
    folder.mkdir()
    for name, content in report_files(report, {"own": rows}).items():
        (folder / name).write_bytes(content)
    return folder


def test_folders_are_compared_as_their_rows_are(tmp_path: Path) -> None:
    a, b = made_rows([7], pictures=8, shift=0.1)
    one, two = write(tmp_path / "a", a), write(tmp_path / "b", b)
    found = compare_reports(one, two, resamples=200)
    assert (found.checkpoints, found.notes) == (("run", "run"), ())
    plain = dataclasses.replace(found, checkpoints=("", ""))
    assert plain == compare_rows(a, b, get_protocol("lavt"), resamples=200)


def test_every_setting_that_differs_is_noted(tmp_path: Path) -> None:
    a, b = made_rows([11], pictures=4)
    b[-1]["sentence"] = "another"
    one = write(tmp_path / "a", a)
    changes = {
        "threshold": 0.4,
        "fit": "letterbox",
        "split": "testA",
        "limit": 7,
        "version": "1",
        "checkpoint": "other",
        "data": {"name": "mine", "level": "hard"},
    }
    two = write(tmp_path / "b", b, **changes)
    found = compare_reports(one, two, resamples=100)
    assert found.checkpoints == ("run", "other")
    row = a[-1]
    assert found.notes == (
        "threshold: A 0.5, B 0.4",
        "fit: A squash, B letterbox",
        "split: A val, B testA",
        "limit: A 0, B 7",
        "version: A 0, B 1",
        "data, level: A None, B hard",
        "data, name: A None, B mine",
        f"sentence: of 1 samples, as of ref {row['ref_id']} sentence {row['sent_id']}: "
        f"A {row['sentence']!r}, B 'another'",
    )


def test_folders_that_are_not_comparable_are_refused(tmp_path: Path) -> None:
    a, b = made_rows([8], pictures=4)
    one = write(tmp_path / "a", a)
    with pytest.raises(DataError, match=r"protocol 'lavt' and .* has 'caris'.*not comparable"):
        compare_reports(one, write(tmp_path / "caris", b, "caris"))
    with pytest.raises(DataError, match=r"input_size 64 and .* has 96"):
        compare_reports(one, write(tmp_path / "large", b, size=96))
    # where the picture's own size counts, that of the model does not matter
    write(tmp_path / "o64", a, "original")
    write(tmp_path / "o96", b, "original", size=96)
    compare_reports(tmp_path / "o64", tmp_path / "o96", resamples=100)
    with pytest.raises(DataError, match=r"samples-none\.jsonl is missing; score with --sent"):
        compare_reports(one, one, sentences="none")
    with pytest.raises(DataError, match="nowhere is not a folder; name a folder that"):
        compare_reports(one, tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    with pytest.raises(DataError, match="is a checkpoint or a run, not a report; score it"):
        compare_reports(tmp_path / "run", one)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (REPORT, lambda text: text[:30], "report.json is damaged"),
        (REPORT, lambda text: "[]", "expected a JSON object"),
        (REPORT, lambda text: text.replace('"format": 1', '"format": 7'), "has format 7"),
        (REPORT, lambda text: text.replace('"lavt"', '"lavd"'), "did you mean 'lavt'"),
        (REPORT, lambda text: text.replace('"input_size": 64', '"input_size": "x"'), "input_size"),
        (REPORT, lambda text: text.replace('"limit": 0', '"limit": true'), "'limit' is True"),
        (
            REPORT,
            lambda text: text.replace('"empty_iou": 0.0', '"empty_iou": 1.0'),
            "another definition of protocol 'lavt': its empty_iou was 1.0, today it is 0.0",
        ),
        (REPORT, lambda text: text.replace('"epsilon"', '"eps"'), "its eps was 0.0, today it is N"),
        ("samples-own.jsonl", lambda text: "", "is empty or cut off"),
        ("samples-own.jsonl", lambda text: text[:-20], "is empty or cut off"),
        ("samples-own.jsonl", lambda text: text.replace("{", "", 1), "line 1 is damaged"),
        ("samples-own.jsonl", lambda text: text.replace('"union"', '"u"', 1), "1: field 'union'"),
        ("samples-own.jsonl", lambda text: text + '{"iou": NaN}\n', "NaN is not a number"),
    ],
)
def test_damaged_reports_are_named(tmp_path: Path, name: str, change: Any, message: str) -> None:
    a, b = made_rows([9], pictures=4)
    one, two = write(tmp_path / "a", a), write(tmp_path / "b", b)
    path = two / name
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(DataError, match=message):
        compare_reports(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iou": 10**400}, r"'iou' must be in \[0, 1\]"),
        ({"iou": -0.1}, r"'iou' must be in \[0, 1\]"),
        ({"union": 10**400}, r"'union' must be in \[0, 2\*\*53\)"),
        ({"truth_area": 2**53}, r"'truth_area' must be in \[0, 2\*\*53\)"),
        ({"intersection": -1}, r"'intersection' must be in \[0"),
        ({"intersection": 1.0}, "'intersection' is 1.0"),
        (
            {"intersection": 4, "predicted_area": 3, "truth_area": 9, "union": 8},
            "'intersection' 4 is larger than an area",
        ),
        (
            {"intersection": 3, "predicted_area": 4, "truth_area": 5, "union": 7},
            "'union' is 7, but the areas and the intersection make 6",
        ),
    ],
)
def test_numbers_that_no_two_masks_have_are_refused(
    tmp_path: Path, changes: Row, message: str
) -> None:
    a, b = made_rows([12], pictures=4)
    b[1].update(changes)
    one, two = write(tmp_path / "a", a), write(tmp_path / "b", b)
    with pytest.raises(DataError, match=rf"samples-own\.jsonl: line 2: field {message}"):
        compare_reports(one, two)


def test_a_number_that_json_reads_as_infinity_is_refused(tmp_path: Path) -> None:
    a, _ = made_rows([13], pictures=4)
    one = write(tmp_path / "a", a)
    path = one / "samples-own.jsonl"
    path.write_text(path.read_text().replace(f'"iou": {a[0]["iou"]}', '"iou": 1e400', 1))
    with pytest.raises(DataError, match=r"line 1: field 'iou' must be in \[0, 1\]"):
        compare_reports(one, one)


@pytest.mark.parametrize("name", [REPORT, "samples-own.jsonl"])
def test_files_of_another_encoding_are_named(tmp_path: Path, name: str) -> None:
    a, _ = made_rows([14], pictures=4)
    path = write(tmp_path / "a", a) / name
    path.write_bytes(path.read_bytes().replace(b"thing", b"\xff", 1) + b"\xff")
    with pytest.raises(DataError, match=rf"{name} is damaged: it is not UTF-8"):
        compare_reports(tmp_path / "a", tmp_path / "a")


def test_the_report_holds_its_protocol(tmp_path: Path) -> None:
    a, _ = made_rows([10], pictures=2)
    fields = json.loads((write(tmp_path / "a", a) / REPORT).read_text())
    assert fields["protocol"]["name"] == "lavt"
    assert fields["protocol"]["comparisons"] == [">="]
    assert fields["scores"]["own"]["all"]["samples"] == len(a)
