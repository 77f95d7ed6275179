"""The README's Python blocks run, each in a process's worth of nothing else."""

from __future__ import annotations

import ast
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KIT = ROOT / "masksd/kit/README.md"
TEXTS = [ROOT / "README.md", ROOT / "examples/README.md", ROOT / "benchmarks/README.md", KIT]
BLOCKS = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in TEXTS
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_every_option_is_explained() -> None:
    import dataclasses

    import masksd

    for config in (masksd.DistillConfig, masksd.MaskingConfig):
        explained = set(re.findall(r"^ {8}(\w+): ", config.__doc__ or "", re.M))
        assert {field.name for field in dataclasses.fields(config)} <= explained


def test_links_to_files_are_not_broken() -> None:
    for path in TEXTS:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_names_of_code_in_the_guide_exist() -> None:
    page = (ROOT / "examples/README.md").read_text()
    names = set(re.findall(r"`(masksd(?:\.\w+)+)`", page))
    assert len(names) > 12
    for name in names:
        assert callable(pkgutil.resolve_name(name)), name


def texts_of_the_code() -> list[str]:
    """Every literal of the package, joined where only a line break divides it."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "masksd").rglob("*.py"))
    found = (node.value for tree in trees for node in ast.walk(tree) if type(node) is ast.Constant)
    return [text for text in found if isinstance(text, str)]


@pytest.mark.parametrize("path", [ROOT / "examples/README.md", KIT])
def test_messages_that_the_guides_explain_are_those_of_the_code(path: Path) -> None:
    section = path.read_text().split("\n## What is refused\n")[1].split("\n## ")[0]
    says = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    messages = [message for cell in says for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 15
    texts = texts_of_the_code()
    for message in messages:
        assert any(message in text for text in texts), message


def test_tables_of_the_benchmarks_are_those_of_the_csv_files() -> None:
    from benchmarks.pages.readme import README, TABLES, render

    assert render(README.read_text(), TABLES) == README.read_text()


COMMANDS = re.compile(r"(?:^|`|&& )(?:\.venv/bin/)?masksd((?: [^`\n]+)?)", re.M)


def test_commands_parse(capfd: pytest.CaptureFixture[str]) -> None:
    from masksd.kit import cli

    found = [line for path in TEXTS for line in COMMANDS.findall(path.read_text())]
    split = [command for command in map(shlex.split, found) if command]
    names = {"train", "pretrain", "evaluate", "predict", "demo", "export", "data"}
    commands = [command for command in split if command[0] in names]
    assert {command[0] for command in commands} == names
    for command in commands:
        if len(command) == 1 or command[-1] in ("--help", "..."):
            continue
        try:
            cli._parse(command)
        except SystemExit:
            pytest.fail(f"{shlex.join(command)}\n{capfd.readouterr().err}")


LAUNCHERS = {  # of torchrun, accelerate and tyro
    "--tyro-print-completion",
    "--standalone",
    "--nproc_per_node",
    "--nnodes",
    "--rdzv_backend",
    "--rdzv_id",
    "--rdzv_endpoint",
    "--num_processes",
}


def test_options_named_in_the_text_exist(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from masksd.kit import cli

    monkeypatch.setenv("COLUMNS", "200")
    for command in (
        ["train"],
        ["pretrain"],
        ["evaluate"],
        ["predict"],
        ["demo"],
        ["export"],
        ["data", "prepare"],
        ["data", "inspect"],
        ["data", "words"],
    ):
        with pytest.raises(SystemExit):
            cli._parse([*command, "--help"])
        if command == ["train"]:
            train = capfd.readouterr().out
    known = set(re.findall(r"--[a-z][\w.-]*", train + capfd.readouterr().out))
    named = set(re.findall(r"--[a-z][\w.-]*", KIT.read_text()))
    assert named <= known | LAUNCHERS
    for option in re.findall(r"--(?!no-)[a-z][\w-]*(?![\w.-])", train):
        assert option in named, f"{option} is nowhere in the kit's guide"


@pytest.mark.slow
def test_tables_of_the_evidence_are_those_of_its_rows() -> None:
    from benchmarks.pages.evidence import PAGES
    from benchmarks.pages.readme import render

    for page, tables in PAGES.items():
        text = page.read_text(encoding="utf-8")
        assert render(text, tables) == text
        assert "not run yet" not in text
