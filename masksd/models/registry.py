"""Models by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksd.errors import unknown_name

if TYPE_CHECKING:  # building a model loads transformers, listing the names does not
    from masksd.models.clip_cris import ClipCris
    from masksd.models.cris_resnet import ResNetCris
    from masksd.models.lavt import Lavt

Builder = Callable[..., Any]
_BUILDERS: dict[str, Builder] = {}


def register_model(builder: Builder) -> Builder:
    """Register a builder under its own name, for :func:`create_model`.

    Args:
        builder: function ``(pretrained: bool = False, **overrides)`` that returns a model.

    Returns:
        The builder itself, so this serves as a decorator.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> @register_model
        ... def my_clip_cris(pretrained=False, **overrides):
        ...     return create_model("clip_cris_tiny", pretrained, **{"dropout": 0.0, **overrides})
        >>> create_model("my_clip_cris").config.dropout
        0.0
        >>> del _BUILDERS["my_clip_cris"]
    """
    if builder.__name__ in _BUILDERS:
        raise ValueError(f"a model named {builder.__name__!r} is registered already")
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """Names that :func:`create_model` takes, sorted.

    Example:
        >>> list_models()
        ['clip_cris_rn101', 'clip_cris_rn50', 'clip_cris_tiny', ..., 'lavt_swin_b', 'lavt_tiny']
    """
    return sorted(_BUILDERS)


def create_model(name: str, pretrained: bool = False, **overrides: Any) -> Any:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        pretrained: take CLIP's weights for the two towers (neck and decoder start at random); they
            come from the Hugging Face Hub or its cache.
        **overrides: fields of :class:`masksd.models.ClipCrisConfig` that replace the model's own,
            such as ``dropout=0.0``, ``image_size=576`` or ``vocab_size=...``.

    Returns:
        The model in train mode; initial weights are drawn from torch's global stream.

    Raises:
        ValueError: unknown name or option ("did you mean ..."), a value out of range, weights that
            do not exist, cannot be had or do not fit.

    Example:
        >>> create_model("clip_cris_tiny", dropout=0.0).config.image_size
        64
        >>> create_model("clip_cris_tny")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown model 'clip_cris_tny'; did you mean 'clip_cris_tiny'? Known: ...
    """
    if name not in _BUILDERS:
        raise unknown_name("model", name, _BUILDERS)
    return _BUILDERS[name](pretrained=pretrained, **overrides)


_WITHOUT_WEIGHTS = ("clip_cris_tiny", "clip_cris_vit_s16", "lavt_tiny")
_ARCHIVES = {"clip_cris_rn50": "RN50.pt", "clip_cris_rn101": "RN101.pt"}


def check_pretrained(name: str) -> None:
    """Raise a ``ValueError`` where a model's pretrained weights do not exist, at once.

    Whether they can be downloaded is not tried.

    Args:
        name: of the model.

    Example:
        >>> check_pretrained("clip_cris_tiny")
        Traceback (most recent call last):
        ValueError: there are no pretrained weights for 'clip_cris_tiny'; models that have them: ...
    """
    if name not in _BUILDERS:
        raise unknown_name("model", name, _BUILDERS)
    if name in _WITHOUT_WEIGHTS:
        having = ", ".join(other for other in list_models() if other not in _WITHOUT_WEIGHTS)
        raise ValueError(
            f"there are no pretrained weights for {name!r}; models that have them: {having}"
        )
    if name in _ARCHIVES and not _archive(name).is_file():
        raise ValueError(
            f"the weights of {name!r} are OpenAI's {_ARCHIVES[name]}: put it at {_archive(name)}, "
            "or call model.encoder.load_clip(path)"
        )


def _archive(name: str) -> Path:
    return Path.home() / ".cache" / "clip" / _ARCHIVES[name]


def _clip_cris(
    name: str,
    weights: str | None,
    pretrained: bool,
    overrides: dict[str, Any],
    **sizes: Any,
) -> ClipCris:
    """Build a :class:`ClipCris` of the given sizes, replaced by the overrides."""
    from masksd.models.clip_cris import ClipCris, ClipCrisConfig

    config = ClipCrisConfig.from_dict({**sizes, **overrides})
    if pretrained:
        check_pretrained(name)
    model = ClipCris(config)
    if pretrained and weights is not None:
        model.encoder.load_clip(weights)
    return model


@register_model
def clip_cris_tiny(pretrained: bool = False, **overrides: Any) -> ClipCris:
    """Small enough to be trained from scratch on two CPU cores in minutes, on 64-pixel pictures."""
    return _clip_cris(
        "clip_cris_tiny",
        None,
        pretrained,
        overrides,
        image_size=64,
        patch_size=8,
        vision_width=96,
        vision_layers=3,
        vision_heads=4,
        levels=2,
        vocab_size=512,
        max_length=32,
        text_width=64,
        text_layers=2,
        text_heads=4,
        projection=64,
        activation="gelu",
        neck_width=40,
        width=64,
        decoder_heads=4,
        head_width=12,
        norm="group",
    )


