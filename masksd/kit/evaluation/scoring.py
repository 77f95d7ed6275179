"""Scoring a model on a split by a protocol, in all and sample by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from masksd.errors import check_choice, check_fraction
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data.survey import spread_indices
from masksd.kit.evaluation.reading import scoring_batches, told_sentence
from masksd.kit.feeding import predict_logits
from masksd.kit.scores.protocols import Protocol, choose_threshold, get_protocol, predict_mask
from masksd.modes import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

SENTENCES = {
    "own": "the right sentence",
    "other": "another object's sentence",
    "none": "no sentence",
}
"""What a model may be told, with the words that the table uses."""


class Evaluation(NamedTuple):
    """What :func:`score` finds.

    Attributes:
        scores: by group of samples, ``"all"`` first; see
            :class:`masksd.kit.scores.metrics.SegmentationScores`.
        rows: one a sample in the order of the data set: ``index``, ``ref_id``, ``ann_id``,
            ``image_id``, ``sent_id``, ``sentence`` (what the model was told), ``height`` and
            ``width`` of the picture, ``object_area`` in its pixels, and in pixels of the size it is
            scored at ``intersection``, ``union``, ``predicted_area`` and ``truth_area``; ``iou``.
    """

    scores: dict[str, dict[str, float]]
    rows: list[dict[str, Any]]


def score(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    *,
    protocol: str = "original",
    sentences: str = "own",
    threshold: float | None = None,
    limit: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Score a model by a protocol, in all and sample by sample.

    Under ``torch.distributed`` every process must call it; each takes its share of the samples, and
    all return the scores and rows of the whole. The sums are exact: given the same logits they do
    not depend on batch size, workers or processes.

    Args:
        checkpoint: the model with its tokenizer and config, as :func:`load_checkpoint` returns it.
        dataset: every sentence of a split an item, opened with the protocol's ``fit``.
        protocol: a name of :data:`masksd.kit.scores.protocols.PROTOCOLS`. A model runs at its own
            input size whatever the protocol's is.
        sentences: ``"own"``, that of ``"other"`` (another object of the same picture; items without
            one are left out) or ``"none"`` (start and end token alone). The truth stays the same.
        threshold: probability above which a pixel is foreground, in [0, 1]; None takes the
            protocol's, or the checkpoint's where it has none (the paper's is 0.35).
        limit: how many samples, evenly spread; 0 takes all.
        batch_size: pictures a forward pass.
        workers: processes that read pictures; 0 reads in this one.
        progress: show a bar.

    Returns:
        :class:`Evaluation`.

    Raises:
        ValueError: an unknown name, an option out of range or against the protocol, a data set of
            another ``fit``, or nothing to score.
    """
    from tqdm import tqdm

    from masksd.kit.scores.metrics import SegmentationScores, count_pixels

    rules = get_protocol(protocol)
    check_choice("sentences", sentences, SENTENCES)
    check_scoring(threshold, limit, batch_size, workers)
    threshold = choose_threshold(rules, threshold, checkpoint.config.threshold)
    check_fit(rules, dataset.fit, checkpoint.config.fit)
    device = next(checkpoint.model.parameters()).device
    rank, world = _rank_and_world()
    chosen = spread_indices(len(dataset), limit)
    share = chosen[rank::world]
    if sentences == "other":
        share = [index for index in share if dataset.other_sentence(index) is not None]
    scores = SegmentationScores(
        rules.thresholds, rules.comparisons, rules.epsilon, rules.empty_iou
    ).to(device)
    # a process whose share is empty still takes part in the sum
    scores.update(torch.zeros(4, 0, dtype=torch.int64))
    batches = scoring_batches(
        dataset, share, sentences=sentences, batch_size=batch_size, workers=workers
    )
    title = f"evaluate, {SENTENCES[sentences]}"
    found: list[list[int]] = []  # (index, object area, I, U, P, T) of each sample
    with (
        evaluating(checkpoint.model),
        torch.inference_mode(),
        tqdm(total=len(share), desc=title, unit="sample", disable=not progress, leave=False) as bar,
    ):
        for batch in batches:
            logits = predict_logits(checkpoint, batch.images.to(device), batch.tokens.to(device))
            counts = []
            for row, drawn in enumerate(batch.truths):
                prediction = predict_mask(
                    rules,
                    logits[row],
                    size=drawn.shape,
                    input_size=dataset.image_size,
                    fit=dataset.fit,
                    threshold=threshold,
                )
                original = rules.scored_at == "original"
                truth = torch.as_tensor(drawn) if original else batch.targets[row]
                counts.append(count_pixels(prediction[None], truth[None].to(device) > 0))
            pixels = torch.cat(counts, dim=1).cpu()  # (4, B)
            areas = torch.tensor([int(drawn.sum()) for drawn in batch.truths])
            words = torch.tensor([len(dataset.sentence(index).split()) for index in batch.indices])
            scores.update(pixels, areas, words)
            columns = torch.cat([torch.tensor([batch.indices]), areas[None], pixels])
            found += columns.T.tolist()
            bar.update(len(batch.indices))
    found = _gather(found, -(-len(chosen) // world), device)
    return Evaluation(scores.compute(), _rows(dataset, sentences, rules, found))


def check_scoring(threshold: float | None, limit: int, batch_size: int, workers: int = 0) -> None:
    """Raise a ``ValueError`` unless these options of :func:`score` are in range.

    Example:
        >>> check_scoring(None, limit=0, batch_size=64)
    """
    if threshold is not None:
        check_fraction("threshold", threshold)
    for name, value, least in (
        ("limit", limit, 0),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
    ):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_fit(protocol: Protocol, fit: str, own: str) -> None:
    """Raise a ``ValueError`` unless pictures that are fitted so can be scored by a protocol.

    Args:
        protocol: may say how pictures become squares.
        fit: how the data set does it, ``"squash"`` or ``"letterbox"``.
        own: how the checkpoint's training did it, which counts where the protocol says nothing.

    Example:
        >>> check_fit(get_protocol("cris"), "letterbox", own="squash")
    """
    wanted = protocol.fit or own
    if fit != wanted:
        whose = f"protocol {protocol.name!r}" if protocol.fit else "the checkpoint"
        raise ValueError(
            f"the data set was opened with fit={fit!r}, {whose} takes {wanted!r}; "
            f"open it with ReferDataset(..., fit={wanted!r})"
        )


def _rows(
    dataset: ReferDataset, sentences: str, protocol: Protocol, found: list[list[int]]
) -> list[dict[str, Any]]:
    from masksd.kit.scores.metrics import sample_shares

    counts = torch.tensor([numbers[2:] for numbers in found]).reshape(-1, 4).T
    shares = sample_shares(*counts, epsilon=protocol.epsilon, empty_iou=protocol.empty_iou)
    rows = []
    for (index, area, *pixels), iou in zip(found, shares.iou.tolist(), strict=True):
        record = dataset.record(index)
        names = ("intersection", "union", "predicted_area", "truth_area")
        rows.append(
            {
                "index": index,
                **{name: record[name] for name in ("ref_id", "ann_id", "image_id", "sent_id")},
                "sentence": told_sentence(dataset, index, sentences),
                "height": record["height"],
                "width": record["width"],
                "object_area": area,
                **dict(zip(names, pixels, strict=True)),
                "iou": iou,
            }
        )
    return rows


def _gather(found: list[list[int]], most: int, device: torch.device) -> list[list[int]]:
    """Bring the numbers of every process together, in the order of the data set."""
    world = _rank_and_world()[1]
    if world > 1:
        # of one size on every process: to gather different ones kills it
        own = torch.full((most, 6), -1, dtype=torch.int64)
        own[: len(found)] = torch.tensor(found, dtype=torch.int64).reshape(-1, 6)
        shares = [torch.empty_like(own, device=device) for _ in range(world)]
        torch.distributed.all_gather(shares, own.to(device))
        found = [row for share in shares for row in share.tolist() if row[0] >= 0]
    return sorted(found)


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
