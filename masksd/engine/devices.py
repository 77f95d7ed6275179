"""Which device is taken where none is named."""

from __future__ import annotations

import torch


def default_device(*, cpu: bool = False) -> torch.device:
    """Return the GPU where there is one, else the CPU.

    Args:
        cpu: take the CPU in any case.

    Example:
        >>> default_device(cpu=True)
        device(type='cpu')
    """
    return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
