"""Relevance recall: do the patches that the method ranks highest hold the object?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.config import DistillConfig
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.evaluation.reading import choose_sentences, scoring_batches
from masksd.kit.evaluation.settings import check_scoring
from masksd.kit.feeding import model_inputs
from masksd.kit.sources import wrap_model
from masksd.masking import select_tokens

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def relevance_recall(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    *,
    limit: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Measure the share of the truth that lies in the top K patches of the relevance (Eq. 3).

    The checkpoint's own config says who ranks and what K is. Returns ``recall``: the mean over
    samples; ``overall``: of the sums of pixels; ``chance``: the share of patches that is kept;
    ``samples``: those with a truth. Runs in one process and leaves the model as it was.
    """
    from tqdm import tqdm

    check_scoring(None, limit, batch_size, workers)
    config = _image_config(checkpoint)
    device = next(checkpoint.model.parameters()).device
    given = choose_sentences(dataset, "own", limit)
    batches = scoring_batches(dataset, given, batch_size=batch_size, workers=workers)
    sd = wrap_model(checkpoint.model, config, checkpoint.tokenizer).to(device)
    shares, inside_sum, truth_sum, kept, tokens = [], 0, 0, 0, 0
    try:
        with tqdm(total=len(given), desc="relevance", disable=not progress, leave=False) as bar:
            for batch in batches:
                inputs = model_inputs(checkpoint, batch.images.to(device), batch.tokens.to(device))
                out = sd.preview(*inputs, target=batch.targets.to(device).float())
                best = top_patches(out.relevance["lmvsd"].cpu(), config)
                for truth, chosen in zip(batch.targets.bool(), best, strict=True):
                    area = int(truth.sum())
                    inside = int((truth & on_pixels(chosen, truth.shape[-1])).sum())
                    inside_sum, truth_sum = inside_sum + inside, truth_sum + area
                    shares += [inside / area] if area else []
                kept, tokens = kept + int(best.sum()), tokens + best.numel()
                bar.update(len(batch.indices))
    finally:
        sd.unwrap()
    if not shares:
        raise ValueError("no sample was scored: the data set or the limit leaves none with a truth")
    return {
        "recall": sum(shares) / len(shares),
        "overall": inside_sum / truth_sum,
        "chance": kept / tokens,
        "samples": len(shares),
    }


def top_patches(relevance: Tensor, config: DistillConfig) -> Tensor:
    """Choose the top K patches of scores ``(B, N)``, as the correlation filter does.

    Example:
        >>> top_patches(torch.tensor([[0.1, 0.9, 0.8, 0.2]]), DistillConfig())
        tensor([[False,  True,  True, False]])
    """
    if config.image is None:
        raise ValueError("config has no image branch")
    noise = torch.zeros_like(relevance, dtype=torch.float32)
    return select_tokens(relevance, config.image.top_k, 1.0, noise=noise)


def on_pixels(patches: Tensor, size: int) -> Tensor:
    """Spread bool patches ``(N,)`` of a square grid over ``(size, size)`` pixels, nearest.

    Example:
        >>> on_pixels(torch.tensor([True, False, False, False]), 4)[:2]
        tensor([[ True,  True, False, False],
                [ True,  True, False, False]])
    """
    side = round(len(patches) ** 0.5)  # the input is a square, so the grid is too
    return F.interpolate(patches.float().reshape(1, 1, side, side), size=(size, size))[0, 0] > 0


def _image_config(checkpoint: Checkpoint) -> DistillConfig:
    """Return the config of the checkpoint's training, without the branch of words."""
    fields = checkpoint.config.distill
    if fields is None or fields["image"] is None:
        raise ValueError(
            "the checkpoint was trained without an image branch, so nothing ranks patches"
        )
    apart = {"text": None, "joint": False, "one_pass": False}
    config = DistillConfig.from_json(json.dumps({**fields, **apart}))
    if config.image is not None and config.image.relevance == "projection":
        raise ValueError(
            "the checkpoint's relevance is a learned projection, which checkpoints do not hold"
        )
    return config
