"""Reports of an evaluation on disk: JSON, markdown, and a file with one line a sample."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from masksd.kit.data.records import DataError
from masksd.kit.printing import command_line, markdown_table
from masksd.kit.scores.metrics import COUNTS, Rows
from masksd.kit.scores.protocols import get_protocol

REPORT, TABLES = "report.json", "report.md"
PERTURBED, PAIRED = "-perturbed", "-paired"
"""What follows a kind of sentence: made harder, and the same samples as they were."""
FORMAT = 1
Scores = Mapping[str, Mapping[str, float]]
Fields = dict[str, type | tuple[type, ...]]
_SAMPLE_FIELDS: Fields = {
    **dict.fromkeys(("ref_id", "sent_id", "image_id", *COUNTS), int),
    "sentence": str,
    "iou": (int, float),
}
_REPORT_FIELDS: Fields = {
    **dict.fromkeys(("input_size", "limit"), int),
    **dict.fromkeys(("fit", "split", "checkpoint", "version"), str),
    "threshold": (int, float),
    "data": dict,
    "protocol": dict,
}


@dataclass(frozen=True)
class Report:
    """What was scored, how, and what came out."""

    title: str  # the data in words
    protocol: str
    input_size: int
    fit: str
    trained_fit: str  # how images became squares in training
    threshold: float
    checkpoint: str  # the folder, as it was named
    data: dict[str, Any]  # a DataConfig
    split: str
    limit: int
    version: str
    scores: dict[str, dict[str, dict[str, float]]]  # by kind of sentence, group and name
    relevance: dict[str, float] | None = None  # what relevance_recall returns
    hide: float = 0.0  # of the samples made harder, as is drop_words
    drop_words: int = 0
    warning: str = ""  # what a reader of the scores must know

    def to_json(self) -> str:
        """Return the report, with every field of its protocol, as JSON text."""
        fields = dataclasses.asdict(self)
        fields["protocol"] = dataclasses.asdict(get_protocol(self.protocol))
        return json.dumps({"format": FORMAT, **fields}, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the report as markdown: what was scored, and a table for each kind of sentence."""
        other = "" if self.fit == self.trained_fit else f" (trained with {self.trained_fit})"
        parts = [
            f"# {self.title}",
            get_protocol(self.protocol).title(self.input_size),
            f"Per cent. Images: {self.fit}{other}; foreground: probability above "
            f"{self.threshold:g}; checkpoint: `{self.checkpoint}`; masksd {self.version}.",
        ]
        if self.warning:
            parts.append(f"**Warning: {self.warning}.**")
        for kind, groups in self.scores.items():
            main, second = split_comparisons(groups)
            title = kind_title(kind, self.hide, self.drop_words)
            parts += [f"## Sentences: {title}", markdown_table(*score_cells(main))]
            if second:
                parts += ["With IoU >= X:", markdown_table(*score_cells(second))]
        parts += [f"{line}." for line in left_out(self.scores, self.drop_words)]
        parts.append(
            "mIoU and the other m are means over samples; oIoU and the other o are shares of all "
            "pixels. gIoU and cIoU are mIoU and oIoU as LISA and SAM 3 score, with 1 for an empty "
            "prediction of an empty truth; N-acc is the share of empty truths that are so. Over: "
            "predicted area outside the truth. Under: truth that is missed. Sizes are COCO's, in "
            "pixels of the original image: below 32², below 96², and above."
        )
        if self.relevance is not None:
            shares = {name: f"{100 * value:.2f}" for name, value in self.relevance.items()}
            parts += [
                "## Relevance",
                f"The top patches hold {shares['recall']} % of the truth (mean over samples; "
                f"{shares['overall']} % of all its pixels); by chance {shares['chance']} %.",
            ]
        return "\n\n".join(parts) + "\n"


