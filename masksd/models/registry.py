"""Models by name."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from masksd.errors import check_choice

Builder = Callable[..., Any]


class Shipped(NamedTuple):
    """A model of ours: its class, its sizes, and the published weights of its towers, if any."""

    model: str  # imported when it is built, because it loads transformers
    sizes: dict[str, Any]
    weights: tuple[str, ...] = ()


_TINY: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "vision_width": 96,
    "vision_layers": 3,
    "vision_heads": 4,
    "levels": 2,
    "vocab_size": 512,
    "max_length": 32,
    "text_width": 64,
    "text_layers": 2,
    "text_heads": 4,
    "projection": 64,
    "activation": "gelu",
    "neck_width": 40,
    "width": 64,
    "decoder_heads": 4,
    "head_width": 12,
    "norm": "group",
}

_MINI = {
    "vision_width": 48,
    "vision_layers": 2,
    "text_width": 32,
    "text_layers": 1,
    "projection": 32,
    "neck_width": 20,
    "width": 32,
    "head_width": 6,
}

SHIPPED = {
    # A student: half the width of the next one, two of its three image layers, one of two for text.
    "clip_cris_mini": Shipped("clip_cris:ClipCris", {**_TINY, **_MINI}),
    # Trains from scratch in minutes on two CPU cores, on images of 64 pixels.
    "clip_cris_tiny": Shipped("clip_cris:ClipCris", _TINY),
    # ViT-S/16 at 224 pixels and a small text tower: trains from scratch on one GPU.
    "clip_cris_vit_s16": Shipped(
        "clip_cris:ClipCris",
        {
            "image_size": 224,
            "vision_width": 384,
            "vision_heads": 6,
            "text_width": 256,
            "text_layers": 6,
            "text_heads": 4,
            "projection": 256,
            "activation": "gelu",
            "neck_width": 384,
            "width": 256,
            "head_width": 64,
        },
    ),
    # CLIP ViT-B/16 at 480 pixels: our reading of the model that the CM-MaskSD paper measures. The
    # paper gives 207 M parameters and 165.96 G multiply-adds (480 pixels, 17 tokens) and names
    # CLIP's encoders, "hierarchical" features, a neck and a decoder, but no layout. Ours: the two
    # towers unchanged (150 M, 93 G); their hidden states of layers 4 and 8 and their projected
    # output; neck (26 M, 23 G), decoder (13 M, 12 G) and text-to-pixel head (5 M, 26 G) of CRIS
    # with CRIS's own widths (1024, 512, 256). Together 194 M and 155 G.
    "clip_cris_vit_b16": Shipped("clip_cris:ClipCris", {}, ("openai/clip-vit-base-patch16",)),
    # CLIP ViT-L/14 at 532 pixels, as in the paper; CLIP's weights are those for 336 pixels.
    "clip_cris_vit_l14": Shipped(
        "clip_cris:ClipCris",
        {
            "image_size": 532,
            "patch_size": 14,
            "vision_width": 1024,
            "vision_layers": 24,
            "vision_heads": 16,
            "text_width": 768,
            "text_heads": 12,
            "projection": 768,
        },
        ("openai/clip-vit-large-patch14-336",),
    ),
    # The towers, decoder and head of their namesakes; the necks, of language-driven attention, have
    # 181 k parameters for CRIS's 195 k, and 26.3 M for 26.2 M.
    "clip_lda_tiny": Shipped("lda:ClipLda", {**_TINY, "neck_width": 48, "rates": (1, 2, 3)}),
    "clip_lda_vit_b16": Shipped("lda:ClipLda", {}, ("openai/clip-vit-base-patch16",)),
    # CRIS with CLIP's RN50 at 416 pixels; load_cris(path) takes published checkpoints of
    # CRIS.pytorch, with which it gives their logits.
    "clip_cris_rn50": Shipped("cris_resnet:ResNetCris", {}, ("RN50.pt",)),
    "clip_cris_rn101": Shipped(
        "cris_resnet:ResNetCris", {"blocks": (3, 4, 23, 3), "projection": 512}, ("RN101.pt",)
    ),
    # For tests and examples, on images of 64 pixels; without dropout.
    "lavt_tiny": Shipped(
        "lavt:Lavt",
        {
            "image_size": 64,
            "embed_width": 16,
            "depths": (1, 1, 2, 1),
            "heads": (1, 2, 4, 8),
            "window": 4,
            "drop_path": 0.0,
            "vocab_size": 512,
            "text_width": 32,
            "text_layers": 2,
            "text_heads": 2,
            "max_length": 32,
            "dropout": 0.0,
        },
    ),
    # LAVT at 480 pixels with the sizes of its paper: Swin-B with windows of 12, and BERT-base.
    # Checkpoints of other LAVTs do not fit, and no number of the paper is claimed.
    "lavt_swin_b": Shipped(
        "lavt:Lavt", {}, ("swin_base_patch4_window12_384.ms_in22k", "bert-base-uncased")
    ),
}

REVISIONS = {
    "openai/clip-vit-base-patch16": "57c216476eefef5ab752ec549e440a49ae4ae5f3",
    "openai/clip-vit-large-patch14-336": "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
}
"""Commits of repositories on the Hub that are taken where the user names none."""


def hub_source(source: str | Path) -> tuple[str, str]:
    """Split ``"name@revision"``; by default the revision is that of :data:`REVISIONS`, or "main".

    A folder stays as it is.
    """
    if Path(source).is_dir():
        return str(source), "main"
    name, _, revision = str(source).partition("@")
    return name, revision or REVISIONS.get(name, "main")


def _build(name: str, pretrained: bool = False, **overrides: Any) -> Any:
    """Build one of :data:`SHIPPED`, its sizes replaced by the overrides."""
    shipped = SHIPPED[name]
    model_class = pkgutil.resolve_name(f"masksd.models.{shipped.model}")
    config = model_class.config_class.from_dict({**shipped.sizes, **overrides})
    if pretrained:
        check_pretrained(name)
    model = model_class(config)
    if pretrained:
        model.load_towers(*map(_located, shipped.weights))
    return model


_BUILDERS: dict[str, Builder] = {name: functools.partial(_build, name) for name in SHIPPED}


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
        ['clip_cris_mini', 'clip_cris_rn101', 'clip_cris_rn50', ..., 'lavt_swin_b', 'lavt_tiny']
    """
    return sorted(_BUILDERS)


