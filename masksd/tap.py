"""How a mask enters a model: a hook on a named embedding module.

A triple with ``image.layer`` above 0 masks hidden states instead, see :meth:`Triple.masked`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.hooks import Hook, in_backward, not_run
from masksd.masking import apply_mask
from masksd.modules import frozen_statistics


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


LateMask = Callable[[int, tuple[int, ...]], tuple[TokenMask, tuple[int, int]]]
"""Draws the mask of an embedding of B samples with these positions, ``(h, w)`` or ``(N,)``.

Returns the embedding's own grid as well."""


class EmbeddingTap(Hook):
    """Masks the output of an embedding module inside :meth:`masking`; passes it on elsewhere.

    Args:
        module: the embedding: a convolution (its output is ``(B, C, h, w)``), an embedding, linear
            or layer norm (``(B, N, C)`` or ``(B, h, w, C)``), or any module, with ``width``.
        path: its dotted path, for messages.
        width: channels ``C``, where the module does not say.
        channels_first: whether an output of four dimensions is ``(B, C, h, w)``; None asks the
            module or, failing that, the shape of its output.
        prefix: tokens of ``(B, N, C)`` before the patches (a class token), never masked.

    Attributes:
        positions: the output's shape without batch, channels and prefix, as of the last pass.
        prefix: as given.
        learns: whether gradients were enabled where it last masked in a pass that had them; None
            before.

    Raises:
        ValueError: the width is unknown, or the module is tapped already.
    """

    def __init__(
        self,
        module: nn.Module,
        path: str,
        *,
        width: int | None = None,
        channels_first: bool | None = None,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        if any(isinstance(hook, EmbeddingTap) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"{path} is tapped already: unwrap() the first wrapper before adding a second, and "
                "copy a model before wrapping it"
            )
        known = known_layout(module)
        if known is None and width is None:
            raise ValueError(
                f"{path} is a {type(module).__name__}, whose width and layout are not known; name "
                "the Conv2d, Embedding, Linear or LayerNorm that makes the embeddings, or state "
                "image_width= or text_width=, or pass wrap(..., example=inputs) to find them"
            )
        self.path = path
        self.width: int = known[0] if width is None and known else width or 0
        self.positions: tuple[int, ...] | None = None
        self._channels_first = known[1] if channels_first is None and known else channels_first
        self.prefix = prefix
        self.learns: bool | None = None
        self._pending: TokenMask | LateMask | None = None
        self._grid: tuple[int, int] | None = None
        self._fired = False
        self._with_gradients = False

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Take note of the embedding's layout in the plain pass inside."""
        self.positions = None
        with self.acting():
            yield
        if self.positions is None:
            raise RuntimeError(not_run(self.path))

    @contextlib.contextmanager
    def masking(
        self, mask: TokenMask | LateMask, grid: tuple[int, int] | None = None
    ) -> Iterator[None]:
        """Mask the one time that the module runs inside; ``grid`` is that of a flat embedding."""
        self._pending, self._grid = mask, grid
        self._with_gradients = torch.is_grad_enabled()
        try:
            with self.acting():
                yield
            if not self._fired:
                raise RuntimeError(
                    f"{self.path} did not run in the masked pass: nothing was masked"
                )
        finally:
            self._pending = None
            self._fired = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """Take note of the layout and, in a masked pass, replace tokens."""
        if in_backward():  # and the mask of that pass is gone
            raise RuntimeError(
                f"{self.path} ran during backward, inside a gradient-checkpointed region, where "
                "its mask is gone and gradients would be wrong: checkpoint the layers after it"
            )
        if not self.acts():
            return output
        channel_dim = self._channel_dim(output)
        positions = list(output.shape)
        if self.prefix and output.ndim == 4:
            raise ValueError(
                f"{self.path} gives a map {tuple(output.shape)}, which has no tokens before its "
                f"patches; leave prefix={self.prefix} out"
            )
        positions.pop(channel_dim)
        positions[1] -= self.prefix
        self.positions = tuple(positions[1:])
        mask = self._pending
        if mask is None:
            return output
        if self._fired:
            raise RuntimeError(
                f"{self.path} ran twice in one masked pass: name a module that runs once a pass"
            )
        self._fired = True
        if self._with_gradients:
            self.learns = torch.is_grad_enabled()
        if not isinstance(mask, TokenMask):
            mask, self._grid = mask(len(output), self.positions)
        if len(output) != len(mask.mask):
            raise ValueError(
                f"{self.path} embeds a batch of {len(output)}, but the logits are a batch of "
                f"{len(mask.mask)}: name a module that sees each sample once"
            )
        if mask.zero_input:
            return _embed_zeroed(module, args, mask, self.path)
        where, token = _on_positions(mask, self.positions, self._grid, self.path)
        if mask.choice is not None:
            output = _embed_others(module, args, where, mask.choice, self.path)
            where = where & (mask.choice < _TOKEN)
        if self.prefix:
            return mask_after_prefix(output, TokenMask(where, token))
        return apply_mask(output, where, token, channel_dim)

    def _channel_dim(self, output: Any) -> int:
        """Find the dimension that holds the channels; an ambiguous one is an error."""
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            raise ValueError(not_embeddings(self.path, output))
        if output.ndim == 3:
            fits = [-1] if output.shape[-1] == self.width else []
        elif self._channels_first is not None:
            fits = [1] if self._channels_first else [-1]
        else:
            fits = [dim for dim in (1, -1) if output.shape[dim] == self.width]
        if len(fits) != 1 or output.shape[fits[0]] != self.width:
            raise ValueError(
                f"{self.path} gives {tuple(output.shape)}, where {self.width} channels fit "
                f"{'two dimensions' if len(fits) > 1 else 'nowhere'}; state width and "
                "channels_first"
            )
        return fits[0]


_TOKEN, _OTHER = 0.8, 0.9
"""BERT's rule: below the first the token, below the second another word, else the word itself."""


def _embed_zeroed(module: nn.Module, args: tuple[Any, ...], mask: TokenMask, path: str) -> Any:
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
    where, _ = _on_positions(mask._replace(token=zeros), size, None, path)
    # The first run has moved statistics, and masked passes move none.
    with frozen_statistics(module):
        return module.forward(apply_mask(image, where, zeros, 1), *args[1:])


def _embed_others(
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
    other = where & (choice >= _TOKEN) & (choice < _OTHER)
    share = (choice.double() - _TOKEN) / (_OTHER - _TOKEN)
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


def _on_positions(
    mask: TokenMask, positions: tuple[int, ...], flat: tuple[int, int] | None, path: str
) -> tuple[Tensor, Tensor]:
    """Carry a mask, and a token for each position, to the embedding's grid by nearest neighbour.

    ``flat`` is the grid of an embedding whose positions lie in a row.
    """
    hidden, token, grid = mask.mask, mask.token, mask.grid
    if len(positions) == 1 and hidden.shape[1] == positions[0]:
        return hidden, token
    if len(positions) == 1 and flat is not None and flat[0] * flat[1] == positions[0]:
        where, token = _on_positions(mask, flat, None, path)
        return where.flatten(1), token.flatten(0, 1) if token.ndim == 3 else token
    if len(positions) != 2 or grid is None:
        raise ValueError(
            f"{path} embeds {positions} positions, the mask has {hidden.shape[1]}"
            + (f" on a grid of {grid}" if grid else "")
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
