"""What the wrapper does to a model, in words and numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from masksd.hosts.tapped import TapSegmenter
from masksd.passes.branches import MainPass
from masksd.passes.masker import TokenMasker
from masksd.passes.step import DistillOutput, Passes
from masksd.passes.truth import Truth
from masksd.tapping.kinds import TapGroup
from masksd.tapping.modules import plain_attention
from masksd.tapping.tap import EmbeddingTap
from masksd.trials.towers import replayable
from masksd.triple import Triple


def describe(passes: Passes, example: tuple[tuple[Any, ...], dict[str, Any]] | None = None) -> str:
    """Write one fact per line; ``example`` holds the host's arguments, to count with."""
    segmenter, config, branches = passes.segmenter, passes.config, passes.branches
    lines = [f"masked self-distillation around {segmenter.kind} ({type(segmenter).__name__})"]
    lines += [f"  {name}: {source}" for name, source in segmenter.sources.items()]
    for name, branch in branches.items():
        how = "" if branch.every == 1 else f", in one step of {branch.every}"
        how += "" if branch.samples == 1 else f", on {branch.samples:.0%} of a batch"
        maskers = {modality: passes.maskers[modality] for modality in branch.modalities}
        masks = " and ".join(map(_what, maskers.values()))
        weight = "unknown" if branch.weight.is_meta else f"{branch.weight.item():.3g}"
        lines.append(f"  {name.upper()}: masks {masks}, weight {weight}{how}")
        for modality, masker in maskers.items():
            tap = segmenter.taps[modality]
            lines.append(f"    enters at {_place(tap, masker)}")
        again = [segmenter.reruns[modality] for modality in branch.modalities]
        joint = f"runs with both masks: {'; '.join(again)}, but for what the other mask changes"
        once = "in the only pass of a step" if config.one_pass else ""
        lines.append(f"    {once or (again[0] if len(again) == 1 else joint)}")
    if not branches:
        lines.append("  no branch is on: only the plain pass runs")
    else:
        lines.append(f"  target: {_target(passes)}")
        if isinstance(segmenter, Triple):
            parts = "shared by all branches" if config.share_weights else "one copy a branch"
            lines.append(f"  neck and decoder: {parts}")
    if config.low_memory:
        lines.append("  passes follow each other, each with its backward (low_memory)")
    own: list[nn.Module] = [*passes.maskers.values(), *branches.values()]
    if passes.knowledge is not None:
        lines += passes.knowledge.describe()
        own.append(passes.knowledge)
    host, added = (
        sum(p.numel() for module in modules for p in module.parameters())
        for modules in ([segmenter], own)
    )
    lines.append(f"  parameters: {host:,} of the host, {added:,} added in training, 0 in inference")
    lines += [f"  note: {note}" for note in [*segmenter.notes, *frozen_token_notes(passes)]]
    if example is not None:
        lines += [*_replayable(passes, *example), _costs(passes, *example)]
    return "\n".join(lines)


def _target(passes: Passes) -> str:
    config, teacher = passes.config, passes.teacher
    if config.target == "main":
        return f"the main branch's mask{', detached' if config.detach_target else ''}"
    if teacher is None:
        return "the truth"
    follows = f"an average of the host, decay {teacher.decay:g}" if teacher.decay else "yours"
    too = "the truth and " if config.one_pass else ""
    return f"{too}the mask of a teacher ({follows}), confidence {config.confidence!r}"


def frozen_token_notes(passes: Passes) -> list[str]:
    """Say which mask tokens cannot learn, and why."""
    found = []
    for modality, masker in passes.maskers.items():
        path = passes.segmenter.taps[modality].path
        if masker.token is None:
            continue
        if not masker.token.requires_grad:
            found.append(
                f"the mask token of {modality} is frozen (requires_grad is False), as PEFT freezes "
                "what it wraps: apply adapters to the host before wrapping it, or unfreeze "
                "sd.distill_parameters()"
            )
        elif passes.segmenter.taps[modality].learns is False:
            found.append(
                f"{path} runs under no_grad, so the mask token of {modality} learns nothing: "
                "freeze the tower with requires_grad_(False) instead, and let gradients pass"
            )
    return found


def small_logits_notes(passes: Passes, output: DistillOutput) -> list[str]:
    """Say that the truth shrank to tapped logits with fewer pixels than the host's own mask."""
    rows, columns = output.logits.shape[-2:]
    size = _output_size(output.host_output)
    chosen = type(passes.segmenter) is TapSegmenter  # by the user, who can name another module
    # A host with a loss of its own gets the truth as it is.
    ours = "seg" in output.losses and "loss" not in passes.segmenter.sources
    if not (chosen and ours) or size is None or rows * columns >= size[0] * size[1]:
        return []
    return [
        f"logits are {rows}x{columns}, the host's output is {size[0]}x{size[1]}: the target is "
        "resized down to the logits, which loses small objects; if the output is logits, leave "
        "out Taps(logits=...), else name a module after the upsampling"
    ]