def create_model(name: str, pretrained: bool = False, **overrides: Any) -> Any:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        pretrained: take published weights for the two towers; the rest starts at random. They come
            from the Hugging Face Hub or its cache, those of CLIP's ResNets from
            ``~/.cache/clip/RN50.pt`` or ``RN101.pt``, where OpenAI's own loader leaves them.
        **overrides: fields of the model's config (:class:`masksd.models.ClipCrisConfig`,
            ``ClipLdaConfig``, ``ResNetCrisConfig`` or ``LavtConfig``) that replace the model's own,
            such as ``dropout=0.0``, ``image_size=576`` or ``vocab_size=...``.

    Returns:
        The model in train mode; initial weights are drawn from torch's global random stream.

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
    check_choice("model", name, _BUILDERS)
    return _BUILDERS[name](pretrained=pretrained, **overrides)


def check_pretrained(name: str) -> None:
    """Raise a ``ValueError`` at once where a model has no pretrained weights; download nothing."""
    check_choice("model", name, _BUILDERS)
    if name not in SHIPPED:
        return
    if not SHIPPED[name].weights:
        available = ", ".join(
            other for other in list_models() if other not in SHIPPED or SHIPPED[other].weights
        )
        raise ValueError(
            f"there are no pretrained weights for {name!r}; models that have them: {available}"
        )
    for weights in map(_located, SHIPPED[name].weights):
        if weights.endswith(".pt") and not Path(weights).is_file():
            raise ValueError(
                f"the weights of {name!r} are OpenAI's {Path(weights).name}: put it at {weights}, "
                "or call model.encoder.load_clip(path)"
            )


def _located(weights: str) -> str:
    """Where OpenAI's own loader leaves its archives; names on the Hub stay as they are."""
    return str(Path.home() / ".cache" / "clip" / weights) if weights.endswith(".pt") else weights
