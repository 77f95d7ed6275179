"""The rows of a run's sheet: what the model predicts and what the image branch would mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from masksd.distill import CrossModalMaskedSelfDistill
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.feeding import model_inputs, predict_logits, probabilities_of
from masksd.kit.figures import SheetRow
from masksd.modules import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def example_rows(
    sd: CrossModalMaskedSelfDistill,
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    indices: Sequence[int],
) -> list[SheetRow]:
    """Predict items at their images' own sizes, with the masks of the wrapper's next step."""
    config = checkpoint.config
    device = next(checkpoint.model.parameters()).device
    items = [dataset[index] for index in indices]
    images, tokens, target = (
        torch.stack([item[key] for item in items]).to(device)
        for key in ("image", "tokens", "target")
    )
    out = sd.preview(*model_inputs(checkpoint, images, tokens), target=target.float())
    with evaluating(checkpoint.model), torch.no_grad():  # out.logits may be of a masked pass
        logits = predict_logits(checkpoint, images, tokens)
    rows = []
    for row, index in enumerate(indices):
        truth = dataset.truth(index) > 0
        probabilities = probabilities_of(config, logits[row], truth.shape)
        predicted = (probabilities > config.threshold).cpu().numpy()
        union = int((predicted | truth).sum())
        relevance = masked = None
        if row < len(out.masks.get("lmvsd", ())):  # a branch may see only a part of a batch
            relevance = out.relevance["lmvsd"][row].float().cpu().numpy()
            side = round(len(relevance) ** 0.5)  # images are square, so the grid is too
            relevance = relevance.reshape(side, side)
            masked = out.masks["lmvsd"][row].cpu().numpy().reshape(side, side)
        rows.append(
            SheetRow(
                image=dataset.image(index),
                sentence=dataset.sentence(index),
                truth=truth,
                prediction=predicted,
                relevance=relevance,
                masked=masked,
                score=int((predicted & truth).sum()) / union if union else 1.0,
            )
        )
    return rows
