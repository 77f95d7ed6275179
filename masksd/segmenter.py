"""The seam between masked self-distillation and a segmentation model.

A :class:`Segmenter` runs a model once plainly and again with some tokens masked.
:class:`masksd.Triple` is the one for an encoder, a neck and a decoder; :mod:`masksd.hosts` has
those for whole models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from masksd.tap import EmbeddingTap, TokenMask


class ImageFeatures(NamedTuple):
    """What an image encoder returns (``V_local, v_global`` of Eq. 1).

    Attributes:
        local: one vector a patch, ``(B, N, C)``, in row-major order of ``grid``; None where a host
            has none to rank by.
        grid: rows and columns of the patches, ``h * w == N``.
        pooled: one vector a picture, ``(B, C)``, in the space of the words; None where there is
            none.
        maps: what the neck takes, anything.
    """

    local: Tensor | None
    grid: tuple[int, int]
    pooled: Tensor | None = None
    maps: Any = None


class TextFeatures(NamedTuple):
    """What a text encoder returns (``W_local, w_global`` of Eq. 1).

    Attributes:
        local: one vector a token, ``(B, L, C)``; None where a host has none to rank by.
        pooled: one vector a sentence, ``(B, C)``, in the space of the patches; None where there is
            none.
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
    """One plain pass through a segmenter: what it found, and what a masked pass can reuse.

    Attributes:
        logits: ``(B, 1, H, W)`` before the sigmoid, or ``(B, 2, H, W)`` of background and
            foreground before the softmax.
        image: the picture's features.
        text: the sentence's features.
        host_output: what the model itself returned.
        inputs: what the model was given, to run a part of it again.
        loss: the model's own segmentation loss, 0-d, where it computes one.
        target: the truth that the model was given, ``(B, h, w)`` or ``(B, 1, h, w)``, if it was.
    """

    logits: Tensor
    image: ImageFeatures
    text: TextFeatures
    host_output: Any
    inputs: tuple[Any, ...]
    loss: Tensor | None = None
    target: Tensor | None = None


class FeatureCut(Protocol):
    """What stands between the encoders and the rest while a plain pass is cut."""

    def __call__(self, modality: str, features: Any) -> Any:
        """Return what takes the place of a modality's features, any tree of tensors."""


class Segmenter(Protocol):
    """A model as masked self-distillation sees it. Implementations are ``nn.Module``."""

    @property
    def taps(self) -> Mapping[str, EmbeddingTap]:
        """Where masks enter, by modality, ``"image"`` and ``"text"``."""

    @property
    def shared_space(self) -> bool:
        """Whether patches, words and pooled vectors live in one space, so that dots rank."""

    @property
    def reruns(self) -> Mapping[str, str]:
        """What a masked pass of a modality computes and what it reuses, in words."""

    @property
    def splits(self) -> bool:
        """Whether a pass can be cut to its first samples: nothing else is of a batch's length."""

    def takes(self, argument: str) -> bool:
        """Whether the model itself has an argument of this name."""

    def host(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model exactly as if it were not wrapped."""

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run the model and keep what the masked passes need."""

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Return the logits ``(B, 1, H, W)`` with tokens masked, computing only what changes.

        ``parts`` are the ``neck`` and ``decoder`` of a branch that does not share them.
        """

    def cutting(self, cut: FeatureCut) -> contextlib.AbstractContextManager[None]:
        """Have every plain pass inside hand its features to ``cut`` and go on with what it returns.

        A segmenter that reuses no features between passes does nothing.
        """

    def release(self) -> Any:
        """Take every hook off and return the model as it came."""


def check_wrappable(module: nn.Module, name: str) -> None:
    """Refuse a module whose hooks would be ignored, or whose passes would not be seen as one step.

    Args:
        module: what is to be wrapped.
        name: the user's name for it, for the message.

    Raises:
        ValueError: no module, or one that is compiled or distributed already.

    Example:
        >>> check_wrappable(nn.ReLU(), "neck")
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"{name} must be an nn.Module, got {type(module).__name__}")
    kind = type(module).__name__
    if is_compiled(module):
        raise ValueError(
            f"{name} is compiled, and hooks added now would be ignored: wrap the bare model first, "
            "then torch.compile(sd)"
        )
    if kind in ("DistributedDataParallel", "DataParallel") or kind.startswith("FSDP"):
        raise ValueError(
            f"{name} is a {kind}: wrap the bare model first, then distribute sd, so that all "
            "passes run inside one forward"
        )


def check_containers(features: Any, option: str) -> None:
    """Refuse features inside objects that cannot be looked into.

    Args:
        features: any tree.
        option: what has to find every tensor, for the message.

    Raises:
        ValueError: an object that holds tensors and is no tuple, list or dictionary.

    Example:
        >>> check_containers([{"map": 1}], "low_memory=True")
    """
    for leaf in tree_leaves(features):
        held = () if isinstance(leaf, Tensor) else getattr(leaf, "__dict__", {}).values()
        if any(isinstance(value, Tensor) for value in held):
            raise ValueError(
                f"{option} has to find every tensor of the features, but a {type(leaf).__name__} "
                "hides some: return tuples, lists or dictionaries, or register the class with "
                "torch.utils._pytree.register_pytree_node"
            )


def is_compiled(module: nn.Module) -> bool:
    """Say whether hooks added now would be ignored.

    Example:
        >>> import torch
        >>> is_compiled(nn.ReLU()), is_compiled(torch.compile(nn.ReLU()))
        (False, True)
    """
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
