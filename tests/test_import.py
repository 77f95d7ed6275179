"""``import masksd`` is light: a fresh process says so, and another that this test can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

HEAVY = {
    "transformers",
    "timm",
    "accelerate",
    "torchmetrics",
    "torchvision",
    "matplotlib",
    "PIL",
    "pycocotools",
    "safetensors",
    "tyro",
    "tqdm",
    "huggingface_hub",
}
SCRIPT = """
import sys
import torch  # what torch itself brings along is not ours
before = set(sys.modules)
import {module}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""


def brought_by(module: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_wrapping_loads_torch_and_einops_only():
    brought = brought_by("masksd; masksd.CrossModalMaskedSelfDistill")
    assert "masksd" in brought
    assert brought.isdisjoint(HEAVY)
    third_party = {
        name for name in brought - sys.stdlib_module_names if not name.startswith(("_", "torch"))
    }
    assert third_party <= {"masksd", "einops", "numpy"}


LATE = ("torch", "transformers", "accelerate", "timm", "matplotlib")
PROGRAM = """
import sys
from masksd.kit.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
print("loaded:", *(name for name in {late!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "train --help",
        "data --help",
        "train --nonsense 3",
        "train --steps -1",
        "train --model nonsense",
        "train --model nonsense --dry-run",
        "train --pretrained",
        "train --level eesy",
        "train --data-root nowhere",
        "train --teacher nowhere",
        "train --resume nowhere",
        "train --config nowhere.json",
        "pretrain --steps 0",
        "pretrain --level eesy",
        "predict nothing.png red",
        "predict . red --threshold 2",
        "evaluate --threshold 35",
        "evaluate --limit 3",
        "export nowhere",
        "runs nowhere",
    ],
)
def test_wrong_values_are_answered_without_torch(arguments: str, tmp_path: Path) -> None:
    program = PROGRAM.format(arguments=arguments.split(), late=LATE)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert bool(done.stderr) == ("--help" not in arguments)


def test_the_test_above_can_fail():
    assert brought_by("tyro") & HEAVY
