"""``masksd train``."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

from masksd.cli.options import checked, command, early_option, unchecked
from masksd.cli.shared import data_title
from masksd.config import DistillConfig
from masksd.engine.config import TrainConfig

BRANCHES_OFF = {"both": (), "lmvsd": ("text",), "vmlsd": ("image",), "none": ("image", "text")}
PRESET = "cm-masksd"


def train_command(arguments: list[str]) -> type:
    """Make the command; the preset decides the defaults that the other options show and replace.

    Args:
        arguments: of the command line, which may name a preset.
    """
    preset = early_option(arguments, "--preset", PRESET)
    default = unchecked(TrainConfig(distill=DistillConfig.preset(preset)))
    branches = Literal["both", "lmvsd", "vmlsd", "none"]
    return command(_train, config=default, preset=(str, preset), branches=(branches, "both"))


def _train(options: Any) -> None:
    """Train a model with CM-MaskSD and score it; with no option at all, in minutes on a CPU.

    Attributes:
        preset: named values of the distill options: cm-masksd.
        branches: the masked branches that are on.
    """
    from masksd.engine.evaluator import format_table
    from masksd.engine.trainer import train

    default = TrainConfig(distill=DistillConfig.preset(options.preset))
    config = checked(default, options.config)
    off: dict[str, Any] = dict.fromkeys(BRANCHES_OFF[options.branches])
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, **off))
    result = train(config)
    if os.environ.get("RANK", "0") == "0":
        print(data_title(config.data, config.eval_split))
        print(format_table(result.scores))
        skipped = f", {result.skipped} steps skipped" if result.skipped else ""
        print(f"{result.folder}: {config.steps} steps in {result.seconds:.0f} s{skipped}")
