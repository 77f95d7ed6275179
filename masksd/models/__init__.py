"""The models we ship: ``list_models()`` names them, ``create_model(name)`` builds one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from masksd.models.registry import create_model, list_models, register_model

if TYPE_CHECKING:
    from masksd.models.clip_cris import ClipCris, ClipCrisConfig
    from masksd.models.cris_resnet import ResNetCris, ResNetCrisConfig
    from masksd.models.lavt import Lavt, LavtConfig
    from masksd.models.lda import ClipLda, ClipLdaConfig

__all__ = [
    "ClipCris",
    "ClipCrisConfig",
    "ClipLda",
    "ClipLdaConfig",
    "Lavt",
    "LavtConfig",
    "ResNetCris",
    "ResNetCrisConfig",
    "create_model",
    "list_models",
    "register_model",
]

# Imported on first use: these load transformers, which listing the names does not need.
_LAZY = {"ClipCris": "clip_cris", "ClipLda": "lda", "Lavt": "lavt", "ResNetCris": "cris_resnet"}


def __getattr__(name: str) -> Any:
    model = name.removesuffix("Config")
    if model not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"masksd.models.{_LAZY[model]}"), name)
