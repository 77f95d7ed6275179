"""The masked pass is the plain pass: what a wrapper must show before its losses mean anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from masksd.branches import TokenMasker
from masksd.modules import find_module, try_out
from masksd.segmenter import Pass, Segmenter
from masksd.step import Passes
from masksd.tap import EmbeddingTap, TokenMask

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Difference of logits, as a share of their size, that may be rounding; 0.05 in 16 bits."""

_WHAT = {"image": "patches", "text": "words"}


def check_passes(passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:
    """Compare masked passes with the plain pass, in evaluation mode and without gradients.

    For each modality that is masked: an empty mask must give the plain logits; a mask over the
    whole first sample must leave the other samples alone, and must leave nothing of that sample in
    the embedding, whatever the embedding module is given.

    Returns:
        The largest difference that was found, by check, as a share of the logits' size.
    """
    segmenter = passes.segmenter
    check_tapped(segmenter)

    def run() -> dict[str, float]:
        with segmenter.keeping_buffers(every=True):
            plain = segmenter.plain(*args, **kwargs)
            return {
                f"{modality}: {name}": found
                for modality, masker in passes.maskers.items()
                for name, found in _check_modality(segmenter, masker, plain).items()
            }

    return try_out(segmenter, run, ())


def check_tapped(segmenter: Segmenter) -> None:
    """Refuse to mask a module that the model no longer uses under its name."""
    for tap, module in segmenter.tapped():
        now = find_module(segmenter.root, tap.path, "tapped module")
        if now is not module:
            raise RuntimeError(
                f"{tap.path} was a {type(module).__name__} when it was wrapped and is a "
                f"{type(now).__name__} now, which is not masked: make the change (LoRA, "
                "SyncBatchNorm, a resized embedding) first, then wrap"
            )


def _check_modality(segmenter: Segmenter, masker: TokenMasker, plain: Pass) -> dict[str, float]:
    modality = masker.modality
    tap = segmenter.taps[modality]
    batch = len(plain.logits)
    grid = plain.image.grid if modality == "image" else None
    tokens = plain.text.valid.shape[1] if grid is None else grid[0] * grid[1]
    empty = torch.zeros(batch, tokens, dtype=torch.bool, device=plain.logits.device)
    first = empty.clone()
    first[0] = True

    def masked(mask: Tensor) -> Tensor:
        replaced: dict[str, TokenMask] = {modality: masker.token_mask(mask, grid)}
        return segmenter.masked(plain, replaced.get("image"), replaced.get("text"))

    found = {"nothing masked": _difference(masked(empty), plain.logits)}
    if found["nothing masked"] > _tolerance(plain.logits):
        raise RuntimeError(
            f"a masked pass with no {_WHAT[modality]} masked does not give the plain logits: they "
            f"differ by {found['nothing masked']:.3g} of their size. {_remedy(segmenter)}"
        )
    with _Spy(tap, find_module(segmenter.root, tap.path, modality)) as spy:
        logits = masked(first)
        seen = spy.output
        spy.change_input = True
        masked(first)
        changed = spy.output
    if batch > 1:
        found["other samples"] = _difference(logits[1:], plain.logits[1:])
        if found["other samples"] > _tolerance(plain.logits):
            raise RuntimeError(
                f"masking all {_WHAT[modality]} of the first sample changes the others' logits by "
                f"{found['other samples']:.3g} of their size: {tap.path} may not have the batch in "
                "its first dimension, as in (L, B, C); name a module that gives (B, N, C)"
            )
    if seen is not None and changed is not None:
        found["left over"] = _difference(changed[:1], seen[:1])
        if found["left over"] > _tolerance(plain.logits):
            raise RuntimeError(
                f"with all {_WHAT[modality]} masked, the output of {tap.path} still depends on its "
                "input: something is left unmasked, or an adapter adds to it after the mask. Add "
                "adapters before wrapping, or name the module around both"
            )
    return found


class _Spy:
    """Watches the masked output of an embedding module, and may change its input."""

    def __init__(self, tap: EmbeddingTap, module: nn.Module) -> None:
        self.tap, self.module = tap, module
        self.output: Tensor | None = None
        self.change_input = False

    def __enter__(self) -> _Spy:
        self._handles = [
            self.module.register_forward_pre_hook(self._before),
            self.module.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.change_input or not self.tap.acts():
            return None
        return tuple(x.flip(-1) if isinstance(x, Tensor) else x for x in args)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.tap.acts():
            self.output = output


def _difference(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    size = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float(((got - wanted).abs().max() / size).nan_to_num(float("inf")))


def _tolerance(logits: Tensor) -> float:
    return TOLERANCE.get(logits.dtype, 0.05)


def _remedy(segmenter: Segmenter) -> str:
    if type(segmenter).__name__ == "TapSegmenter":
        return (
            "The model does not repeat itself in evaluation: it may draw random numbers, or keep "
            "state between calls"
        )
    return (
        f"{type(segmenter).__name__} reuses features that this model computes otherwise, for "
        "example with a bridge between its towers: name its modules with wrap(host, "
        "taps=masksd.Taps(...)), which runs all of it again"
    )
