"""What the benchmarks share: paired timing, and rows with device and versions."""

from __future__ import annotations

import csv
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from masksd.kit.devices import describe_machine

FOLDER = Path(__file__).parent / "results"


def environment(device: str = "cpu") -> dict[str, str]:
    """The device and versions that every row has."""
    found = describe_machine(torch.device(device))
    if device == "cpu":
        found["device"] += f", {torch.get_num_threads()} threads"
    return found


def commit() -> str:
    """Return the checkout's commit, with a plus if files differ from it; empty without one."""
    command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def append(name: str, rows: list[dict[str, Any]], folder: Path | None = None) -> None:
    """Append rows to ``NAME.csv`` in ``benchmarks/results``, which must have the same columns."""
    path = (folder or FOLDER) / f"{name}.csv"
    head = list(rows[0])
    new = check_columns(path, head)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=head)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def check_columns(path: Path, head: list[str]) -> bool:
    """Return whether a CSV file is still to be begun; one with other columns is an error."""
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and lines[0].split(",") != head:
        raise ValueError(f"{path} has other columns than {head}; move it away")
    return not lines


def paired(
    providers: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    progress: str | None = None,
    clock: Callable[[Callable[[], object], str], float] | None = None,
) -> dict[str, list[float]]:
    """Time providers in turns, so that what slows the machine slows all; return seconds by round.

    Each runs twice before that, as first calls may compile or allocate. ``clock`` is
    :func:`seconds_of`, or another that times one call.
    """
    from tqdm import tqdm

    for run in providers.values():
        for _ in range(2):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in tqdm(range(repeats), desc=progress, unit="round", disable=progress is None):
        for name, run in providers.items():
            seconds[name].append((clock or seconds_of)(run, device))
    return seconds


def seconds_of(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def queued_seconds(run: Callable[[], object], device: str, calls: int = 10) -> float:
    """Seconds of a call on a GPU's own clock, without launching it; on a CPU, :func:`seconds_of`.

    The calls queue up behind a rest of the device, as those of a training step do behind others.
    """
    if device != "cuda":
        return seconds_of(run, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)  # cycles, some 10 ms
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def median_ratio(of: Iterable[float], to: Iterable[float]) -> float:
    """The median over rounds of their ratios, in which drift cancels."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
