"""What the wrapper does to a model, in words and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksd.branches import MaskedBranch
from masksd.config import DistillConfig
from masksd.segmenter import Segmenter


def describe(
    segmenter: Segmenter,
    branches: Mapping[str, MaskedBranch],
    config: DistillConfig,
    example: tuple[tuple[Any, ...], dict[str, Any], Tensor] | None = None,
) -> str:
    """Write the text of ``CrossModalMaskedSelfDistill.describe``.

    Args:
        segmenter: the wrapped model.
        branches: its branches by name.
        config: the configuration.
        example: arguments of the host and the step, to count multiply-adds with.

    Returns:
        A line a fact.
    """
    lines = [f"masked self-distillation around {type(segmenter).__name__}"]
    for name, branch in branches.items():
        masking, tap = branch.masking, segmenter.taps[branch.modality]
        lines += [
            f"  {name.upper()}: masks {masking.ratio:.0%} of the {masking.selection} "
            f"{masking.top_k:.0%} of {'patches' if branch.modality == 'image' else 'words'} "
            f"by {branch.relevance!r} relevance, weight {_weight(branch)}",
            f"    enters at {tap.path} (width {tap.width})",
            f"    {segmenter.reruns[branch.modality]}",
        ]
    if not branches:
        lines.append("  no branch is on: only the plain pass runs")
    else:
        target = "the truth" if config.target == "ground_truth" else "the main branch's mask"
        detached = ", detached" if config.target == "main" and config.detach_target else ""
        parts = "shared by all branches" if config.share_weights else "one copy a branch"
        lines += [f"  target: {target}{detached}", f"  neck and decoder: {parts}"]
    host, added = (
        sum(p.numel() for module in modules for p in module.parameters())
        for modules in ([cast(nn.Module, segmenter)], branches.values())
    )
    lines.append(f"  parameters: {host:,} of the host, {added:,} added in training, 0 in inference")
    lines += [f"  note: {note}" for note in getattr(segmenter, "notes", ())]  # few have any
    if example is not None:
        lines.append(_costs(segmenter, branches, example))
    return "\n".join(lines)


def _weight(branch: MaskedBranch) -> str:
    return "unknown" if branch.weight.is_meta else f"{branch.weight.item():.3g}"


def _costs(
    segmenter: Segmenter,
    branches: Mapping[str, MaskedBranch],
    example: tuple[tuple[Any, ...], dict[str, Any], Tensor],
) -> str:
    args, kwargs, step = example
    host, plain = _multiply_adds(partial(segmenter.plain, *args, **kwargs))
    if host == 0:
        return "  multiply-adds: none was counted in the host"
    # Only relevance by ground truth needs a target; an empty one costs the same.
    target = torch.zeros_like(plain.logits)
    added = {
        name: _multiply_adds(partial(branch, segmenter, plain, plain, target, step, 0))[0]
        for name, branch in branches.items()
    }
    share = ", ".join(f"{name.upper()} {count / host:.3f}" for name, count in added.items())
    total = 1 + sum(added.values()) / host
    return (
        f"  a forward of this batch: host {host:,} multiply-adds = 1; added {share or 'nothing'}; "
        f"a step costs {total:.3f} host steps"
    )


def _multiply_adds(run: Callable[[], Any]) -> tuple[int, Any]:
    from torch.utils.flop_counter import FlopCounterMode  # brings triton along

    # The fast path of torch's own transformer layers in evaluation is one opaque operation.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            result = run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2, result  # it counts two a multiply-add