def _output_size(output: Any) -> tuple[int, int] | None:
    """Return rows and columns of what a host returned, if that is one mask for each sample."""
    mask = isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] in (1, 2)
    return (output.shape[2], output.shape[3]) if mask else None


def _what(masker: TokenMasker) -> str:
    masking, tokens = masker.masking, "patches" if masker.modality == "image" else "words"
    share = f"{masking.ratio:.0%} of the {masking.selection} {masking.top_k:.0%}"
    tokens += "" if masking.cell is None else f" in cells of {masking.cell} pixels"
    below = "" if masking.threshold is None else f" below {masking.threshold:g}"
    return f"{share} of {tokens} by {masker.relevance!r} relevance{below}"


def _place(tap: EmbeddingTap | TapGroup, masker: TokenMasker) -> str:
    layer = masker.masking.layer
    if masker.token is None:
        return f"{tap.path}, where what it is given is set to 0"
    path = f"the output of layer {layer} of the image tower" if layer else tap.path
    others = ", 10 % by another word, 10 % stay" if masker.masking.token == "vocabulary" else ""
    return f"{path} (width {tap.width}{others})"


def _replayable(passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Propose what a user's taps could name beside, the dearest modules first."""
    if type(passes.segmenter) is not TapSegmenter or passes.config.one_pass:
        return []
    found = replayable(passes.segmenter, passes.maskers, args, kwargs)
    if not any(found.values()):
        return []
    costs = module_shares(passes.segmenter.root, partial(passes.segmenter.plain, *args, **kwargs))
    named, saved = [], 0.0
    for modality in ("image", "text"):
        dear = {path: costs.get(path, 0.0) for path in found.get(modality, ())}
        paths = sorted((path for path in dear if dear[path] >= _DEAR), key=lambda path: -dear[path])
        saved += sum(dear[path] for path in paths)
        named += [f"{modality}_only={tuple(paths)}"] if paths else []
    if not named:
        return []
    return [f"  could be replayed too, {saved:.0%} of a forward: {', '.join(named)}"]


_DEAR = 0.01
"""Share of a forward below which a module is not worth naming."""


def module_shares(root: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Return by path the share of a call's multiply-adds that each module of ``root`` does."""
    with counting() as counter:
        run()
    counts = {path: sum(each.values()) for path, each in counter.get_flop_counts().items()}
    total, above = counts["Global"] or 1, f"{type(root).__name__}."
    return {path.removeprefix(above): count / total for path, count in counts.items()}


def _costs(passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    host, plain = multiply_adds(partial(passes.segmenter.plain, *args, **kwargs))
    if host == 0:
        return "  multiply-adds: none counted in the host"
    # Only relevance by ground truth needs a target; an empty one costs the same.
    target = torch.zeros_like(plain.logits[:, :1])
    ranking = plain if passes.projection is None else passes.projection(plain)
    step = torch.zeros((), dtype=torch.int64, device=plain.logits.device)
    taught: dict[str, int] = {}  # forward only
    teacher = None
    if passes.teacher is not None:
        taught["the teacher"], teacher = multiply_adds(partial(passes.teacher.logits, args, kwargs))
    once = MainPass(plain, ranking, Truth(target), step, {}, teacher)
    added = {
        name: multiply_adds(partial(passes.branch, name, once))[0] / branch.every
        for name, branch in passes.branches.items()
        if not passes.config.one_pass
    }
    shares = [f"{name.upper()} {count / host:.3f}" for name, count in added.items()]
    if passes.knowledge is not None:
        taught["the larger teacher"], theirs = multiply_adds(
            partial(passes.knowledge.teach, args, kwargs)
        )
        compare = partial(passes.knowledge.losses, plain, theirs)
        added["comparing"] = count = multiply_adds(compare)[0]
        shares.append(f"comparing with it {count / host:.3f}")
    shares += [f"{name} {count / host:.3f} without backward" for name, count in taught.items()]
    # a backward is two forwards
    main = 1.0 if passes.learns_plainly(plain) else 1 / 3
    total = main + (sum(added.values()) + sum(taught.values()) / 3) / host
    rows, columns = plain.image.grid
    extra = ", ".join(shares) or "nothing"
    size = _output_size(plain.host_output)
    output = "" if size is None else f"; the host's output: {size}"
    return (
        f"  patches: a grid of {rows} x {columns}\n"
        f"  logits: {tuple(plain.logits.shape[-2:])}{output}; a target is resized to the logits "
        "(nearest)\n"
        f"  a forward of this batch: host {host:,} multiply-adds = 1; added {extra}; "
        f"a step costs {total:.3f} host steps"
    )


def multiply_adds(run: Callable[[], Any]) -> tuple[int, Any]:
    """Count the multiply-adds of a call, the same on every device; return its result too."""
    with counting() as counter:
        result = run()
    return counter.get_total_flops() // 2, result  # it counts two for a multiply-add


@contextlib.contextmanager
def counting() -> Iterator[Any]:
    """Count inside, with a counter of torch's."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    # Fused kernels differ by device, and the counter does not know all of them.
    with plain_attention(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
