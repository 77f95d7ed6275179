"""From a checkpoint on disk to its scores and, if wanted, a folder with a report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masksd.kit.checkpoints import Checkpoint, load_checkpoint
from masksd.kit.config import DataConfig
from masksd.kit.evaluation.reading import SENTENCES, scoring_batches
from masksd.kit.evaluation.recall import relevance_recall
from masksd.kit.evaluation.scoring import Evaluation, check_scoring, score, scored_masks
from masksd.kit.figures import SheetRow, draw_cases
from masksd.kit.files import StagedFolder, check_place, write_files
from masksd.kit.scores.protocols import choose_threshold, get_protocol
from masksd.kit.scores.report import REPORT, TABLES, Report, report_files, samples_name
from masksd.kit.sources import open_split

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

CASES = "worst-and-best.png"


class Evaluated(NamedTuple):
    """What :func:`evaluate_checkpoint` returns: evaluations by kind of sentence, and the rest."""

    results: dict[str, Evaluation]
    relevance: dict[str, float] | None
    input_size: int


def evaluate_checkpoint(
    folder: Path,
    data: DataConfig,
    split: str = "val",
    *,
    title: str,
    protocol: str = "original",
    sentences: Sequence[str] = tuple(SENTENCES),
    threshold: float | None = None,
    limit: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    relevance: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = False,
) -> Evaluated:
    """Score a checkpoint with several kinds of sentence and write a report, or nothing.

    Args:
        folder: of the checkpoint.
        data: to score on.
        split: of it.
        title: the data in words, for the report.
        protocol: as in :func:`score`, like the options up to ``workers``.
        sentences: the kinds of sentence.
        threshold: None takes the protocol's or the checkpoint's.
        limit: how many samples; 0 takes all.
        batch_size: images a forward pass.
        workers: processes that read images.
        relevance: whether to measure :func:`relevance_recall`, too.
        output: folder for the report, written whole or not at all.
        overwrite: whether an older report may be replaced.
        device: that the model runs on.
        progress: show bars.
    """
    rules = get_protocol(protocol)
    check_scoring(threshold, limit, batch_size, workers)
    staged = None
    if output is not None:
        staged = StagedFolder(output, lambda: check_report_place(output, overwrite))
    with staged or contextlib.nullcontext():
        checkpoint = load_checkpoint(folder, device)
        config = checkpoint.config
        threshold = choose_threshold(rules, threshold, config.threshold)
        dataset = open_split(
            data,
            split,
            checkpoint.tokenizer,
            config.image_size,
            fit=rules.fit or config.fit,
            cache=data.data_root is None and not workers,
            progress=progress,
        )
        reading: dict[str, Any] = {
            "limit": limit,
            "batch_size": batch_size,
            "workers": workers,
            "progress": progress,
        }
        results = {
            kind: score(
                checkpoint,
                dataset,
                protocol=protocol,
                sentences=kind,
                threshold=threshold,
                **reading,
            )
            for kind in sentences
        }
        recall = relevance_recall(checkpoint, dataset, **reading) if relevance else None
        if staged is not None:
            report = Report(
                title=title,
                protocol=protocol,
                input_size=config.image_size,
                fit=dataset.fit,
                trained_fit=config.fit,
                threshold=threshold,
                checkpoint=str(folder),
                data=data.to_dict(),
                split=split,
                limit=limit,
                version=version("masksd"),
                scores={kind: result.scores for kind, result in results.items()},
                relevance=recall,
            )
            write_report(staged.path, report, checkpoint, dataset, results)
            staged.publish()
    return Evaluated(results, recall, config.image_size)


def write_report(
    folder: Path,
    report: Report,
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    results: Mapping[str, Evaluation],
    cases: int = 6,
) -> None:
    """Fill a folder with a report, its samples, and a sheet of the worst and best ones.

    The sheet has ``cases`` of each, as scored with the first kind of sentence.
    """
    files = report_files(report, {kind: result.rows for kind, result in results.items()})
    write_files({folder / name: content for name, content in files.items()})
    kind, shown = next(iter(results.items()))
    options = {
        "protocol": report.protocol,
        "sentences": kind,
        "threshold": report.threshold,
    }
    worst, best = pick_cases(shown.rows, cases)
    draw_cases(
        case_rows(checkpoint, dataset, worst, **options),
        case_rows(checkpoint, dataset, best, **options),
        folder / CASES,
    )


def check_report_place(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` unless a report may go there; only an older report is replaced."""
    ours = {REPORT, TABLES, CASES, *map(samples_name, SENTENCES)}
    check_place(folder, ours, kind="report", strange="no report has", over=overwrite)


def pick_cases(
    rows: Sequence[Mapping[str, Any]], count: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Choose the ``count`` worst and best samples by IoU, at most one of each an image.

    Example:
        >>> rows = [{"index": n, "image_id": n // 2, "iou": n / 10} for n in range(6)]
        >>> [[row["index"] for row in side] for side in pick_cases(rows, 2)]
        [[0, 2], [5, 3]]
    """
    sides = []
    for sign in (1, -1):
        first: dict[int, Mapping[str, Any]] = {}
        for row in sorted(rows, key=lambda row: (sign * row["iou"], row["index"])):
            first.setdefault(row["image_id"], row)
        sides.append(list(first.values())[:count])
    return sides[0], sides[1]


def case_rows(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    rows: Sequence[Mapping[str, Any]],
    *,
    protocol: str,
    sentences: str = "own",
    threshold: float | None = None,
) -> list[SheetRow]:
    """Predict scored samples once more, to draw them as they were scored."""
    from PIL import Image

    rules = get_protocol(protocol)
    threshold = choose_threshold(rules, threshold, checkpoint.config.threshold)
    indices = [row["index"] for row in rows]
    batches = scoring_batches(dataset, indices, sentences=sentences, batch_size=1)
    drawn = []
    for batch, row in zip(batches, rows, strict=True):
        [(prediction, truth)] = scored_masks(checkpoint, dataset, batch, rules, threshold)
        image = dataset.picture(row["index"])
        if rules.scored_at == "input":
            image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
        masks = truth.cpu().numpy(), prediction.cpu().numpy()
        drawn.append(SheetRow(image, row["sentence"], *masks, None, None, row["iou"]))
    return drawn
