"""Which device computes, and how a result names the machine."""

from __future__ import annotations

import platform

import torch

import masksd


def default_device(*, cpu: bool = False) -> torch.device:
    """Return the GPU where there is one, unless ``cpu``."""
    return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")


def describe_machine(device: torch.device) -> dict[str, str]:
    """Name the device and the versions that a score may depend on."""
    cpu = device.type == "cpu"
    return {
        "device": f"{platform.machine()} CPU" if cpu else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "masksd": masksd.__version__,
    }
