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


def append(name: str, rows: list[dict[str, Any]]) -> None:
    """Append rows to ``benchmarks/results/NAME.csv``, which must have the same columns."""
    path = FOLDER / f"{name}.csv"
    head = list(rows[0])
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and lines[0].split(",") != head:
        raise ValueError(f"{path} has other columns than {head}; move it away")
    new = not lines
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=head)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def paired(
    providers: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    progress: str | None = None,
) -> dict[str, list[float]]:
    """Time providers in turns, so that what slows the machine slows all; return seconds by round.

    Each runs twice before that, as first calls may compile or allocate.
    """
    from tqdm import tqdm

    for run in providers.values():
        for _ in range(2):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in tqdm(range(repeats), desc=progress, unit="round", disable=progress is None):
        for name, run in providers.items():
            seconds[name].append(seconds_of(run, device))
    return seconds


def seconds_of(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_ratio(of: Iterable[float], to: Iterable[float]) -> float:
    """The median over rounds of their ratios, in which drift cancels."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
