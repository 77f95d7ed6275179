"""Randomness by key: every draw is a function of a seed and of what it is for."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def keyed_seed(*key: int | str) -> int:
    """Hash a key to a seed of 63 bits, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a generator of its own for a key; torch's global stream stays untouched."""
    return torch.Generator().manual_seed(keyed_seed(*key))


@contextlib.contextmanager
def keyed_randomness(device: torch.device) -> Iterator[None]:
    """Restore torch's random streams afterwards; on a CPU, allow only deterministic algorithms."""
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if device.type == "cpu":
                torch.use_deterministic_algorithms(True)
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)


class EpochSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone, without the first items (``skip``)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch, self.skip = size, seed, 0, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = keyed_generator(self.seed, "order", self.epoch)
        yield from torch.randperm(self.size, generator=generator).tolist()[self.skip :]
