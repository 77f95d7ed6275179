"""Passes of a model that can be compared with each other."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from masksd.segmenter import Pass, Segmenter
from masksd.tapping.modules import is_compiled, plain_attention

T = TypeVar("T")


class Trial:
    """Passes of a model that all start from the same random state and the same buffers."""

    def __init__(self, segmenter: Segmenter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.segmenter, self._inputs = segmenter, (args, kwargs)
        self.ran: set[nn.Module] = set()
        self._devices = list({p.device for p in segmenter.parameters() if p.device.type == "cuda"})

    def run(self, function: Callable[[], T]) -> T:
        """Run a pass and forget what it drew and wrote."""
        with (
            plain_attention(),
            torch.random.fork_rng(devices=self._devices),
            self.segmenter.keeping_buffers(every=True),
            warnings.catch_warnings(),
        ):
            # Reentrant checkpointing warns, since nothing requires a gradient here.
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            return function()

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Take note in ``ran`` of every part of a host that runs inside, if none is compiled."""
        host = getattr(self.segmenter, "wrapped", None)
        parts = [] if host is None else list(host.modules())
        parts = [] if any(map(is_compiled, parts)) else parts  # they would keep the hooks

        def note(module: nn.Module, *_: Any) -> None:
            self.ran.add(module)

        handles = [part.register_forward_hook(note) for part in parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def plain(self) -> Pass:
        """Run the plain pass."""
        args, kwargs = self._inputs
        return self.run(lambda: self.segmenter.plain(*args, **kwargs))

    def first(self) -> Pass:
        """Run the plain pass, and find out whether evaluation gives logits at all.

        Many hosts return something else in evaluation: then the host itself goes back into training
        mode, and its parts stay in evaluation mode.
        """
        host = getattr(self.segmenter, "wrapped", None)
        if host is None:
            return self.plain()
        with contextlib.suppress(Exception):  # raised again below, unless it goes away
            plain = self.plain()
            if plain.logits.is_floating_point():
                return plain
        host.training = True
        return self.plain()

    def differs_from_itself(self, plain: Pass) -> float:
        """Run the plain pass with other random numbers, and compare the logits."""
        with torch.random.fork_rng(devices=self._devices):
            for device in (torch.device("cpu"), *self._devices):
                torch.rand(1, device=device)
            return difference(self.plain().logits, plain.logits)

    def mixes_samples(self, plain: Pass, others: Tensor) -> float:
        """Give the first sample the second's inputs, and compare the other samples' logits."""
        batch = len(plain.logits)

        def samples(value: Any) -> bool:
            return isinstance(value, list) and len(value) == batch

        def replaced(leaf: Any) -> Any:
            if samples(leaf):
                return [leaf[1], *leaf[1:]]
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != batch:
                return leaf
            return torch.cat([leaf[1:2], leaf[1:]])

        args, kwargs = tree_map(replaced, self._inputs, is_leaf=samples)
        other = self.run(lambda: self.segmenter.plain(*args, **kwargs))
        return difference(other.logits[others], plain.logits[others])


def difference(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the size of ``wanted``; equal NaNs are equal."""
    if got.shape != wanted.shape:
        return float("inf")
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    apart = (got - wanted).abs().masked_fill(same, 0).max()
    size = wanted.abs().nan_to_num(0, 0, 0).max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float((apart / size).nan_to_num(float("inf")))
