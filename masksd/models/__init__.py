"""Models that we ship: ``create_model(name)`` builds one, ``list_models()`` names them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from masksd.models.registry import create_model as create_model
from masksd.models.registry import list_models as list_models
from masksd.models.registry import register_model as register_model

if TYPE_CHECKING:
    from masksd.models.clip_cris import ClipCris as ClipCris
    from masksd.models.clip_cris import ClipCrisConfig as ClipCrisConfig
    from masksd.models.cris_resnet import ResNetCris as ResNetCris
    from masksd.models.cris_resnet import ResNetCrisConfig as ResNetCrisConfig

# They load transformers, which the names do not need.
_LATE = {
    "ClipCris": "clip_cris",
    "ClipCrisConfig": "clip_cris",
    "ResNetCris": "cris_resnet",
    "ResNetCrisConfig": "cris_resnet",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"masksd.models.{_LATE[name]}"), name)
