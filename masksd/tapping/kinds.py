"""Taps for what is not one module: several embeddings, or a table that no module looks up."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from masksd.tapping.embeddings import TokenMask
from masksd.tapping.modules import find_module
from masksd.tapping.tap import EmbeddingTap, LateMask, Place


class TapGroup:
    """Several embeddings of one modality, such as those of two image towers, masked together.

    The mask is drawn for the first and carried to the grids of the others. There is one learnable
    vector, with the channels of all of them in a row.
    """

    def __init__(self, members: Sequence[EmbeddingTap]) -> None:
        self.members = list(members)
        self.path = " and ".join(tap.path for tap in members)
        self.width = sum(tap.width for tap in members)

    @property
    def learns(self) -> bool | None:
        """Whether every member's token learns; None before it is known."""
        found = [tap.learns for tap in self.members]
        return None if None in found else all(found)

    @contextlib.contextmanager
    def masking(
        self, mask: TokenMask | LateMask, places: Sequence[Place] | None = None
    ) -> Iterator[None]:
        """Mask all of them inside; ``places`` has one for each."""
        start = 0
        with contextlib.ExitStack() as stack:
            for number, tap in enumerate(self.members):
                part = slice(start, start + tap.width)
                start += tap.width
                place = None if places is None else places[number]
                stack.enter_context(tap.masking(_with_channels(mask, part), place))
            yield


def _with_channels(mask: TokenMask | LateMask, part: slice) -> TokenMask | LateMask:
    """Return the mask with some channels of its token."""
    if isinstance(mask, TokenMask):
        return mask if mask.zero_input else mask._replace(token=mask.token[..., part])
    draw = mask

    def late(*args: Any) -> tuple[Any, tuple[int, int]]:
        drawn, grid = draw(*args)
        return _with_channels(drawn, part), grid

    return late


class TableTap(EmbeddingTap):
    """Masks the words that are looked up in a parameter ``(V, C)``, which no module embeds.

    It sees ``torch.nn.functional.embedding(ids, table)`` and ``table[ids]`` while a pass runs, and
    nothing in compiled code.
    """

    def __init__(self, owner: nn.Module, path: str, *, in_parts: bool = False) -> None:
        self.owner, self.name = owner, path.rpartition(".")[2]
        width = self.table.shape[-1]
        super().__init__(nn.Identity(), path, width=width, channels_first=False, in_parts=in_parts)

    @property
    def module_path(self) -> str:
        """The path of the owner."""
        return self.path.rpartition(".")[0]

    @property
    def table(self) -> nn.Parameter:
        """The parameter as it is now: distributed training replaces it."""
        return getattr(self.owner, self.name)

    def _unseen(self) -> str:
        return (
            f"no F.embedding(ids, {self.path}) and no {self.path}[ids] was seen in this pass: look "
            "words up in one of these ways, or keep them in an nn.Embedding"
        )

    def attach(self, module: nn.Module) -> None:
        """Take note of the owner; there is nothing to hook."""
        self.owner = module

    def remove(self, module: nn.Module) -> None:
        """Do nothing, as nothing was hooked."""

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Watch every call of torch inside, in this thread."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{self.path} is a parameter, and looking words up in it cannot be watched in "
                "compiled code: keep it in an nn.Embedding, or do not compile sd"
            )
        watched = self.acts()  # by a pass around this one
        with super().acting(), contextlib.nullcontext() if watched else _Lookups(self):
            yield

    def ids(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the ids that a call looks up in the table; None if it does something else."""
        if function is F.embedding:
            ids, table = (*args, *(kwargs.get(name) for name in ("input", "weight")[len(args) :]))[
                :2
            ]
        elif function is Tensor.__getitem__:
            table, ids = args
        else:
            return None
        looked_up = isinstance(ids, Tensor) and not ids.is_floating_point()
        return ids if table is self.table and looked_up and ids.dtype != torch.bool else None


class _Lookups(TorchFunctionMode):
    """Hands the words that are looked up in a table to its tap."""

    def __init__(self, tap: TableTap) -> None:
        super().__init__()
        self.tap = tap

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        ids = self.tap.ids(func, args, kwargs)
        if ids is None:
            return output
        if self.tap.masks and _in_checkpoint():
            raise RuntimeError(
                f"{self.tap.path} is a parameter and looked up inside a gradient-checkpointed "
                "region, where its mask would be gone in backward: look words up before it"
            )
        return self.tap(self.tap.owner, (ids,), output)


def _in_checkpoint() -> bool:
    """Whether what runs now will run again in backward."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == checkpoint.__code__.co_filename:
            return True
    return False


def table_at(host: nn.Module, path: str) -> nn.Module | None:
    """Return the module that has the parameter at a dotted path; None where there is none."""
    inside, _, name = path.rpartition(".")
    try:
        owner = find_module(host, inside, "text_embedding") if inside else host
    except ValueError:  # said better by whoever looks for a module there
        return None
    return owner if owner._parameters.get(name) is not None else None
