"""How well two towers agree: retrieval, and whether relevance finds the object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data.views import ObjectViews, equal_sentences
from masksd.kit.evaluation.reading import scoring_batches
from masksd.kit.evaluation.scoring import spread_indices
from masksd.kit.feeding import model_inputs
from masksd.masking import correlate
from masksd.modes import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def retrieval_accuracy(
    checkpoint: Checkpoint, views: ObjectViews, *, limit: int = 0, candidates: int = 64
) -> dict[str, float]:
    """Let every view choose its sentence among some, and every sentence its view.

    Sentences equal to the right one are not among those to choose from.

    Args:
        checkpoint: a model with two towers, with its tokenizer.
        views: what to choose from.
        limit: how many views, evenly spread; 0 takes all. Those that fill no group are left out.
        candidates: how many there are to choose from.

    Returns:
        ``sentence`` and ``view``: the shares of right choices; ``chance``; ``views``: how many.

    Raises:
        ValueError: fewer views than candidates.
    """
    indices = spread_indices(len(views), limit)
    groups = len(indices) // candidates
    if not groups:
        raise ValueError(f"{len(indices)} views make no group of {candidates} candidates")
    device = next(checkpoint.model.parameters()).device
    right = torch.zeros(2, dtype=torch.int64)
    with evaluating(checkpoint.model), torch.inference_mode():
        for group in range(groups):
            # from all over the split: neighbours in it share their picture
            items = [views[index] for index in indices[group::groups][:candidates]]
            images = torch.stack([item["image"] for item in items]).to(device)
            tokens = torch.stack([item["tokens"] for item in items]).to(device)
            scores, _ = similarities(checkpoint, images, tokens)
            scores = scores.masked_fill(equal_sentences(tokens), -torch.inf)
            own = torch.arange(candidates, device=device)
            right += torch.stack([(scores.argmax(dim) == own).sum() for dim in (1, 0)]).cpu()
    count = groups * candidates
    sentence, view = (float(share) / count for share in right)
    return {"sentence": sentence, "view": view, "chance": 1 / candidates, "views": count}


def similarities(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of every picture with every sentence.

    Args:
        checkpoint: a model with two towers, with its tokenizer.
        images: uint8 ``(B, 3, S, S)``.
        tokens: int64 ``(B, L)``.

    Returns:
        Two of ``(B, B)``, a picture a row: of the pooled vector, and of the nearest patch.
    """
    encoder: Any = checkpoint.model.encoder
    normalized, words = model_inputs(checkpoint, images, tokens)
    image = encoder.encode_image(normalized)
    sentences = F.normalize(encoder.encode_text(words).pooled, dim=1)
    pooled = F.normalize(image.pooled, dim=1)
    patches = F.normalize(image.local, dim=2)  # (B, N, C)
    return pooled @ sentences.T, (patches @ sentences.T).amax(dim=1)


def dot_relevance(
    checkpoint: Checkpoint, dataset: ReferDataset, *, limit: int = 0, batch_size: int = 64
) -> dict[str, float]:
    """Measure whether the dot product of sentence and patches (Eq. 3) tells the object's patches.

    The area under the ROC curve of one picture is the chance that a patch inside the truth (half of
    it or more) scores above a patch outside (no pixel of it); knowing nothing gives 0.5. Towers
    that know objects from background, and do not listen, have a high one with any sentence:
    compare ``own`` with ``other``.

    Args:
        checkpoint: a model with two towers, with its tokenizer.
        dataset: every sentence of a split an item: whole pictures.
        limit: how many samples, evenly spread; 0 takes all.
        batch_size: pictures a forward pass.

    Returns:
        ``own``: mean over samples with the right sentence, of those that have patches of both
        kinds; ``other``: with that of another object of the picture, left out where no picture has
        another; ``samples``: of ``own``.

    Raises:
        ValueError: no sample has patches inside and outside.
    """
    device = next(checkpoint.model.parameters()).device
    encoder: Any = checkpoint.model.encoder
    indices = spread_indices(len(dataset), limit)
    found: dict[str, list[float]] = {"own": [], "other": []}
    with evaluating(checkpoint.model), torch.inference_mode():
        for kind, areas in found.items():
            chosen = [i for i in indices if kind == "own" or dataset.other_sentence(i) is not None]
            for batch in scoring_batches(dataset, chosen, sentences=kind, batch_size=batch_size):
                images, tokens = batch.images.to(device), batch.tokens.to(device)
                normalized, words = model_inputs(checkpoint, images, tokens)
                image = encoder.encode_image(normalized)
                scores = correlate(image.local, encoder.encode_text(words).pooled).cpu()
                cover = F.adaptive_avg_pool2d(batch.targets.float()[:, None], image.grid).flatten(1)
                for row, share in zip(scores, cover, strict=True):
                    area = area_under_curve(row[share >= 0.5], row[share == 0])
                    areas += [] if area is None else [area]
    if not found["own"]:
        raise ValueError("no sample was scored: none has patches inside and outside of its truth")
    means = {kind: sum(areas) / len(areas) for kind, areas in found.items() if areas}
    return {**means, "samples": len(found["own"])}


def area_under_curve(inside: Tensor, outside: Tensor) -> float | None:
    """Return the chance that one of ``inside`` is above one of ``outside``; ties count half.

    Args:
        inside: scores ``(n,)``.
        outside: scores ``(m,)``.

    Returns:
        In [0, 1] (Mann and Whitney's U over n m), or None where one of the two is empty.

    Example:
        >>> area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    if not len(inside) or not len(outside):
        return None
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    return float(above.mean())
