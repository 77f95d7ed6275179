"""Time the masking kernels, selection and embedding pass, against what people usually write.

    python -m benchmarks.masking [--batch 32] [--tokens 196 900] [--width 768] [--repeats 15]

Providers: ``reference`` (loops, small sizes only), ``eager`` (two argsorts, gather, assignment by
index), ``fused`` (ours), ``compiled`` (ours through torch.compile), ``where`` (one ``torch.where``
with a mask at hand, the least that a pass over the embeddings can cost). Rounds are paired. For
each size the script first checks that every provider masks the right number of the right tokens,
and that ours equals the reference. Rows are appended to ``benchmarks/results/masking.csv``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import append, environment, median_ratio, paired
from masksd.masking import apply_mask, keyed_noise, select_tokens

TOP_K, RATIO = 0.5, 0.25
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE_UP_TO = 64 * 196  # tokens in all, since it loops


def eager_select(scores: Tensor) -> Tensor:
    """What people usually write: sort, cut, shuffle, cut, assign."""
    batch, length = scores.shape
    kept = math.ceil(TOP_K * length)
    masked = max(1, math.floor(RATIO * kept + 0.5))
    leading = scores.argsort(dim=1, descending=True)[:, :kept]
    drawn = torch.rand(batch, kept, device=scores.device).argsort(dim=1)[:, :masked]
    mask = torch.zeros(batch, length, dtype=torch.bool, device=scores.device)
    mask[torch.arange(batch, device=scores.device)[:, None], leading.gather(1, drawn)] = True
    return mask


def fused_select(scores: Tensor, step: Tensor) -> Tensor:
    """Ours, including its noise."""
    noise = keyed_noise(*scores.shape, seed=0, step=step, device=scores.device)
    return select_tokens(scores, TOP_K, RATIO, noise=noise)


def eager_apply(embeddings: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    masked = embeddings.clone()
    masked[mask] = token
    return masked


def where(embeddings: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    return torch.where(mask[..., None], token, embeddings)


def check(scores: Tensor, embeddings: Tensor, token: Tensor, step: Tensor) -> None:
    """Raise unless all providers agree."""
    noise = keyed_noise(*scores.shape, seed=0, step=step, device=scores.device)
    mask = fused_select(scores, step)
    if scores.numel() <= REFERENCE_UP_TO:
        wanted = select_tokens(scores, TOP_K, RATIO, noise=noise, implementation="reference")
        if not torch.equal(mask, wanted):
            raise ValueError(f"fused selection differs from the reference at {scores.shape}")
    threshold = scores.topk(math.ceil(TOP_K * scores.shape[1]), dim=1).values[:, -1:]
    for selected in (mask, eager_select(scores)):
        if not (selected.sum(1) == mask.sum(1)).all() or (selected & (scores < threshold)).any():
            raise ValueError(f"a selection has the wrong tokens at {scores.shape}")
    for provider in (eager_apply, where):
        if not torch.equal(provider(embeddings, mask, token), apply_mask(embeddings, mask, token)):
            raise ValueError(f"masked embeddings differ at {embeddings.shape}")


def inputs(
    batch: int, tokens: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, embeddings, a mask token, and the number of a step."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(batch, tokens, generator=generator).to(device)
    embeddings = torch.randn(batch, tokens, width, generator=generator).to(device, dtype)
    token = torch.randn(width, generator=generator).to(device, dtype)
    return scores, embeddings, token, torch.tensor(3, device=device)


def operations(
    batch: int, tokens: int, width: int, dtype: torch.dtype, device: str
) -> dict[str, dict[str, Callable[[], Any]]]:
    """The timed operations, each with its providers."""
    scores, embeddings, token, step = inputs(batch, tokens, width, dtype, device)
    check(scores, embeddings, token, step)
    gradient = torch.randn_like(embeddings)
    mask = fused_select(scores, step)
    compiled_select, compiled_apply = torch.compile(fused_select), torch.compile(apply_mask)
    learnt = embeddings.clone().requires_grad_()
    learnt_token = token.clone().requires_grad_()

    def no_grad(run: Callable[..., Tensor], *args: Tensor) -> Callable[[], Tensor]:
        def timed() -> Tensor:
            with torch.no_grad():
                return run(*args)

        return timed

    def full(run: Callable[..., Tensor]) -> Callable[[], None]:
        def timed() -> None:
            learnt.grad = learnt_token.grad = None
            run(learnt, mask, learnt_token).backward(gradient)

        return timed

    def reference() -> Tensor:
        noise = keyed_noise(batch, tokens, seed=0, step=3, device=device)
        return select_tokens(scores, TOP_K, RATIO, noise=noise, implementation="reference")

    select: dict[str, Callable[[], Any]] = {
        "eager": no_grad(eager_select, scores),
        "fused": no_grad(fused_select, scores, step),
        "compiled": no_grad(compiled_select, scores, step),
    }
    if scores.numel() <= REFERENCE_UP_TO:
        select["reference"] = reference
    passes = {"eager": eager_apply, "fused": apply_mask, "compiled": compiled_apply, "where": where}
    return {
        "select": select,
        "embed forward": {n: no_grad(f, embeddings, mask, token) for n, f in passes.items()},
        "embed forward and backward": {n: full(f) for n, f in passes.items()},
    }


def copying(source: Tensor) -> Callable[[], Tensor]:
    """A plain copy, the speed that a pass over memory can have."""
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def bandwidth(size: int, device: str) -> float:
    """GB/s of copying as many bytes, counting reads and writes."""
    seconds = paired({"copy": copying(torch.zeros(size // 4, device=device))}, 15, device)["copy"]
    return 2 * size / statistics.median(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[77, 196, 900, 1296])
    parser.add_argument("--width", type=int, nargs="+", default=[768])
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+", default=["fp32"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=15, help="rounds; the median counts")
    args = parser.parse_args()
    print(environment(args.device))
    sizes = itertools.product(args.batch, args.tokens, args.width, args.dtype)
    for batch, tokens, width, dtype in sizes:
        element = DTYPES[dtype].itemsize
        size = batch * tokens * width * element
        copy = bandwidth(size, args.device)
        rows = []
        for operation, providers in operations(
            batch, tokens, width, DTYPES[dtype], args.device
        ).items():
            seconds = paired(providers, args.repeats, args.device)
            torch.compiler.reset()
            for provider, times in seconds.items():
                median = statistics.median(times)
                moved = 2 * size / median / 1e9 if operation == "embed forward" else 0.0
                rows.append(
                    {
                        "operation": operation,
                        "provider": provider,
                        "batch": batch,
                        "tokens": tokens,
                        "width": width,
                        "dtype": dtype,
                        "milliseconds": round(1e3 * median, 4),
                        "to_eager": round(median_ratio(times, seconds["eager"]), 3),
                        "to_where": round(median_ratio(times, seconds["where"]), 3)
                        if "where" in seconds
                        else "",
                        "gb_per_s": round(moved, 1) if moved else "",
                        "copy_gb_per_s": round(copy, 1),
                        "rounds": args.repeats,
                        **environment(args.device),
                    }
                )
                print(
                    f"{batch:>3} x {tokens:>4} x {width:<4} {dtype}  {operation:<27}{provider:<10}"
                    f"{rows[-1]['milliseconds']:>10} ms {rows[-1]['to_eager']:>7} x eager"
                    f" {rows[-1]['to_where']:>7} x where {rows[-1]['gb_per_s']:>6} GB/s"
                    f" (copy {copy:.1f})",
                    flush=True,
                )
        append("masking", rows)


# Freed memory stays with the process: new pages take longer than the kernels, and would hit
# providers at random.
HELD = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

if __name__ == "__main__":
    if not HELD.keys() <= os.environ.keys():
        command = [sys.executable, "-m", "benchmarks.masking", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | HELD)
    main()
