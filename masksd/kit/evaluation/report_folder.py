"""From a checkpoint on disk to its scores and, if wanted, a folder with a report."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masksd.kit.checkpoints import Checkpoint, load_checkpoint
from masksd.kit.config import DataConfig
from masksd.kit.evaluation.reading import scoring_batches
from masksd.kit.evaluation.recall import relevance_recall
from masksd.kit.evaluation.scoring import (
    Evaluation,
    pair_with,
    possible_kinds,
    score,
    scored_masks,
)
from masksd.kit.evaluation.settings import SENTENCES, EvaluateConfig, trained_on
from masksd.kit.figures import SheetRow, draw_cases
from masksd.kit.processes import first_process_first, leave_processes, rank_and_world
from masksd.kit.scores.protocols import Protocol, choose_threshold, get_protocol
from masksd.kit.scores.report import (
    PAIRED,
    PERTURBED,
    REPORT,
    TABLES,
    Report,
    report_files,
    samples_name,
)
from masksd.kit.sources import open_split
from masksd.kit.storage.files import write_files
from masksd.kit.storage.places import StagedFolder, check_place

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

CASES = "worst-and-best.png"


class Evaluated(NamedTuple):
    """What :func:`evaluate_checkpoint` found, by kind, and at which input size.

    A kind is one of sentence; after it may come :data:`PERTURBED` or :data:`PAIRED`.
    """

    results: dict[str, Evaluation]
    relevance: dict[str, float] | None
    input_size: int


def evaluate_checkpoint(
    config: EvaluateConfig, data: DataConfig, *, title: str, device: str = "cpu"
) -> Evaluated:
    """Score a checkpoint and, if asked for, write a report of that title, whole or not at all.

    Under ``torch.distributed`` every process must call it. All score; then they leave the process
    group, and the first alone measures relevance and writes.
    """
    first = rank_and_world()[0] == 0
    staged = None
    if config.output is not None and first:
        check = partial(check_report_place, config.output, config.overwrite)
        staged = StagedFolder(config.output, check)
    with staged or contextlib.nullcontext():
        checkpoint = load_checkpoint(config.checkpoint, device)
        trained, rules = checkpoint.config, config.rules
        warning = trained_on(trained, data, config.split)
        if warning and first:
            warnings.warn(warning, UserWarning, stacklevel=2)
        threshold = choose_threshold(rules, config.threshold, trained.threshold)
        progress = config.progress and first
        with first_process_first():  # it generates the data, if need be
            dataset = open_split(
                data,
                config.split,
                checkpoint.tokenizer,
                trained.image_size,
                fit=rules.fit or trained.fit,
                cache=data.data_root is None and not config.workers,
                progress=progress,
            )
        options: dict[str, Any] = {
            "limit": config.eval_samples,
            "batch_size": config.batch_size,
            "workers": config.workers,
            "progress": progress,
        }
        recipe: dict[str, Any] = {"protocol": rules.name, "threshold": threshold, **options}
        kinds = possible_kinds(dataset, config.kinds, config.eval_samples)
        results: dict[str, Evaluation] = {}
        for kind in kinds:
            results[kind] = whole = score(checkpoint, dataset, sentences=kind, **recipe)
            drop = config.drop_words if kind != "none" else 0
            if config.hide or drop:
                harder = {"hide": config.hide, "drop_words": drop, **recipe}
                found = score(checkpoint, dataset, sentences=kind, **harder)
                results[kind + PERTURBED] = found
                if len(found.rows) < len(whole.rows):
                    results[kind + PAIRED] = pair_with(found, whole, dataset, rules.name)
        leave_processes()
        if not first:
            return Evaluated(results, None, trained.image_size)
        recall = relevance_recall(checkpoint, dataset, **options) if config.relevance else None
        if staged is not None:
            report = Report(
                title=title,
                protocol=rules.name,
                input_size=trained.image_size,
                fit=dataset.fit,
                trained_fit=trained.fit,
                threshold=threshold,
                checkpoint=str(config.checkpoint),
                data=data.to_dict(),
                split=config.split,
                limit=config.eval_samples,
                hide=config.hide,
                drop_words=config.drop_words,
                version=version("masksd"),
                scores={kind: result.scores for kind, result in results.items()},
                relevance=recall,
                warning=warning,
            )
            write_report(staged.path, report, checkpoint, dataset, results)
            staged.publish()
    return Evaluated(results, recall, trained.image_size)


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
    shown = next(iter(results.values()))
    worst, best = (
        case_rows(checkpoint, dataset, rows, get_protocol(report.protocol), report.threshold)
        for rows in pick_cases(shown.rows, cases)
    )
    draw_cases(worst, best, folder / CASES)


def check_report_place(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` unless a report may go there; only an older report is replaced."""
    samples = (samples_name(kind + of) for kind in SENTENCES for of in ("", PERTURBED, PAIRED))
    ours = {REPORT, TABLES, CASES, *samples}
    check_place(folder, ours, kind="report", strange="no report has", over=overwrite)


def pick_cases(
    rows: Sequence[Mapping[str, Any]], count: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Choose the ``count`` worst and best samples by IoU, at most one of each an image.

    Where there are few, each is either among the worst or among the best.

    Example:
        >>> rows = [{"index": n, "image_id": n // 2, "iou": n / 10} for n in range(6)]
        >>> [[row["index"] for row in side] for side in pick_cases(rows, 2)]
        [[0, 2], [5, 3]]
    """
    ranked = sorted(rows, key=lambda row: (row["iou"], row["index"]))
    half = (len(ranked) + 1) // 2
    best = sorted(ranked[half:], key=lambda row: (-row["iou"], row["index"]))
    sides = []
    for side in (ranked[:half], best):
        first: dict[int, Mapping[str, Any]] = {}
        for row in side:
            first.setdefault(row["image_id"], row)
        sides.append(list(first.values())[:count])
    return sides[0], sides[1]


def case_rows(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    rows: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    threshold: float,
) -> list[SheetRow]:
    """Predict samples scored on whole images once more, to draw them as they were scored."""
    from PIL import Image

    given = {row["index"]: row["sentence"] for row in rows}
    batches = scoring_batches(dataset, given, batch_size=1)
    drawn = []
    for batch, row in zip(batches, rows, strict=True):
        [(prediction, truth)] = scored_masks(checkpoint, dataset, batch, protocol, threshold)
        image = dataset.image(row["index"])
        if protocol.scored_at == "input":
            image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
        masks = truth.cpu().numpy(), prediction.cpu().numpy()
        drawn.append(SheetRow(image, row["sentence"], *masks, row["iou"]))
    return drawn
