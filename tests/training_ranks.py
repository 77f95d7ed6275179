"""What each process of a distributed test of training does; see test_resume_ranks.py."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from masksd.kit.config import DataConfig, TrainConfig, TrainingStopped
from masksd.kit.training.run import Run
from masksd.kit.training.trainer import train
from tests.processes import leave
from tests.test_resume import SETTINGS, overflow, settings, signal_in_step

FINISHED: list[dict[str, Any]] = []
"""What each finished run has in this process."""


def config(data: DataConfig, output: Path, name: str) -> TrainConfig:
    return settings(data, output, steps=5, batch_size=2, **SETTINGS[name])


def rank_before() -> int:
    """Return the number of this process before there is a process group."""
    return int(os.environ["RANK"])


def main(folder: Path, name: str) -> None:
    rank = torch.distributed.get_rank
    data = DataConfig(data_root=folder / "shapes")
    finish, take_step = Run.finish, Run.take_step

    def noting(run: Run) -> Any:
        scores = finish(run)
        state = {k: v.clone() for k, v in run.sd.state_dict().items()}
        FINISHED.append({"state": state, "skipped": run.skipped, "scores": scores})
        return scores

    def overflowing(run: Run, batches: Any) -> Any:
        if rank() == 1 and run.done == 2:  # this process alone has a bad batch
            with overflow(run):
                return take_step(run, batches)
        return take_step(run, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish", noting)
        wrong = dataclasses.replace(config(data, folder / "wrong", name), lr=0.1 + rank_before())
        with pytest.raises(ValueError, match=r"lr is 0\.1 on process 0 and 1\.1 on process 1"):
            train(wrong)
        assert not wrong.output_folder().exists()
        train(config(data, folder / "whole", name))
        with pytest.MonkeyPatch.context() as inner:
            if rank() == 1:  # this process alone is told to stop
                signal_in_step(2, signal.SIGTERM, inner)
            with pytest.raises(TrainingStopped, match="stopped by SIGTERM after step 2 of 5"):
                train(config(data, folder / "cut", name))
        train(config(data, folder / "cut", name), resume=True)
        patch.setattr(Run, "take_step", overflowing)
        train(config(data, folder / "bad", name))
    torch.save(FINISHED, folder / f"{rank()}.pt")
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
