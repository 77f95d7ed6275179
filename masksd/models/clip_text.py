"""CLIP's text tower run in stages, and how its tokens are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel


def text_config(config: Any, activation: str, attention: str) -> CLIPTextConfig:
    """Turn a model's config into transformers' config of its text tower."""
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


def text_states(tower: CLIPTextModel, tokens: Tensor) -> Tensor:
    """Run the tower on ``tokens (B, L)`` up to its last layer norm: ``(B, L, C)``, unprojected."""
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
    causal = None  # sdpa hides later words by ``is_causal``
    if tower.config._attn_implementation != "sdpa":
        length, least = hidden.shape[1], torch.finfo(hidden.dtype).min
        causal = hidden.new_full((length, length), least).triu(1)[None, None]
    for layer in tower.encoder.layers:
        hidden = layer(hidden, causal, is_causal=True)
    return tower.final_layer_norm(hidden)


def sentence_parts(tokens: Tensor, end_token: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tell words, start, end and padding apart: position 0 starts, the first end token ends.

    Returns ``valid`` bool ``(B, L)`` for real words, ``attention_mask`` bool ``(B, L)`` for these
    with start and end, and ``end (B,)`` int64, the position of the end.
    """
    is_end = tokens == end_token
    ends_before = is_end.cumsum(1) - is_end.long()
    attention_mask = ends_before == 0
    first_end = is_end & attention_mask
    position = torch.arange(tokens.shape[1], device=tokens.device)
    valid = attention_mask & ~first_end & (position > 0)
    return valid, attention_mask, first_end.long().argmax(1)


def at_position(states: Tensor, position: Tensor) -> Tensor:
    """Pick one state a row: ``(B, L, C)`` at ``position (B,)`` gives ``(B, C)``."""
    return states.gather(1, position[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


def checkpoint_layers(tower: PreTrainedModel, **kwargs: bool) -> None:
    """Recompute a tower's layers in backward instead of keeping their activations."""
    options = {"use_reentrant": False, **kwargs}
    if hasattr(tower, "activation_checkpointing_enable"):  # the name since transformers 5.23
        tower.activation_checkpointing_enable(options)
    else:
        tower.gradient_checkpointing_enable(options)
