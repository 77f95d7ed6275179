"""Tensors of other people's models, brought into the shapes of the seam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
Place = str | Function | tuple[str, Function]
"""A module's path, with the part of its output after a colon; a function of the host's output; or a
path and a function of that module's output."""


def module_of(place: Place, field: str) -> str:
    """Return the path of the module that a place names; empty for the host itself."""
    if callable(place):
        return ""
    path, function = place if isinstance(place, tuple) and len(place) == 2 else (place, pick)
    if not isinstance(path, str) or not callable(function):
        raise ValueError(
            f"{field} must be a path such as 'head:out', a function of the host's output, or both, "
            f"as ('head', function), got {place!r}"
        )
    return path.partition(":")[0]


def name_of(place: Any) -> str:
    """Say which place or function a user named."""
    if isinstance(place, tuple):
        return f"{name_of(place[1])} of {place[0] or 'what the host returns'}"
    if not callable(place):
        return str(place)
    name = str(getattr(place, "__name__", type(place).__name__))
    return "a function" if name == "<lambda>" else name


def pick(output: Any, place: Place, field: str) -> Any:
    """Take the part of an output that a place names.

    ``"module.path:KEY"`` or ``":KEY"``, ``":KEY:KEY"`` where it is nested; without a colon, the
    output itself. ``field`` is the user's name for it.
    """
    if callable(place):
        return place(output)
    if isinstance(place, tuple):
        return place[1](pick(output, place[0], field) if ":" in place[0] else output)
    path = place
    _, *keys = path.split(":")
    if not keys:
        if isinstance(output, Tensor):
            return output
        raise ValueError(
            f"{field}: {path or 'the host'} returns a {type(output).__name__}; say which part with "
            f"{path + ':KEY'!r}{_parts(output)}"
        )
    for key in keys:
        output = _part(output, key, field)
    return output


def _part(output: Any, key: str, field: str) -> Any:
    numbered = key.lstrip("-").isdigit()
    if numbered and callable(getattr(output, "to_tuple", None)):
        output = output.to_tuple()  # transformers' outputs have an order as well
    if isinstance(output, tuple | list) and numbered:
        if -len(output) <= int(key) < len(output):
            return output[int(key)]
    elif isinstance(output, dict) and key in output:
        return output[key]
    # transformers' outputs are dictionaries without the fields that are None.
    elif type(output) not in (dict, list, tuple) and hasattr(output, key):
        return getattr(output, key)
    raise ValueError(
        f"{field}: no part {key!r} in a {type(output).__name__}{_parts(output)}; name the one "
        f"with Taps({field}='...:KEY')"
    )


def _parts(output: Any) -> str:
    if isinstance(output, dict):
        return f" (it has {', '.join(map(repr, output))})"
    if isinstance(output, tuple | list):
        found = (
            f"{index}: {type(part).__name__}"
            + (f" {tuple(part.shape)}" if isinstance(part, Tensor) else "")
            for index, part in enumerate(output)
        )
        return f" (it has {', '.join(found)})"
    return ""


def as_logits(logits: Any) -> Tensor:
    """Return ``(B, 1 or 2, H, W)`` logits, also of ``(B, H, W)``."""
    if isinstance(logits, Tensor) and logits.ndim == 3:
        return logits[:, None]
    if isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[1] in (1, 2):
        return logits
    came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise ValueError(
        f"logits must be (B, 1 or 2, H, W) or (B, H, W), got {came}; make them "
        "with Taps(logits=('MODULE', function of its output))"
    )


def as_loss(loss: Any) -> Tensor | None:
    """Return a host's own loss as 0-d; None where it computed none this time."""
    if loss is None:
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        fix = "loss=lambda losses: sum(losses.values())" if isinstance(loss, dict) else "a function"
        raise ValueError(f"loss must be one number, got {came}; add it up with {fix}")
    return loss.reshape(())


def channels_first(shape: tuple[int, ...], size: tuple[int, int]) -> bool | None:
    """Tell ``(B, C, h, w)`` by how h and w divide the image's sides; None if both or neither do."""
    height, width = size
    first, last = (abs(h * width - w * height) for h, w in (shape[2:], shape[1:3]))
    for slack in (1, max(height, width)):  # divided exactly; or rounded, by less than a cell
        if first < slack or last < slack:
            return None if first < slack and last < slack else first < slack
    return None


def as_tokens(
    patches: Tensor, grid: tuple[int, int], prefix: int, size: tuple[int, int] | None = None
) -> Tensor:
    """Return features of patches as ``(B, N, C)`` on the grid; a map of any size is averaged.

    A map is ``(B, C, h, w)`` or, where the ``size`` of the image is given, ``(B, h, w, C)``.
    """
    if patches.ndim == 4:
        shape = tuple(patches.shape)
        first = True if size is None else channels_first(shape, size)
        if first is None and size is not None:
            raise ValueError(
                f"patches is {shape}, which may be (B, C, h, w) or (B, h, w, C) for "
                f"images of {size[0]}x{size[1]}; name a module that gives (B, N, C)"
            )
        patches = patches if first else patches.permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(patches, grid).flatten(2).transpose(1, 2)
    local = patches[:, prefix:]
    if patches.ndim != 3 or local.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"patches must be (B, {grid[0] * grid[1]}, C) after {prefix} prefix tokens, or "
            f"(B, C, h, w), got {tuple(patches.shape)}"
        )
    return local


def bert_words(ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mark real words among the ids of BERT and its relatives (RoBERTa, SciBERT, PubMedBERT).

    A sentence that starts with BERT's own 101 has no padding (0) and no special token (100 to 103)
    among its words. Other vocabularies have other ids: there, words lie strictly between the first
    token and the last one that is not padding.

    Args:
        ids: int64 ``(B, L)``.
        attention_mask: ``(B, L)``, nonzero where a token is not padding; None takes a last id of 0
            or 1, and those before it that are the same, for padding.

    Returns:
        bool ``(B, L)``.

    Example:
        >>> bert_words(torch.tensor([[101, 2417, 4418, 102, 0]])).tolist()
        [[False, True, True, False, False]]
        >>> bert_words(torch.tensor([[0, 200, 300, 2, 1, 1]])).int().tolist()  # RoBERTa
        [[0, 1, 1, 0, 0, 0]]
    """
    if attention_mask is None:
        last = ids[:, -1:]
        others = (ids != last).flip(1).cumsum(1).flip(1)  # from here to the end
        attended = (others > 0) | (last > 1)
    else:
        attended = attention_mask != 0
    position = torch.arange(ids.shape[1], device=ids.device)
    end = (attended * position).amax(1, keepdim=True)
    between = attended & (position > 0) & (position < end)
    bert = attended & (ids != 0) & ((ids < 100) | (ids > 103))
    return torch.where(ids[:, :1] == 101, bert, between)


def clip_words(ids: Tensor) -> Tensor:
    """Mark real words among CLIP's ids: strictly between the start and the end, the largest id.

    Args:
        ids: int64 ``(B, L)``.

    Returns:
        bool ``(B, L)``.

    Example:
        >>> clip_words(torch.tensor([[49406, 320, 736, 49407, 0]])).tolist()
        [[False, True, True, False, False]]
    """
    position = torch.arange(ids.shape[1], device=ids.device)
    return (position > 0) & (position < ids.argmax(1, keepdim=True))
