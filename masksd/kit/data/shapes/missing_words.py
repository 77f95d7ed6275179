"""Sentences of the shapes data set that lose words: as long as they name exactly one object.

The data set does not keep its scenes, and need not: its manifest says what they are drawn from.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from masksd.kit.data.records import DataError
from masksd.kit.data.shapes.build import FORMAT, MANIFEST, ShapesConfig, draw_sample
from masksd.kit.data.shapes.expressions import PLACES, Expression, unambiguous
from masksd.kit.data.shapes.scenes import COLORS, KINDS, SIZES, TEXTURES, SceneObject

_ATTRIBUTES = {
    word: name
    for name, words in (("size", SIZES), ("texture", TEXTURES), ("color", COLORS), ("kind", KINDS))
    for word in words
}
_RELATIONS = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "below": "below",
    "next": "next to",
    "near": "next to",
}
_sample = functools.lru_cache(maxsize=4096)(draw_sample)


def read_config(folder: Path) -> ShapesConfig | None:
    """Read what the data set of a folder was generated from; None if it was not generated."""
    path = folder / MANIFEST
    if not (folder / "refs(masksd).p").is_file() or not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, expected {FORMAT}")
        return ShapesConfig(**manifest["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); generate the data again") from None


def droppable_words(
    config: ShapesConfig, file_name: str, sentence: str, order: Sequence[int]
) -> list[int]:
    """Return the words that a sentence about a generated image can lose, all of them together.

    They come as positions in the given order. Without any number of them the sentence still names
    its object, and could not lose more: of several largest choices, the first in this order.
    """
    words = sentence.lower().rstrip(".").split()
    try:
        _, split, number = Path(file_name).stem.split("_")
        sample = _sample(config, split, int(number))
        (target,) = (
            target
            for target, found in sample.expressions.items()
            if " ".join(words) in (written for _, written in found)
        )
    except ValueError:
        raise DataError(
            f"{file_name}: the manifest of this shapes data set does not lead to {sentence!r}; "
            "generate the data again"
        ) from None
    return _droppable(words, target, sample.scene.objects, order)


def _droppable(
    words: Sequence[str], target: int, objects: Sequence[SceneObject], order: Sequence[int]
) -> list[int]:
    """Find the largest choice of words without which the sentence names its object.

    Whatever can be missing with others can be missing without them: so the choice is made of words
    that can be missing alone, and every part of it can be missing.
    """
    telling = [at for at in order if words[at] in {*_ATTRIBUTES, *_RELATIONS, *PLACES}]
    single = [at for at in telling if names_one(words, {at}, target, objects)]
    choices = (
        chosen for size in range(len(single), -1, -1) for chosen in combinations(single, size)
    )
    best = next(chosen for chosen in choices if names_one(words, chosen, target, objects))
    return [at for at in order if at in best or at not in telling]


def names_one(
    words: Sequence[str], missing: Collection[int], target: int, objects: Sequence[SceneObject]
) -> bool:
    """Whether a sentence without some of its words still names the target and nothing else.

    It does if what it says of attributes, place and relation leaves only the target, or if the
    attributes alone do. Where it names another object, too, the target's noun and the word of the
    relation must stay: without them, words of one would be taken for words of the other.
    """
    said = read_words(words, missing)
    if said.anchor is not None and (said.kind is None or said.relation is None):
        return False
    attributes = replace(said, place=None, relation=None, anchor=None)
    return any(unambiguous(each, target, objects) for each in (attributes, said))


def read_words(words: Sequence[str], missing: Collection[int] = ()) -> Expression:
    """Read a sentence back, without the words at some positions."""
    nouns: list[dict[str, Any]] = [{"kind": None}]
    where = None
    ended = related = False
    for at, word in enumerate(words):
        if word in _ATTRIBUTES:
            if ended and not related:  # a second noun phrase: that of the anchor
                related = True
                nouns.append({"kind": None})
            if at not in missing:
                nouns[-1][_ATTRIBUTES[word]] = word
            ended = ended or word in KINDS
        elif word in {*_RELATIONS, *PLACES} and at not in missing:
            where = word
    said = Expression(**nouns[0])
    if not related:
        return replace(said, place=where)
    relation = None if where is None else _RELATIONS[where]
    return replace(said, relation=relation, anchor=Expression(**nouns[1]))
