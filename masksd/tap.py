"""The one way a mask enters a model: a hook on a named embedding module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from masksd.errors import unknown_name
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
            linear or layer norm (``(B, N, C)`` or ``(B, h, w, C)``).
        path: its dotted path, for messages.

    Attributes:
        width: channels ``C`` of the embedding.

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

    def __init__(self, module: nn.Module, path: str) -> None:
        if any(isinstance(hook, EmbeddingTap) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"{path} is tapped already: unwrap() the first wrapper before a second, and copy a "
                "model before it is wrapped"
            )
        self.path = path
        self.width, self._channel_dim = _width_and_channel_dim(module, path)
        self._pending: TokenMask | None = None
        self._fired = False

    def attach(self, module: nn.Module) -> None:
        """Put the hook on ``module``, the one that it was made for."""
        module.register_forward_hook(self)

    def remove(self, module: nn.Module) -> None:
        """Take the hook off ``module``; on one without it, nothing happens."""
        for key in [k for k, hook in module._forward_hooks.items() if hook is self]:
            del module._forward_hooks[key]

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
        mask = self._pending
        if mask is None:
            return output
        if self._fired:
            raise RuntimeError(
                f"{self.path} ran twice in one masked pass: name a module that embeds once a pass"
            )
        self._fired = True
        positions = list(output.shape)
        positions.pop(self._channel_dim)
        where, token = _on_positions(mask, positions[1:], self.path)
        return apply_mask(output, where, token, self._channel_dim)


def find_module(root: nn.Module, path: str, argument: str) -> nn.Module:
    """Return the submodule at a dotted path.

    Args:
        root: where the path starts.
        path: such as ``"vision.embeddings.patch_embedding"``.
        argument: the user's name for it, for the message.

    Raises:
        ValueError: no such module; names the nearest one at the level that does not match.

    Example:
        >>> find_module(nn.Sequential(nn.ReLU()), "0", "image_embedding")
        ReLU()
    """
    if not isinstance(path, str):
        raise ValueError(f"{argument} must be a dotted module path, got {type(path).__name__}")
    module = root
    walked = type(root).__name__
    for name in path.split("."):
        # named_children() would leave out a second name of the same module
        children = {key: child for key, child in module._modules.items() if child is not None}
        if name not in children:
            if not children:
                raise ValueError(f"{argument} {path!r}: {walked} has no modules inside")
            raise unknown_name(f"module in {argument}={path!r}: {walked} has no", name, children)
        module = children[name]
        walked = f"{walked}.{name}"
    return module


def _width_and_channel_dim(module: nn.Module, path: str) -> tuple[int, int]:
    if isinstance(module, nn.Conv2d):
        return module.out_channels, 1
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, -1
    if isinstance(module, nn.Linear):
        return module.out_features, -1
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1], -1
    raise ValueError(
        f"{path} is a {type(module).__name__}, whose width and layout are not known; name the "
        "Conv2d, Embedding, Linear or LayerNorm that makes the embeddings"
    )


def _on_positions(mask: TokenMask, positions: list[int], path: str) -> tuple[Tensor, Tensor]:
    """Lay the mask, and a token a position, out as the embedding is, by nearest neighbour."""
    hidden, token, grid = mask
    if len(positions) == 1 and hidden.shape[1] == positions[0]:
        return hidden, token
    if len(positions) != 2 or grid is None:
        raise ValueError(
            f"{path} embeds {tuple(positions)} positions, the mask has {hidden.shape[1]}"
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
