"""Cross-modality masked self-distillation (CM-MaskSD) around any segmentation model.

Names are loaded when they are first used: importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masksd.config import DistillConfig as DistillConfig
    from masksd.cross_modal import CrossModalDistill as CrossModalDistill
    from masksd.distill import CrossModalMaskedSelfDistill as CrossModalMaskedSelfDistill
    from masksd.distill import DistillOutput as DistillOutput
    from masksd.hosts import Taps as Taps
    from masksd.knowledge.config import ChannelDistillConfig as ChannelDistillConfig
    from masksd.losses import consistency_loss as consistency_loss
    from masksd.losses import segmentation_loss as segmentation_loss
    from masksd.masking_config import MaskingConfig as MaskingConfig
    from masksd.segmenter import ImageFeatures as ImageFeatures
    from masksd.segmenter import Pass as Pass
    from masksd.segmenter import Segmenter as Segmenter
    from masksd.segmenter import TextFeatures as TextFeatures
    from masksd.tapping.embeddings import TokenMask as TokenMask
    from masksd.tapping.hooks import release as release
    from masksd.triple import Triple as Triple

_ROOMS = {
    "ChannelDistillConfig": "knowledge.config",
    "CrossModalDistill": "cross_modal",
    "CrossModalMaskedSelfDistill": "distill",
    "DistillConfig": "config",
    "DistillOutput": "distill",
    "ImageFeatures": "segmenter",
    "MaskingConfig": "masking_config",
    "Pass": "segmenter",
    "Segmenter": "segmenter",
    "Taps": "hosts",
    "TextFeatures": "segmenter",
    "TokenMask": "tapping.embeddings",
    "Triple": "triple",
    "consistency_loss": "losses",
    "release": "tapping.hooks",
    "segmentation_loss": "losses",
}
__all__ = list(_ROOMS)
__version__ = _version("masksd")


def __getattr__(name: str) -> Any:
    if name in ("hosts", "kit", "masking", "models"):
        return importlib.import_module(f"masksd.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"masksd.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
