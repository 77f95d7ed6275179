"""On what a run is done: its device and the versions, for its row."""

from __future__ import annotations

import platform

import torch

import masksd


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return the device's name and the versions that a score may depend on.

    Args:
        device: that is computed on.

    Returns:
        ``device``, ``torch``, ``python`` and ``masksd``.

    Example:
        >>> list(describe_machine(torch.device("cpu")))
        ['device', 'torch', 'python', 'masksd']
    """
    cpu = device.type == "cpu"
    return {
        "device": f"{platform.machine()} CPU" if cpu else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "masksd": masksd.__version__,
    }