def split_comparisons(
    groups: Scores,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Part the scores from Pr@X by the second comparison, for a table of its own."""
    main: dict[str, dict[str, float]] = {}
    second: dict[str, dict[str, float]] = {}
    for group, scores in groups.items():
        extra = {name: value for name, value in scores.items() if name.endswith(" (>=)")}
        main[group] = {name: value for name, value in scores.items() if name not in extra}
        if extra:
            second[group] = {**extra, "samples": scores["samples"]}
    return main, second


def score_cells(groups: Scores) -> tuple[list[str], list[list[str]]]:
    """Lay out scores in per cent, a group a row: the head, and the rows."""
    names = list(dict.fromkeys(name for scores in groups.values() for name in scores))
    rows = [[group, *(_cell(name, scores) for name in names)] for group, scores in groups.items()]
    return ["", *names], rows


def _cell(name: str, scores: Mapping[str, float]) -> str:
    if name not in scores:
        return "-"
    return str(int(scores[name])) if name == "samples" else f"{100 * scores[name]:.2f}"


def kind_title(
    kind: str, hide: float, drop_words: int, names: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Say in words what was scored; ``names`` are those of the kinds of sentence."""
    sentences, dash, state = kind.partition("-")
    parts = [names.get(sentences, sentences)]
    if dash + state == PAIRED:
        parts.append("the same samples unchanged")
    if dash + state == PERTURBED:
        parts += [f"{100 * hide:g}% hidden"] if hide else []
        parts += [f"{_words(drop_words)} dropped"] if drop_words and sentences != "none" else []
    return ", ".join(parts)


def left_out(scores: Mapping[str, Scores], drop_words: int) -> list[str]:
    """Say for each kind of sentence how many samples are only in the scores with all words."""
    lines = []
    for kind, groups in scores.items():
        if kind + PAIRED in scores:
            total = int(groups["all"]["samples"])
            missing = total - int(scores[kind + PAIRED]["all"]["samples"])
            lines.append(
                f"sentences: {kind}; {missing} of {total} cannot lose {_words(drop_words)} and are "
                "left out where words are dropped"
            )
    return lines


def _words(count: int) -> str:
    return f"{count} word{'s' if count > 1 else ''}"


def samples_name(sentences: str) -> str:
    """Name the file of samples of a kind of sentence."""
    return f"samples-{sentences}.jsonl"


def report_files(report: Report, rows: Mapping[str, Rows]) -> dict[str, bytes]:
    """Return the contents of all files of a report by name, given samples by kind of sentence."""
    files = {REPORT: report.to_json(), TABLES: report.to_markdown()}
    for kind, samples in rows.items():
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in samples]
        files[samples_name(kind)] = "".join(line + "\n" for line in lines)
    return {name: text.encode() for name, text in files.items()}


def read_report(folder: str | Path) -> dict[str, Any]:
    """Read ``report.json``; its ``"protocol"`` becomes the name."""
    root = Path(folder)
    path = root / REPORT
    if not path.is_file():
        if (root / "checkpoint.json").is_file() or (root / "checkpoint").is_dir():
            place = root if (root / "checkpoint.json").is_file() else root / "checkpoint"
            raise DataError(
                f"{root} is a checkpoint or a run, not a report; score it, and name the report: "
                + command_line("evaluate", checkpoint=place, output="reports/NAME")
            )
        what = "has no report.json" if root.is_dir() else "is not a folder"
        raise DataError(f"{root} {what}; name a folder that masksd evaluate --output wrote")
    fields = _parse(_text(path), str(path))
    if fields.get("format") != FORMAT:
        raise DataError(f"{path} has format {fields.get('format')!r}, this masksd reads {FORMAT}")
    _check_types(fields, _REPORT_FIELDS, str(path))
    stored = fields["protocol"]
    name = stored.get("name")
    try:
        today = json.loads(json.dumps(dataclasses.asdict(get_protocol(str(name)))))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    for field in sorted(today.keys() | stored.keys()):
        then, now = stored.get(field), today.get(field)
        if then != now:
            raise DataError(
                f"{path} was scored by another definition of protocol {name!r}: its {field} was "
                f"{then!r}, today it is {now!r}; score the model again"
            )
    return {**fields, "protocol": name}


def read_samples(folder: str | Path, sentences: str = "own") -> list[dict[str, Any]]:
    """Read the samples of a report for one kind of sentence."""
    path = Path(folder) / samples_name(sentences)
    if not path.is_file():
        raise DataError(f"{path} is missing; score with --sentences {sentences} or all")
    rows = []
    lines = _text(path).split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        where = f"{path}: line {number}"
        row = _parse(line, where)
        _check_types(row, _SAMPLE_FIELDS, where)
        _check_numbers(row, where)
        rows.append(row)
    if not rows or lines[-1]:
        raise DataError(f"{path} is empty or cut off: its last line has no end")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: it is not UTF-8 ({error})") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is damaged: expected a JSON object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _check_types(fields: Mapping[str, Any], types: Fields, where: str) -> None:
    for field, kind in types.items():
        value = fields.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"{where}: field {field!r} is {value!r}")


def _check_numbers(row: Mapping[str, Any], where: str) -> None:
    """Raise unless the counts are those of two masks; sums of larger ones would not be exact."""
    for field in COUNTS:
        if not 0 <= row[field] < 2**53:
            raise DataError(f"{where}: field {field!r} must be in [0, 2**53)")
    inter, union, predicted, truth = (row[field] for field in COUNTS)
    if inter > min(predicted, truth):
        raise DataError(f"{where}: field 'intersection' {inter} is larger than an area")
    if union != predicted + truth - inter:
        raise DataError(
            f"{where}: field 'union' is {union}, but the areas and the intersection make "
            f"{predicted + truth - inter}"
        )
    if not 0 <= row["iou"] <= 1:
        raise DataError(f"{where}: field 'iou' must be in [0, 1]")
