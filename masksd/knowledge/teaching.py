"""The losses of a plain pass against that of a teacher that was trained before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.knowledge.config import ChannelDistillConfig
from masksd.knowledge.losses import channel_loss, channel_wise_loss, logits_loss, relation_loss
from masksd.passes.teacher import Teacher
from masksd.segmenter import Pass, Segmenter
from masksd.tapping.modules import try_out


class Knowledge(nn.Module):
    """A teacher that is given, and what a student's plain pass is asked to share with it.

    The teacher moves with this module from device to device, but is none of its parts: it is in no
    state, no list of parameters and no optimiser. An ``example`` must fit before it is frozen.
    """

    def __init__(
        self,
        student: Segmenter,
        teacher: Segmenter,
        config: ChannelDistillConfig,
        example: tuple[Any, ...] | None,
    ) -> None:
        super().__init__()
        self.config, self.weights = config, config.weights()
        self.embedding: nn.Parameter | None = None
        if example is not None:
            ours, theirs = (try_out(each, each.plain, example) for each in (student, teacher))
            if "channel" in self.weights:
                width, wanted = (
                    _patches(who, each).shape[-1]
                    for who, each in (("student", ours), ("teacher", theirs))
                )
                self.embedding = _embedding(width, wanted, config.seed)
            with torch.no_grad():
                self.losses(ours, theirs)
        self._teacher = (Teacher(teacher, None),)  # a tuple, which registers nothing

    @property
    def teacher(self) -> Teacher:
        """The teacher, frozen and in evaluation mode."""
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Knowledge:
        """Take the teacher along to another device or dtype."""
        self.teacher._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def forward(
        self, plain: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Run the teacher on what the student was given; return the losses, unweighted."""
        return self.losses(plain, self.teach(args, kwargs))

    def teach(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        """Run the teacher; ``target`` is left out where it takes none."""
        if not self.teacher.segmenter.takes("target"):
            kwargs = {name: value for name, value in kwargs.items() if name != "target"}
        return self.teacher.plain(args, kwargs)

    def losses(self, ours: Pass, theirs: Pass) -> dict[str, Tensor]:
        """Compare two plain passes, the student's and the teacher's."""
        found = {"relation": self._relation, "channel": self._channel, "logits": self._logits}
        return {name: found[name](ours, theirs) for name in self.weights}

    def _relation(self, ours: Pass, theirs: Pass) -> Tensor:
        student, teacher = _related("student", ours), _related("teacher", theirs)
        _check_learns("patches and words", ours, student)
        if student[1].shape[1] != teacher[1].shape[1]:
            raise ValueError(
                f"the student reads {student[1].shape[1]} words and the teacher "
                f"{teacher[1].shape[1]}: relations are compared word by word, so both have to see "
                "the same tokens; use a teacher with the student's tokenizer, or lambda_relation=0"
            )
        valid = ours.text.valid & theirs.text.valid
        grids = ours.image.grid, theirs.image.grid
        return relation_loss(student, teacher, valid, grids, self.config.share)

    def _channel(self, ours: Pass, theirs: Pass) -> Tensor:
        student, teacher = _patches("student", ours), _patches("teacher", theirs)
        _check_learns("patches", ours, (student,))
        if self.embedding is not None:
            student = F.linear(student, self.embedding.to(student.dtype))
        if self.config.kind == "cwd":
            grids = ours.image.grid, theirs.image.grid
            return channel_wise_loss(student, teacher, grids, self.config.temperature)
        if self.config.kind == "icd":
            return channel_loss(student, teacher)
        return channel_loss(student, teacher, self.config.share, weighted=True)

    def _logits(self, ours: Pass, theirs: Pass) -> Tensor:
        return logits_loss(ours.logits, theirs.logits, self.config.temperature)

    def describe(self) -> list[str]:
        """Say what is matched, on what, and what is added."""
        parts = ", ".join(f"{name!r} with weight {w:g}" for name, w in self.weights.items())
        half = f", on a share of {self.config.share:g}" if self.config.kind == "cross-modal" else ""
        teacher = self.teacher.segmenter
        size = sum(parameter.numel() for parameter in teacher.parameters())
        width = ""
        if self.embedding is not None:
            theirs, ours = self.embedding.shape
            width = f"; an embedding takes the student's {ours} channels to {theirs}, in training"
        return [
            f"  learns from a teacher ({self.config.kind}): {parts}{half}{width}",
            f"    the teacher: {teacher.kind}, {size:,} parameters, frozen and in no state; one "
            "more forward a step, without backward",
        ]


def _embedding(ours: int, theirs: int, seed: int) -> nn.Parameter | None:
    """Draw a map of the student's channels to the teacher's by the seed alone, if they differ."""
    if ours == theirs:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(theirs, ours, generator=generator, device="cpu", dtype=torch.float32)
    return nn.Parameter(drawn / ours**0.5)


def _patches(who: str, plain: Pass) -> Tensor:
    if plain.image.local is None:
        raise _without_features(who, "patches")
    return plain.image.local


def _related(who: str, plain: Pass) -> tuple[Tensor, Tensor]:
    patches, words, valid = _patches(who, plain), plain.text.local, plain.text.valid
    if words is None:
        raise _without_features(who, "words")
    if valid.shape[1] != words.shape[1]:
        raise ValueError(
            f"the {who} describes {words.shape[1]} words and marks {valid.shape[1]} as real or "
            "not: name the argument or callable that marks them, Taps(valid=...)"
        )
    if patches.shape[-1] != words.shape[-1]:
        raise ValueError(
            f"the {who}'s patches have {patches.shape[-1]} channels and its words "
            f"{words.shape[-1]}, which have no cosine: name the modules that project them into one "
            "space, Taps(patches=..., words=...), or leave relations out, lambda_relation=0"
        )
    return patches, words


def _check_learns(what: str, plain: Pass, features: tuple[Tensor, ...]) -> None:
    """Refuse features of a student that no gradient would pass."""
    if plain.logits.requires_grad and not any(each.requires_grad for each in features):
        raise ValueError(
            f"the student's {what} carry no gradient, so it would learn nothing from the teacher "
            "there: train what makes them, name other modules in Taps, set the loss's weight to "
            "0, or use kind='logits'"
        )


def _without_features(who: str, what: str) -> ValueError:
    return ValueError(
        f"the {who} names no features of {what} to compare: wrap it with "
        "taps=masksd.Taps(patches=..., words=..., ...), the modules that describe patches and "
        "words, or use kind='logits' (--knowledge.kind logits)"
    )
