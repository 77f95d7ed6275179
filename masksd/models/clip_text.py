"""CLIP's text tower run in stages, and the convention of its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel


def text_states(tower: CLIPTextModel, tokens: Tensor) -> Tensor:
    """Run CLIP's text tower up to its last layer norm, before anything is projected.

    Args:
        tower: the text tower.
        tokens: ``(B, L)`` int64 ids, L at most the number of its positions.

    Returns:
        ``(B, L, C)``.

    Raises:
        ValueError: not ``(B, L)`` int64, or longer than the tower has positions.
    """
    longest = tower.config.max_position_embeddings
    if tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise ValueError(
            f"tokens must be int64 and (B, L), got {tokens.dtype} {tuple(tokens.shape)}"
        )
    if not 1 <= tokens.shape[1] <= longest:
        raise ValueError(
            f"tokens are {tokens.shape[1]} long, the text tower takes 1...{longest}; truncate "
            "them in the tokenizer or build the model with a larger max_length"
        )
    hidden = tower.embeddings(input_ids=tokens)  # (B, L, C)
    causal = causal_mask(hidden, tower.config._attn_implementation)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, causal, is_causal=True)
    states: Tensor = tower.final_layer_norm(hidden)
    return states


def causal_mask(hidden: Tensor, attention: str) -> Tensor | None:
    """Return the mask that hides later words, for attention that does not mask by itself.

    Args:
        hidden: ``(B, L, C)``, whose dtype and device the mask takes.
        attention: transformers' name of the implementation.

    Returns:
        ``(1, 1, L, L)`` to add to the scores, or None where ``is_causal=True`` is enough.

    Example:
        >>> causal_mask(torch.zeros(1, 2, 4), "eager").flatten().tolist()[2:]
        [0.0, 0.0]
    """
    if attention == "sdpa":
        return None
    length, least = hidden.shape[1], torch.finfo(hidden.dtype).min
    return hidden.new_full((length, length), least).triu(1)[None, None]


def sentence_parts(tokens: Tensor, end_token: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tell words, start, end and padding apart: position 0 starts, the first end token ends.

    Args:
        tokens: ``(B, L)`` int64.
        end_token: id that ends a sentence.

    Returns:
        ``valid`` bool ``(B, L)`` real words, ``attention_mask`` bool ``(B, L)`` these with start
        and end, and ``end (B,)`` int64, the position of the end.

    Example:
        >>> valid, attended, end = sentence_parts(torch.tensor([[8, 3, 9, 0]]), 9)
        >>> valid.tolist(), attended.tolist(), end.tolist()
        ([[False, True, False, False]], [[True, True, True, False]], [2])
    """
    is_end = tokens == end_token
    ends_before = is_end.cumsum(1) - is_end.long()
    attention_mask = ends_before == 0
    first_end = is_end & attention_mask
    position = torch.arange(tokens.shape[1], device=tokens.device)
    valid = attention_mask & ~first_end & (position > 0)
    return valid, attention_mask, first_end.long().argmax(1)


def checkpoint_layers(tower: PreTrainedModel, **kwargs: bool) -> None:
    """Recompute the layers of a tower in backward instead of keeping their activations.

    Args:
        tower: an image or text tower of CLIP.
        **kwargs: handed to ``torch.utils.checkpoint``; ``use_reentrant=False`` by default.
    """
    options = {"use_reentrant": False, **kwargs}
    if hasattr(tower, "activation_checkpointing_enable"):  # its name in newer versions
        tower.activation_checkpointing_enable(options)
    else:
        tower.gradient_checkpointing_enable(options)


def text_config(config: Any, activation: str, attention: str) -> CLIPTextConfig:
    """Return transformers' config of the text tower that a model's config describes.

    Args:
        config: with ``vocab_size``, ``max_length``, ``text_width``, ``text_layers``,
            ``text_heads`` and ``end_token``.
        activation: ``"quick_gelu"`` or ``"gelu"``.
        attention: ``"sdpa"`` or ``"eager"``.

    Example:
        >>> from masksd.models import ClipCrisConfig
        >>> text_config(ClipCrisConfig(text_width=64), "gelu", "sdpa").intermediate_size
        256
    """
    return CLIPTextConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_length,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        hidden_act=activation,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=config.end_token,
        pad_token_id=None,
    )
