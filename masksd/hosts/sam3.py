"""transformers' ``Sam3Model`` and ``Sam3LiteTextModel``: two towers, a DETR, masks, and no loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from masksd.hosts.layout import clip_words
from masksd.hosts.tapped import TapSegmenter
from masksd.hosts.taps import Taps
from masksd.segmenter import Pass

_PATCHES = "vision_encoder.backbone.embeddings.patch_embeddings"
_WORDS = "embeddings.token_embedding"  # somewhere in the text tower
_PARTS = ("text_encoder", "detr_encoder", "detr_decoder", "mask_decoder.semantic_projection")


def recognise(host: nn.Module) -> bool:
    """Whether a model has the parts of SAM 3."""
    modules = dict(host.named_modules())
    known = all(path in modules for path in (f"{_PATCHES}.projection", *_PARTS))
    return known and any(_is_words(path) for path in modules)


def segmenter(
    host: nn.Module,
    text_encoder: nn.Module | None = None,
    valid: Callable[[Tensor], Tensor] | None = None,
) -> Sam3Segmenter:
    """Build the segmenter of a SAM 3."""
    if text_encoder is not None:
        raise ValueError(f"{type(host).__name__} has its own text tower: leave text_encoder out")
    return Sam3Segmenter(host, taps(host, valid or clip_words))


def taps(host: nn.Module, valid: Callable[[Tensor], Tensor]) -> Taps:
    """Return the taps of a SAM 3; both towers are replayed where the other modality is masked."""
    projection: Any = host.get_submodule(f"{_PATCHES}.projection")
    return Taps(
        image_embedding=_PATCHES,
        text_embedding=next(path for path, _ in host.named_modules() if _is_words(path)),
        logits=":semantic_seg",  # one map for the sentence
        images="pixel_values",
        tokens="input_ids",
        valid=valid,
        patches="vision_encoder:last_hidden_state",
        words="text_encoder:last_hidden_state",
        image_width=getattr(projection, "base_layer", projection).out_channels,
        image_only=("vision_encoder",),
        text_only=("text_encoder",),
    )


def _is_words(path: str) -> bool:
    return path.startswith("text_encoder.") and path.endswith(_WORDS)


class Sam3Segmenter(TapSegmenter):
    """A SAM 3 as :class:`masksd.Segmenter`; a call takes what the model takes.

    Attributes:
        union: whether the truth also teaches the union of the queries' masks, as
            ``losses["union"]``: set it if you predict with ``pred_masks``, since ``semantic_seg``
            teaches neither masks nor scores of queries. No loss here teaches their boxes.
    """

    kind = "SAM 3, recognised by its parts"

    def __init__(self, host: nn.Module, taps: Taps) -> None:
        super().__init__(host, taps)
        self.union = False

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        """Say whether the queries learn."""
        if self.union:
            return ["the truth teaches the union of the queries' masks too, as losses['union']"]
        return [
            "the truth teaches semantic_seg, not the queries' pred_masks and scores: "
            "sd.segmenter.union = True adds a loss on the union of their masks"
        ]

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run the model once and take what the taps name."""
        for name in ("pixel_values", "input_ids"):
            if self._call.find(name, args, kwargs) is None:
                raise ValueError(
                    f"this call brought no {name}: a SAM 3's sd(pixel_values=..., input_ids=...) "
                    "takes both in training; embeddings made before cannot be masked"
                )
        plain = super().plain(*args, **kwargs)
        return plain._replace(also={"union": union(plain.host_output)}) if self.union else plain


def union(output: Any) -> Tensor:
    """Return the logits ``(B, 1, H, W)`` that any query has a pixel: a noisy or of their masks.

    A query has a pixel with the product of the probabilities of its mask, of its score and of the
    sentence's presence.
    """
    masks, scores = output.pred_masks.float(), output.pred_logits.float()
    score = scores.sigmoid() * output.presence_logits.float().sigmoid()
    taken = masks.sigmoid() * score[:, :, None, None]
    none = torch.log1p(-taken.clamp(max=1 - 1e-6)).sum(1, keepdim=True).clamp(max=-1e-6)
    return torch.log(-torch.expm1(none)) - none
