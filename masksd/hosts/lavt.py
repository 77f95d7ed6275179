"""LAVT: language fused inside a Swin backbone, with BERT inside the model or beside it.

Known by its parts: ``backbone.patch_embed``, ``classifier``, and ``text_encoder`` where BERT is
inside. A changed sentence changes the picture's features at every stage, so a masked pass runs the
whole model again.
"""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from masksd.hooks import find_module
from masksd.hosts.layout import bert_words
from masksd.hosts.taps import Taps, TapSegmenter
from masksd.segmenter import check_wrappable


def recognise(host: nn.Module) -> bool:
    """Say whether a model has LAVT's parts and takes a picture, a sentence and its mask.

    Example:
        >>> from masksd.models import create_model
        >>> recognise(create_model("lavt_tiny")), recognise(nn.ReLU())
        (True, False)
    """
    patch_embed = getattr(getattr(host, "backbone", None), "patch_embed", None)
    return (
        isinstance(getattr(patch_embed, "proj", None), nn.Conv2d)
        and isinstance(getattr(host, "classifier", None), nn.Module)
        and len(inspect.signature(host.forward).parameters) == 3
    )


def segmenter(host: nn.Module, text_encoder: nn.Module | None = None) -> TapSegmenter:
    """Tap a LAVT; patches of 4 pixels are masked in cells of 32 (:attr:`masksd.Taps.cell`).

    Args:
        host: one that :func:`recognise` knows.
        text_encoder: the BERT of a LAVT that keeps it outside. The segmenter then takes what
            :class:`LavtWithBert` does, and gives ``(host, text_encoder)`` back.

    Raises:
        ValueError: BERT is missing, or is there twice; nothing has been touched then.

    Example:
        >>> from masksd.models import create_model
        >>> lavt = segmenter(create_model("lavt_tiny"))
        >>> lavt.taps["image"].path, lavt.taps["text"].path
        ('backbone.patch_embed', 'text_encoder.embeddings.word_embeddings')
    """
    inside = getattr(host, "text_encoder", None)
    if inside is None and text_encoder is None:
        raise ValueError(
            f"{type(host).__name__} keeps its BERT outside: pass it too, "
            "wrap(model, text_encoder=bert); the wrapper then takes (images, ids, attention mask)"
        )
    if inside is None and text_encoder is not None:
        check_wrappable(text_encoder, "text_encoder")
        return PairSegmenter(LavtWithBert(host, text_encoder), taps(host, "model."))
    if text_encoder is not None:
        raise ValueError(
            f"{type(host).__name__} has a text_encoder of its own: leave text_encoder out"
        )
    return TapSegmenter(host, taps(host))


def taps(host: nn.Module, prefix: str = "") -> Taps:
    """Say where a LAVT does what.

    Args:
        host: one that :func:`recognise` knows.
        prefix: what comes before the paths, where the LAVT is a part of the wrapped module.

    Example:
        >>> from masksd.models import create_model
        >>> taps(create_model("lavt_tiny")).logits
        'classifier'
    """
    projection = find_module(host, "backbone.patch_embed.proj", "image_embedding")
    # timm's patch embedding says its layout; LAVT's own gives (B, C, h, w).
    layout = getattr(find_module(host, "backbone.patch_embed", "image_embedding"), "output_fmt", "")
    return Taps(
        image_embedding=f"{prefix}backbone.patch_embed",
        text_embedding="text_encoder.embeddings.word_embeddings",
        logits=f"{prefix}classifier",
        valid=bert_words,
        image_width=projection.out_channels,  # type: ignore[arg-type]
        channels_first=layout != "NHWC",
    )


class LavtWithBert(nn.Module):
    """A LAVT and its external BERT as one module.

    Args:
        model: takes a picture, words ``(B, C, L)`` and their mask ``(B, L, 1)``.
        text_encoder: BERT; the first of its outputs is the words ``(B, L, C)``.

    Example:
        >>> import torch
        >>> bert = nn.Embedding(9, 4)
        >>> bert.forward = lambda ids, attention_mask: (torch.ones(1, 2, 4),)
        >>> model = nn.Module()
        >>> model.forward = lambda x, l_feats, l_mask: (l_feats.shape, l_mask.shape)
        >>> LavtWithBert(model, bert)(None, torch.ones(1, 2).long(), torch.ones(1, 2))
        (torch.Size([1, 4, 2]), torch.Size([1, 2, 1]))
    """

    def __init__(self, model: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, text: Tensor, l_mask: Tensor) -> Tensor:
        """Encode the sentence, then segment; the arguments are called as LAVT calls them.

        Args:
            x: pictures ``(B, 3, H, W)``.
            text: ids ``(B, L)``.
            l_mask: ``(B, L)``, 1 for the ids that are no padding.
        """
        if l_mask.ndim != 2:
            raise ValueError(
                f"l_mask must be (B, L) as BERT takes it, got {tuple(l_mask.shape)}: give the "
                "wrapper ids and their attention mask, not BERT's output"
            )
        words = self.text_encoder(text, attention_mask=l_mask)[0].permute(0, 2, 1)
        logits: Tensor = self.model(x, words, l_mask.unsqueeze(-1))
        return logits


class PairSegmenter(TapSegmenter):
    """The segmenter of :class:`LavtWithBert`, which gives the two back as they came."""

    def release(self) -> tuple[nn.Module, nn.Module]:  # type: ignore[override]
        """Take every hook off and return ``(model, text_encoder)``, the very objects."""
        pair = super().release()
        return pair.model, pair.text_encoder  # type: ignore[return-value]
