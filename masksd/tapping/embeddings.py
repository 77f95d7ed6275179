"""What replaces tokens, and how a mask is laid on the output of an embedding module."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.masking import apply_mask
from masksd.tapping.modules import frozen_statistics


class TokenMask(NamedTuple):
    """Which tokens to replace, and by what.

    Attributes:
        mask: bool ``(B, N)``, True where a token is replaced.
        token: the learnable vector ``(C,)``, or one for each position, ``(N, C)``.
        grid: rows and columns of the ``N`` patches; None for words.
        choice: uniform numbers ``(B, N)`` by which BERT's rule takes the token (below 0.8), another
            id (below 0.9) or the word itself; None takes the token.
        zero_input: set what the embedding is given to 0 in these cells; the token is not used.
    """

    mask: Tensor
    token: Tensor
    grid: tuple[int, int] | None = None
    choice: Tensor | None = None
    zero_input: bool = False


def samples_of(mask: TokenMask, which: slice | Tensor) -> TokenMask:
    """Return the mask of some samples."""
    choice = None if mask.choice is None else mask.choice[which]
    return mask._replace(mask=mask.mask[which], choice=choice)


TOKEN, OTHER = 0.8, 0.9
"""BERT's rule: below the first the token, below the second another word, else the word itself."""


def embed_zeroed(module: nn.Module, args: tuple[Any, ...], mask: TokenMask, path: str) -> Any:
    """Embed again, with the masked cells of what the module was given set to 0."""
    image = args[0] if args else None
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        came = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"token='zero' zeroes cells of a map (B, C, H, W), but {path} is given {came} as its "
            "first argument: name the module that sees the image, or use token='shared'"
        )
    zeros = image.new_zeros(image.shape[1])
    size = (image.shape[2], image.shape[3])
    where, _ = on_positions(mask._replace(token=zeros), size, None, path)
    # The first run has moved statistics, and masked passes move none.
    with frozen_statistics(module):
        return module.forward(apply_mask(image, where, zeros, 1), *args[1:])


def embed_others(
    module: nn.Module, args: tuple[Any, ...], where: Tensor, choice: Tensor, path: str
) -> Any:
    """Embed again, with an id drawn from the table where BERT's rule takes another word."""
    inner = getattr(module, "base_layer", module)  # inside an adapter such as LoRA's
    if not isinstance(inner, nn.Embedding) or not args:
        raise ValueError(
            f"token='vocabulary' looks up other words: {path} must be an nn.Embedding whose first "
            f"argument is the ids, got a {type(module).__name__} with {len(args)} positional "
            "arguments; name it, or use token='shared'"
        )
    other = where & (choice >= TOKEN) & (choice < OTHER)
    share = (choice.double() - TOKEN) / (OTHER - TOKEN)
    drawn = (share * inner.num_embeddings).long().clamp(0, inner.num_embeddings - 1)
    ids = torch.where(other, drawn.to(args[0].dtype), args[0])
    return module.forward(ids, *args[1:])


def not_embeddings(path: str, output: Any) -> str:
    """Word the error for an output that has no layout we can mask."""
    came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    return (
        f"{path} must give embeddings (B, N, C), (B, h, w, C) or (B, C, h, w), got {came}; name "
        "the module that makes them"
    )


def mask_after_prefix(hidden: Tensor, mask: TokenMask) -> Tensor:
    """Replace some of the last tokens of ``(B, P + N, C)``, for a mask of those ``N``."""
    prefix = hidden.shape[1] - mask.mask.shape[1]
    where = F.pad(mask.mask, (prefix, 0))
    token = mask.token if mask.token.ndim == 1 else F.pad(mask.token, (0, 0, prefix, 0))
    return apply_mask(hidden, where, token)


def known_layout(module: nn.Module) -> tuple[int, bool | None] | None:
    """Width, and whether channels come first (None: look at the output), where a module says so."""
    module = getattr(module, "base_layer", module)  # inside an adapter such as LoRA's
    if isinstance(module, nn.Conv2d):
        return module.out_channels, True
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, False
    if isinstance(module, nn.Linear):
        return module.out_features, False
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features, True
    if isinstance(module, nn.LayerNorm):
        # Subclasses for maps (timm's LayerNorm2d) put the channels first.
        return module.normalized_shape[-1], False if type(module) is nn.LayerNorm else None
    return None


def on_positions(
    mask: TokenMask, positions: tuple[int, ...], flat: tuple[int, int] | None, path: str
) -> tuple[Tensor, Tensor]:
    """Carry a mask, and tokens by position, to the embedding's grid; ``flat`` is that of a row."""
    hidden, token, grid = mask.mask, mask.token, mask.grid
    if len(positions) == 1 and hidden.shape[1] == positions[0]:
        return hidden, token
    if len(positions) == 1 and flat is not None and flat[0] * flat[1] == positions[0]:
        where, token = on_positions(mask, flat, None, path)
        return where.flatten(1), token.flatten(0, 1) if token.ndim == 3 else token
    if len(positions) != 2 or grid is None:
        raise ValueError(
            f"{path} embeds {positions} positions, the mask has {hidden.shape[1]}"
            + (f" on a grid of {grid}" if grid else "")
            + "; embeddings of words that are masked together have as many"
        )
    (rows, columns), (height, width) = grid, positions
    if (rows, columns) == (width, height) and rows != columns:
        raise ValueError(
            f"the features' grid {grid} is that of {path}, {tuple(positions)}, transposed; a grid "
            "is (rows, columns)"
        )
    hidden = hidden.unflatten(1, (rows, columns))
    if token.ndim == 2:
        token = token.unflatten(0, (rows, columns))
    if (rows, columns) != (height, width):
        device = hidden.device
        row = (torch.arange(height, device=device) * 2 + 1) * rows // (2 * height)
        column = (torch.arange(width, device=device) * 2 + 1) * columns // (2 * width)
        hidden = hidden[:, row[:, None], column]
        if token.ndim == 3:
            token = token[row[:, None], column]
    return hidden, token
