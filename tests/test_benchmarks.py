"""The benchmark scripts run, check what they time, and write rows that the tables can read."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure, train_step
from benchmarks.pages.evidence import PAGES
from masksd import DistillConfig, masking

SMALL = {
    "masking": ("--batch", "2", "--tokens", "20", "--width", "8", "--repeats", "2"),
    "train_step": (
        *("--model", "clip_cris_tiny", "--batch", "2"),
        *("--repeats", "2", "--eval-repeats", "2"),
    ),
    "towers": ("--host", "LAVT", "--repeats", "1"),
    "step_cost": ("--model", "clip_cris_tiny", "--image-size", "64"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_writes_rows_like_the_committed_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(f"benchmarks.{name}")
    committed = (measure.FOLDER / f"{name}.csv").read_text().splitlines()[0]
    monkeypatch.setattr(measure, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", [name, *SMALL[name]])
    script.main()
    with (tmp_path / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == committed
    assert all(row["torch"] == torch.__version__ for row in rows)


def test_a_timed_step_is_three_passes_and_no_check() -> None:
    setting = train_step.Setting("clip_cris_tiny", 2, None, 17, "cpu")
    decoded: list[torch.nn.Module] = []
    setting.model.decoder.register_forward_hook(lambda module, *_: decoded.append(module))
    setting.step(DistillConfig())
    assert len(decoded) == 3


def test_links_of_the_evidence_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_recipes_are_counted_like_the_committed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import step_cost

    committed = (measure.FOLDER / "refcoco_hours.csv").read_text().splitlines()[0]
    monkeypatch.setattr(measure, "FOLDER", tmp_path)
    monkeypatch.setattr(step_cost, "RECIPES", ("cris-r50",))
    counted = SimpleNamespace(step=198_630_000_000)
    monkeypatch.setattr(step_cost, "measure_budget", lambda config: counted)
    monkeypatch.setattr("sys.argv", ["step_cost", "--recipes"])
    step_cost.main()
    with (tmp_path / "refcoco_hours.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == committed
    assert [row["run_pmac"] for row in rows] == ["421.1"] * 2


def test_rows_of_other_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FOLDER", tmp_path)
    measure.append("some", [{"a": 1}])
    with pytest.raises(ValueError, match="other columns"):
        measure.append("some", [{"b": 1}])


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import masking as script

    def wrong(*args: torch.Tensor) -> torch.Tensor:
        return ~masking.select_tokens(args[0], 0.5, 0.25, noise=torch.rand_like(args[0]))

    monkeypatch.setattr(script, "fused_select", wrong)
    with pytest.raises(ValueError, match="differs from the reference"):
        script.operations(2, 20, 8, torch.float32, "cpu")
