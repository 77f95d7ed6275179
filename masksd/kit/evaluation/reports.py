"""The folder of a report: written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.evaluation.cases import case_rows, draw_cases, pick_cases
from masksd.kit.evaluation.scoring import SENTENCES, Evaluation
from masksd.kit.files import check_place, write_files
from masksd.kit.scores.protocols import choose_threshold, get_protocol
from masksd.kit.scores.report import REPORT, TABLES, Report, report_files, samples_name

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

CASES = "worst-and-best.png"


def write_report(
    folder: Path,
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    results: Mapping[str, Evaluation],
    *,
    title: str,
    protocol: str,
    source: str | Path,
    data: Mapping[str, Any],
    split: str,
    limit: int = 0,
    threshold: float | None = None,
    relevance: dict[str, float] | None = None,
    cases: int = 6,
) -> Report:
    """Write ``report.json``, ``report.md``, ``samples-KIND.jsonl`` and ``worst-and-best.png``.

    Args:
        folder: an existing one, as :class:`masksd.kit.files.StagedFolder` has.
        checkpoint: that was scored.
        dataset: it was scored on.
        results: by kind of sentence; the first one's cases are drawn.
        title: the data in words.
        protocol: name of the protocol.
        source: folder of the checkpoint.
        data: ``DataConfig`` as a dict.
        split: of the data.
        limit: how many samples were asked for; 0 is all.
        threshold: that was asked for; None is the protocol's or the checkpoint's.
        relevance: what ``relevance_recall`` returned.
        cases: how many of the worst and of the best samples are drawn.

    Returns:
        The report that was written.
    """
    report = Report(
        title=title,
        protocol=protocol,
        input_size=dataset.image_size,
        fit=dataset.fit,
        trained_fit=checkpoint.config.fit,
        threshold=choose_threshold(get_protocol(protocol), threshold, checkpoint.config.threshold),
        checkpoint=str(source),
        data=dict(data),
        split=split,
        limit=limit,
        version=version("masksd"),
        scores={kind: result.scores for kind, result in results.items()},
        relevance=relevance,
    )
    files = report_files(report, {kind: result.rows for kind, result in results.items()})
    write_files({folder / name: content for name, content in files.items()})
    kind, shown = next(iter(results.items()))
    sides = [
        case_rows(checkpoint, dataset, rows, protocol=protocol, sentences=kind, threshold=threshold)
        for rows in pick_cases(shown.rows, cases)
    ]
    draw_cases(sides[0], sides[1], folder / CASES)
    return report


def check_report_place(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` unless a report may take this place.

    Args:
        folder: where it goes.
        overwrite: whether an older report may be replaced; anything else never is.

    Example:
        >>> check_report_place(Path("nothing/here"), overwrite=False)
    """
    ours = {REPORT, TABLES, CASES, *map(samples_name, SENTENCES)}
    check_place(folder, ours, kind="report", strange="no report has", over=overwrite)
