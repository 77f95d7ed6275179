"""Sentences that share a picture, and what a host has of a picture only once.

A tensor with a row for each sentence belongs to the sentences; any other belongs to the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_pictures(pictures: Any, sentences: int, embedded: Sequence[int]) -> Tensor:
    """Return the picture of each sentence, or raise; ``embedded`` are the batches of the towers."""
    good = isinstance(pictures, Tensor) and pictures.shape == (sentences,)
    if not good or pictures.is_floating_point() or pictures.dtype == torch.bool:
        came = pictures
        if isinstance(pictures, Tensor):
            came = f"{pictures.dtype} {tuple(pictures.shape)}"
        raise ValueError(
            f"pictures must be the number of the picture of each of {sentences} sentences, int64 "
            f"({sentences},), got {came}"
        )
    count = min(embedded)
    # a step on a GPU must not wait for it; the check before the first one may
    may_look = pictures.device.type == "cpu" or not torch.is_grad_enabled()
    if may_look and not torch.compiler.is_compiling():
        low, high = int(pictures.min()), int(pictures.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"pictures must be from 0 to {count - 1}, the pictures that were embedded, got "
                f"{low} to {high}"
            )
    return pictures.long()


def rows_of_pictures(pictures: Tensor, embedded: int) -> Tensor | None:
    """Return the first sentence of each embedded picture; None where one is embedded a sentence."""
    if embedded == len(pictures):
        return None
    numbers = torch.arange(embedded, device=pictures.device)
    return (pictures == numbers[:, None]).int().argmax(1)


def by_sentence(features: Tensor, pictures: Tensor, embedded: Sequence[int], field: str) -> Tensor:
    """Return features ``(P, ...)`` of pictures for each sentence, ``(B, ...)``."""
    if len(features) == len(pictures):
        return features
    if len(features) not in embedded:
        raise ValueError(
            f"{field} has {len(features)} rows: there are {len(pictures)} sentences, and the host "
            f"embeds {min(embedded)} pictures"
        )
    return features[pictures]
