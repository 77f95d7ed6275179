"""How a module that sees one modality runs once a step, however many passes there are."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from masksd.tapping.hooks import WRAPPER_COPIED, Recorder, in_backward


class Replay(Recorder):
    """Keeps a module that sees one modality from running again where only the other is masked.

    It stands in for the module's ``forward``, since no hook can keep a module from running: in the
    plain pass it runs that and records, in :meth:`replaying` it gives the same tensors once more,
    with their graph, and elsewhere it only passes on.
    """

    live: bool  # a copy of the model alone has others

    def __init__(self, module: nn.Module, path: str, modality: str) -> None:
        super().__init__(path)
        stands = module.__dict__.get("forward")
        if isinstance(stands, Replay) and stands.live:
            raise ValueError(
                f"{path} is replayed already: unwrap() the first wrapper before adding a second, "
                "and copy a model before wrapping it"
            )
        self.modality = modality
        self.live = True
        self._module = module
        self._own: Any = None  # a forward of the module itself, not of its class
        self._cut: Callable[[str, Any], Any] | None = None
        self._replayed: tuple[Any] | None = None

    def attach(self, module: nn.Module) -> None:
        """Take the place of the module's ``forward``, and of what a copied model still carries."""
        own = module.__dict__.get("forward")
        self._module, self._own = module, own._own if isinstance(own, Replay) else own
        module.__dict__["forward"] = self

    def remove(self, module: nn.Module) -> None:
        """Put the module's own ``forward`` back."""
        if module.__dict__.get("forward") is self:
            del module.__dict__["forward"]
            if self._own is not None:
                module.__dict__["forward"] = self._own

    @contextlib.contextmanager
    def replaying(self, output: Any) -> Iterator[None]:
        """Give this output instead of running the module inside."""
        self._replayed = (output,)
        try:
            with self.acting():
                yield
        finally:
            self._replayed = None

    @contextlib.contextmanager
    def cutting(self, cut: Callable[[str, Any], Any]) -> Iterator[None]:
        """Hand what is recorded inside to ``cut``, and go on with what that returns."""
        self._cut = cut
        try:
            yield
        finally:
            self._cut = None

    def __deepcopy__(self, memo: dict[Any, Any]) -> Replay:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(self.__dict__, _thread=None, live=WRAPPER_COPIED in memo)
        copied._module, copied._own = copy.deepcopy((self._module, self._own), memo)
        return copied

    def _record(self, args: tuple[Any, ...], output: Any) -> None:
        if self._calls:
            raise RuntimeError(
                f"{self.path} ran twice in one pass, and what runs for each sample cannot be "
                f"replayed: leave it out of {self.modality}_only, or name what is around the loop"
            )
        super()._record(args, output)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, or give what it gave."""
        if in_backward():  # which would take the tensors saved by one run for those of another
            raise RuntimeError(
                f"{self.path} ran during backward, inside a gradient-checkpointed region, and a "
                "replayed module cannot run again there: name the module around the region"
            )
        acts = self.acts()
        if acts and self._replayed is not None:
            return _in_new_containers(self._replayed[0])
        if self._own is not None:
            output = self._own(*args, **kwargs)
        else:
            output = type(self._module).forward(self._module, *args, **kwargs)
        if acts:
            output = output if self._cut is None else self._cut(self.modality, output)
            self._record((), _in_new_containers(output))
        return output


def _in_new_containers(output: Any) -> Any:
    """Return the same tensors in lists and dictionaries of their own, which a model may change."""
    return output if isinstance(output, Tensor) else tree_map(lambda leaf: leaf, output)
