"""Which recipe knows a host: by its structure, never by importing its package."""

from __future__ import annotations

from typing import Any

from torch import nn

from masksd.config import DistillConfig
from masksd.hosts.taps import Taps, TapSegmenter
from masksd.segmenter import Segmenter


def segmenter_for(
    host: nn.Module,
    config: DistillConfig,
    taps: Taps | None,
    text_encoder: nn.Module | None,
    example: tuple[Any, ...] | None,
) -> Segmenter:
    """Find or build the segmenter of a host; the arguments are those of ``wrap``."""
    if taps is None:
        raise ValueError("no recipe")
    if config.text is not None and taps.text_embedding is None:
        raise ValueError(
            "text_embedding is not known: name the module that embeds the words, or turn the text "
            "branch off with DistillConfig(text=None)"
        )
    if not config.share_weights:
        raise ValueError("share_weights=False needs an encoder, a neck and a decoder, not a host")
    return TapSegmenter(host, taps)
