"""The weights of two towers as one safetensors file, between pretraining and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masksd.errors import one_line
from masksd.kit.checkpoints import check_finite, cpu_copies

_ENTRY = "masksd encoder 1"


def encoder_bytes(encoder: nn.Module, tokenizer: str, bits: int = 32) -> bytes:
    """Return the contents of a file of weights, with the name of the tokenizer they belong to.

    ``bits`` is the size of a number in the file, 32, 16 or 8; with 8, only matrices shrink so far.
    """
    from safetensors.torch import save

    dtypes = {32: torch.float32, 16: torch.float16, 8: torch.float8_e4m3fn}
    tensors = {
        key: value.to(dtypes[bits if value.ndim > 1 else max(16, bits)])
        for key, value in cpu_copies(encoder.state_dict()).items()
    }
    # a single entry: safetensors writes several in another order each time
    check_finite({key: value.float() for key, value in tensors.items()}, f"weights of {bits} bits")
    contents: bytes = save(tensors, {_ENTRY: json.dumps({"tokenizer": tokenizer})})
    return contents


def load_encoder(model: Any, path: str | Path, tokenizer: str) -> None:
    """Load a file of ``masksd pretrain`` into a model's two towers, all of it or nothing."""
    where = f"encoder_weights {path}"
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            f"{where}: the model {type(model).__name__} has no encoder of two towers that share a "
            "space; choose a clip_cris model, or leave encoder_weights out"
        )
    trained, state = _read(path, where)
    if trained != tokenizer:
        raise ValueError(
            f"{where}: trained with tokenizer {trained!r}, but the run has {tokenizer!r}; use "
            f"--tokenizer {trained}"
        )
    own = encoder.state_dict()
    wrong = sorted(
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or own[key].shape != state[key].shape
    )
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} tensors do not fit this model's encoder, the first is "
            f"{wrong[0]!r}; pretrain with the same model, image_size and max_length"
        )
    check_finite({key: value.float() for key, value in state.items()}, where)
    encoder.load_state_dict(state)


def _read(path: str | Path, where: str) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the tokenizer and the tensors."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"encoder_weights: no file {path}; `masksd pretrain` writes one")
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(_ENTRY)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where} is not a complete safetensors file: {one_line(error)}") from None
    if entry is None:
        raise ValueError(f"{where} was not written by `masksd pretrain`")
    try:
        return json.loads(entry)["tokenizer"], state
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{where} does not name its tokenizer; pretrain again") from None
