"""The losses, one a file."""

from masksd.losses.consistency import consistency_loss as consistency_loss
from masksd.losses.segmentation import segmentation_loss as segmentation_loss
