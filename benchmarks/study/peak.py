"""Peak memory of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> bool:
    """Start measuring the peak of the memory; say whether that can be done here.

    Args:
        device: of the run.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    except OSError:
        return False
    return True


def peak_megabytes(device: torch.device) -> float:
    """Return the peak since then in MB: of the GPU's allocator, or of the whole process.

    Args:
        device: as there.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(kilobytes) * 1024 / 1e6, 1)
