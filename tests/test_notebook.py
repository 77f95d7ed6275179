"""The notebook runs, cell by cell, and does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

NOTEBOOK = Path(__file__).parents[1] / "examples" / "wrap_a_model.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    mpl.use("Agg")
    first, *cells = code_cells()
    assert first.startswith('%pip install --quiet "..[train]"')  # what this environment is
    assert (NOTEBOOK.parent / ".." / "pyproject.toml").exists()
    names: dict[str, Any] = {"__name__": "__main__"}
    losses = []
    for cell in cells:
        capsys.readouterr()
        exec(compile(cell, NOTEBOOK.name, "exec"), names)
        if "optimizer.step()" in cell:
            losses = [eval(line.split(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1]["seg"] < 0.7 * losses[0]["seg"]
    assert set(losses[0]) == {"seg", "lmvsd", "vmlsd"}
    assert names["grid"].shape == (2, 5)
    assert torch.is_tensor(names["out"].loss)
    names["plt"].close("all")


def test_the_notebook_has_ten_cells_and_no_output() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    assert not any(cell.get("outputs") for cell in cells)