@register_model
def clip_cris_vit_s16(pretrained: bool = False, **overrides: Any) -> ClipCris:
    """ViT-S/16 at 224 pixels and a small text tower, to be trained from scratch on one GPU."""
    return _clip_cris(
        "clip_cris_vit_s16",
        None,
        pretrained,
        overrides,
        image_size=224,
        vision_width=384,
        vision_heads=6,
        text_width=256,
        text_layers=6,
        text_heads=4,
        projection=256,
        activation="gelu",
        neck_width=384,
        width=256,
        head_width=64,
    )


@register_model
def clip_cris_vit_b16(pretrained: bool = False, **overrides: Any) -> ClipCris:
    """CLIP ViT-B/16 at 480 pixels: our reading of the model that CM-MaskSD is measured on.

    The paper gives 207 M parameters and 165.96 G multiply-adds (480 pixels, 17 tokens) and names
    CLIP's encoders, "hierarchical" features, a neck and a decoder, but no layout. Ours: the two
    towers (150 M, 93 G) as they are; their hidden states of layers 4 and 8 and their projected
    output; neck (26 M, 23 G), decoder (13 M, 12 G) and text-to-pixel head (5 M, 26 G) of CRIS with
    CRIS's own widths (1024, 512, 256). Together 194 M and 155 G.
    """
    return _clip_cris("clip_cris_vit_b16", "openai/clip-vit-base-patch16", pretrained, overrides)


@register_model
def clip_cris_vit_l14(pretrained: bool = False, **overrides: Any) -> ClipCris:
    """CLIP ViT-L/14 at 532 pixels, as in the paper; CLIP's weights are those of 336 pixels."""
    return _clip_cris(
        "clip_cris_vit_l14",
        "openai/clip-vit-large-patch14-336",
        pretrained,
        overrides,
        image_size=532,
        patch_size=14,
        vision_width=1024,
        vision_layers=24,
        vision_heads=16,
        text_width=768,
        text_heads=12,
        projection=768,
    )


def _resnet_cris(
    name: str, pretrained: bool, overrides: dict[str, Any], **sizes: Any
) -> ResNetCris:
    """Build a :class:`ResNetCris`, with CLIP's towers where OpenAI's own loader leaves them."""
    from masksd.models.cris_resnet import ResNetCris, ResNetCrisConfig

    config = ResNetCrisConfig.from_dict({**sizes, **overrides})
    if pretrained:
        check_pretrained(name)
    model = ResNetCris(config)
    if pretrained:
        model.encoder.load_clip(_archive(name))
    return model


@register_model
def clip_cris_rn50(pretrained: bool = False, **overrides: Any) -> ResNetCris:
    """CRIS with CLIP's RN50 at 416 pixels; ``model.load_cris(path)`` takes published checkpoints.

    Given the weights of CRIS.pytorch it gives their logits. ``pretrained`` takes CLIP's towers from
    ``~/.cache/clip/RN50.pt``.
    """
    return _resnet_cris("clip_cris_rn50", pretrained, overrides)


@register_model
def clip_cris_rn101(pretrained: bool = False, **overrides: Any) -> ResNetCris:
    """CRIS with CLIP's RN101 at 416 pixels; see :func:`clip_cris_rn50`."""
    return _resnet_cris(
        "clip_cris_rn101",
        pretrained,
        overrides,
        blocks=(3, 4, 23, 3),
        projection=512,
    )


@register_model
def lavt_tiny(pretrained: bool = False, **overrides: Any) -> Lavt:
    """Small enough for tests and examples, on 64-pixel pictures; without dropout."""
    return _lavt(
        "lavt_tiny",
        pretrained,
        overrides,
        image_size=64,
        embed_width=16,
        depths=(1, 1, 2, 1),
        heads=(1, 2, 4, 8),
        window=4,
        drop_path=0.0,
        vocab_size=512,
        text_width=32,
        text_layers=2,
        text_heads=2,
        max_length=32,
        dropout=0.0,
    )


@register_model
def lavt_swin_b(pretrained: bool = False, **overrides: Any) -> Lavt:
    """LAVT at 480 pixels with the sizes of its paper: Swin-B with windows of 12, and BERT-base.

    ``pretrained`` takes Swin's ImageNet-22K weights from timm and BERT's from transformers; no
    checkpoint of another LAVT fits, and no number of the paper is claimed.
    """
    return _lavt("lavt_swin_b", pretrained, overrides)


def _lavt(name: str, pretrained: bool, overrides: dict[str, Any], **sizes: Any) -> Lavt:
    """Build a :class:`Lavt` of the given sizes, replaced by the overrides."""
    from masksd.models.lavt import Lavt, LavtConfig

    config = LavtConfig.from_dict({**sizes, **overrides})
    if pretrained:
        check_pretrained(name)
    model = Lavt(config)
    if pretrained:
        model.load_towers("swin_base_patch4_window12_384.ms_in22k", "bert-base-uncased")
    return model
