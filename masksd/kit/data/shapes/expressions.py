"""Expressions of the shapes data set: what they mean, and in which words.

The meaning is written once, in :func:`referents`; an expression is used for an object only if it
means that object and cannot reasonably be taken for another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from masksd.kit.data.shapes.scenes import COLORS, KINDS, SIZES, TEXTURES, Level, SceneObject

VARIANTS = ("", "+", "g")
PLACES = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below", "next to")
_MARGIN = 0.07  # by how much something must lie farther out, in fractions of the image
_NEARER = 1.4  # by which factor the nearest must be nearer than the second

_SHORT = {
    "plain": ("{np}", "the {np}"),
    "left": ("left {np}", "{np} on the left", "the {np} on the left"),
    "right": ("right {np}", "{np} on the right", "the {np} on the right"),
    "top": ("top {np}", "{np} at the top", "the {np} at the top"),
    "bottom": ("bottom {np}", "{np} at the bottom", "the {np} at the bottom"),
    "left of": ("{np} left of the {anchor}", "the {np} to the left of the {anchor}"),
    "right of": ("{np} right of the {anchor}", "the {np} to the right of the {anchor}"),
    "above": ("{np} above the {anchor}", "the {np} above the {anchor}"),
    "below": ("{np} below the {anchor}", "the {np} below the {anchor}"),
    "next to": ("{np} next to the {anchor}", "the {np} near the {anchor}"),
}
_LONG = {
    "plain": ("the {np} that is shown in this picture", "please look for the {np} in the picture"),
    "left": ("the {np} that is on the left side of the picture",),
    "right": ("the {np} that is on the right side of the picture",),
    "top": ("the {np} that is close to the top edge of the picture",),
    "bottom": ("the {np} that is close to the bottom edge of the picture",),
    "left of": ("the {np} that is to the left of the {anchor} in the picture",),
    "right of": ("the {np} that is to the right of the {anchor} in the picture",),
    "above": ("the {np} that is placed above the {anchor} in the picture",),
    "below": ("the {np} that is placed below the {anchor} in the picture",),
    "next to": ("the {np} that is very near the {anchor} in the picture",),
}


@dataclass(frozen=True)
class Expression:
    """What is said: attributes, and a place or a relation to an ``anchor`` of attributes alone."""

    kind: str | None
    color: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None
    relation: str | None = None
    anchor: Expression | None = None

    def noun_phrase(self) -> str:
        """Return the words of the attributes, such as ``"small red circle"``."""
        return " ".join(filter(None, (self.size, self.texture, self.color, self.kind)))


def referents(expression: Expression, objects: Sequence[SceneObject]) -> tuple[set[int], set[int]]:
    """Find the objects that an expression is clearly true of, and those it might be taken for.

    Attributes must hold exactly. A place means the object farthest out on that side, if it lies in
    that half of the image and clearly farther out than the rest. A direction means the objects that
    lie more in this direction from the anchor than across it; "next to" the one clearly nearest. An
    anchor that is not one object means nothing.
    """
    matching = {
        index
        for index, each in enumerate(objects)
        if expression.kind in (None, each.kind)
        and expression.color in (None, each.color)
        and expression.size in (None, each.size)
        and expression.texture in (None, each.texture)
    }
    if expression.place is not None:
        return _farthest_out(expression.place, matching, objects)
    if expression.relation is None:
        return matching, matching
    anchors = referents(expression.anchor, objects)[0] if expression.anchor else set()
    if len(anchors) != 1:
        return set(), matching
    (anchor,) = anchors
    others = matching - {anchor}
    if expression.relation == "next to":
        return _nearest(objects[anchor], others, objects)
    return _in_direction(expression.relation, objects[anchor], others, objects)


def unambiguous(expression: Expression, target: int, objects: Sequence[SceneObject]) -> bool:
    """Whether an expression means the target and nothing else, even read generously."""
    certain, possible = referents(expression, objects)
    return certain == possible == {target}


def draw_expressions(
    target: int, objects: Sequence[SceneObject], level: Level, variant: str, draw: random.Random
) -> list[tuple[Expression, str]]:
    """Draw two or three unambiguous expressions of different wording for an object, or none.

    Returns them with their sentences, in lower case. The level's weights choose between attributes,
    place and relation; variant ``"+"`` has no words of place, ``"g"`` long sentences.
    """
    wanted = draw.choice((2, 2, 3))
    templates = _LONG if variant == "g" else _SHORT
    found: dict[str, Expression] = {}
    for _ in range(12 * wanted):
        expression = _draw_expression(target, objects, level, variant, draw)
        if not unambiguous(expression, target, objects):
            continue
        choices = templates[expression.place or expression.relation or "plain"]
        anchor = expression.anchor.noun_phrase() if expression.anchor else ""
        sentence = draw.choice(choices).format(np=expression.noun_phrase(), anchor=anchor)
        found.setdefault(sentence, expression)
        if len(found) == wanted:
            break
    if len(found) < 2:
        return []
    return [(expression, sentence) for sentence, expression in found.items()]


def shapes_vocabulary() -> list[str]:
    """Return every word that a sentence of any level and variant can hold, in sorted order."""
    words = {*KINDS, *COLORS, *SIZES, *TEXTURES}
    for templates in (*_SHORT.values(), *_LONG.values()):
        for template in templates:
            words.update(template.format(np="", anchor="").split())
    return sorted(words)


def _draw_expression(
    target: int, objects: Sequence[SceneObject], level: Level, variant: str, draw: random.Random
) -> Expression:
    attributes = _draw_attributes(objects[target], level, draw)
    (means,) = draw.choices(("plain", "place", "relation"), level.means)
    if means == "plain" or (variant == "+" and means == "place"):
        return attributes
    if means == "place":
        return replace(attributes, place=draw.choice(PLACES))
    anchor = draw.choice([index for index in range(len(objects)) if index != target])
    relation = "next to" if variant == "+" else draw.choice(RELATIONS)
    named = _draw_attributes(objects[anchor], level, draw)
    return replace(attributes, relation=relation, anchor=named)


def _draw_attributes(item: SceneObject, level: Level, draw: random.Random) -> Expression:
    textured = len(level.textures) > 1
    return Expression(
        kind=item.kind,
        color=item.color if draw.random() < 0.85 else None,
        size=item.size if draw.random() < 0.15 else None,
        texture=item.texture if textured and draw.random() < 0.35 else None,
    )


def _outwards(place: str, item: SceneObject) -> float:
    """How far out an object lies on a side; positive in that half of the image."""
    offset = item.x - 0.5 if place in ("left", "right") else item.y - 0.5
    return -offset if place in ("left", "top") else offset


def _farthest_out(
    place: str, among: set[int], objects: Sequence[SceneObject]
) -> tuple[set[int], set[int]]:
    reach = {index: _outwards(place, objects[index]) for index in among}
    if len(among) < 2:  # nobody says where the only one is
        return set(), among
    best = max(reach.values())
    possible = {index for index, value in reach.items() if value > best - _MARGIN}
    return {index for index in possible if reach[index] > 0.02 and len(possible) == 1}, possible


def _nearest(
    anchor: SceneObject, among: set[int], objects: Sequence[SceneObject]
) -> tuple[set[int], set[int]]:
    distance = {
        index: math.hypot(objects[index].x - anchor.x, objects[index].y - anchor.y)
        for index in among
    }
    if not distance:
        return set(), set()
    best = min(distance.values())
    possible = {index for index, value in distance.items() if value < _NEARER * best}
    return {index for index in possible if best < 0.45 and len(possible) == 1}, possible


def _in_direction(
    relation: str, anchor: SceneObject, among: set[int], objects: Sequence[SceneObject]
) -> tuple[set[int], set[int]]:
    certain, possible = set(), set()
    for index in among:
        dx, dy = objects[index].x - anchor.x, objects[index].y - anchor.y
        along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
        if relation in ("left of", "above"):
            along = -along
        if along > _MARGIN and along > abs(across):
            certain.add(index)
        if along > 0:  # somebody may call anything on that side so
            possible.add(index)
    return certain, possible
