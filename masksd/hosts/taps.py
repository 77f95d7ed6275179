"""What a user names of a host: its modules, and the arguments of its ``forward``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """Where things happen in a host: dotted module paths and arguments of its ``forward``.

    Paths of ``logits`` and of features may end in ``:KEY`` where a module returns a tuple, list,
    dictionary or object: the index, key or attribute of the tensor, ``:KEY:KEY`` where they are
    nested. ``":KEY"`` alone is a part of the host's own output.

    Attributes:
        image_embedding: module that embeds patches, or any early map of the image; its output is
            where patches are masked.
        text_embedding: module that embeds words, before positions; None where the text branch is
            off.
        logits: where the mask's logits are, ``(B, 1 or 2, H, W)`` or ``(B, H, W)``, with their
            gradient. ``""``, the default, is the host's output; name a module only where that is
            detached, probabilities or post-processed. A target is resized to these logits.
        images: argument with the images ``(B, 3, H, W)``: a position or a name.
        tokens: argument with the ids ``(B, L)``.
        valid: the real words, which may be masked: an argument (nonzero is real), or a callable
            that takes the ids and returns bool ``(B, L)``, such as
            :func:`masksd.hosts.bert_words`. The text branch needs it: it is never guessed.
        target: argument with the truth, where the host takes it; a call may leave it out.
        loss: where in the host's output its own loss is, as ``":2"`` or ``":loss"``; ``""`` where
            that is all it returns; None where it computes none. Used in training only, since many
            hosts return something else in evaluation.
        patches: module whose output describes the patches, for relevance by dot or projection.
        sentence: module whose output is the sentence's vector ``(B, C)``.
        words: module whose output describes the words, ``(B, L, C)``.
        image_vector: module whose output is the image's vector ``(B, C)``.
        shared_space: whether those four share one space, so that their dot products mean something.
        cell: side in pixels of the cells that are masked as one; None takes the patches of the
            image embedding where they are 8 pixels or more, else 32 (CNN stems, Swin); for images
            below 256 pixels, an eighth of the shorter side.
        image_width: channels of the image embedding, where the module does not state them.
        text_width: channels of the text embedding, where the module does not state them.
        channels_first: whether the image embedding's four dimensions are ``(B, C, h, w)``; needed
            only where neither the type of the module nor ``image_width`` decides it.
        prefix: tokens of the image embedding before the patches, such as a class token.
        image_only: modules that see no words, such as an image tower. They run in the plain pass;
            where only words are masked, their outputs are replayed, with their graph. Each runs
            once a pass and does not write into what it gave. ``sd.describe(*inputs)`` proposes
            them, and the first step checks them.
        text_only: modules that see no image, such as BERT; replayed where only patches are masked.

    Example:
        >>> Taps("backbone.patch_embed", "bert.embeddings.word_embeddings", valid="mask").cell
    """

    image_embedding: str
    text_embedding: str | None = None
    logits: str = ""
    images: int | str = 0
    tokens: int | str = 1
    valid: int | str | Callable[[Tensor], Tensor] | None = None
    target: int | str | None = None
    loss: str | None = None
    patches: str | None = None
    sentence: str | None = None
    words: str | None = None
    image_vector: str | None = None
    shared_space: bool = False
    cell: int | None = None
    image_width: int | None = None
    text_width: int | None = None
    channels_first: bool | None = None
    prefix: int = 0
    image_only: tuple[str, ...] = ()
    text_only: tuple[str, ...] = ()
