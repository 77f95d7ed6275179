"""The rows of a run's sheet: what the model predicts, and what its masked branches make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksd.distill import CrossModalMaskedSelfDistill
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data.text.tokenizers import Tokenizer
from masksd.kit.feeding import (
    foreground_logits,
    model_inputs,
    predict_logits,
    probabilities_of,
)
from masksd.kit.figures import BranchView, SheetRow
from masksd.kit.scores.metrics import sample_iou
from masksd.kit.scores.protocols import get_protocol
from masksd.passes.branches import JOINT, NAMES
from masksd.passes.step import DistillOutput
from masksd.tapping.modules import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

BOX = "\N{WHITE SQUARE}"
"""What stands for a hidden word."""


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

        def mask_of(logits: Tensor, truth: NDArray[np.bool_] = truth) -> tuple[Any, float]:
            """Return the mask at the image's own size, and its IoU."""
            probabilities = probabilities_of(config, logits, truth.shape)
            found = (probabilities > config.threshold).cpu().numpy()
            return found, iou(found, truth)

        relevance = out.relevance.get("lmvsd", tokens[:0])[
            row : row + 1
        ].float()  # of a part, maybe
        branches = tuple(
            BranchView(
                name,
                *_hidden(out, name, row, checkpoint.tokenizer, tokens[row]),
                *mask_of(foreground_logits(logits)[row]),
            )
            for name, logits in sorted(out.masked_logits.items())
            if row < len(logits)
        )
        rows.append(
            SheetRow(
                dataset.image(index),
                dataset.sentence(index),
                truth,
                *mask_of(logits[row]),
                relevance=on_square(relevance[0]) if len(relevance) else None,
                branches=branches,
            )
        )
    return rows


def _hidden(
    out: DistillOutput, branch: str, row: int, tokenizer: Tokenizer, tokens: Tensor
) -> tuple[NDArray[np.bool_] | None, str | None]:
    """Return the patches and the words of a sample that a branch hid."""
    hides = [name for name in NAMES.values() if branch in (name, JOINT) and name in out.masks]
    patches = on_square(out.masks["lmvsd"][row]) if "lmvsd" in hides else None
    if "vmlsd" not in hides:
        return patches, None
    words = hidden_words(tokenizer, tokens, out.masks["vmlsd"][row])
    if not any(hidden for _, hidden in words):
        return patches, "no word hidden"
    return patches, " ".join(BOX if hidden else word for word, hidden in words)


def hidden_words(tokenizer: Tokenizer, tokens: Tensor, mask: Tensor) -> list[tuple[str, bool]]:
    """Return the pieces of a sentence ``(L,)`` between its start and its end, True where hidden."""
    end = int((tokens == tokenizer.end_token).long().argmax())
    return [
        (tokenizer.decode(tokens[at : at + 1].cpu()).strip(), bool(mask[at]))
        for at in range(1, end)
    ]


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks; two empty ones agree.

    Example:
        >>> iou(np.array([True, True]), np.array([True, False]))
        0.5
    """
    return sample_iou(int((a & b).sum()), int((a | b).sum()), get_protocol("original"))


def on_square(values: Tensor) -> NDArray[Any]:
    """Lay what belongs to the patches ``(N,)`` of a square image onto their grid."""
    side = round(len(values) ** 0.5)
    return values.cpu().numpy().reshape(side, side)
