"""Hooks that look at a module's calls or step between them, and how modules are named."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from masksd.errors import unknown_name


class Recorder:
    """A forward hook that keeps what a module was given and what it returned, while it is told to.

    Args:
        path: dotted path of the module, for messages.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> recorder = Recorder("layer")
        >>> recorder.attach(layer)
        >>> with recorder.recording():
        ...     _ = layer(torch.zeros(1, 2))
        ...     arguments, output = recorder.taken()
        >>> output.shape
        torch.Size([1, 3])
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._active = False
        self._call: tuple[tuple[Any, ...], Any] | None = None
        self._writes: list[int] = []

    def attach(self, module: nn.Module) -> None:
        """Put the hook on ``module``."""
        module.register_forward_hook(self)

    def remove(self, module: nn.Module) -> None:
        """Take the hook off ``module``; on one without it, nothing happens."""
        remove_hook(module._forward_hooks, self)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the call that happens inside, and forget it at the end."""
        self._active = True
        try:
            yield
        finally:
            self._active = False
            self._call = None

    def taken(self) -> tuple[tuple[Any, ...], Any]:
        """Return arguments and output of the call.

        Raises:
            RuntimeError: the module exists but did not run.
            ValueError: its output has been written into since.
        """
        if self._call is None:
            raise RuntimeError(
                f"{self.path} exists, but did not run in this pass; name a module that does"
            )
        if _writes(self._call[1]) != self._writes:
            raise ValueError(
                f"what {self.path} returned was written into after it ran, so that it is not known "
                "any more: let the model work on a copy (x = x + y, not x += y), or name the "
                "module that writes"
            )
        return self._call

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take part in the module's forward, as a forward hook does."""
        if not self._active:
            return
        if self._call is not None:
            raise RuntimeError(
                f"{self.path} ran twice in one pass; name a module that runs once, or the one "
                "around it"
            )
        self._call = (args, output)
        self._writes = _writes(output)


def _writes(output: Any) -> list[int]:
    """Count the writes into tensors; not while compiling, which writes into nothing."""
    if torch.compiler.is_compiling():
        return []
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


class CutPoint:
    """A forward pre-hook that hands some of a module's arguments to a cut, while there is one.

    Args:
        arguments: the modality of the features at each position that is cut.

    Example:
        >>> add = nn.Bilinear(1, 1, 1)
        >>> point = CutPoint({0: "image"})
        >>> point.attach(add)
        >>> seen = []
        >>> with point.cutting(lambda modality, features: seen.append(modality) or features):
        ...     _ = add(torch.ones(1, 1), torch.ones(1, 1))
        >>> seen
        ['image']
    """

    def __init__(self, arguments: Mapping[int, str]) -> None:
        self._arguments = arguments
        self._cut: Callable[[str, Any], Any] | None = None

    def attach(self, module: nn.Module) -> None:
        """Put the hook on ``module``."""
        module.register_forward_pre_hook(self)

    def remove(self, module: nn.Module) -> None:
        """Take the hook off ``module``; on one without it, nothing happens."""
        remove_hook(module._forward_pre_hooks, self)

    @contextlib.contextmanager
    def cutting(self, cut: Callable[[str, Any], Any]) -> Iterator[None]:
        """Cut in the calls that happen inside."""
        self._cut = cut
        try:
            yield
        finally:
            self._cut = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Take part in the module's forward, as a forward pre-hook does."""
        if self._cut is None:
            return None
        changed = list(args)
        for position, modality in self._arguments.items():
            changed[position] = self._cut(modality, changed[position])
        return tuple(changed)


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


def remove_hook(hooks: MutableMapping[int, Any], hook: object) -> None:
    """Take a hook out of a module's table; where it is not in there, nothing happens.

    Args:
        hooks: the table, such as ``module._forward_hooks``.
        hook: the very object.
    """
    for key in [k for k, other in hooks.items() if other is hook]:
        del hooks[key]
