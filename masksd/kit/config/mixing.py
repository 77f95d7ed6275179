"""Data sets that are mixed into a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

_MOST = 100.0


def parse_share(text: str) -> tuple[Path, float]:
    """Take apart ``FOLDER`` or ``FOLDER=WEIGHT``: the folder of a data set, and its weight."""
    folder, equals, number = text.rpartition("=")
    try:
        weight = float(number) if equals else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight <= _MOST or not (folder if equals else number):
        raise ValueError(
            f"mix has {text!r}, expected the folder of a data set, ROOT/NAME, or "
            f"ROOT/NAME=WEIGHT with a weight above 0 and at most {_MOST:g} (--mix)"
        )
    return Path(folder if equals else number), weight


def check_mix(config: Any) -> None:
    """Raise a ``ValueError`` unless the data sets that a ``TrainConfig`` mixes can be."""
    for share in config.mix:
        parse_share(share)
    for name in ("labels", "unlabelled", "label_noise"):
        if config.mix and getattr(config, name):
            raise ValueError(
                f"mix={config.mix!r} and {name}={getattr(config, name)!r} do not go together; "
                "leave one of them out"
            )
