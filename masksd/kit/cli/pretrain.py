"""``masksd pretrain``."""

from __future__ import annotations

from typing import Any, Literal

from masksd.errors import check_choice
from masksd.kit.cli.options import checked, command, unchecked
from masksd.kit.config import DataConfig, PretrainConfig
from masksd.kit.printing import command_line
from masksd.models import list_models


def pretrain_command() -> type:
    """Make the command."""
    return command(
        _pretrain, _check, config=unchecked(PretrainConfig()), bits=(Literal[32, 16, 8], 32)
    )


def _check(options: Any) -> None:
    from masksd.kit.training.checks import check_data

    config = checked(PretrainConfig(), options.config)
    check_choice("model", config.model, list_models())
    check_data(config.data)


def _pretrain(options: Any) -> None:
    """Train a model's two towers to agree, as CLIP was, for masksd train --encoder-weights.

    Attributes:
        bits: of a number in the file of weights; fewer make it smaller, and 8 are enough to start
            a training from.
    """
    from masksd.kit.training.pretrain import pretrain

    config = checked(PretrainConfig(), options.config)
    report = pretrain(config, options.bits)
    for name, found in (("untrained", report["untrained"]), ("trained", report)):
        choice, relevance = found["retrieval"], found["relevance"]
        areas = [
            f"area {relevance[kind]:.3f} with {words} sentence"
            for kind, words in (("own", "its"), ("other", "another's"))
            if kind in relevance
        ]
        print(
            f"{name:<10} the right sentence {choice['sentence']:.1%}, the right view "
            f"{choice['view']:.1%} (chance {choice['chance']:.1%}); relevance finds the object: "
            + ", ".join(areas)
        )
    print(f"{config.output}: {config.steps} steps in {report['seconds']:.0f} s")
    own = {
        name: each for name, each in vars(config.data).items() if each != getattr(DataConfig, name)
    }
    sizes = {name: getattr(config, name) for name in ("model", "max_length", "image_size")}
    print(f"next: {command_line('train', **own, **sizes, encoder_weights=config.output)}")
