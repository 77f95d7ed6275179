"""What must be the same on a device: the kernels, the draws, a step, and what wraps it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import masking
from benchmarks.gpu.rows import BF16, FP32, Row, Size, failed, row
from benchmarks.train_step import Setting
from masksd import DistillConfig
from masksd.masking import apply_mask, keyed_noise, mask_correlated, select_tokens
from masksd.masking_config import COUNTS, ROUNDINGS, SELECTIONS
from masksd.trials.check import TOLERANCE

Found = dict[str, tuple[float, float]]
"""An error and the largest that is allowed, by what was compared."""

LOSS, GRADIENTS = 1e-4, 1e-3
"""Allowed in float32 without TF32: of the loss, and of the norm of all gradients."""


def rows(device: str, size: Size) -> Iterator[Row]:
    for name, check in CHECKS.items():
        needs_cuda = "needs CUDA" if check in NEED_CUDA and device != "cuda" else ""
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found = check(device, size)
        except Exception as error:  # the other checks may still run
            traceback.print_exc()
            yield failed("correctness", name, error)
            continue
        for what, (error, allowed) in found.items():
            value, bound = (None, "") if needs_cuda else (error, f"<= {allowed:g}")
            yield row("correctness", name, what, "error", value, bound=bound, note=needs_cuda)


def reference(device: str, size: Size) -> Found:
    """All ways to select, with equal scores among them, and all that is replaced."""
    batch, tokens, width = 4, 60, 16
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(batch, tokens, generator=generator).mul(4).round().to(device)
    noise = keyed_noise(batch, tokens, seed=0, step=3, device=device)
    words = torch.arange(tokens) < torch.tensor([[60], [31], [7], [1]])
    selected, embedded, gradients = 0.0, 0.0, 0.0
    for selection, rounding, count, valid in itertools.product(
        SELECTIONS, ROUNDINGS, COUNTS, (None, words.to(device))
    ):
        ways: Any = {"selection": selection, "rounding": rounding, "count": count, "valid": valid}
        ours, theirs = (
            select_tokens(scores, 0.5, 0.3, noise=noise, implementation=which, **ways)
            for which in ("fused", "reference")
        )
        selected += different(ours, theirs)
    for dtype in (FP32, BF16):
        embeddings = torch.randn(batch, tokens, width, generator=generator).to(device, dtype)
        token = torch.randn(width, generator=generator).to(device, dtype)
        outputs, grads = [], []
        for which in ("fused", "reference"):
            learnt = embeddings.clone().requires_grad_()
            outputs.append(apply_mask(learnt, ours, token, implementation=which))
            grads += torch.autograd.grad(outputs[-1], learnt, embeddings)
        embedded += different(*outputs) + different(outputs[0][~ours], embeddings[~ours])
        gradients += different(*grads)
    return {"masks": (selected, 0), "embeddings": (embedded, 0), "gradients": (gradients, 0)}


def large(device: str, size: Size) -> Found:
    """The kernels at the size that is timed; ``check`` raises."""
    for dtype in (FP32, BF16):
        masking.check(*masking.inputs(*size.embeddings, dtype, device))
    return {" x ".join(map(str, size.embeddings)): (0, 0)}


def draws(device: str, size: Size) -> Found:
    scores = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    noises, masks = 0.0, 0.0
    for (seed, step), rounding in itertools.product(((0, 0), (7, 123), (-1, 2**40)), ROUNDINGS):
        found = []
        for where in ("cpu", device):
            number = torch.tensor(step, device=where)
            noise = keyed_noise(8, 100, seed=seed, step=number, device=where)
            mask = select_tokens(scores.to(where), 0.5, 0.13, noise=noise, rounding=rounding)
            found.append((noise, mask))
        (noise, mask), (its_noise, its_mask) = found
        noises, masks = noises + different(noise, its_noise), masks + different(mask, its_mask)
    return {"noise": (noises, 0), "masks": (masks, 0)}


def small_setting(device: str, *, exact: bool = True) -> Setting:
    made = Setting("clip_cris_tiny", 2, None, 17, device)
    if exact:
        made.autocast = contextlib.nullcontext
    return made


def step(device: str, size: Size) -> Found:
    cpu, ours = small_setting("cpu"), small_setting(device)
    wanted, out = (each.take(each.wrap(DistillConfig())) for each in (cpu, ours))
    masks = sum(different(out.masks[name], mask) for name, mask in wanted.masks.items())
    return {"masks": (masks, 0)} | compared(out.loss, ours, wanted.loss, cpu)


def low_memory(device: str, size: Size) -> Found:
    ordinary, ours = small_setting(device), small_setting(device)
    wanted = ordinary.step(DistillConfig())
    return compared(ours.step(DistillConfig(low_memory=True)), ours, wanted, ordinary)


def compared(loss: Tensor, ours: Setting, wanted: Tensor, other: Setting) -> Found:
    return {
        "loss": (relative(loss, wanted), LOSS),
        "gradients": (relative(ours.gradients(), other.gradients()), GRADIENTS),
    }


def evaluation(device: str, size: Size) -> Found:
    found = {}
    for exact in (True, False):
        setting = small_setting(device, exact=exact)
        bare = copy.deepcopy(setting.model).eval()
        sd = setting.wrap(DistillConfig()).eval()
        with torch.inference_mode(), setting.autocast():
            error = different(sd(*setting.args), bare(*setting.args))
        found["fp32" if exact else "as trained"] = (error, 0)
    return found


def empty_mask(device: str, size: Size) -> Found:
    setting = small_setting(device)
    errors = setting.wrap(DistillConfig()).check(*setting.args, target=setting.truth)
    return {what: (error, TOLERANCE[FP32]) for what, error in errors.items()}


def synchronisation(device: str, size: Size) -> Found:
    """Count 1 for whatever makes the CPU wait for the device."""
    scores, embeddings, token, number = masking.inputs(2, 20, 8, FP32, device)
    learnt = embeddings.clone().requires_grad_()
    mask = masking.fused_select(scores, number)
    runs: dict[str, Callable[[], Any]] = {
        "selection": lambda: masking.fused_select(scores, number),
        "embedding": lambda: apply_mask(learnt, mask, token).backward(embeddings),
    }
    labelled = torch.arange(2, device=device) == 0
    steps: dict[str, tuple[DistillConfig, dict[str, Any]]] = {
        "training step": (DistillConfig(), {}),
        "low_memory step": (DistillConfig(low_memory=True), {}),
        "one-pass step": (DistillConfig.preset("augment"), {}),
        "teacher step, half labelled": (DistillConfig(target="teacher"), {"labelled": labelled}),
    }
    for name, (config, options) in steps.items():
        setting = small_setting(device, exact=False)
        runs[name] = partial(setting.take, setting.wrap(config), **options)
    return {name: (waits(run, device), 0) for name, run in runs.items()}


def waits(run: Callable[[], Any], device: str) -> float:
    for _ in range(2):
        run()  # the first calls may wait, to check, compile and allocate
    if device != "cuda":
        return 0.0
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        traceback.print_exc()  # says where
        return 1.0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


def graph(device: str, size: Size) -> Found:
    """Capture selection and embedding, then replay them at another step with other embeddings."""
    generator = torch.Generator().manual_seed(0)
    embeddings, local = (torch.randn(4, 60, 16, generator=generator).to(device) for _ in range(2))
    pooled, token = torch.randn(4, 16, generator=generator).to(device), embeddings[0, 0].clone()
    number = torch.tensor(3, device=device)

    def run() -> tuple[Tensor, Tensor]:
        noise = keyed_noise(4, 60, seed=0, step=number, device=device)
        return mask_correlated(embeddings, local, pooled, token, 0.5, 0.3, noise=noise)

    with torch.no_grad():
        replayed = captured(run) if device == "cuda" else run
        number.fill_(7)
        embeddings.mul_(2.0)
        local.neg_()
        (ours, mask), (wanted, wanted_mask) = replayed(), run()
    return {"embeddings": (different(ours, wanted), 0), "masks": (different(mask, wanted_mask), 0)}


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return what replays a function on the memory that it was captured with."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        output = run()

    def replay() -> Any:
        recorded.replay()
        return output

    return replay


def different(ours: Tensor, wanted: Tensor) -> float:
    """Count elements that differ; NaN differs from all."""
    if ours.shape != wanted.shape:
        raise ValueError(f"got {tuple(ours.shape)} for {tuple(wanted.shape)}")
    return float((ours.cpu() != wanted.cpu()).sum())


def relative(ours: Tensor, wanted: Tensor) -> float:
    ours, wanted = ours.detach().cpu().double(), wanted.detach().cpu().double()
    return float((ours - wanted).norm() / wanted.norm())


CHECKS: dict[str, Callable[[str, Size], Found]] = {
    "fused kernels equal the reference": reference,
    "all kernels agree at the timed size": large,
    "the CPU and the device draw alike": draws,
    "a float32 step equals the CPU's": step,
    "low_memory equals an ordinary step": low_memory,
    "evaluation equals the host, bit by bit": evaluation,
    "masked passes fit the model": empty_mask,
    "nothing waits for the device": synchronisation,
    "a replayed CUDA graph equals a call": graph,
}
NEED_CUDA = (synchronisation, graph)
