"""Training in two processes: stopped together, resumed bit for bit, bad steps skipped by both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from masksd.kit.checkpoints import load_checkpoint, load_training_state
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.training.trainer import train
from tests.test_resume import SETTINGS, read_log
from tests.training_ranks import DataConfig, config


def check(tmp_path: Path, name: str) -> None:
    shapes = ShapesConfig(train=5, val=2, test_a=1, test_b=1)
    root = build_shapes(tmp_path / "shapes", shapes, progress=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.training_ranks", str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for run in (0, 1, 2):
        for key, value in first[run]["state"].items():
            assert torch.equal(value, second[run]["state"][key]), (run, key)
            assert value.isfinite().all()
    whole, cut, bad = first
    assert all(torch.equal(value, cut["state"][key]) for key, value in whole["state"].items())
    assert (whole["skipped"], bad["skipped"], second[2]["skipped"]) == (0, 1, 1)
    assert whole["scores"] == cut["scores"] == second[0]["scores"] == second[1]["scores"]
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")
    one, other = (
        {
            **load_checkpoint(tmp_path / run / "checkpoint").model.state_dict(),
            **load_training_state(tmp_path / run / "checkpoint"),
        }
        for run in ("whole", "cut")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    with pytest.raises(ValueError, match=r"had 2 processes, now there are 1: .* --allow processes"):
        train(config(DataConfig(data_root=root), tmp_path / "cut", name), resume=True)


@pytest.mark.slow
def test_two_processes_stop_and_go_on_together(tmp_path: Path) -> None:
    check(tmp_path, "cosine")


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("cosine", "epochs")])
def test_two_processes_in_all_settings(tmp_path: Path, name: str) -> None:
    check(tmp_path, name)
