"""``import masksd`` is light: a fresh process says so, and another that this test can fail."""

from __future__ import annotations

import subprocess
import sys

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


def test_importing_masksd_loads_torch_and_einops_only():
    brought = brought_by("masksd")
    assert "masksd" in brought
    assert brought.isdisjoint(HEAVY)
    third_party = {
        name for name in brought - sys.stdlib_module_names if not name.startswith(("_", "torch"))
    }
    assert third_party <= {"masksd", "einops", "numpy"}


def test_the_test_above_can_fail():
    assert brought_by("tyro") & HEAVY
