"""What a user names of a host: its modules, and the arguments of its ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from masksd.hosts.arguments import Argument
from masksd.hosts.layout import Function, Place
from masksd.tapping.kinds import TableTap, TapGroup, table_at
from masksd.tapping.modules import check_not_compiled, find_module
from masksd.tapping.tap import EmbeddingTap


class Embedding(NamedTuple):
    """What is stated of one embedding."""

    path: str
    width: int | None
    prefix: int
    channels_first: bool | None


@dataclass(frozen=True)
class Taps:
    """Where things happen in a host: module paths, and arguments of its ``forward``.

    **Modules** are dotted paths. Those of ``logits`` and of features may end in ``:KEY`` where a
    module returns a tuple, list, dictionary or object: the index, key or attribute of the tensor,
    ``:KEY:KEY`` where they are nested. ``":KEY"`` alone is a part of the host's own output. Where
    no key leads to the tensor, a function makes it: of the host's output, or, with
    ``("PATH", function)``, of a module's.

    **Arguments** are positions or names. ``"batch:images"`` is a part of one, and a function of
    the whole call, ``lambda batch: torch.stack([each["ids"] for each in batch])``, makes any other.

    Attributes:
        image_embedding: module that embeds patches, or any early map of the image; its output is
            where patches are masked. A tuple names one in each of several image towers.
        text_embedding: module that embeds words, before positions, or a parameter ``(V, C)`` in
            which they are looked up; a tuple names several. None where the text branch is off.
        logits: where the mask's logits are, ``(B, 1 or 2, H, W)`` or ``(B, H, W)``, with their
            gradient. ``""``, the default, is the host's output; name a module only where that is
            detached, probabilities or post-processed. A target is resized to these logits.
        images: argument with the images ``(B, 3, H, W)``; None takes their size from the map that
            the first image embedding is given, for hosts that take lists or objects.
        tokens: argument with the ids ``(B, L)``.
        valid: the real words, which may be masked: an argument (nonzero is real), or a function
            that takes the ids and returns bool ``(B, L)``, such as
            :func:`masksd.hosts.bert_words`. The text branch needs it: it is never guessed.
        target: argument with the truth, where the host takes it; a call may leave it out.
        loss: where in the host's output its own loss is, as ``":2"`` or ``":loss"``, or a function
            of the output, as ``lambda losses: sum(losses.values())``; ``""`` where that is all it
            returns; None where it computes none. Used in training only, since many hosts return
            something else in evaluation.
        patches: module whose output describes the patches, for relevance by dot or projection.
        sentence: module whose output is the sentence's vector ``(B, C)``.
        words: module whose output describes the words, ``(B, L, C)``.
        image_vector: module whose output is the image's vector ``(B, C)``.
        shared_space: whether those four share one space, so that their dot products mean something.
        cell: side in pixels of the cells that are masked as one; None takes the patches of the
            image embedding where they are 8 pixels or more, else 32 (CNN stems, Swin); for images
            below 256 pixels, an eighth of the shorter side.
        image_width: channels of the image embedding, where the module does not state them. For
            several embeddings, this and the next three are tuples.
        text_width: channels of the text embedding, likewise.
        channels_first: whether the image embedding's four dimensions are ``(B, C, h, w)``; needed
            only where neither the type of the module nor ``image_width`` decides it.
        prefix: tokens of the image embedding before the patches, such as a class token.
        image_only: modules that see no words, such as an image tower. They run in the plain pass;
            where only words are masked, their outputs are replayed, with their graph. Each runs
            once a pass, and the host does not write into what they gave. ``sd.describe(*inputs)``
            proposes them, and the first step checks them.
        text_only: modules that see no image, such as BERT; replayed where only patches are masked.
        pictures: where a call brings fewer pictures than sentences: argument with the number of
            the picture of each sentence, int64 ``(B,)``. Sentences of one picture share the mask
            that is drawn for the first of them. What has a row for each picture, and not for each
            sentence, is told by its length.
        in_parts: whether the host runs named modules several times in a pass, for some samples of
            the batch each time and in their order: a loop over samples.

    Example:
        >>> Taps("backbone.patch_embed", "bert.embeddings.word_embeddings", valid="mask").cell
    """

    image_embedding: str | tuple[str, ...]
    text_embedding: str | tuple[str, ...] | None = None
    logits: Place = ""
    images: Argument | None = 0
    tokens: Argument = 1
    valid: int | str | Callable[[Tensor], Tensor] | None = None
    target: Argument | None = None
    loss: str | Function | None = None
    patches: Place | None = None
    sentence: Place | None = None
    words: Place | None = None
    image_vector: Place | None = None
    shared_space: bool = False
    cell: int | None = None
    image_width: int | tuple[int | None, ...] | None = None
    text_width: int | tuple[int | None, ...] | None = None
    channels_first: bool | tuple[bool | None, ...] | None = None
    prefix: int | tuple[int, ...] = 0
    image_only: tuple[str, ...] = ()
    text_only: tuple[str, ...] = ()
    pictures: Argument | None = None
    in_parts: bool = False

    def embeddings(self, modality: str) -> Iterator[Embedding]:
        """Give what is stated of each embedding of a modality."""
        named = getattr(self, f"{modality}_embedding")
        paths = (named,) if not isinstance(named, tuple | list) else tuple(named)
        widths = self._each(f"{modality}_width", len(paths))
        prefixes, first = [0] * len(paths), [None] * len(paths)
        if modality == "image":
            prefixes = self._each("prefix", len(paths))
            first = self._each("channels_first", len(paths))
        yield from map(Embedding, paths, widths, prefixes, first)

    def _each(self, field: str, number: int) -> list[Any]:
        value = getattr(self, field)
        if not isinstance(value, tuple | list):
            return [value] * number
        if len(value) != number:
            raise ValueError(f"{field} must have an entry for each of {number} embeddings: {value}")
        return list(value)


def tap_embeddings(
    host: nn.Module, taps: Taps, modality: str
) -> tuple[EmbeddingTap | TapGroup, list[tuple[EmbeddingTap, nn.Module]]]:
    """Make the taps of a modality's embeddings, each with its module; nothing is touched yet."""
    found: list[tuple[EmbeddingTap, nn.Module]] = []
    field = f"{modality}_embedding"
    for path, width, prefix, first in taps.embeddings(modality):
        owner = table_at(host, path) if modality == "text" and isinstance(path, str) else None
        if owner is not None:
            found.append((TableTap(owner, path, in_parts=taps.in_parts), owner))
            continue
        module = find_module(host, path, field)
        if any(module is other for _, other in found):
            raise ValueError(f"{field} names {path} twice: {[tap.path for tap, _ in found]}")
        check_not_compiled(host, module, path)
        tap = EmbeddingTap(
            module, path, width=width, channels_first=first, prefix=prefix, in_parts=taps.in_parts
        )
        found.append((tap, module))
    members = [tap for tap, _ in found]
    if not members:
        raise ValueError(f"{field} is empty: name at least one module")
    return members[0] if len(members) == 1 else TapGroup(members), found
