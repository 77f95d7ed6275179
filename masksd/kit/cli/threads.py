"""Threads that suit what the machine is doing.

Between two operations torch's threads wait for each other, and on Linux they do so by spinning.
That is the fastest way on a machine of their own. Where other programs run, a spinning thread keeps
the core from the very thread that it waits for, and a step takes many times as long. How threads
wait changes no result.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

COMMANDS = ("train", "pretrain", "evaluate", "demo")
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables by which users say themselves how threads wait."""


def settle_threads(arguments: list[str]) -> None:
    """Keep to the container's share of the machine, and do not spin where others need the cores.

    Args:
        arguments: of the command line; only long commands are looked at.
    """
    short = {"--help", "-h", "--dry-run"}
    if sys.platform != "linux" or arguments[:1] not in [[name] for name in COMMANDS]:
        return
    if short & set(arguments) or "RANK" in os.environ:  # torchrun has its own number of threads
        return
    import torch

    quota = cpu_quota()
    if quota and "OMP_NUM_THREADS" not in os.environ and quota < torch.get_num_threads():
        torch.set_num_threads(max(1, int(quota)))
    cores = os.sched_getaffinity(0)
    before = core_times(cores)
    time.sleep(0.2)
    busy = busy_cores(before, core_times(cores))
    if spinning_hurts(torch.get_num_threads(), len(cores), busy, os.environ):
        # read when torch is loaded, so the program starts again
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def spinning_hurts(threads: int, cores: int, busy: float, environment: Mapping[str, str]) -> bool:
    """Return whether threads should sleep while they wait.

    Args:
        threads: that torch takes.
        cores: that this process may use.
        busy: how many of them other programs keep busy, such as 0.7.
        environment: where users may have said it.

    Example:
        >>> spinning_hurts(2, 2, 0.1, {}), spinning_hurts(2, 2, 1.0, {})
        (False, True)
        >>> spinning_hurts(2, 2, 1.0, {"OMP_WAIT_POLICY": "active"})
        False
    """
    if threads == 1 or any(name in environment for name in CHOSEN):
        return False
    return threads > cores - busy + 0.5


def core_times(cores: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Read the busy and the idle time of cores since the machine started, in ticks."""
    wanted = {f"cpu{core}": core for core in cores}
    times = {}
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:  # hidden from some containers
        return {}
    for line in lines:
        name, *fields = line.split()
        if name in wanted:
            ticks = [int(field) for field in fields[:8]]  # what guests take is in the first already
            idle = ticks[3] + ticks[4]
            times[wanted[name]] = sum(ticks) - idle, idle
    return times


def busy_cores(
    before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]
) -> float:
    """Return how many cores were busy between two readings of :func:`core_times`.

    Example:
        >>> busy_cores({0: (5, 5), 1: (0, 0)}, {0: (15, 15), 1: (20, 0)})
        1.5
    """
    total = 0.0
    for core in before.keys() & after.keys():
        worked, rested = (new - old for old, new in zip(before[core], after[core], strict=True))
        total += worked / max(1, worked + rested)
    return total


def cpu_quota(folder: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many cores a container may use at a time; None where nothing limits it.

    Args:
        folder: where the system's control groups are mounted.
    """
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu/cpu.cfs_quota_us").read_text()
            period = (folder / "cpu/cpu.cfs_period_us").read_text()
        cores = int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return cores if cores > 0 else None
