"""The direction of imports: a room uses only the rooms below it, and nothing goes in circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. A room may use every room on a line above its own, and itself.
FLOORS = [
    ["errors", "tapping.grids", "features"],
    ["masking_config"],
    ["losses", "masking"],
    ["tapping.hooks", "tapping.modules"],
    ["tapping.embeddings", "knowledge.losses", "tapping.replay"],
    ["config", "tapping.tap"],
    ["knowledge.config", "tapping.kinds"],
    ["segmenter"],
    ["passes.truth", "passes.teacher"],
    ["triple", "hosts", "models", "relevance", "trials.trial"],
    ["passes.masker", "knowledge.teaching"],
    ["passes.branches", "trials.towers"],
    ["passes.step"],
    ["passes.low_memory", "passes.one_pass", "describe", "trials.check"],
    ["wrapper"],
    ["distill"],
    ["cross_modal"],
    ["", "tapping", "passes", "trials", "knowledge"],  # masksd itself, the face, and names of rooms
    [
        "kit.storage",
        "kit.processes",
        "kit.randomness",
        "kit.devices",
        "kit.schedules",
        "kit.data_config",
        "kit.printing",
    ],
    ["kit.figures"],
    ["kit.data"],
    ["kit.config", "kit.scores"],
    ["kit.checkpoints"],
    ["kit.encoder_weights", "kit.start", "kit.mixing"],
    ["kit.sources", "kit.feeding"],
    ["kit.evaluation", "kit.prediction"],
    ["kit.training", "kit.recipes", "kit.export"],
    ["kit.costs", "kit.demo"],
    ["kit"],  # the kit's face
    ["kit.cli"],
    ["__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODELS_MAY_USE = {"models", "errors", "losses", "segmenter"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """All modules by dotted name without ``masksd.``; packages by the package's own name."""
    found = {}
    for path in sorted((root / "masksd").rglob("*.py")):
        parts = path.relative_to(root / "masksd").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a file imports anywhere: at the top, in functions, for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "masksd":
                continue
            inside = name.removeprefix("masksd").removeprefix(".")
            while inside not in known:  # a name in a module
                inside = inside.rpartition(".")[0]
            yield inside


def room(module: str) -> str:
    """The room of a module: the longest entry of FLOORS that it lies in."""
    name = module
    while name not in FLOOR or (name in ("", "kit") and name != module):
        assert name, f"{module} is in no room of FLOORS"
        name = name.rpartition(".")[0]
    return name


def climbs(known: dict[str, Path]) -> list[str]:
    found = []
    for module, path in known.items():
        for used in imports(path, known):
            ours, theirs = room(module), room(used)
            if ours != theirs and FLOOR[theirs] >= FLOOR[ours]:
                found.append(f"{module} -> {used}")
            if ours == "models" and theirs not in MODELS_MAY_USE:
                found.append(f"{module} -> {used}: models use errors, losses and segmenter alone")
    return found


def circle(known: dict[str, Path]) -> list[str]:
    """One circle of imports between files, or nothing."""
    edges = {module: sorted(set(imports(path, known)) - {module}) for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in done:
            for used in edges[module]:
                if found := visit(used, [*way, module]):
                    return found
            done.add(module)
        return []

    for module in known:
        if found := visit(module, []):
            return found
    return []


def test_imports_go_down() -> None:
    assert climbs(modules()) == []


def test_no_circles() -> None:
    assert circle(modules()) == []


@pytest.mark.parametrize(
    "line",
    ["from masksd.distill import x", "def f():\n    import masksd.segmenter"],
)
def test_a_climb_and_a_circle_are_found(line: str, tmp_path: Path) -> None:
    package = tmp_path / "masksd"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "errors": line,
        "segmenter": "from masksd.errors import y",
        "distill": "from masksd.segmenter import z",
    }.items():
        (package / f"{name}.py").write_text(text)
    known = modules(tmp_path)
    assert climbs(known)
    assert circle(known)
