"""Every example runs offline and says what it wraps."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from masksd.kit import load_checkpoint
from masksd.models import registry

FOLDER = Path(__file__).parents[1] / "examples"
# Trainer sets up accelerate for the whole process, so it gets one of its own.
APART = {"transformers_trainer.py"}
OWN = "own_model.py"  # has the kit's commands
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in APART | {OWN}])
def test_the_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, "--steps", "3"])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    check(capsys.readouterr().out)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_model_of_ones_own_has_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    main = runpy.run_path(str(FOLDER / OWN))["main"]
    picture = tmp_path / "a.png"
    Image.new("RGB", (70, 50)).save(picture)
    few = ["--eval-samples", "4", "--cpu", "--no-progress"]
    run = ["train", "--model", "my_model", "--steps", "4", "--pictures", "40", "--output", "mine"]
    run += ["--warmup", "1"]
    for command in (
        [*run, "--dry-run", "--cpu"],
        [*run, *few],
        ["train", "--resume", "mine", "--steps", "6", "--allow", "steps", "--no-progress"],
        ["evaluate", "--checkpoint", "mine/checkpoint", *few],
        ["predict", str(picture), "the red circle", "--checkpoint", "mine/checkpoint", "--cpu"],
        ["export", "mine/checkpoint"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    losses = [json.loads(line) for line in Path("mine/metrics.jsonl").read_text().splitlines()]
    assert {"seg", "lmvsd", "vmlsd"} <= set(losses[0]["losses"])
    del registry._BUILDERS["my_model"]
    with pytest.raises(ValueError, match="holds a 'my_model', which is not registered"):
        load_checkpoint("mine/export")


def check(printed: str) -> None:
    assert "LMVSD: masks" in printed  # describe()
    assert "loss" in printed or "lmvsd" in printed
