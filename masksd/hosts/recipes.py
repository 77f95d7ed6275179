"""Which recipe knows a host: told by its structure, never by importing its package."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from masksd.config import DistillConfig
from masksd.hosts.arguments import Arguments
from masksd.hosts.layout import channels_first
from masksd.hosts.tapped import TapSegmenter
from masksd.hosts.taps import Embedding, Taps
from masksd.segmenter import Segmenter
from masksd.tapping.embeddings import known_layout, not_embeddings
from masksd.tapping.hooks import Recorder
from masksd.tapping.kinds import table_at
from masksd.tapping.modules import check_wrappable, find_module, try_out


def segmenter_for(
    host: nn.Module,
    config: DistillConfig,
    taps: Taps | None,
    text_encoder: nn.Module | None,
    example: tuple[Any, ...] | None,
    valid: Callable[[Tensor], Tensor] | None = None,
) -> Segmenter:
    """Build the segmenter of a host, by its taps or a recipe; takes the arguments of ``wrap``."""
    if isinstance(host, Segmenter):
        if taps is not None or text_encoder is not None or valid is not None:
            raise ValueError("a segmenter of your own knows its taps: pass it alone")
        return host
    check_wrappable(host, "host")
    if not config.share_weights:
        raise ValueError(
            "share_weights=False copies a neck and a decoder, which a whole host does not name: "
            "pass CrossModalMaskedSelfDistill(encoder, neck, decoder)"
        )
    if config.image is not None and config.image.relevance == "neck":
        raise ValueError(
            "relevance 'neck' asks the neck where it attends, and a whole host does not name one: "
            "pass CrossModalMaskedSelfDistill(encoder, neck, decoder), or use 'prediction', "
            "'random' or 'ground_truth'"
        )
    if config.image is not None and config.image.layer:
        raise ValueError(
            f"image.layer={config.image.layer} needs an encoder that can go on from there, in "
            "CrossModalMaskedSelfDistill(encoder, neck, decoder); to mask deeper in a whole host, "
            "tap the module there: Taps(image_embedding='...layers.3')"
        )
    if hasattr(host, "peft_config") and callable(getattr(host, "get_base_model", None)):
        raise ValueError(
            f"{type(host).__name__} hides the host one level down: wrap(model.get_base_model()), "
            "which has the adapters in it"
        )
    attends = config.image is not None and config.image.relevance == "attention"
    if taps is None:
        return _by_recipe(host, text_encoder, valid, attends)
    if valid is not None:
        raise ValueError("valid= is for recipes; with taps, name it in Taps(valid=...)")
    if text_encoder is not None:
        raise ValueError("text_encoder is for recipes; with taps, wrap one module that runs both")
    if not isinstance(taps, Taps):
        raise ValueError(f"taps must be a masksd.Taps, got {type(taps).__name__}")
    if config.text is None:
        valid_words = taps.valid if attends or taps.words else None
        taps = dataclasses.replace(taps, text_embedding=None, valid=valid_words)
    elif taps.text_embedding is None:
        raise ValueError(
            "text_embedding is not known: name the module that embeds the words, or turn the text "
            "branch off with DistillConfig(text=None)"
        )
    return TapSegmenter(host, taps if example is None else _with_widths(host, taps, example))


def _by_recipe(
    host: nn.Module,
    text_encoder: nn.Module | None,
    valid: Callable[[Tensor], Tensor] | None,
    attends: bool,
) -> Segmenter:
    from masksd.hosts import clipseg, cris, lavt, sam3

    if lavt.recognise(host):  # the others always have the features of patches and words
        return lavt.segmenter(host, text_encoder, valid, features=attends)
    for recipe in (cris, clipseg, sam3):
        if recipe.recognise(host):
            return recipe.segmenter(host, text_encoder, valid)
    parts = ", ".join(name for name, _ in host.named_children()) or "none"
    raise ValueError(
        f"no recipe knows {type(host).__name__} (they know CRIS, LAVT, CLIPSeg and SAM 3); its "
        f"parts are {parts}. Name its modules: wrap(host, taps=masksd.Taps(image_embedding=..., "
        "text_embedding=..., valid=...))"
    )


def _with_widths(host: nn.Module, taps: Taps, example: tuple[Any, ...]) -> Taps:
    """Run the host once to find the widths that its embedding modules do not state."""
    for modality in ("image", "text"):
        if getattr(taps, f"{modality}_embedding") is None:
            continue
        stated = taps.embeddings(modality)
        found = [_measured(host, taps, modality, each, example) for each in stated]
        named = {f"{modality}_width": tuple(each.width for each in found)}
        if modality == "image":
            named["channels_first"] = tuple(each.channels_first for each in found)
        taps = dataclasses.replace(taps, **named)  # type: ignore[arg-type]
    return taps


def _measured(
    host: nn.Module, taps: Taps, modality: str, stated: Embedding, example: tuple[Any, ...]
) -> Embedding:
    """Find the width of an embedding, and whether channels come first in its output."""
    path, field = stated.path, f"{modality}_embedding"
    if stated.width is not None or (modality == "text" and table_at(host, path) is not None):
        return stated
    module = find_module(host, path, field)
    if known_layout(module) is not None:
        return stated
    recorder = Recorder(path, taps.in_parts)
    recorder.attach(module)
    try:
        with recorder.recording():
            try_out(host, host, example)
            given, output = recorder.taken()
    finally:
        recorder.remove(module)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise ValueError(f"{field}: {not_embeddings(path, output)}")
    shape = tuple(output.shape)
    if len(shape) != 4:
        return stated._replace(width=shape[-1])
    first = stated.channels_first
    if first is None:
        images = given[0] if taps.images is None else Arguments(host).get(taps.images, example, {})
        rows, columns = images.shape[-2:]
        first = channels_first(shape, (rows, columns))
        if first is None:
            raise ValueError(
                f"{path} gives {tuple(shape)}, which may be (B, C, h, w) or (B, h, w, C) for "
                f"pictures of {rows}x{columns}; state image_width and channels_first"
            )
    return stated._replace(width=shape[1 if first else -1], channels_first=first)
