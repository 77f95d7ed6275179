"""How well two towers agree: retrieval, and whether relevance finds the object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data.survey import spread_indices
from masksd.kit.data.views import ObjectViews, equal_sentences
from masksd.kit.evaluation.reading import choose_sentences, scoring_batches
from masksd.kit.feeding import model_inputs
from masksd.masking import correlate
from masksd.tapping.modules import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def retrieval_accuracy(
    checkpoint: Checkpoint, views: ObjectViews, *, limit: int = 0, candidates: int = 64
) -> dict[str, float]:
    """Let each view choose its sentence among ``candidates``, and each sentence its view.

    Sentences equal to the right one are not among the candidates; views that fill no group are left
    out. Returns the shares of right choices ``sentence`` and ``view``, ``chance``, and ``views``:
    how many.
    """
    indices = spread_indices(len(views), limit)
    groups = len(indices) // candidates
    if not groups:
        raise ValueError(f"{len(indices)} views make no group of {candidates} candidates")
    device = next(checkpoint.model.parameters()).device
    right = torch.zeros(2, dtype=torch.int64)
    with evaluating(checkpoint.model), torch.inference_mode():
        for group in range(groups):
            # from all over the split, where neighbours share their image
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
    """Return the cosines ``(B, B)``, an image a row, of pooled vectors and of the nearest patch."""
    image, sentence = _encode(checkpoint, images, tokens)
    sentences = F.normalize(sentence, dim=1)
    pooled = F.normalize(image.pooled, dim=1)
    patches = F.normalize(image.local, dim=2)  # (B, N, C)
    return pooled @ sentences.T, (patches @ sentences.T).amax(dim=1)


def dot_relevance(
    checkpoint: Checkpoint, dataset: ReferDataset, *, limit: int = 0, batch_size: int = 64
) -> dict[str, float]:
    """Measure whether the dot product of sentence and patches (Eq. 3) finds the object's patches.

    The area under the ROC curve of one image is the chance that a patch inside the truth (half of
    it or more) scores above a patch outside (no pixel of it); 0.5 is a guess. Returns means over
    samples with patches of both kinds, ``own`` with the right sentence and ``other`` with that of
    another object, and ``samples``. Towers that tell objects from background but ignore the
    sentence score high on both.
    """
    device = next(checkpoint.model.parameters()).device
    found: dict[str, list[float]] = {"own": [], "other": []}
    with evaluating(checkpoint.model), torch.inference_mode():
        for kind, areas in found.items():
            given = choose_sentences(dataset, kind, limit)
            for batch in scoring_batches(dataset, given, batch_size=batch_size):
                image, sentence = _encode(
                    checkpoint, batch.images.to(device), batch.tokens.to(device)
                )
                scores = correlate(image.local, sentence).cpu()
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

    This is Mann and Whitney's U over n m; None where one of the two is empty.

    Example:
        >>> area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    if not len(inside) or not len(outside):
        return None
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    return float(above.mean())


def _encode(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> tuple[Any, Tensor]:
    """Return the image features and the pooled vector of each sentence."""
    encoder: Any = checkpoint.model.encoder
    normalized, words = model_inputs(checkpoint, images, tokens)
    return encoder.encode_image(normalized), encoder.encode_text(words).pooled
