"""Several processes as one job: how they start, that they agree, and when one of them is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = 600.0  # seconds that a process waits for the others
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What accelerate's environment can ask for, as ``ACCELERATE_USE_...``, beside DDP."""
NAMED = 8  # differences that one error names
DIED = ("closed by peer", "reset by peer", "broken pipe", "remote process exit")
SILENT = ("timed out", "timeout")


class LostProcess(RuntimeError):
    """Another process of the job died, failed or did not answer."""


def launched() -> int:
    """Return how many processes torchrun has started for this job; 1 if it was not used."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are, (0, 1) without a process group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_one_process(what: str) -> None:
    """Raise a ``ValueError`` if torchrun has started several processes of a command for one."""
    if launched() > 1:
        raise ValueError(
            f"{what} runs in one process, but {launched()} were started; start it without torchrun"
        )


def start_processes(
    cpu: bool, mixed_precision: str = "no", timeout: float = TIMEOUT, **options: Any
) -> Accelerator:
    """Make accelerate's ``Accelerator``, in which all processes of torchrun are one job.

    Without a GPU, several processes share the CPU. ``options`` are others of ``Accelerator``.
    Another sharding than DDP, and processes that would each be a job of its own, are a ValueError.
    """
    for kind in SHARDING:
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            raise ValueError(
                f"ACCELERATE_USE_{kind} is set, but every process keeps the whole model (DDP); "
                "start with torchrun, or write your own loop as examples/README.md shows for FSDP2"
            )
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if launched() > 1:  # accelerate takes several processes on a CPU for one each unless told
        found = torch.accelerator.current_accelerator(check_available=True)
        cpu = cpu or found is None or found.type == "mps"
    # accelerate drops a timeout equal to NCCL's default, 600 s, but gloo's default is 30 minutes
    patience = timedelta(seconds=timeout, microseconds=1)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
        **options,
    )
    wanted = max(int(os.environ.get("WORLD_SIZE", "1")), rank_and_world()[1])
    if accelerator.num_processes != wanted:
        raise ValueError(
            f"{wanted} processes were started, but this one would be a job of "
            f"{accelerator.num_processes}; start them with torchrun, or unset WORLD_SIZE"
        )
    return accelerator


def check_same_everywhere(accelerator: Accelerator, facts: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` on every process, with everybody's values, if facts by name differ."""
    if accelerator.num_processes == 1:
        return
    import torch.distributed as dist

    own = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()}
    found: list[dict[str, str]] = [{}] * accelerator.num_processes
    dist.all_gather_object(found, own)
    names = dict.fromkeys(name for each in found for name in each)
    values = {name: [each.get(name, "missing") for each in found] for name in names}
    differing = [name for name, each in values.items() if len(set(each)) > 1]
    if differing:
        parts = [difference(name, values[name]) for name in differing[:NAMED]]
        if len(differing) > NAMED:
            parts.append(f"{len(differing) - NAMED} more differ")
        raise ValueError(f"{', '.join(parts)}; start every process with the same options")


def difference(name: str, values: list[str]) -> str:
    """Say which process has which value."""
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(str(rank))
    sides = [
        f"{value} on process{'es' * (len(of) > 1)} {', '.join(of)}" for value, of in ranks.items()
    ]
    return f"{name} is {' and '.join(sides)}"


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do something before the others do it too, such as generate data."""
    rank, world = rank_and_world()
    if rank > 0:
        _meet(world)
    yield
    if rank == 0 and world > 1:
        _meet(world)


def leave_processes() -> None:
    """Wait for the others and leave them; what one process does from then on, it does alone."""
    import torch.distributed as dist

    _, world = rank_and_world()
    if world > 1:
        _meet(world)
        dist.destroy_process_group()


def _meet(world: int) -> None:
    import torch.distributed as dist

    # not barrier(), which wants to know the GPU
    dist.all_gather_object([None] * world, None)


@contextlib.contextmanager
def watch_others(accelerator: Accelerator, kept: str, timeout: float = TIMEOUT) -> Iterator[None]:
    """Turn the error that follows the loss of another process into :class:`LostProcess`.

    The others learn of it when they next exchange something, by SIGTERM from torchrun, or after the
    timeout. With NCCL, torch's own watchdog may end a process first. ``kept`` says what remains.
    """
    if accelerator.num_processes == 1:
        yield
        return
    me = f"process {accelerator.process_index} of {accelerator.num_processes}"

    def stop(*_: object) -> None:
        raise LostProcess(f"{me} was told to stop, as when another one died or failed; {kept}")

    main = threading.current_thread() is threading.main_thread()
    watched = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    try:
        if watched:
            signal.signal(signal.SIGTERM, stop)
        yield
    except RuntimeError as error:
        happened = _what_happened(error, timeout)
        if happened is None:
            raise
        raise LostProcess(f"{me}: another process {happened}; {kept}") from error
    finally:
        if watched:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _what_happened(error: RuntimeError, timeout: float) -> str | None:
    """Read the messages of gloo, NCCL and torch's store; None is an error of another kind."""
    import torch.distributed as dist

    text = str(error).lower()
    if "gloo" in text or isinstance(error, dist.DistError):
        if any(words in text for words in DIED):
            return "died or failed"
        if any(words in text for words in SILENT):
            return f"did not answer within {timeout:g} s"
    return None
