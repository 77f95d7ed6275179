"""The README's Python blocks run, each in a process's worth of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [path for path in (ROOT / "README.md", *ROOT.glob("*/README.md")) if path.exists()]
BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in TEXTS
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_every_option_is_in_the_tables() -> None:
    import dataclasses

    import masksd

    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", readme, re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    for config in (masksd.DistillConfig, masksd.MaskingConfig):
        assert {field.name for field in dataclasses.fields(config)} <= named


def test_links_to_files_are_not_broken() -> None:
    for path in TEXTS:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_tables_of_the_benchmarks_are_those_of_the_csv_files() -> None:
    from benchmarks.tables import README, render

    assert render(README.read_text()) == README.read_text()
