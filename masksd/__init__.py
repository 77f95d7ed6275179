"""Cross-modality masked self-distillation (CM-MaskSD) around any segmentation model.

Importing this loads torch, but not transformers, timm or the training kit.
"""

from importlib.metadata import version as _version

from masksd.config import DistillConfig
from masksd.cross_modal import CrossModalDistill
from masksd.distill import CrossModalMaskedSelfDistill, DistillOutput
from masksd.embeddings import TokenMask
from masksd.hooks import release
from masksd.hosts import Taps
from masksd.knowledge_config import ChannelDistillConfig
from masksd.losses import consistency_loss, segmentation_loss
from masksd.masking_config import MaskingConfig
from masksd.segmenter import ImageFeatures, Pass, Segmenter, TextFeatures
from masksd.triple import Triple

__all__ = [
    "ChannelDistillConfig",
    "CrossModalDistill",
    "CrossModalMaskedSelfDistill",
    "DistillConfig",
    "DistillOutput",
    "ImageFeatures",
    "MaskingConfig",
    "Pass",
    "Segmenter",
    "Taps",
    "TextFeatures",
    "TokenMask",
    "Triple",
    "consistency_loss",
    "release",
    "segmentation_loss",
]
__version__ = _version("masksd")
