"""Runs from a file: ``masksd train --config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from masksd import DistillConfig
from masksd.kit.cli import main
from masksd.kit.cli.options import checked
from masksd.kit.cli.train import load_config, train_command
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.recipes import RECIPES, get_recipe

SAVED = TrainConfig(
    data=DataConfig(level="hard"),
    distill=DistillConfig(text=None, low_memory=True),
    steps=7,
    warmup=2,
    clip_norm=float("inf"),
    frozen=("neck",),
)


def parsed(*arguments: str) -> TrainConfig:
    line = ["train", *arguments]
    options: Any = tyro.cli(train_command(line), args=line[1:])
    base = SAVED if options.config is not None else get_recipe(options.preset)
    found: TrainConfig = checked(base, options.settings)
    return found


@pytest.mark.parametrize("name", ["config.json", "mine.yaml"])
def test_a_file_is_the_run_and_options_change_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    text = SAVED.to_json()
    file.write_text(text if name == "config.json" else yaml.safe_dump(json.loads(text)))
    assert load_config(file) == SAVED
    assert parsed("--config", str(file)) == SAVED
    changed = parsed("--config", str(file), "--epochs", "3", "--distill.image.ratio", "0.5")
    assert (changed.epochs, changed.steps, changed.data.level) == (3, None, "hard")
    assert (changed.distill.image.ratio, changed.distill.text) == (0.5, None)


def test_some_fields_are_enough(tmp_path: Path) -> None:
    file = tmp_path / "short.yml"
    file.write_text("steps: 5\nwarmup: 1\ndata:\n  level: medium\n")
    assert load_config(file) == TrainConfig(steps=5, warmup=1, data=DataConfig(level="medium"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config at"),
        ("{", "holds no config of a run: "),
        ("[1]", "must be an object"),
        ('{"stepps": 5}', "did you mean 'steps'"),
        ('{"data": 3}', "holds no config of a run: "),
    ],
)
def test_what_is_no_config_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    output = tmp_path / "run"
    assert main(["train", "--config", str(file), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("masksd: error: ")
    assert str(file) in error
    assert message in error
    assert not output.exists()


def test_one_of_preset_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "a.json", "--preset", "cris-r50"]) == 2
    assert "--preset and --config both say what the run is" in capsys.readouterr().err


def test_a_method_is_a_preset_of_the_default_run() -> None:
    run = parsed("--preset", "augment")
    assert run.distill == DistillConfig.preset("augment")
    assert run.steps == RECIPES["cm-masksd"].steps
    other = parsed("--preset", "maskris", "--level", "medium")  # from scratch
    assert (other.distill, other.encoder_weights) == (DistillConfig.preset("maskris"), None)


def test_a_dict_is_no_config_inside() -> None:
    fields = json.loads(SAVED.to_json())
    with pytest.raises(ValueError, match=r"data must be a DataConfig, got a dict; .*from_json"):
        TrainConfig(data=fields["data"])
