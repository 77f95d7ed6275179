"""The weights of two towers as one safetensors file, between pretraining and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_ENTRY = "masksd encoder 1"


def encoder_bytes(encoder: nn.Module, tokenizer: str, bits: int = 32) -> bytes:
    """Return the contents of a file of weights.

    Args:
        encoder: of a triple.
        tokenizer: name of the one that its words are numbered by.
        bits: of a number in the file, 32, 16 or 8; with 8 only matrices have so few.

    Example:
        >>> encoder_bytes(nn.Linear(2, 3), "shapes")[8:22]
        b'{"__metadata__'
    """
    from safetensors.torch import save

    state = encoder.state_dict()
    dtypes = {32: torch.float32, 16: torch.float16, 8: torch.float8_e4m3fn}
    tensors = {
        key: value.detach().cpu().to(dtypes[bits if value.ndim > 1 else max(16, bits)], copy=True)
        for key, value in state.items()
    }
    # one entry: of several, safetensors writes another order each time
    contents: bytes = save(tensors, {_ENTRY: json.dumps({"tokenizer": tokenizer})})
    return contents


def load_encoder(model: Any, path: str | Path, tokenizer: str) -> None:
    """Take the weights of a model's two towers from a file.

    Args:
        model: whose ``encoder`` is changed in place; neck and decoder stay.
        path: a file that :func:`masksd.kit.training.pretrain.pretrain` wrote.
        tokenizer: name of the one that the model is fed by.

    Raises:
        ValueError: a model without an encoder of its own, a missing or damaged file, or weights of
            another size or tokenizer; nothing has been changed then.

    Example:
        >>> from masksd.models import create_model
        >>> load_encoder(create_model("clip_cris_tiny"), "nowhere.safetensors", "shapes")
        Traceback (most recent call last):
        ValueError: encoder_weights: no file nowhere.safetensors; `masksd pretrain` writes them
    """
    from safetensors import SafetensorError, safe_open

    where = f"encoder_weights {path}"
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            f"{where}: the model {type(model).__name__} has no encoder of two towers that share a "
            "space; choose a clip_cris model, or leave encoder_weights out"
        )
    if not Path(path).is_file():
        raise ValueError(f"encoder_weights: no file {path}; `masksd pretrain` writes them")
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(_ENTRY)
            state: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where} is no whole safetensors file: {error}") from None
    if entry is None:
        raise ValueError(f"{where} holds other weights than those of `masksd pretrain`")
    try:
        trained = json.loads(entry)["tokenizer"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{where} does not say its tokenizer; pretrain again") from None
    if trained != tokenizer:
        raise ValueError(
            f"{where}: its words are numbered by tokenizer {trained!r}, the run has "
            f"{tokenizer!r}; use --tokenizer {trained}"
        )
    own = encoder.state_dict()
    wrong = sorted(
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or own[key].shape != state[key].shape
    )
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} tensors are not those of this model's encoder, the first is "
            f"{wrong[0]!r}; pretrain with the same model, image_size and max_length"
        )
    encoder.load_state_dict(state)
