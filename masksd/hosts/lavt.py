"""LAVT: language fused inside a Swin backbone, with BERT inside the model or beside it.

Recognised by its parts: ``backbone.patch_embed``, ``classifier``, and ``text_encoder`` where BERT
is inside. Another sentence changes the image's features at every stage, so a masked sentence runs
the whole model again; a masked image runs all but BERT.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from masksd.hosts.layout import bert_words
from masksd.hosts.tapped import TapSegmenter
from masksd.hosts.taps import Taps
from masksd.tapping.modules import check_wrappable, find_module


def recognise(host: nn.Module) -> bool:
    """Whether a model has LAVT's parts and takes an image, a sentence and its mask."""
    patch_embed = getattr(getattr(host, "backbone", None), "patch_embed", None)
    return (
        isinstance(getattr(patch_embed, "proj", None), nn.Conv2d)
        and isinstance(getattr(host, "classifier", None), nn.Module)
        and len(inspect.signature(host.forward).parameters) == 3
    )


def segmenter(
    host: nn.Module,
    text_encoder: nn.Module | None = None,
    valid: Callable[[Tensor], Tensor] | None = None,
    features: bool = False,
) -> TapSegmenter:
    """Tap a LAVT; patches of 4 pixels are masked in cells of 32 (:attr:`masksd.Taps.cell`).

    With ``features``, the last stage of the backbone and the text encoder are tapped as well, for
    relevance ``"attention"``. With a BERT that the LAVT keeps outside, the segmenter takes what
    :class:`LavtWithBert` does, and gives ``(host, text_encoder)`` back.
    """
    own = getattr(host, "text_encoder", None) is not None
    if not own and text_encoder is None:
        raise ValueError(
            f"{type(host).__name__} keeps its BERT outside: pass it too, "
            "wrap(model, text_encoder=bert); the wrapper then takes (images, ids, attention mask)"
        )
    if own and text_encoder is not None:
        raise ValueError(
            f"{type(host).__name__} has a text_encoder of its own: leave text_encoder out"
        )
    prefix = "" if own else "model."
    where = taps(host, prefix)
    if features:
        where = dataclasses.replace(where, patches=f"{prefix}backbone:-1", words="text_encoder:0")
    if text_encoder is None:
        return LavtSegmenter(host, where, valid)
    check_wrappable(text_encoder, "text_encoder")
    return PairSegmenter(LavtWithBert(host, text_encoder), where, valid)


def taps(host: nn.Module, prefix: str = "") -> Taps:
    """Return the taps of a LAVT; ``prefix`` comes before the paths of a LAVT inside a module."""
    projection = find_module(host, "backbone.patch_embed.proj", "image_embedding")
    # timm's patch embedding states its layout; LAVT's own gives (B, C, h, w).
    layout = getattr(find_module(host, "backbone.patch_embed", "image_embedding"), "output_fmt", "")
    return Taps(
        image_embedding=f"{prefix}backbone.patch_embed",
        text_embedding="text_encoder.embeddings.word_embeddings",
        logits=f"{prefix}classifier",
        valid=bert_words,
        text_only=("text_encoder",),
        image_width=projection.out_channels,  # type: ignore[arg-type]
        channels_first=layout != "NHWC",
    )


class LavtWithBert(nn.Module):
    """A LAVT and its external BERT as one module."""

    def __init__(self, model: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, text: Tensor, l_mask: Tensor) -> Tensor:
        """Encode ids ``(B, L)`` with their attention mask ``(B, L)``, then segment."""
        if l_mask.ndim != 2:
            raise ValueError(
                f"l_mask must be (B, L) as BERT takes it, got {tuple(l_mask.shape)}: give the "
                "wrapper ids and their attention mask, not BERT's output"
            )
        words = self.text_encoder(text, attention_mask=l_mask)[0].permute(0, 2, 1)
        return self.model(x, words, l_mask.unsqueeze(-1))


class LavtSegmenter(TapSegmenter):
    """The segmenter of a LAVT, which looks at its attention mask to tell words from padding."""

    kind = "LAVT, recognised by its parts"

    def __init__(
        self, host: nn.Module, taps: Taps, valid: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__(host, taps if valid is None else dataclasses.replace(taps, valid=valid))
        config = getattr(host.text_encoder, "config", None)
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        ids = {getattr(config, name, None) for name in names}
        self._special = sorted(number for number in ids if isinstance(number, int))
        self._own_valid = valid is None

    def _valid(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        real = super()._valid(args, kwargs)
        if not self._own_valid:
            return real
        ids, mask = (self._call.get(position, args, kwargs) for position in (1, 2))
        real = bert_words(ids, mask.flatten(1))
        for number in self._special:
            real = real & (ids != number)
        return real


class PairSegmenter(LavtSegmenter):
    """The segmenter of :class:`LavtWithBert`; gives both models back as they came."""

    def release(self) -> tuple[nn.Module, nn.Module]:
        """Take every hook off and return ``(model, text_encoder)``, the very objects."""
        pair = super().release()
        return pair.model, pair.text_encoder
