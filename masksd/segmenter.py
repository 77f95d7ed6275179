"""The seam between masked self-distillation and a segmentation model.

A :class:`Segmenter` runs a model once plainly and again with some tokens masked.
:class:`masksd.Triple` makes one from an encoder, a neck and a decoder, :mod:`masksd.hosts` from a
whole model.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from masksd.features import FeatureCut as FeatureCut
from masksd.features import Given as Given
from masksd.features import ImageFeatures as ImageFeatures
from masksd.features import Pass as Pass
from masksd.features import TextFeatures as TextFeatures
from masksd.tapping.embeddings import TokenMask
from masksd.tapping.hooks import WRAPPER_COPIED, CutPoint, Hook, Recorder
from masksd.tapping.kinds import TapGroup
from masksd.tapping.replay import Replay
from masksd.tapping.tap import EmbeddingTap, LateMask

T = TypeVar("T")


class Segmenter(nn.Module):
    """A model as masked self-distillation sees it; owns the taps and every hook.

    A subclass checks its host, calls :meth:`attach` once everything has matched, and says how a
    plain and a masked pass run. Nothing but hooks is ever added to the host.

    Args:
        host: the model, kept as ``wrapped``; None for a subclass that keeps its parts itself.

    Attributes:
        kind: who was recognised, in words.
        sources: where ``"logits"``, ``"loss"`` and ``"words"`` come from, in words.
        taps: where masks enter, by modality, ``"image"`` and ``"text"``: a tap or a group of them.
        shared_space: whether patches, words and pooled vectors share one space, so that dot
            products rank.
        splits: whether a pass can be cut to its first samples: every input of the batch's length
            is known.
        cell: side in pixels of the cells that are masked as one, where the user states it.
        reruns: what a masked pass of a modality computes again and what it reuses, in words.
        notes: what else a user should know, for ``describe()``.
        moving: buffers of the host that its own forward changes, found as it runs.
    """

    kind: str = "a segmenter of your own"
    sources: Mapping[str, str] = MappingProxyType({})
    shared_space: bool = False
    splits: bool = False
    cell: int | None = None
    reruns: Mapping[str, str]
    notes: Sequence[str] = ()

    def __init__(self, host: nn.Module | None = None) -> None:
        super().__init__()
        self.taps: dict[str, Any] = {}
        self._hooks: list[tuple[Hook, nn.Module]] = []
        self._watched: list[tuple[nn.Module, str]] = []
        self.moving: set[tuple[nn.Module, str]] = set()
        if host is not None:
            self.wrapped: Any = host
            self._arguments = frozenset(inspect.signature(host.forward).parameters)

    def attach(self, hooks: Sequence[tuple[Hook, nn.Module]]) -> None:
        """Register hooks, each on its module."""
        for hook, module in hooks:
            hook.attach(module)
        self._hooks += hooks
        self._watched = [
            (module, name)
            for module in self.modules()
            if not isinstance(module, nn.modules.batchnorm._NormBase)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def takes(self, argument: str) -> bool:
        """Whether the model itself has an argument of this name."""
        return argument in self._arguments

    def with_target(self, target: Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Hand the truth on to a model that has an argument of this name."""
        if target is None or not self.takes("target"):
            return kwargs
        return {**kwargs, "target": target}

    def host(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model exactly as if it were not wrapped."""
        return self.wrapped(*args, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run the model and keep what the masked passes need."""
        raise NotImplementedError(f"{type(self).__name__} must say how a plain pass runs")

    def given(self, *args: Any, **kwargs: Any) -> Given:
        """Return the images and the real words of a call; ``one_pass`` alone asks."""
        raise ValueError(
            f"one_pass=True masks before the model has run, and {type(self).__name__} cannot say "
            "what a call brings: give it a method given(...) that returns masksd.segmenter.Given"
        )

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Return the logits ``(B, 1 or 2, H, W)``, recomputing only what the masks change.

        ``parts`` are the ``neck`` and ``decoder`` of a branch that does not share them.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how a masked pass runs")

    def release(self) -> Any:
        """Take every hook off and return the model as it came."""
        for hook, module in self._hooks:
            hook.remove(module)
        return getattr(self, "wrapped", None)

    @property
    def root(self) -> nn.Module:
        """The module that the paths of the taps start from."""
        return self.wrapped

    def tapped(self, modality: str | None = None) -> list[tuple[EmbeddingTap, nn.Module]]:
        """Return every tap, or those of a modality, with the module that it was attached to."""
        found = [(hook, module) for hook, module in self._hooks if isinstance(hook, EmbeddingTap)]
        if modality is None:
            return found
        tap = self.taps[modality]
        members = tap.members if isinstance(tap, TapGroup) else [tap]
        return [(hook, module) for hook, module in found if any(hook is each for each in members)]

    def replayed(self) -> list[tuple[Replay, nn.Module]]:
        """Return what replays modules that see one modality, each with its module."""
        return [(hook, module) for hook, module in self._hooks if isinstance(hook, Replay)]

    @contextlib.contextmanager
    def watching_buffers(self) -> Iterator[None]:
        """Find out which buffers the pass inside changes, in place or by another tensor."""
        if torch.compiler.is_compiling():
            yield
            return
        places = self._watched
        before = [_state(module._buffers[name]) for module, name in places]
        yield
        for place, was in zip(places, before, strict=True):
            if _state(place[0]._buffers[place[1]]) != was:
                self.moving.add(place)

    @contextlib.contextmanager
    def keeping_buffers(self, every: bool = False) -> Iterator[None]:
        """Run the pass inside on copies of the host's buffers, and discard them.

        By default only buffers that a plain pass was seen to change are copied. ``every`` copies
        all, and so does compiled code, which cannot look.
        """
        every = every or torch.compiler.is_compiling()
        places = self._watched if every else list(self.moving)
        originals = [module._buffers[name] for module, name in places]
        for (module, name), buffer in zip(places, originals, strict=True):
            if buffer is not None:
                setattr(module, name, buffer.clone())
        try:
            yield
        finally:
            for (module, name), buffer in zip(places, originals, strict=True):
                setattr(module, name, buffer)

    @contextlib.contextmanager
    def masking(
        self, image: TokenMask | LateMask | None, text: TokenMask | None, place: Any = None
    ) -> Iterator[None]:
        """Mask what is given while the model runs inside.

        ``place`` is that of the image embedding, or a list of those of a group.
        """
        with contextlib.ExitStack() as stack:
            for modality, mask in (("image", image), ("text", text)):
                if mask is not None:
                    where = place if modality == "image" else None
                    stack.enter_context(self.taps[modality].masking(mask, where))
            yield

    def recording(self) -> contextlib.AbstractContextManager[Any]:
        """Let every recorder record, and every tap observe, the one pass that runs inside."""
        recorders = [hook.recording() for hook in self._of_kind(Recorder)]
        return self._entered(
            iter([*recorders, *(tap.observing() for tap in self._of_kind(EmbeddingTap))])
        )

    def cutting(self, cut: FeatureCut) -> contextlib.AbstractContextManager[Any]:
        """Have plain passes inside hand their features to ``cut`` and go on with what it returns.

        A segmenter that reuses no features between passes does nothing.
        """
        hooks: list[CutPoint | Replay] = [*self._of_kind(CutPoint), *self._of_kind(Replay)]
        return self._entered(hook.cutting(cut) for hook in hooks)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Segmenter:
        """Copy the model together with its hooks; a copy of the model alone gets inert ones."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo[WRAPPER_COPIED] = True
        for hook, _ in self._hooks:  # the host may have been copied before its segmenter
            memo.pop(id(hook), None)
        try:
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        finally:
            del memo[WRAPPER_COPIED]
        for hook, module in copied._hooks:
            hook.remove(module)
            hook.attach(module)
        return copied

    def _of_kind(self, kind: type[T]) -> list[T]:
        return [hook for hook, _ in self._hooks if isinstance(hook, kind)]

    @staticmethod
    def _entered(
        contexts: Iterator[contextlib.AbstractContextManager[Any]],
    ) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for context in contexts:
            stack.enter_context(context)
        return stack


def _state(buffer: Tensor | None) -> tuple[int, int]:
    """Identity of a buffer and number of its in-place writes."""
    return id(buffer), -1 if buffer is None or buffer.is_inference() else buffer._version


def tensors_of(output: Any) -> list[Tensor]:
    """List the tensors of an output, and of objects in it that pytrees cannot look into."""
    return [
        value
        for leaf in tree_leaves(output)
        for value in (
            [leaf] if isinstance(leaf, Tensor) else getattr(leaf, "__dict__", {}).values()
        )
        if isinstance(value, Tensor)
    ]


def check_containers(features: Any, option: str) -> None:
    """Refuse tensors in objects that pytrees cannot look into; ``option`` has to find them all."""
    for leaf in tree_leaves(features):
        if not isinstance(leaf, Tensor) and tensors_of(leaf):
            raise ValueError(
                f"{option} has to find every tensor of the features, but a {type(leaf).__name__} "
                "hides some: return tuples, lists or dictionaries, or register the class with "
                "torch.utils._pytree.register_pytree_node"
            )
