"""What runs are called: hashes of all that their scores depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from benchmarks.study.plan import Study
from masksd.kit.config import TrainConfig

SILENT = ("output", "overwrite", "progress", "workers", "cache", "cpu", "log_every")
"""Fields that change what is written, shown or kept, and never what comes out."""
_SILENT = (*SILENT, "sheet_rows", "eval_batch_size", "encoder_weights")  # towers have a name


def config_hash(study: Study, config: TrainConfig, towers: str) -> str:
    """Name a run by all that its scores depend on: its config, the towers, what it is scored on.

    Where files are written and what is shown is not in it, nor are the device and the versions,
    which rows tell. Where data lies is in it, as nobody looks whether other data has the same
    contents. Values that are the default are not: a field that is added later leaves it as it is.

    Args:
        study: whose splits and samples count.
        config: of the run.
        towers: as a row names them, see :func:`benchmarks.study.towers.towers_name`.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> from benchmarks.study.plan import host
        >>> study = Study("two", TrainConfig(), (host(),))
        >>> one, two = TrainConfig(progress=False), TrainConfig(lr=0.1)
        >>> names = [config_hash(study, each, "scratch") for each in (study.base, one, two)]
        >>> names[0] == names[1] != names[2]
        True
    """
    return _digest(study, {**_spoken(config), "towers": towers}, 16)


def base_hash(study: Study) -> str:
    """Name what all runs of a study share, for people who look for its rows.

    The seed is not in it, nor are the towers, which rows name beside it.

    Args:
        study: whose base, splits and samples count.

    Returns:
        8 hexadecimal digits.

    Example:
        >>> from benchmarks.study.plan import host
        >>> one, two = (Study("one", TrainConfig(lr=lr), (host(),)) for lr in (0.1, 0.2))
        >>> base_hash(one) == base_hash(two)
        False
    """
    distill = dataclasses.replace(study.base.distill, seed=0)
    return _digest(study, _spoken(dataclasses.replace(study.base, seed=0, distill=distill)), 8)


def _spoken(config: TrainConfig) -> dict[str, Any]:
    """Return what differs from the default in the fields that scores and curve depend on."""
    fields = _differing(json.loads(config.to_json()), json.loads(TrainConfig().to_json()))
    return {name: value for name, value in fields.items() if name not in _SILENT}


def _differing(fields: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(default[name], dict):
            value = _differing(value, default[name])
            if value:
                found[name] = value
        elif value != default[name]:
            found[name] = value
    return found


def _digest(study: Study, fields: dict[str, Any], length: int) -> str:
    scored = [list(study.splits), study.samples]
    text = json.dumps({**fields, "scored": scored}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
