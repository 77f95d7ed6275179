"""Every example runs offline and says what it wraps."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
# Trainer sets up accelerate for the whole process, so it gets one of its own.
APART = {"transformers_trainer.py"}
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in APART])
def test_the_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, "--steps", "3"])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    check(capsys.readouterr().out)


@pytest.mark.parametrize("name", sorted(APART))
def test_the_example_runs_in_its_own_process(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / name, "--steps", "3"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout)


def check(printed: str) -> None:
    assert "LMVSD: masks" in printed  # describe()
    assert "loss" in printed or "lmvsd" in printed
