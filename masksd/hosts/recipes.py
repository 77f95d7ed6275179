"""Which recipe knows a host: by its structure, never by importing its package."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from masksd.config import DistillConfig
from masksd.hosts.example import try_out
from masksd.hosts.taps import Arguments, Taps, TapSegmenter, check_wrappable
from masksd.segmenter import Segmenter
from masksd.tap import Recorder, find_module, known_layout


def segmenter_for(
    host: nn.Module,
    config: DistillConfig,
    taps: Taps | None,
    text_encoder: nn.Module | None,
    example: tuple[Any, ...] | None,
) -> Segmenter:
    """Find or build the segmenter of a host; the arguments are those of ``wrap``.

    Raises:
        ValueError: no recipe knows the host and there are no taps, or they do not match.

    Example:
        >>> segmenter_for(nn.ReLU(), DistillConfig(), None, None, None)
        Traceback (most recent call last):
        ...
        ValueError: ReLU is no host that a recipe knows ...
    """
    check_wrappable(host)
    if not config.share_weights:
        raise ValueError(
            "share_weights=False copies a neck and a decoder, which a whole host does not name: "
            "pass CrossModalMaskedSelfDistill(encoder, neck, decoder)"
        )
    if taps is None:
        return _by_recipe(host, text_encoder)
    if text_encoder is not None:
        raise ValueError("text_encoder is for recipes; with taps, wrap one module that runs both")
    if config.text is None:
        taps = dataclasses.replace(taps, text_embedding=None)
    elif taps.text_embedding is None:
        raise ValueError(
            "text_embedding is not known: name the module that embeds the words, or turn the text "
            "branch off with DistillConfig(text=None)"
        )
    return TapSegmenter(host, taps if example is None else _with_widths(host, taps, example))


def _by_recipe(host: nn.Module, text_encoder: nn.Module | None) -> Segmenter:
    from masksd.hosts import clipseg, cris, lavt

    for recipe in (cris, lavt, clipseg):
        if recipe.recognise(host):
            return recipe.segmenter(host, text_encoder)
    parts = ", ".join(name for name, _ in host.named_children()) or "none"
    raise ValueError(
        f"{type(host).__name__} is no host that a recipe knows (CRIS, LAVT, CLIPSeg); its parts "
        f"are {parts}. Name where it does what: wrap(host, taps=masksd.Taps(image_embedding=..., "
        "text_embedding=..., logits=..., valid=...))"
    )


def _with_widths(host: nn.Module, taps: Taps, example: tuple[Any, ...]) -> Taps:
    """Find, by running the host once, the widths that its embedding modules do not say."""
    for field, width in (("image_embedding", "image_width"), ("text_embedding", "text_width")):
        path = getattr(taps, field)
        if path is None or getattr(taps, width) is not None:
            continue
        module = find_module(host, path, field)
        if known_layout(module) is not None:
            continue
        recorder = Recorder(path)
        recorder.attach(module)
        try:
            with recorder.recording():
                try_out(host, host, example)
                shape = recorder.taken()[1].shape
        finally:
            recorder.remove(module)
        images = Arguments(host).get(taps.images, example, {}) if len(shape) == 4 else None
        channels = 1 if images is not None and _channels_first(shape, images, path) else -1
        taps = dataclasses.replace(taps, **{width: shape[channels]})
    return taps


def _channels_first(shape: torch.Size, images: Tensor, path: str) -> bool:
    """Tell ``(B, C, h, w)`` from ``(B, h, w, C)``: h and w are the picture's, divided alike."""
    height, width = images.shape[-2:]
    fits = {
        first: height % h == 0 and width % w == 0 and height // h == width // w
        for first, (h, w) in ((True, shape[2:]), (False, shape[1:3]))
    }
    if fits[True] == fits[False]:
        raise ValueError(
            f"{path} gives {tuple(shape)}, which may be (B, C, h, w) or (B, h, w, C) for pictures "
            f"of {height}x{width}; state image_width and channels_first"
        )
    return fits[True]
