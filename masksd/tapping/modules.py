"""What we ask of other people's modules: a name, a mode, a trial run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from masksd.errors import unknown_name

T = TypeVar("T")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Run passes under ``no_grad`` that leave nothing to those with gradients.

    Autocast keeps the weights that it has cast. Torch 2.7 also gives those kept here to a later
    pass in the same region, whose weights then get no gradient.
    """
    with torch.no_grad():
        try:
            yield
        finally:
            torch.clear_autocast_cache()


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep what inference never sees out of BatchNorm's running statistics; it still normalises."""
    held = [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and layer.training
        and layer.track_running_stats
    ]
    try:
        for layer in held:
            layer.track_running_stats = False
        yield
    finally:
        for layer in held:
            layer.track_running_stats = True


class BatchNormTold:
    """Say in the words of a step that BatchNorm got one value per channel; a class, to compile."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise ValueError(
                "a BatchNorm got one value per channel, which it cannot normalise in training: "
                "give a batch of two samples or more (drop_last=True for the last one), to a "
                f"branch more samples, or put the layer into evaluation mode ({error})"
            ) from error


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Keep torch's attention off its fast path, which gives nested tensors and rounds otherwise."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def try_out(module: nn.Module, run: Callable[..., T], example: tuple[Any, ...]) -> T:
    """Call ``run`` with the module in evaluation mode, without gradients; random state is kept."""
    devices = list({p.device for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), evaluating(module), without_gradients():
        return run(*example)


def check_wrappable(module: nn.Module, name: str) -> None:
    """Refuse what is no module, or is compiled or distributed already; ``name`` is the user's."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} must be an nn.Module, got {type(module).__name__}")
    kind = type(module).__name__
    if is_compiled(module):
        raise ValueError(
            f"{name} is compiled, and hooks added now would be ignored: wrap the bare model first, "
            "then torch.compile(sd)"
        )
    if kind in ("DistributedDataParallel", "DataParallel") or kind.startswith("FSDP"):
        raise ValueError(
            f"{name} is a {kind}: wrap the bare model first, then distribute sd, so that all "
            "passes run inside one forward"
        )


def is_compiled(module: nn.Module) -> bool:
    """Whether hooks added now would be ignored."""
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def in_compiled(root: nn.Module, module: nn.Module) -> bool:
    """Whether a module is compiled, or lies in a part of ``root`` that is."""
    return any(
        is_compiled(part) and any(inside is module for inside in part.modules())
        for part in root.modules()
    )


def check_not_compiled(host: nn.Module, module: nn.Module, path: str) -> None:
    """Refuse to tap a module inside a part of the host that is compiled already."""
    if in_compiled(host, module):
        raise ValueError(
            f"{path} lies in a part of the host that is compiled, and hooks added now would be "
            "ignored: wrap the bare model first, then torch.compile(sd)"
        )


def find_module(root: nn.Module, path: str, argument: str) -> nn.Module:
    """Return the submodule at a dotted path, or raise with the nearest name where it goes wrong."""
    if not isinstance(path, str):
        raise ValueError(f"{argument} must be a dotted module path, got {type(path).__name__}")
    module = root
    walked = type(root).__name__
    for name in path.split("."):
        # named_children() would skip a module's second name
        children = {key: child for key, child in module._modules.items() if child is not None}
        if name not in children:
            if not children:
                raise ValueError(f"{argument} {path!r}: {walked} has no submodules")
            raise unknown_name(f"module in {argument}={path!r}: {walked} has no", name, children)
        module = children[name]
        walked = f"{walked}.{name}"
    return module


_AROUND = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def modules_by_path(root: nn.Module) -> dict[str, nn.Module]:
    """List modules by dotted path as if FSDP, checkpointing and compilation wrapped none."""
    named = root.named_modules(remove_duplicate=False)
    return {  # the innermost comes last
        ".".join(part for part in path.split(".") if part not in _AROUND): module
        for path, module in named
    }
