"""Cross-modality masked self-distillation (CM-MaskSD) around any segmentation model.

Importing this loads neither transformers, timm nor the training stack.
"""

from importlib.metadata import version as _version

from masksd.config import DistillConfig as DistillConfig
from masksd.config import MaskingConfig as MaskingConfig
from masksd.distill import CrossModalMaskedSelfDistill as CrossModalMaskedSelfDistill
from masksd.distill import DistillOutput as DistillOutput
from masksd.hosts import Taps as Taps
from masksd.losses import consistency_loss as consistency_loss
from masksd.losses import segmentation_loss as segmentation_loss
from masksd.segmenter import ImageFeatures as ImageFeatures
from masksd.segmenter import Pass as Pass
from masksd.segmenter import Segmenter as Segmenter
from masksd.segmenter import TextFeatures as TextFeatures
from masksd.tap import TokenMask as TokenMask
from masksd.triple import Triple as Triple

__version__ = _version("masksd")
