"""Reports of an evaluation: JSON, markdown, and a file with one line a sample."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksd.kit.data.records import DataError
from masksd.kit.scores.protocols import get_protocol

REPORT, TABLES = "report.json", "report.md"
FORMAT = 1
_COUNTS = ("intersection", "union", "predicted_area", "truth_area")
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("ref_id", "sent_id", "image_id", *_COUNTS), int),
    "sentence": str,
    "iou": (int, float),
}
_REPORT_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("input_size", "limit"), int),
    **dict.fromkeys(("fit", "split", "checkpoint", "version"), str),
    "threshold": (int, float),
    "data": dict,
}


@dataclass(frozen=True)
class Report:
    """What was scored, how, and what came out.

    Attributes:
        title: the data in words.
        protocol: name of the protocol.
        input_size: side of the model's square input, in pixels.
        fit: how pictures became squares, ``"squash"`` or ``"letterbox"``.
        trained_fit: how they did in training.
        threshold: probability above which a pixel was foreground.
        checkpoint: the folder of the model, as it was named.
        data: ``DataConfig`` as a dict.
        split: of the data.
        limit: how many samples were asked for; 0 is all.
        version: of masksd.
        scores: by kind of sentence, then by group, then by name.
        relevance: what ``relevance_recall`` returns, or None.
    """

    title: str
    protocol: str
    input_size: int
    fit: str
    trained_fit: str
    threshold: float
    checkpoint: str
    data: dict[str, Any]
    split: str
    limit: int
    version: str
    scores: dict[str, dict[str, dict[str, float]]]
    relevance: dict[str, float] | None = None

    def to_json(self) -> str:
        """Return the report with the whole protocol as JSON text."""
        fields = dataclasses.asdict(self)
        fields["protocol"] = dataclasses.asdict(get_protocol(self.protocol))
        return json.dumps({"format": FORMAT, **fields}, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the report as markdown: a line on what it is, and a table a kind of sentence.

        Example:
            >>> scores = {"own": {"all": {"mIoU": 0.5, "samples": 8}}}
            >>> report = Report("shapes", "lavt", 64, "squash", "squash", 0.5, "run", {}, "val", 0,
            ...                 version="1", scores=scores)
            >>> print(report.to_markdown().splitlines()[2])
            protocol lavt at 64 px instead of 480, scored at the input size, Pr@X is IoU >= X
        """
        lines = [f"# {self.title}", "", get_protocol(self.protocol).title(self.input_size), ""]
        other = "" if self.fit == self.trained_fit else f" (trained with {self.trained_fit})"
        lines += [
            f"Per cent. Pictures: {self.fit}{other}; "
            f"foreground: probability above {self.threshold:g}; "
            f"checkpoint: `{self.checkpoint}`; masksd {self.version}.",
            "",
        ]
        for kind, groups in self.scores.items():
            main, second = split_comparisons(groups)
            lines += [f"## Sentences: {kind}", "", markdown_table(main), ""]
            if second:
                lines += ["With IoU >= X:", "", markdown_table(second), ""]
        lines += [
            "mIoU and the other m are means over samples, oIoU and the other o are shares of all "
            "pixels. Over: predicted area outside the truth. Under: truth that is missed. Sizes "
            "are COCO's, in pixels of the original picture: below 32², below 96², and above.",
        ]
        if self.relevance is not None:
            found = {name: f"{100 * value:.2f}" for name, value in self.relevance.items()}
            lines += [
                "",
                "## Relevance",
                "",
                f"The top patches hold {found['recall']} % of the truth (mean over samples; "
                f"{found['overall']} % of all its pixels); by chance {found['chance']} %.",
            ]
        return "\n".join(lines) + "\n"


