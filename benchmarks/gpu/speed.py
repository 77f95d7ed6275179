"""How fast the kernels and a training step are, each beside what bounds it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import masking
from benchmarks.gpu.rows import Row, Size, row
from benchmarks.measure import median_ratio, paired, queued_seconds, seconds_of
from benchmarks.train_step import NaiveTriple, Setting, kept_bytes, share_of_the_rest
from masksd import DistillConfig, Triple
from masksd.config import PRESETS

COPY, COPY_GOAL = ">= 0.7", ">= 0.9"
TIME, KEPT = 1.05, 1.15  # of 2 + d host steps, and of the host's activations
WORDS = 17
COPIES = {"embed forward": 1, "embed forward and backward": 2}
OURS = ("fused", "compiled")

Run = Callable[[], Any]


def kernels(device: str, size: Size) -> Iterator[Row]:
    """Selection, and the embedding pass as a share of the speed of copies of as many bytes."""
    for dtype in ("bf16", "fp32"):
        kind = masking.DTYPES[dtype]
        setting = f"{' x '.join(map(str, size.embeddings))} {dtype}"
        copy = masking.copying(masking.inputs(*size.embeddings, kind, device)[1])
        for operation, providers in masking.operations(*size.embeddings, kind, device).items():
            copies = COPIES.get(operation, 0)
            timed = providers | ({"copy": copy} if copies else {})
            seconds = paired(timed, size.rounds, device, clock=queued_seconds)
            torch.compiler.reset()
            for provider, times in seconds.items():
                line = partial(row, "masking", provider, f"{operation}, {setting}")
                milliseconds = 1e3 * statistics.median(times)
                yield line("milliseconds", milliseconds, rounds=size.rounds)
                if not copies or provider == "copy":
                    continue
                share = copies * median_ratio(seconds["copy"], times)
                bounds = {"bound": COPY, "goal": COPY_GOAL} if provider in OURS else {}
                yield line("share of copying's speed", share, rounds=size.rounds, **bounds)


def step(device: str, size: Size) -> Iterator[Row]:
    return fitting(lambda batch: _step(device, size, batch), size.batch)


def compiled_step(device: str, size: Size) -> Iterator[Row]:
    return fitting(lambda batch: _compiled_step(device, size, batch), size.batch)


def fitting(measure: Callable[[int], Iterator[Row]], batch: int) -> Iterator[Row]:
    """Measure at a batch, or at the largest half of it, half of that, ..., that fits."""
    note, tried = "", batch
    while True:
        found: list[Row] = []
        try:
            found.extend(measure(batch))
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        except BaseException:  # out of time: what there is counts
            yield from (each | {"note": each["note"] or note} for each in found)
            raise
        else:
            break
        batch //= 2
        note = f"batch {tried} did not fit"
        print(f"{note}; trying {batch}", flush=True)
        free()
    yield from (each | {"note": each["note"] or note} for each in found)


def _step(device: str, size: Size, batch: int) -> Iterator[Row]:
    setting = Setting(size.model, batch, size.image_size, WORDS, device)
    runs = {
        "host": (setting, setting.host_step),
        "masksd": _stepping(setting, DistillConfig()),
        "masksd low_memory": _stepping(setting, DistillConfig(low_memory=True)),
        "naive": _stepping(setting, DistillConfig(), NaiveTriple),
    }
    if "augment" in PRESETS:
        runs["masksd one pass"] = _stepping(setting, DistillConfig.preset("augment"))
    else:
        note = "this version has no preset 'augment'"
        yield row("step", "masksd one pass", described(size, batch, device), "", note=note)
    yield from _compare("step", size, setting, runs)


def _compiled_step(device: str, size: Size, batch: int) -> Iterator[Row]:
    """Only a GPU is worth the minutes of inductor; elsewhere the graph alone is tried."""
    backend = "inductor" if device == "cuda" else "eager"
    setting = Setting(size.model, batch, size.image_size, WORDS, device)
    host, own = setting.copied(), setting.copied()
    host.model = torch.compile(host.model, backend=backend)
    sd = torch.compile(own.wrap(DistillConfig()), fullgraph=True, backend=backend)
    runs = {
        "host compiled": (host, host.host_step),
        "masksd compiled": (own, partial(own.take, sd)),
    }
    for name, (_, run) in runs.items():
        line = partial(row, "compiled step", name, described(size, batch, device))
        yield line("seconds of the first step", seconds_of(run, device))
    yield from _compare("compiled step", size, setting, runs)


def _stepping(setting: Setting, config: DistillConfig, kind: type = Triple) -> tuple[Setting, Run]:
    own = setting.copied()
    return own, partial(own.take, own.wrap(config, kind))


def _compare(
    part: str, size: Size, setting: Setting, runs: dict[str, tuple[Setting, Run]]
) -> Iterator[Row]:
    """Compare steps with the first of them, the host's."""
    device, batch = setting.device, len(setting.images)
    base = next(iter(runs))
    seconds = paired({n: run for n, (_, run) in runs.items()}, size.rounds, device, progress=part)
    peaks = {name: peak_bytes(*run) for name, run in runs.items()} if device == "cuda" else {}
    eager = part == "step"  # a compiled graph keeps what its compiler says
    kept = {name: kept_bytes(*run) for name, run in runs.items()} if eager else {}
    two_plus_d = 2 + share_of_the_rest(setting)
    common = {"rounds": size.rounds, "two_plus_d": two_plus_d}
    for name, times in seconds.items():
        line = partial(row, part, name, described(size, batch, device), **common)
        median = statistics.median(times)
        yield line("milliseconds", 1e3 * median)
        yield line("images/s", batch / median)
        bounded = name in ("masksd", "masksd low_memory", "masksd compiled")
        bound = f"<= {TIME * two_plus_d:.3f}" if bounded else ""
        yield line("time to host", median_ratio(times, seconds[base]), bound=bound)
        if name in kept:
            bound = f"<= {KEPT}" if name == "masksd low_memory" else ""
            yield line("kept to host", kept[name] / kept[base], bound=bound)
        if name in peaks:
            yield line("peak MB above the weights", peaks[name] / 1e6)


def described(size: Size, batch: int, device: str) -> str:
    precision = "bf16 autocast" if device == "cuda" else "fp32"
    return f"{size.model}, {size.image_size} px, batch {batch}, {precision}"


def peak_bytes(setting: Setting, run: Run) -> int:
    """What a step allocates at most, above what is there before it: weights, but no gradients."""
    setting.model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def free() -> None:
    """Give back the memory of what has gone out of use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
