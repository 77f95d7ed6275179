"""The one way a mask enters a model: a hook on a named embedding module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.hooks import remove_hook
from masksd.masking import apply_mask


class TokenMask(NamedTuple):
    """Which tokens to replace, and by what.

    Attributes:
        mask: bool ``(B, N)``, True where a token is replaced.
        token: the learnable vector ``(C,)``, or one a position ``(N, C)``.
        grid: rows and columns that ``N`` is laid out on, for patches; None for words.
    """

    mask: Tensor
    token: Tensor
    grid: tuple[int, int] | None = None


class EmbeddingTap:
    """A forward hook on an embedding module that masks its output while it is told to.

    It is attached once; outside :meth:`masking` it hands the output on as it is.

    Args:
        module: the embedding: a convolution (its output is ``(B, C, h, w)``) or an embedding,
            linear or layer norm (``(B, N, C)`` or ``(B, h, w, C)``); or any module, with ``width``.
        path: its dotted path, for messages.
        width: channels ``C``, for a module that does not say.
        channels_first: whether an output of four dimensions is ``(B, C, h, w)``; None asks the
            module, or, where it does not say, the shape of its output.
        prefix: tokens of ``(B, N, C)`` that come before the patches (a class token), never masked.

    Attributes:
        width: channels ``C`` of the embedding.
        positions: the output's shape without batch, channels and prefix, when it last ran in a
            pass; None before.

    Raises:
        ValueError: a module whose width is not known, or one that is tapped already.

    Example:
        >>> words = nn.Embedding(10, 4)
        >>> tap = EmbeddingTap(words, "words")
        >>> tap.attach(words)
        >>> mask = TokenMask(torch.tensor([[False, True]]), torch.zeros(4))
        >>> with tap.masking(mask):
        ...     words(torch.tensor([[5, 6]]))[0, 1].tolist()
        [0.0, 0.0, 0.0, 0.0]
        >>> tap.remove(words)
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
        if any(isinstance(hook, EmbeddingTap) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"{path} is tapped already: unwrap() the first wrapper before a second, and copy a "
                "model before it is wrapped"
            )
        self.path = path
        known = known_layout(module)
        if known is None and width is None:
            raise ValueError(
                f"{path} is a {type(module).__name__}, whose width and layout are not known; name "
                "the Conv2d, Embedding, Linear or LayerNorm that makes the embeddings, or state "
                "its width"
            )
        self.width: int = known[0] if width is None and known else width or 0
        self._channels_first = known[1] if channels_first is None and known else channels_first
        self._prefix = prefix
        self.positions: tuple[int, ...] | None = None
        self._pending: TokenMask | None = None
        self._fired = False

    def attach(self, module: nn.Module) -> None:
        """Put the hook on ``module``, the one that it was made for."""
        module.register_forward_hook(self)

    def remove(self, module: nn.Module) -> None:
        """Take the hook off ``module``; on one without it, nothing happens."""
        remove_hook(module._forward_hooks, self)

    @contextlib.contextmanager
    def masking(self, mask: TokenMask) -> Iterator[None]:
        """Apply ``mask`` to the one time that the module runs inside.

        Raises:
            RuntimeError: the module did not run, or ran twice.
        """
        self._pending = mask
        try:
            yield
            if not self._fired:
                raise RuntimeError(
                    f"{self.path} did not run in the masked pass: nothing was masked"
                )
        finally:
            self._pending = None
            self._fired = False

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
        """Take part in the module's forward, as a forward hook does."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            # Recomputed by gradient checkpointing: the mask of that pass is not known any more.
            raise RuntimeError(
                f"{self.path} ran during backward, inside a gradient-checkpointed region, where "
                "its mask is gone and gradients would be wrong: checkpoint the layers after it"
            )
        channel_dim = self._channel_dim(output)
        positions = list(output.shape)
        if self._prefix and output.ndim == 4:
            raise ValueError(
                f"{self.path} gives a map {tuple(output.shape)}, which has no tokens before its "
                f"patches; leave prefix={self._prefix} out"
            )
        positions.pop(channel_dim)
        positions[1] -= self._prefix
        self.positions = tuple(positions[1:])
        mask = self._pending
        if mask is None:
            return output
        if self._fired:
            raise RuntimeError(
                f"{self.path} ran twice in one masked pass: name a module that embeds once a pass"
            )
        self._fired = True
        if len(output) != len(mask.mask):
            raise ValueError(
                f"{self.path} embeds a batch of {len(output)}, the logits are {len(mask.mask)}: "
                "name a module that sees each sample once"
            )
        where, token = _on_positions(mask, self.positions, self.path)
        if not self._prefix:
            return apply_mask(output, where, token, channel_dim)
        return mask_after_prefix(output, TokenMask(where, token))

    def _channel_dim(self, output: Tensor) -> int:
        """Say which dimension holds the channels, or refuse to guess."""
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"{self.path} must give embeddings (B, N, C), (B, h, w, C) or (B, C, h, w), "
                f"got {came}; name the module that makes them"
            )
        if output.ndim == 3:
            fits = [-1] if output.shape[-1] == self.width else []
        elif self._channels_first is not None:
            fits = [1] if self._channels_first else [-1]
        else:
            fits = [dim for dim in (1, -1) if output.shape[dim] == self.width]
        if len(fits) != 1 or output.shape[fits[0]] != self.width:
            raise ValueError(
                f"{self.path} gives {tuple(output.shape)}, where the {self.width} channels are "
                f"{'in two places' if len(fits) > 1 else 'nowhere to be found'}; state width and "
                "channels_first"
            )
        return fits[0]


def mask_after_prefix(hidden: Tensor, mask: TokenMask) -> Tensor:
    """Replace tokens that come after others which are never masked, such as a class token.

    Args:
        hidden: ``(B, P + N, C)``.
        mask: of the ``N`` last ones.

    Returns:
        As ``hidden``.

    Example:
        >>> mask = TokenMask(torch.tensor([[False, True]]), torch.zeros(1))
        >>> mask_after_prefix(torch.ones(1, 3, 1), mask).flatten().tolist()
        [1.0, 1.0, 0.0]
    """
    prefix = hidden.shape[1] - mask.mask.shape[1]
    where = F.pad(mask.mask, (prefix, 0))
    token = mask.token if mask.token.ndim == 1 else F.pad(mask.token, (0, 0, prefix, 0))
    return apply_mask(hidden, where, token)


def known_layout(module: nn.Module) -> tuple[int, bool | None] | None:
    """Width, and whether channels come first (None: see the output), of modules that say so."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels, True
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, False
    if isinstance(module, nn.Linear):
        return module.out_features, False
    if isinstance(module, nn.LayerNorm):
        # Its subclasses for maps (timm's LayerNorm2d) put the channels first.
        return module.normalized_shape[-1], False if type(module) is nn.LayerNorm else None
    return None


def _on_positions(mask: TokenMask, positions: tuple[int, ...], path: str) -> tuple[Tensor, Tensor]:
    """Lay the mask, and a token a position, out as the embedding is, by nearest neighbour."""
    hidden, token, grid = mask
    if len(positions) == 1 and hidden.shape[1] == positions[0]:
        return hidden, token
    if len(positions) != 2 or grid is None:
        raise ValueError(
            f"{path} embeds {positions} positions, the mask has {hidden.shape[1]}"
            + (f" on a grid of {grid}" if grid else "")
        )
    (rows, columns), (height, width) = grid, positions
    if (rows, columns) == (width, height) and rows != columns:
        raise ValueError(
            f"the features' grid {grid} is that of {path}, {tuple(positions)}, turned over; a grid "
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
