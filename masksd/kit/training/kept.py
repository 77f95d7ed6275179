"""What autograd keeps for backward, counted."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeptBytes:
    """Bytes that autograd keeps: now, and the most there ever were."""

    now: int = 0
    peak: int = 0


@contextlib.contextmanager
def kept_activations(excluded: Iterable[Tensor]) -> Iterator[KeptBytes]:
    """Count the bytes that graphs made inside keep for their backward, each storage once.

    Works on the meta device too. What is kept without autograd's saved tensors, such as features
    that a wrapper holds, is not seen.

    Args:
        excluded: tensors that are there anyway, such as parameters.

    Yields:
        The count, which goes on while the graphs live.

    Example:
        >>> x = torch.randn(10, requires_grad=True)
        >>> with kept_activations([x]) as kept:
        ...     y = (x * 2.0).exp().sum()  # exp keeps its result
        >>> kept.now
        40
        >>> y.backward()
        >>> kept
        KeptBytes(now=0, peak=40)
    """
    # a storage is known by its address in C++, as on the meta device its data has none
    known = {tensor.untyped_storage()._cdata for tensor in excluded}
    users: dict[int, int] = {}
    sizes: dict[int, int] = {}
    kept = KeptBytes()

    def release(key: int) -> None:
        users[key] -= 1
        if not users[key]:
            kept.now -= sizes[key]
            del users[key], sizes[key]

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in known:
                return
            if key not in users:
                users[key], sizes[key] = 0, storage.nbytes()
                kept.now += sizes[key]
                kept.peak = max(kept.peak, kept.now)
            users[key] += 1
            weakref.finalize(self, release, key)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda held: held.tensor):
        yield kept