def split_comparisons(
    groups: Mapping[str, Mapping[str, float]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Part the scores from Pr@X by the second comparison, for a table of its own.

    Args:
        groups: scores by group, then by name.

    Returns:
        All but ``Pr@X (>=)``, and those alone with ``samples``; the second is empty where there
        are none.

    Example:
        >>> split_comparisons({"all": {"Pr@0.5": 0.1, "Pr@0.5 (>=)": 0.2, "samples": 9}})
        ({'all': {'Pr@0.5': 0.1, 'samples': 9}}, {'all': {'Pr@0.5 (>=)': 0.2, 'samples': 9}})
    """
    second = {name for scores in groups.values() for name in scores if name.endswith(" (>=)")}
    main = {
        group: {name: value for name, value in scores.items() if name not in second}
        for group, scores in groups.items()
    }
    if not second:
        return main, {}
    kept = second | {"samples"}
    others = {
        group: {name: value for name, value in scores.items() if name in kept}
        for group, scores in groups.items()
    }
    return main, others


def markdown_table(groups: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out scores in per cent, a group a row.

    Example:
        >>> print(markdown_table({"all": {"mIoU": 0.5, "samples": 8}}))
        |  | mIoU | samples |
        |---|---:|---:|
        | all | 50.00 | 8 |
    """
    names = list(next(iter(groups.values())))
    lines = [f"|  | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for group, scores in groups.items():
        values = [
            str(int(scores[name])) if name == "samples" else f"{100 * scores[name]:.2f}"
            for name in names
        ]
        lines.append(f"| {group} | {' | '.join(values)} |")
    return "\n".join(lines)


def samples_name(sentences: str) -> str:
    """Return the name of the per-sample file of a kind of sentence.

    Example:
        >>> samples_name("own")
        'samples-own.jsonl'
    """
    return f"samples-{sentences}.jsonl"


def report_files(
    report: Report, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, bytes]:
    """Make the files of a report.

    Args:
        report: what was scored, how, and what came out.
        rows: the samples by kind of sentence; see :class:`masksd.kit.evaluation.scoring.Evaluation`.

    Returns:
        Contents by name: ``report.json``, ``report.md`` and ``samples-KIND.jsonl``.
    """
    files = {REPORT: report.to_json(), TABLES: report.to_markdown()}
    for kind, samples in rows.items():
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in samples]
        files[samples_name(kind)] = "".join(line + "\n" for line in lines)
    return {name: text.encode() for name, text in files.items()}


def read_report(folder: str | Path) -> dict[str, Any]:
    """Read ``report.json``.

    Args:
        folder: that ``masksd evaluate --output`` wrote.

    Returns:
        Its fields; ``"protocol"`` is the name and ``"input_size"`` an int.

    Raises:
        DataError: no such folder, another kind of folder (a checkpoint is named), a file that is
            damaged, or a protocol that has been defined anew since.
    """
    root = Path(folder)
    path = root / REPORT
    if not path.is_file():
        if (root / "checkpoint.json").is_file() or (root / "checkpoint").is_dir():
            raise DataError(
                f"{root} is a checkpoint or a run, a report is wanted: score it first with "
                f"masksd evaluate --checkpoint ... --output FOLDER, and name that FOLDER"
            )
        what = "has no report.json" if root.is_dir() else "is no folder"
        raise DataError(f"{root} {what}; name a folder that masksd evaluate --output wrote")
    fields = _object(_text(path), str(path))
    if fields.get("format") != FORMAT:
        raise DataError(f"{path} has format {fields.get('format')!r}, this masksd reads {FORMAT}")
    for field, kind in {**_REPORT_FIELDS, "protocol": dict}.items():
        _check_kind(fields, field, kind, str(path))
    name = fields["protocol"].get("name")
    try:
        today = json.loads(json.dumps(dataclasses.asdict(get_protocol(str(name)))))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    for field in sorted(today.keys() | fields["protocol"].keys()):
        then, now = fields["protocol"].get(field), today.get(field)
        if then != now:
            raise DataError(
                f"{path} was scored by another definition of protocol {name!r}: its {field} was "
                f"{then!r}, today it is {now!r}; score the model again"
            )
    return {**fields, "protocol": name}


def read_samples(folder: str | Path, sentences: str = "own") -> list[dict[str, Any]]:
    """Read the per-sample file of a report.

    Args:
        folder: that ``masksd evaluate --output`` wrote.
        sentences: the kind of sentence, ``"own"``, ``"other"`` or ``"none"``.

    Returns:
        One dict a sample.

    Raises:
        DataError: no such file, or a line that is damaged or whose numbers are not those of two
            masks, by number.
    """
    path = Path(folder) / samples_name(sentences)
    if not path.is_file():
        raise DataError(f"{path} is missing; score with --sentences {sentences} or all")
    rows = []
    lines = _text(path).split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        where = f"{path}: line {number}"
        row = _object(line, where)
        for field, kind in _FIELDS.items():
            _check_kind(row, field, kind, where)
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


def _check_kind(
    fields: Mapping[str, Any], field: str, kind: type | tuple[type, ...], where: str
) -> None:
    value = fields.get(field)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: field {field!r} is {value!r}")


def _check_numbers(row: Mapping[str, Any], where: str) -> None:
    """Raise unless counts are those of two masks; sums of larger ones would not be exact."""
    for field in _COUNTS:
        if not 0 <= row[field] < 2**53:
            raise DataError(f"{where}: field {field!r} must be in [0, 2**53)")
    inter, union, predicted, truth = (row[field] for field in _COUNTS)
    if inter > min(predicted, truth):
        raise DataError(f"{where}: field 'intersection' {inter} is more than an area")
    if union != predicted + truth - inter:
        raise DataError(
            f"{where}: field 'union' is {union}, areas and intersection make it "
            f"{predicted + truth - inter}"
        )
    if not 0 <= row["iou"] <= 1:
        raise DataError(f"{where}: field 'iou' must be in [0, 1]")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is damaged: an object is wanted")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
