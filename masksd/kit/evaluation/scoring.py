"""Scoring a model on a split by a protocol, as a whole and sample by sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from masksd.errors import check_choice
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.evaluation.perturbation import Perturbation
from masksd.kit.evaluation.reading import (
    ScoringBatch,
    choose_sentences,
    gather_rows,
    own_share,
    scoring_batches,
)
from masksd.kit.evaluation.settings import SENTENCES, check_perturbation, check_scoring
from masksd.kit.feeding import predict_logits
from masksd.kit.printing import align_columns
from masksd.kit.processes import rank_and_world
from masksd.kit.scores.metrics import COUNTS, count_pixels, group_scores, headline, sample_iou
from masksd.kit.scores.protocols import Protocol, choose_threshold, get_protocol, predict_mask
from masksd.kit.scores.report import score_cells
from masksd.tapping.modules import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


_NO_OTHER = "no image to score has two referred objects"


class Evaluation(NamedTuple):
    """What :func:`score` returns.

    Attributes:
        scores: by group of samples, ``"all"`` first; see :mod:`masksd.kit.scores.metrics`.
        rows: one a sample in the order of the data set: ``index``, ``ref_id``, ``ann_id``,
            ``image_id``, ``sent_id``, ``sentence`` (as the model was given it), ``height`` and
            ``width`` of the image, ``object_area`` in its pixels, and in pixels of the size that is
            scored ``intersection``, ``union``, ``predicted_area`` and ``truth_area``; ``iou``.
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
    hide: float = 0.0,
    drop_words: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Score a model by a protocol, as a whole and sample by sample.

    Under ``torch.distributed`` every process must call it; each takes its share of the batches, and
    all return the scores and rows of the whole. Given the same logits, these do not depend on batch
    size, workers or processes.

    Args:
        checkpoint: the model with its tokenizer and config.
        dataset: every sentence of a split an item, opened with the protocol's ``fit``.
        protocol: a name of :data:`masksd.kit.scores.protocols.PROTOCOLS`. A model runs at its own
            input size whatever the protocol's is.
        sentences: what the model is given: its ``"own"``, that of an ``"other"`` object of the same
            image (items without one are left out) or ``"none"``. The truth stays the same.
        threshold: probability above which a pixel is foreground, in [0, 1]; None takes the
            protocol's, or the checkpoint's where it has none (the paper's is 0.35).
        limit: how many samples, evenly spread; 0 takes all.
        batch_size: images per forward pass.
        workers: processes that read images; 0 reads in this one.
        hide: share in [0, 1] of the cells of the model's square, 8 x 8 of them, that are hidden
            behind the mean colour of its normalisation. The truth stays whole.
        drop_words: words left out of each sentence. At least one stays, and on generated shapes the
            sentence still names exactly one object; items whose sentence cannot lose so many are
            left out: :func:`pair_with` scores the others as they were.
        progress: show a bar.

    Raises:
        ValueError: an unknown name, an option out of range or against the protocol, a data set of
            another ``fit``, or nothing to score.
    """
    from tqdm import tqdm

    rules = get_protocol(protocol)
    check_choice("sentences", sentences, SENTENCES)
    check_scoring(threshold, limit, batch_size, workers)
    check_perturbation(hide, drop_words)
    threshold = choose_threshold(rules, threshold, checkpoint.config.threshold)
    _check_fit(rules, dataset.fit, checkpoint.config.fit)
    chosen = choose_sentences(dataset, sentences, limit)
    if not chosen:
        raise ValueError(f"no sample was scored with {SENTENCES[sentences]}: {_NO_OTHER}")
    perturbation = Perturbation(hide, drop_words, checkpoint.config.mean)
    given = perturbation.shorten(dataset, chosen)
    if not given:
        raise ValueError(f"drop_words is {drop_words}, but no sentence can lose so many; lower it")
    share = {index: given[index] for index in own_share(list(given), batch_size)}
    batches = scoring_batches(
        dataset, share, perturbation=perturbation, batch_size=batch_size, workers=workers
    )
    found: list[list[int]] = []  # index, object area and COUNTS of each sample
    title = f"evaluate, {SENTENCES[sentences]}"
    bar = tqdm(total=len(share), desc=title, unit="sample", disable=not progress, leave=False)
    with bar:
        for batch in batches:
            masks = scored_masks(checkpoint, dataset, batch, rules, threshold)
            counts = [count_pixels(predicted[None], truth[None]) for predicted, truth in masks]
            pixels = torch.cat(counts, dim=1).T.tolist()
            for index, drawn, four in zip(batch.indices, batch.truths, pixels, strict=True):
                found.append([index, int(drawn.sum()), *four])
            bar.update(len(batch.indices))
    rows = [_row(dataset, given[index], rules, index, *rest) for index, *rest in gather_rows(found)]
    return _evaluation(dataset, rows, rules)


def pair_with(
    perturbed: Evaluation, whole: Evaluation, dataset: ReferDataset, protocol: str = "original"
) -> Evaluation:
    """Keep those items of ``whole`` that are in ``perturbed``, too, for a comparison.

    Args:
        perturbed: what :func:`score` returned with ``drop_words``.
        whole: what it returned without, all else equal.
        dataset: that of both.
        protocol: that of both.
    """
    kept = {row["index"] for row in perturbed.rows}
    rows = [row for row in whole.rows if row["index"] in kept]
    return _evaluation(dataset, rows, get_protocol(protocol))


def evaluate(checkpoint: Checkpoint, dataset: ReferDataset, **options: Any) -> dict[str, float]:
    """Return mIoU, oIoU, Pr@X in [0, 1] and the number of samples.

    Args:
        checkpoint: a model with its tokenizer, from ``load_checkpoint``.
        dataset: the split to score.
        options: of :func:`score`.
    """
    return headline(score(checkpoint, dataset, **options).scores["all"])


def evaluate_all(
    checkpoint: Checkpoint, dataset: ReferDataset, **options: Any
) -> dict[str, dict[str, float]]:
    """Return :func:`evaluate` for each kind of sentence: the difference shows if words matter."""
    kinds = possible_kinds(dataset, list(SENTENCES), options.get("limit", 0))
    return {kind: evaluate(checkpoint, dataset, sentences=kind, **options) for kind in kinds}


def possible_kinds(dataset: ReferDataset, kinds: Sequence[str], limit: int) -> Sequence[str]:
    """Leave out another object's sentence, with a warning, among others where there is none."""
    possible = [kind for kind in kinds if choose_sentences(dataset, kind, limit)]
    if not possible:
        return kinds  # to score it says why that cannot be
    if len(possible) < len(kinds) and rank_and_world()[0] == 0:
        warnings.warn(
            f"scores with {SENTENCES['other']} are left out: {_NO_OTHER}", UserWarning, stacklevel=3
        )
    return possible


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out scores in per cent, a kind of sentence or a group of samples a row.

    Example:
        >>> print(format_table({"own": {"mIoU": 0.5, "samples": 9}, "none": {"mIoU": 1.0}}))
                              mIoU  samples
        the right sentence   50.00        9
        no sentence         100.00        -
    """
    named = {SENTENCES.get(kind, kind): scores for kind, scores in rows.items()}
    head, lines = score_cells(named)
    return align_columns([head, *lines])


def scored_masks(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    batch: ScoringBatch,
    protocol: Protocol,
    threshold: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the prediction and the truth of each sample, bool, at the size that is scored."""
    device = next(checkpoint.model.parameters()).device
    with evaluating(checkpoint.model), torch.inference_mode():
        logits = predict_logits(checkpoint, batch.images.to(device), batch.tokens.to(device))
    for row, drawn in enumerate(batch.truths):
        prediction = predict_mask(
            protocol,
            logits[row],
            size=drawn.shape,
            input_size=dataset.image_size,
            fit=dataset.fit,
            threshold=threshold,
        )
        original = protocol.scored_at == "original"
        truth = torch.as_tensor(drawn) if original else batch.targets[row]
        yield prediction, truth.to(device) > 0


def _check_fit(protocol: Protocol, fit: str, own: str) -> None:
    """Compare the fit of the data set with the protocol's or, failing that, the checkpoint's."""
    wanted = protocol.fit or own
    if fit != wanted:
        whose = f"protocol {protocol.name!r}" if protocol.fit else "the checkpoint"
        raise ValueError(
            f"the data set was opened with fit={fit!r}, {whose} takes {wanted!r}; "
            f"open it with ReferDataset(..., fit={wanted!r})"
        )


def _evaluation(
    dataset: ReferDataset, rows: list[dict[str, Any]], protocol: Protocol
) -> Evaluation:
    words = [len(dataset.sentence(row["index"]).split()) for row in rows]
    return Evaluation(group_scores(rows, words, protocol), rows)


def _row(
    dataset: ReferDataset, sentence: str, protocol: Protocol, index: int, area: int, *counts: int
) -> dict[str, Any]:
    record = dataset.record(index)
    return {
        "index": index,
        **{name: record[name] for name in ("ref_id", "ann_id", "image_id", "sent_id")},
        "sentence": sentence,
        "height": record["height"],
        "width": record["width"],
        "object_area": area,
        **dict(zip(COUNTS, counts, strict=True)),
        "iou": sample_iou(counts[0], counts[1], protocol),
    }
