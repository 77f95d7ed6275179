"""What passes through a segmenter: features of images and sentences, and a whole pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class ImageFeatures(NamedTuple):
    """What an image encoder returns (``V_local, v_global`` of Eq. 1).

    Attributes:
        local: one vector for each patch, ``(B, N, C)``, in row-major order of ``grid``; None where
            a host has none to rank by.
        grid: rows and columns of the patches, ``h * w == N``.
        pooled: one vector for each image, ``(B, C)``, in the space of the words, or None.
        maps: what the neck takes, anything.
    """

    local: Tensor | None
    grid: tuple[int, int]
    pooled: Tensor | None = None
    maps: Any = None


class TextFeatures(NamedTuple):
    """What a text encoder returns (``W_local, w_global`` of Eq. 1).

    Attributes:
        local: one vector for each token, ``(B, L, C)``; None where a host has none to rank by.
        pooled: one vector for each sentence, ``(B, C)``, in the space of the patches, or None.
        valid: bool ``(B, L)``, True for real words only: no start, end or padding token. Only
            these are ever ranked and masked.
        attention_mask: bool ``(B, L)``, True for the tokens that the decoder may attend to (start
            and end tokens belong here); None means ``valid``.
    """

    local: Tensor | None
    pooled: Tensor | None
    valid: Tensor
    attention_mask: Tensor | None = None


class Pass(NamedTuple):
    """One plain pass through a segmenter: what came out, and what a masked pass can reuse.

    Attributes:
        logits: ``(B, 1, H, W)`` before the sigmoid, or ``(B, 2, H, W)`` of background and
            foreground before the softmax.
        image: the image's features.
        text: the sentence's features.
        host_output: what the model itself returned.
        inputs: what the model was given, so that a part of it can run again.
        loss: the model's own segmentation loss, 0-d, where it computes one.
        target: the truth that the model was given, ``(B, h, w)`` or ``(B, 1, h, w)``, if any.
        size: height and width of the images; ``MaskingConfig.cell`` alone asks.
        neck: how much the model's neck attends to each place, ``(B, 1, h, w)`` of any size, where
            it says; relevance ``"neck"`` alone asks.
        also: further logits that the truth teaches, by the name of their loss.
        pictures: where sentences share pictures, the number of the picture of each, int64
            ``(B,)``: they share its mask too.
    """

    logits: Tensor
    image: ImageFeatures
    text: TextFeatures
    host_output: Any
    inputs: tuple[Any, ...]
    loss: Tensor | None = None
    target: Tensor | None = None
    size: tuple[int, int] | None = None
    neck: Tensor | None = None
    also: Mapping[str, Tensor] | None = None
    pictures: Tensor | None = None


class Given(NamedTuple):
    """What a call brings, known without running the model."""

    size: tuple[int, int] | None  # None: that of what the tapped module is given
    valid: Callable[[], Tensor]  # gives bool (B, L), True for real words
    pictures: Tensor | None = None  # the picture of each sentence, (B,), where they share some


def first_of_picture(pictures: Tensor) -> Tensor:
    """Return for each sentence the first one of the same picture, both ``(B,)``."""
    return (pictures[:, None] == pictures).int().argmax(1)


def height_and_width(images: Tensor) -> tuple[int, int]:
    """Return the size of images ``(B, 3, H, W)``."""
    return images.shape[-2], images.shape[-1]


FeatureCut = Callable[[str, Any], Any]
"""Takes a modality and its features, any tree of tensors, and returns what goes on instead."""
