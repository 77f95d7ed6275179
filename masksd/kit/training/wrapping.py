"""The wrapper around one of our models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

from masksd.config import DistillConfig
from masksd.distill import CrossModalMaskedSelfDistill
from masksd.hosts import lavt
from masksd.models.clip_text import sentence_parts

if TYPE_CHECKING:
    from masksd.kit.data.tokenizers import Tokenizer


def wrap_model(
    model: Any, config: DistillConfig, tokenizer: Tokenizer | None = None
) -> CrossModalMaskedSelfDistill:
    """Wrap one of our models; it takes what :func:`masksd.kit.feeding.model_inputs` gives.

    Args:
        model: from the registry.
        config: the method's choices.
        tokenizer: that it is trained with; None stands for the one of its pretrained weights.

    Returns:
        The wrapper around the model's parts, or around the whole where a recipe knows it.

    Raises:
        ValueError: a config that does not fit the model.

    Example:
        >>> from masksd.models import create_model
        >>> sd = wrap_model(create_model("lavt_tiny"), DistillConfig())
        >>> sd.maskers["image"].relevance
        'prediction'
    """
    if not lavt.recognise(model):
        return CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)
    taps = lavt.taps(model)  # with BERT's rule of what a word is
    if tokenizer is not None and tokenizer.kind != "bert":
        taps = dataclasses.replace(taps, valid=WordsBeforeEnd(tokenizer.end_token))
    return CrossModalMaskedSelfDistill.wrap(model, config, taps=taps)


class WordsBeforeEnd:
    """Mark real words: those between the start token and the first end token.

    Args:
        end_token: its id.

    Example:
        >>> import torch
        >>> WordsBeforeEnd(9)(torch.tensor([[8, 5, 6, 9, 0]])).tolist()
        [[False, True, True, False, False]]
    """

    def __init__(self, end_token: int) -> None:
        self.end_token = end_token

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return bool ``(B, L)`` for ids ``(B, L)``."""
        return sentence_parts(tokens, self.end_token)[0]
