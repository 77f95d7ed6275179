"""The rows of the sheet: what a model predicts and what the visual branch would mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from masksd.distill import CrossModalMaskedSelfDistill
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.feeding import foreground_logits, model_inputs, probabilities_of
from masksd.kit.figures import SheetRow

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def example_rows(
    sd: CrossModalMaskedSelfDistill,
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    indices: Sequence[int],
) -> list[SheetRow]:
    """Predict examples and preview the masks of the next training step on them.

    Args:
        sd: the wrapper around ``checkpoint.model``; nothing of it changes.
        checkpoint: the model with its config.
        dataset: of every sentence.
        indices: the items to show.

    Returns:
        One row an item, at the pictures' original sizes.
    """
    config = checkpoint.config
    device = next(checkpoint.model.parameters()).device
    items = [dataset[index] for index in indices]
    images = torch.stack([item["image"] for item in items]).to(device)
    tokens = torch.stack([item["tokens"] for item in items]).to(device)
    target = torch.stack([item["target"] for item in items]).to(device).float()
    out = sd.preview(*model_inputs(checkpoint, images, tokens), target=target)
    logits = foreground_logits(out.logits)
    rows = []
    for row, index in enumerate(indices):
        truth = dataset.truth(index) > 0
        probabilities = probabilities_of(config, logits[row], truth.shape)
        predicted = (probabilities > config.threshold).cpu().numpy()
        union = int((predicted | truth).sum())
        relevance = masked = None
        if row < len(out.masks.get("lmvsd", ())):  # a branch may see a part of a batch
            scores = out.relevance["lmvsd"][row].float().cpu().numpy()
            side = round(len(scores) ** 0.5)  # pictures are squared, so the grid is too
            relevance = scores.reshape(side, side)
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
