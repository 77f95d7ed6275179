"""How we look into somebody else's model: hooks, registered once, that record or cut.

:class:`masksd.tapping.tap.EmbeddingTap` is the one that masks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class Hook:
    """A forward hook that is attached once and acts only in a pass of the thread that runs it.

    Other threads may use the model meanwhile, as if it were not wrapped. A copy of the model alone
    gets inert hooks; a copy of the wrapper gets live ones, see :meth:`Segmenter.__deepcopy__`.
    """

    before = False  # whether the hook runs before its module

    def __init__(self) -> None:
        self._thread: int | None = None

    def attach(self, module: nn.Module) -> None:
        """Register the hook, and clear away what a copied model still carries."""
        remove_hooks(module, lambda hook: hook is released)
        if self.before:
            module.register_forward_pre_hook(self)
        else:
            module.register_forward_hook(self)

    def remove(self, module: nn.Module) -> None:
        """Unregister the hook; a module without it is left alone."""
        remove_hooks(module, lambda hook: hook is self)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Act inside, in this thread."""
        self._thread = _this_thread()
        try:
            yield
        finally:
            self._thread = None

    def acts(self) -> bool:
        """Whether the pass that runs now is one of ours."""
        if self._thread is None:
            return False
        # Compiled code cannot ask who runs it; the pass around it may not be compiled.
        return torch.compiler.is_compiling() or self._thread == threading.get_ident()

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        if WRAPPER_COPIED not in memo:
            return released
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(self.__dict__, _thread=None)
        return copied

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """Take part in the module's forward."""
        raise NotImplementedError


WRAPPER_COPIED = "masksd: a wrapper is being copied"
"""Key in the memo of ``copy.deepcopy`` while a segmenter, and not only its host, is copied."""


def released(module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
    """Do nothing, in place of a hook of ours on a copy of a wrapped model."""


def remove_hooks(module: nn.Module, ours: Callable[[object], bool]) -> None:
    """Take some hooks off one module."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if ours(hook)]:
            del hooks[key]


def _this_thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Recorder(Hook):
    """Keeps arguments and output of a module's one call, or of all for ``in_parts`` of a batch."""

    def __init__(self, path: str, in_parts: bool = False) -> None:
        super().__init__()
        self.path = path
        self.in_parts = in_parts
        self._calls: list[tuple[tuple[Any, ...], Any, list[int]]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record inside; forget at the end."""
        self._calls = []
        try:
            with self.acting():
                yield
        finally:
            self._calls = []

    def taken(self) -> tuple[tuple[Any, ...], Any]:
        """Return arguments and output, or raise where there are none or they are stale."""
        if not self._calls:
            raise RuntimeError(not_run(self.path))
        if any(before and _writes(output) != before for _, output, before in self._calls):
            raise ValueError(
                f"the output of {self.path} was modified in place after it ran: let the model work "
                "on a copy (x = x + y, not x += y), or name the module that writes"
            )
        args, output, _ = self._calls[0]
        if self.in_parts:
            output = _joined(self.path, [each for _, each, _ in self._calls])
        return args, output

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """Record the call."""
        if self.acts():
            self._record(args, output)

    def _record(self, args: tuple[Any, ...], output: Any) -> None:
        if self._calls and not self.in_parts:
            raise RuntimeError(
                f"{self.path} ran twice in one pass; name a module that runs once, or the one "
                "around it; if it runs for each sample, set Taps(in_parts=True)"
            )
        self._calls.append((args, output, _writes(output)))


def _joined(path: str, outputs: list[Any]) -> Any:
    """Join what a module gave for parts of a batch, tensor by tensor."""
    leaves, structures = zip(*map(tree_flatten, outputs), strict=True)
    tensors = [[leaf for leaf in each if isinstance(leaf, Tensor)] for each in leaves]
    shapes = {tuple(tuple(leaf.shape[1:]) for leaf in each) for each in tensors}
    if any(structure != structures[0] for structure in structures) or len(shapes) > 1:
        raise ValueError(
            f"the outputs of {path} for the parts of a batch cannot be joined: behind the first "
            f"dimension they are {sorted(map(str, shapes))}; name a module before they get "
            "different sizes"
        )
    joined = [
        torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
        for parts in zip(*leaves, strict=True)
    ]
    return tree_unflatten(joined, structures[0])


def not_run(path: str) -> str:
    """Word the error for a tapped module that a pass never called."""
    return f"{path} exists, but did not run in this pass; name a module that does"


def in_backward() -> bool:
    """Whether a backward runs now, and with it a forward that gradient checkpointing repeats."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _writes(output: Any) -> list[int]:
    """Count in-place writes to the tensors of an output; compiled code makes none."""
    if torch.compiler.is_compiling():
        return []
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


class CutPoint(Hook):
    """Hands arguments of a module, by position and modality, to a function before it runs."""

    before = True

    def __init__(self, arguments: Mapping[int, str]) -> None:
        super().__init__()
        self._arguments = arguments
        self._cut: Callable[[str, Any], Any] | None = None

    @contextlib.contextmanager
    def cutting(self, cut: Callable[[str, Any], Any]) -> Iterator[None]:
        """Cut in the calls inside."""
        self._cut = cut
        try:
            with self.acting():
                yield
        finally:
            self._cut = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """Replace the arguments."""
        if self._cut is None or not self.acts():
            return None
        changed = list(args)
        for position, modality in self._arguments.items():
            changed[position] = self._cut(modality, changed[position])
        return tuple(changed)


class OneThread:
    """A turn that one thread at a time may take; made anew each time, to compile with torch 2.7."""

    def __init__(self, owner: dict[str, int]) -> None:
        self._owner = owner  # dict.setdefault is atomic, an attribute is not

    def __enter__(self) -> None:
        thread = _this_thread()
        if self._owner.setdefault("thread", thread) != thread:
            raise RuntimeError(
                "another thread is in a training step of this wrapper: give each thread its own "
                "wrapper, or train in one and use the host for inference in the others"
            )

    def __exit__(self, *error: object) -> None:
        self._owner.clear()


def release(model: nn.Module) -> nn.Module:
    """Take every hook of ours off a copy of a wrapped model.

    A copy works without this: its hooks do nothing. Call it to leave no trace at all, or to wrap a
    model that was unpickled with its hooks. To undo a wrapper, use its ``unwrap()``.

    Args:
        model: any module.

    Returns:
        The same module.

    Example:
        >>> import copy
        >>> from masksd import CrossModalMaskedSelfDistill
        >>> from masksd.models import create_model
        >>> host = create_model("lavt_tiny")
        >>> sd = CrossModalMaskedSelfDistill.wrap(host)
        >>> clean = release(copy.deepcopy(host))
        >>> any(module._forward_hooks for module in clean.modules())
        False
    """
    for module in model.modules():
        remove_hooks(module, lambda hook: hook is released or isinstance(hook, Hook))
        stands = module.__dict__.get("forward")
        if isinstance(stands, Hook):
            stands.remove(module)
    return model
