"""The masked pass is the plain pass: what a wrapper must show before its losses mean anything."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from masksd.passes.branches import first_samples
from masksd.passes.masker import TokenMasker
from masksd.passes.step import Passes
from masksd.segmenter import Pass, Segmenter
from masksd.tapping.kinds import TableTap
from masksd.tapping.modules import (
    evaluating,
    frozen_statistics,
    in_compiled,
    is_compiled,
    modules_by_path,
    without_gradients,
)
from masksd.tapping.tap import EmbeddingTap
from masksd.trials.towers import Sight
from masksd.trials.trial import Trial, difference

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Difference of logits, as a share of their size, that may be rounding; 0.05 in 16 bits."""

_WHAT = {"image": "patches", "text": "words"}


def check_passes(passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:
    """Compare masked passes with the plain pass, in evaluation mode and without gradients.

    For each modality that is masked: an empty mask must give the plain logits; a mask over the
    whole first sample must leave the other samples alone, and nothing of that sample in the
    embedding, whatever its module is given. What is replayed must not depend on what is masked.

    A host that cannot be judged is let through: with a warning, where it gives other logits each
    time; without "other samples", where it mixes the samples of a batch by itself. Returns the
    largest difference by check, as a share of the logits' size.
    """
    segmenter = passes.segmenter
    check_tapped(segmenter)
    trial = Trial(segmenter, args, kwargs)
    with evaluating(segmenter), frozen_statistics(segmenter), without_gradients(), trial.noting():
        plain = trial.first()
        ran_plain, trial.ran = trial.ran, set()
        found: dict[str, float] = {}
        try:
            for modality, masker in passes.maskers.items():
                branches = [b for b in passes.branches.values() if modality in b.modalities]
                rows = min(b.rows(len(plain.logits)) for b in branches)
                found.update(_check_modality(trial, plain, masker, rows))
            if len(passes.maskers) > 1:  # one alone may reuse all that the other one changes
                _check_left_out(trial, ran_plain)
            for modality in passes.maskers:
                found.update(_check_replayed(trial, modality))
        except _Differs as error:
            differs = trial.differs_from_itself(plain)
            if differs <= tolerance(segmenter, plain.logits):
                raise RuntimeError(str(error)) from None
            warnings.warn(
                "masked passes could not be compared with the plain pass, because the host gives "
                f"other logits each time in evaluation (they differ by {differs:.3g} of their "
                "size): does it draw random numbers, or keep state between calls?",
                UserWarning,
                stacklevel=2,
            )
    return found


def check_tapped(segmenter: Segmenter) -> None:
    """Refuse to mask a module that the model no longer uses under its name."""
    now = modules_by_path(segmenter.root)
    for tap, module in segmenter.tapped():
        path = tap.module_path
        if now.get(path) is not module:
            became = f"a {type(now[path]).__name__}" if path in now else "gone"
            raise RuntimeError(
                f"{tap.path} was a {type(module).__name__} when it was wrapped and is {became} "
                "now, which is not masked: make the change (LoRA, SyncBatchNorm, a resized "
                "embedding) first, then wrap"
            )


class _Differs(Exception):
    """A difference that is a fault, unless the model differs from itself."""


def _check_modality(
    trial: Trial, plain: Pass, masker: TokenMasker, rows: int
) -> Iterator[tuple[str, float]]:
    """Check a modality; ``rows`` is the number of samples that its branch sees."""
    segmenter, modality = trial.segmenter, masker.modality
    what, allowed = _WHAT[modality], tolerance(segmenter, plain.logits)

    def masked(plain: Pass, mask: Tensor) -> Tensor:
        replaced = {modality: masker.token_mask(mask, masker.grid(plain))}
        both = replaced.get("image"), replaced.get("text")
        return trial.run(lambda: segmenter.masked(plain, *both))

    batch = len(plain.logits)
    grid = masker.grid(plain)
    tokens = math.prod(grid) if grid else plain.text.valid.shape[1]
    first = torch.zeros(batch, tokens, dtype=torch.bool, device=plain.logits.device)
    empty = first[:rows].clone()
    first[0] = True

    found = difference(masked(first_samples(plain, rows), empty), plain.logits[:rows])
    yield f"{modality}: nothing masked", found
    if found > allowed:
        raise _Differs(
            f"a masked pass with no {what} masked does not give the plain logits: they "
            f"differ by {found:.3g} of their size. {_remedy(segmenter)}"
        )
    taps = segmenter.tapped(modality)
    with contextlib.ExitStack() as stack:
        spies = [stack.enter_context(_Spy(tap, module, segmenter)) for tap, module in taps]
        logits = masked(plain, first)
        seen = [spy.found() for spy in spies]
        masked(plain, first)
        changed = [spy.found() for spy in spies]
    others = _others(plain, modality)
    if len(others):
        found = difference(logits[others], plain.logits[others])
        if found <= allowed:
            yield f"{modality}: other samples", found
        elif trial.mixes_samples(plain, others) <= allowed:
            path = segmenter.taps[modality].path
            raise _Differs(
                f"masking all {what} of the first sample changes the others' logits by "
                f"{found:.3g} of their size: {path} may not have the batch in its first "
                "dimension, as in (L, B, C), or embed them in another order; name a module that "
                "gives (B, N, C), or the pictures of the sentences"
            )
    for (tap, _), one, other in zip(taps, seen, changed, strict=True):
        if one is None or other is None:
            continue
        pictures = plain.pictures if len(one) != batch else None
        row = 0 if pictures is None else int(pictures[0])
        found = difference(other[row], one[row])
        yield f"{modality}: left over", found
        if found > allowed:
            raise _Differs(
                f"with all {what} masked, the output of {tap.path} still depends on its "
                "input: something is left unmasked, or an adapter adds to it after the mask. Add "
                "adapters before wrapping, or name the module around both"
            )


def _others(plain: Pass, modality: str) -> Tensor:
    """Return the samples that a mask of the first one must leave alone."""
    pictures = plain.pictures if modality == "image" else None
    if pictures is None:
        return torch.arange(1, len(plain.logits), device=plain.logits.device)
    return (pictures != pictures[0]).nonzero()[:, 0]


def _check_left_out(trial: Trial, ran_plain: set[nn.Module]) -> None:
    """Refuse to leave out parts that change nothing only today, as bridges that start at zero."""
    reached = {p for part in trial.ran for p in part.parameters(recurse=False)}
    left_out = {
        p: name
        for name, part in trial.segmenter.root.named_modules()
        if part in ran_plain - trial.ran
        for p in part.parameters(recurse=False)
        if p.requires_grad and p not in reached
    }
    if not left_out:
        return
    with torch.enable_grad():
        total = trial.plain().logits.sum()
        found = torch.autograd.grad(total, list(left_out), allow_unused=True)
    names = [
        name or "itself" for name, g in zip(left_out.values(), found, strict=True) if g is not None
    ]
    if names:
        raise _Differs(
            f"the plain logits depend on {', '.join(sorted(set(names)))}, which no masked pass "
            f"runs. {_remedy(trial.segmenter)}"
        )


def _check_replayed(trial: Trial, modality: str) -> Iterator[tuple[str, float]]:
    """Refuse to replay a module that sees the modality which is masked then."""
    segmenter, what = trial.segmenter, _WHAT[modality]
    replayed = {module: hook for hook, module in segmenter.replayed() if hook.modality != modality}
    if not replayed or any(map(is_compiled, segmenter.modules())):  # it would keep the hooks
        return
    sight = Sight(trial, modality, replayed)
    for module, hook in replayed.items():
        change = sight.change(module)
        if change is None:
            continue
        yield f"{modality}: replayed {hook.path}", change
        if not sight.alone(module):
            leads = " and its gradient leads to them" if sight.follows(module) else ""
            raise _Differs(
                f"{hook.modality}_only: {hook.path} sees the {what}: with others in their place "
                f"its output differs by {change:.3g} of its size{leads}, so it cannot be replayed "
                f"where {what} are masked. Leave it out, or name modules inside it that run before"
            )


class _Spy:
    """Watches the masked tokens of an embedding, and from the second pass on changes its input."""

    def __init__(self, tap: EmbeddingTap, module: nn.Module, segmenter: Segmenter) -> None:
        self.tap, self.module = tap, module
        # Compiled code would keep the hooks, and of a table nothing can be left over.
        self.blind = in_compiled(segmenter, module) or isinstance(tap, TableTap)
        self.output: Tensor | None = None
        self.change_input = False

    def found(self) -> Tensor | None:
        """Return what the last pass gave."""
        found, self.output, self.change_input = self.output, None, True
        return found

    def __enter__(self) -> _Spy:
        self._handles = []
        if not self.blind:
            self._handles = [
                self.module.register_forward_pre_hook(self._before, with_kwargs=True),
                self.module.register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self.change_input or not self.tap.acts():
            return None
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim]
        floating = any(x.is_floating_point() for x in tensors)  # integers beside are sizes

        def changed(x: Any) -> Any:
            if not any(x is tensor for tensor in tensors) or x.is_floating_point() != floating:
                return x
            return 1 - x.flip(-1) if floating else x.flip(-1)

        return tuple(map(changed, args)), {name: changed(x) for name, x in kwargs.items()}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.tap.acts():
            return
        # tokens of a prefix are never masked, and may depend on anything
        output = output[:, self.tap.prefix :] if self.tap.prefix else output
        before = [] if self.output is None else [self.output]
        self.output = torch.cat([*before, output]) if self.tap.in_parts else output


def tolerance(segmenter: Segmenter, logits: Tensor) -> float:
    """Return the difference that may be rounding, in the least precision that is used."""
    low = torch.is_autocast_enabled(logits.device.type) or any(
        p.is_floating_point() and p.itemsize < 4 for p in segmenter.parameters()
    )
    return 0.05 if low else TOLERANCE.get(logits.dtype, 0.05)


def _remedy(segmenter: Segmenter) -> str:
    if type(segmenter).__name__ == "TapSegmenter":
        return "The model may keep state between calls that is in no buffer"
    return (
        f"{type(segmenter).__name__} reuses features that this model computes otherwise, for "
        "example with a bridge between its towers: name its modules with wrap(host, "
        "taps=masksd.Taps(...)), which runs all of it again"
    )
