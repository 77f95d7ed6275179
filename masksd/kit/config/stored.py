"""Configs as JSON, and as options by name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from masksd.config import DistillConfig
from masksd.errors import check_choice
from masksd.kit.data_config import DataConfig
from masksd.knowledge.config import ChannelDistillConfig

_INFINITE = ("clip_norm", "save_minutes")  # fields that may be infinite, which JSON has as null
_PATHS = ("encoder_weights", "start_from", "teacher", "output")
METHODS: dict[str, Any] = {"distill": DistillConfig, "knowledge": ChannelDistillConfig}


@dataclass(frozen=True)
class StoredConfig:
    """A dataclass of a run that can be written and read back."""

    def flat(self) -> dict[str, Any]:
        """Return every option by its name on the command line."""
        return dict(_flat(dataclasses.asdict(self)))

    def to_json(self) -> str:
        """Return the config as JSON text: paths are strings, and infinity is null."""
        fields = _without_infinity(dataclasses.asdict(self))
        return json.dumps(fields, indent=2, default=str, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Take back what :meth:`to_json` returned; absent fields have their default.

        Raises:
            ValueError: text that is no such JSON, or a field that does not exist.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"the config of a run must be an object, got {text[:40]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            check_choice("field of a run", name, known)
        values: dict[str, Any]
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        for name in _INFINITE:
            if name in values and values[name] is None:
                values[name] = math.inf
        for name in _PATHS:
            if values.get(name) is not None:
                values[name] = Path(values[name])
        if "data" in values:
            values["data"] = DataConfig.from_dict(values["data"])
        for name, kind in METHODS.items():
            if name in values:
                values[name] = kind.from_json(json.dumps(values[name]))
        return cls(**values)


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(fields: dict[str, Any], beginning: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            # options of the data have no prefix
            yield from _flat(value, "" if name == "data" else f"{beginning}{name}.")
        else:
            yield beginning + name, value
