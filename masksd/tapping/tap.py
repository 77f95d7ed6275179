"""How a mask enters a model: a hook on a named embedding module.

A triple with ``image.layer`` above 0 masks hidden states instead, see :meth:`Triple.masked`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masksd.features import height_and_width
from masksd.masking import apply_mask
from masksd.tapping.embeddings import (
    TOKEN,
    TokenMask,
    embed_others,
    embed_zeroed,
    known_layout,
    mask_after_prefix,
    not_embeddings,
    on_positions,
    samples_of,
)
from masksd.tapping.hooks import Hook, in_backward, not_run

LateMask = Callable[
    [Tensor, tuple[int, ...], tuple[int, int] | None], tuple[TokenMask, tuple[int, int]]
]
"""Called when an embedding runs, with its output, the output's positions, ``(h, w)`` or ``(N,)``,
and the size of the map that its module was given, if any: returns the mask and its grid."""


class Place(NamedTuple):
    """Where an embedding takes its mask."""

    grid: Any = None  # of an embedding whose positions lie in a row
    rows: Tensor | None = None  # which samples of the mask it embeds, in order; None for all


class EmbeddingTap(Hook):
    """Masks the output of an embedding module inside :meth:`masking`; passes it on elsewhere.

    The module is a convolution (its output is ``(B, C, h, w)``), an embedding, linear or layer norm
    (``(B, N, C)`` or ``(B, h, w, C)``), or any other, with ``width``. ``channels_first`` tells
    ``(B, C, h, w)`` from ``(B, h, w, C)``; where it is None, the shape does. ``prefix`` tokens
    before the patches (a class token) are never masked. With ``in_parts`` the module runs several
    times in a pass, for some samples each time.
    """

    def __init__(
        self,
        module: nn.Module,
        path: str,
        *,
        width: int | None = None,
        channels_first: bool | None = None,
        prefix: int = 0,
        in_parts: bool = False,
    ) -> None:
        super().__init__()
        if any(isinstance(hook, EmbeddingTap) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"{path} is tapped already: unwrap() the first wrapper before adding a second, "
                "copy a model before wrapping it, release(model) what was unpickled with hooks"
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
        self.positions: tuple[int, ...] | None = None  # of the last pass, without the prefix
        self.size: tuple[int, int] | None = None  # of the map (B, C, h, w) that the module got
        self._channels_first = known[1] if known and known[1] is not None else channels_first
        self.prefix, self.in_parts = prefix, in_parts
        self.seen = 0  # samples embedded in the last pass
        self.after: Callable[[Tensor], Tensor] | None = None  # may replace outputs, for checks
        self.learns: bool | None = None  # whether gradients were on where it masked last
        self._pending: TokenMask | LateMask | None = None
        self._grid: tuple[int, int] | None = None
        self._with_gradients = False

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Take note of the embedding's layout in the plain pass inside."""
        self.positions, self.seen = None, 0
        with self.acting():
            yield
        if self.positions is None:
            raise RuntimeError(self._unseen())

    @property
    def module_path(self) -> str:
        """The path of the module that it is attached to."""
        return self.path

    @property
    def masks(self) -> bool:
        """Whether a masked pass runs."""
        return self._pending is not None

    def _unseen(self) -> str:
        return not_run(self.path)

    @contextlib.contextmanager
    def masking(self, mask: TokenMask | LateMask, place: Place | None = None) -> Iterator[None]:
        """Mask what the module embeds inside."""
        grid, rows = place or Place()
        if rows is not None and isinstance(mask, TokenMask):
            mask = samples_of(mask, rows)
        self._pending, self._grid, self.seen = mask, grid, 0
        self._with_gradients = torch.is_grad_enabled()
        try:
            with self.acting():
                yield
            if not self.seen:
                raise RuntimeError(
                    f"{self.path} did not run in the masked pass: nothing was masked"
                )
            if isinstance(mask, TokenMask) and self.seen != len(mask.mask):
                raise ValueError(_wrong_batch(self.path, self.seen, len(mask.mask)))
        finally:
            self._pending = None

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
        before, self.seen = self.seen, self.seen + len(output)
        positions = self._note(args, output, channel_dim, again=before > 0)
        mask = self._pending
        if mask is not None:
            if before and not self.in_parts:
                raise RuntimeError(
                    f"{self.path} ran twice in one masked pass: name a module that runs once a "
                    "pass, or set Taps(in_parts=True) if it runs for each sample"
                )
            if not isinstance(mask, TokenMask):
                mask, self._grid = mask(output, positions, self.size)
            output = self._masked(module, args, output, positions, channel_dim, mask)
        return output if self.after is None else self.after(output)

    def _note(self, args: tuple[Any, ...], output: Tensor, channel_dim: int, again: bool) -> Any:
        """Return where the tokens are; ``again`` in this pass, they must be in the same places."""
        positions = list(output.shape)
        if self.prefix and output.ndim == 4:
            raise ValueError(
                f"{self.path} gives a map {tuple(output.shape)}, which has no tokens before its "
                f"patches; leave prefix={self.prefix} out"
            )
        positions.pop(channel_dim)
        positions[1] -= self.prefix
        if again and self.in_parts and tuple(positions[1:]) != self.positions:
            raise ValueError(
                f"{self.path} embeds {self.positions} positions for some samples of a batch and "
                f"{tuple(positions[1:])} for others: pad or resize them to one size"
            )
        self.positions = tuple(positions[1:])
        given = args[0] if args else None
        self.size = None
        if isinstance(given, Tensor) and given.ndim == 4:
            self.size = height_and_width(given)
        return self.positions

    def _masked(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        output: Tensor,
        positions: tuple[int, ...],
        channel_dim: int,
        mask: TokenMask,
    ) -> Any:
        """Replace tokens of what may be a part of the batch, which ends with ``self.seen``."""
        if self._with_gradients:
            self.learns = torch.is_grad_enabled()
        samples = len(mask.mask)
        if self.in_parts:
            mask = samples_of(mask, slice(self.seen - len(output), self.seen))
        if len(output) != len(mask.mask):
            raise ValueError(_wrong_batch(self.path, self.seen, samples))
        if mask.zero_input:
            return embed_zeroed(module, args, mask, self.path)
        where, token = on_positions(mask, positions, self._grid, self.path)
        if mask.choice is not None:
            output = embed_others(module, args, where, mask.choice, self.path)
            where = where & (mask.choice < TOKEN)
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
                "Taps(channels_first=True or False)"
            )
        return fits[0]


def _wrong_batch(path: str, embedded: int, samples: int) -> str:
    return (
        f"{path} embeds a batch of {embedded}, but the logits are a batch of {samples}: name a "
        "module that sees each sample once; Taps(in_parts=True) is for hosts that loop over "
        "samples, Taps(pictures=...) for sentences that share a picture"
    )
