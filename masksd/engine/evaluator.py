"""Scoring a model on a split, with the right sentence, another object's, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from masksd.engine.checkpoints import Checkpoint
from masksd.engine.feeding import predict_logits, resize_probabilities
from masksd.errors import check_choice, check_fraction
from masksd.modes import evaluating

if TYPE_CHECKING:
    from masksd.data.refer import ReferDataset

SENTENCES = {
    "own": "the right sentence",
    "other": "another object's sentence",
    "none": "no sentence",
}
"""What a model may be told, with the words that the table uses."""


def spread_indices(total: int, limit: int) -> list[int]:
    """Choose ``limit`` of ``range(total)``, evenly spread and always the same; 0 takes all.

    Example:
        >>> spread_indices(10, 4)
        [0, 2, 5, 7]
        >>> spread_indices(3, 0)
        [0, 1, 2]
    """
    if not limit or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]


def evaluate(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    *,
    sentences: str = "own",
    threshold: float | None = None,
    limit: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, float]:
    """Score a model at the pictures' original sizes.

    Under ``torch.distributed`` every process must call it; each takes its share of the samples, and
    all return the score of the whole.

    Args:
        checkpoint: the model with its tokenizer and config, as :func:`load_checkpoint` returns it.
        dataset: every sentence of a split an item.
        sentences: ``"own"``, that of ``"other"`` (another object of the same picture; items without
            one are left out) or ``"none"`` (start and end token alone). The truth stays the same.
        threshold: probability above which a pixel is foreground, in [0, 1]; None takes the
            checkpoint's (the paper's is 0.35).
        limit: how many samples, evenly spread; 0 takes all.
        batch_size: pictures a forward pass.
        progress: show a bar.

    Returns:
        ``mIoU``, ``oIoU``, ``Pr@0.5`` ... ``Pr@0.9`` in [0, 1] and ``samples``; see
        :class:`masksd.evaluation.metrics.SegmentationScores`.

    Raises:
        ValueError: an unknown kind of sentence, an option out of range, or nothing to score.
    """
    from tqdm import tqdm

    from masksd.evaluation.metrics import SegmentationScores

    check_choice("sentences", sentences, SENTENCES)
    check_scoring(threshold, limit, batch_size)
    threshold = checkpoint.config.threshold if threshold is None else threshold
    device = next(checkpoint.model.parameters()).device
    rank, world = _rank_and_world()
    share = spread_indices(len(dataset), limit)[rank::world]
    if sentences == "other":
        share = [index for index in share if dataset.other_sentence(index) is not None]
    scores = SegmentationScores().to(device)
    nothing = torch.zeros(0, 1, 1, dtype=torch.bool, device=device)
    scores.update(nothing, nothing)  # a process whose share is empty still takes part in the sum
    starts = range(0, len(share), batch_size)
    title = f"evaluate, {SENTENCES[sentences]}"
    with evaluating(checkpoint.model), torch.inference_mode():
        for start in tqdm(starts, desc=title, unit="batch", disable=not progress, leave=False):
            chunk = share[start : start + batch_size]
            items = [dataset[index] for index in chunk]
            tokens = [_tokens(checkpoint, dataset, item, sentences) for item in items]
            images = torch.stack([item["image"] for item in items]).to(device)
            logits = predict_logits(checkpoint, images, torch.stack(tokens).to(device))
            for index, one in zip(chunk, logits, strict=True):
                truth = torch.as_tensor(dataset.truth(index), device=device)[None] > 0
                height, width = truth.shape[1:]
                prediction = resize_probabilities(one, (height, width)) > threshold
                scores.update(prediction[None], truth)
    return scores.compute()


def check_scoring(threshold: float | None, limit: int, batch_size: int) -> None:
    """Raise a ``ValueError`` unless these options of :func:`evaluate` are in range.

    Example:
        >>> check_scoring(None, limit=0, batch_size=64)
    """
    if threshold is not None:
        check_fraction("threshold", threshold)
    for name, value, least in (("limit", limit, 0), ("batch_size", batch_size, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def evaluate_all(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    *,
    threshold: float | None = None,
    limit: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Score with every kind of sentence: whether the words matter shows in the difference.

    Args:
        checkpoint: as in :func:`evaluate`, as the others.
        dataset: as there.
        threshold: as there.
        limit: as there.
        batch_size: as there.
        progress: as there.

    Returns:
        The scores by kind of sentence: ``"own"``, ``"other"``, ``"none"``.
    """
    return {
        sentences: evaluate(
            checkpoint,
            dataset,
            sentences=sentences,
            threshold=threshold,
            limit=limit,
            batch_size=batch_size,
            progress=progress,
        )
        for sentences in SENTENCES
    }


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out what :func:`evaluate_all` returns, in per cent.

    Example:
        >>> print(format_table({"own": {"mIoU": 0.5, "samples": 9}, "none": {"mIoU": 1.0}}))
                              mIoU  samples
        the right sentence   50.00        9
        no sentence         100.00        -
    """
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    lines = [["", *names]]
    for kind, scores in rows.items():
        lines.append([SENTENCES.get(kind, kind), *(_cell(name, scores) for name in names)])
    return align_columns(lines)


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Pad cells to columns, the first to the left and the others to the right.

    Example:
        >>> align_columns([["a", "10"], ["bb", "9"]])
        'a   10\\nbb   9'
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in cells]
        for cells in (enumerate(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _cell(name: str, scores: Mapping[str, float]) -> str:
    if name not in scores:
        return "-"
    return str(int(scores[name])) if name == "samples" else f"{100 * scores[name]:.2f}"


def _tokens(
    checkpoint: Checkpoint, dataset: ReferDataset, item: Mapping[str, Tensor], sentences: str
) -> Tensor:
    if sentences == "own":
        return item["tokens"]
    if sentences == "none":
        return checkpoint.tokenizer.encode("")
    return checkpoint.tokenizer.encode(dataset.other_sentence(int(item["index"])) or "")


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
