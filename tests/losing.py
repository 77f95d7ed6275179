"""One process of a job that checks facts and takes steps until the last process is lost.

It is a program for torchrun, and a module that a server of processes imports once for all of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 (imported once, by the server)
import torch

from masksd.kit.processes import (
    LostProcess,
    check_same_everywhere,
    first_process_first,
    start_processes,
    watch_others,
)

PATIENCE = 3.0
KEPT = "the last checkpoint is intact"


def take_part(folder: Path, loss: signal.Signals) -> None:
    """Leave what was seen in RANK.json and, once another process is lost, in RANK-lost.json."""
    accelerator = start_processes(cpu=False, timeout=PATIENCE)
    rank, world = accelerator.process_index, accelerator.num_processes
    seen: dict[str, Any] = {"processes": world}
    same = {"seed": 0, "shapes": {"weight": [8, 8]}}
    for name, facts in {
        "one": {**same, "lr": [0.001, 0.002][rank]},
        "two": {**same, "split": ["val", "testA"][rank], **({} if rank else {"b": 1})},
        "many": {f"p{number}": rank for number in range(12)},
        "none": same,
    }.items():
        try:
            check_same_everywhere(accelerator, facts)
        except ValueError as error:
            seen[name] = str(error)
    with first_process_first():
        if rank == 0:
            time.sleep(0.3)
            (folder / "made").touch()
        seen["waited"] = (folder / "made").exists()
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    try:
        with watch_others(accelerator, KEPT, PATIENCE):
            model = accelerator.prepare(torch.nn.Linear(8, 8))
            for step in range(5):
                if step == 4 and rank == world - 1:
                    (folder / "lost").touch()
                    os.kill(os.getpid(), loss)
                model(torch.ones(2, 8)).sum().backward()
    except LostProcess as error:
        found = [str(error), time.time() - (folder / "lost").stat().st_mtime]
        (folder / f"{rank}-lost.json").write_text(json.dumps(found))
        sys.exit(2)


def alone(folder: Path) -> None:
    """Leave the timeout of gloo, in seconds, in timeout.json."""
    start_processes(cpu=True)
    group = torch.distributed.distributed_c10d._get_default_group()
    timeout = group._get_backend(torch.device("cpu")).options._timeout
    (folder / "timeout.json").write_text(json.dumps(timeout.total_seconds()))


def launched(environment: dict[str, str], function: Any, *arguments: Any) -> None:
    """Call a function with what torchrun puts into the environment."""
    os.environ.update(environment)
    function(*arguments)


if __name__ == "__main__":
    take_part(Path(sys.argv[1]), signal.Signals[sys.argv[2]])
