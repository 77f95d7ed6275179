"""The end of a worker process of a distributed test."""

from __future__ import annotations

import os

import torch.distributed as dist


def leave() -> None:
    """Leave the process group and the process, once everybody has got there.

    A process that closes its connections while another still uses them, or whose backend's threads
    outlive the interpreter, aborts now and then after its work is done and saved.
    """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)
