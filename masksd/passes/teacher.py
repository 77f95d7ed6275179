"""A teacher: the model whose predictions the masked branches learn to give."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from masksd.segmenter import Pass, Segmenter
from masksd.tapping.modules import without_gradients


class Teacher(nn.Module):
    """A frozen copy of the host that follows it, or another model that stays as it is.

    It is in evaluation mode whatever its wrapper is, has no gradient, and lives in the wrapper's
    state. ``decay`` is that of the exponential average (mean teacher, arXiv 1703.01780), if any.
    """

    def __init__(self, segmenter: Segmenter, decay: float | None) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.decay = decay
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        """Run a plain pass on what the host is given, in evaluation mode whatever others set."""
        if not torch.compiler.is_compiling() and any(m.training for m in self.segmenter.modules()):
            self.train(False)
        quietly = torch.no_grad() if torch.compiler.is_compiling() else without_gradients()
        with quietly:
            return self.segmenter.plain(*args, **kwargs)

    def logits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the logits of a plain pass on what the host is given."""
        return self.plain(args, kwargs).logits

    @torch.no_grad()
    def follow(self, host: Segmenter, step: Tensor) -> None:
        """Move towards the host's weights and statistics, after ``step`` steps, 0-d.

        ``t ← d t + (1 - d) h`` with ``d = min(decay, step / (9 + step))``: the first step's teacher
        is the host, and a young one soon forgets the first weights. Whole numbers are the host's.
        """
        if self.decay is None:
            return
        if any(type(each).__name__ == "DTensor" for each in host.parameters()):
            raise ValueError(
                "the teacher cannot follow a model that FSDP has sharded: give a teacher of your "
                "own, or use another target"
            )
        theirs = {**dict(host.named_parameters()), **dict(host.named_buffers())}
        shares: dict[torch.dtype, Tensor] = {}  # of the host, one for each dtype
        ours = [*self.segmenter.named_parameters(), *self.segmenter.named_buffers()]
        for name, value in ours:
            dtype = value.dtype
            if not dtype.is_floating_point:
                value.copy_(theirs[name])
                continue
            if dtype not in shares:
                done = step.to(torch.promote_types(dtype, torch.float32))
                shares[dtype] = (1.0 - (done / (9.0 + done)).clamp(max=self.decay)).to(dtype)
            value.lerp_(theirs[name].to(dtype), shares[dtype])

    def model(self) -> Any:
        """Return a copy of the model without a hook, as ``unwrap()`` returns the host."""
        return copy.deepcopy(self.segmenter).requires_grad_(True).release()
