"""How many bytes autograd keeps for backward."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeptBytes:
    """Bytes that autograd keeps now, and the most it ever kept."""

    now: int = 0
    peak: int = 0


@contextlib.contextmanager
def kept_activations(excluded: Iterable[Tensor]) -> Iterator[KeptBytes]:
    """Count what graphs made inside keep for backward, each storage once, while they live.

    Works on the meta device too. ``excluded`` are tensors that are there anyway, such as
    parameters. What is held by other means, such as features in a wrapper, is not seen.
    """
    # by the storage's address in C++: on the meta device its data has none
    known = {tensor.untyped_storage()._cdata for tensor in excluded}
    users: dict[int, int] = {}
    kept = KeptBytes()

    def release(key: int, size: int) -> None:
        users[key] -= 1
        if not users[key]:
            kept.now -= size
            del users[key]

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in known:
                return
            if key not in users:
                users[key] = 0
                kept.now += size
                kept.peak = max(kept.peak, kept.now)
            users[key] += 1
            weakref.finalize(self, release, key, size)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda held: held.tensor):
        yield kept
