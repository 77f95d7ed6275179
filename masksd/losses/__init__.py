"""The losses, one a file."""

from masksd.losses.alignment import alignment_loss as alignment_loss
from masksd.losses.consistency import consistency_loss as consistency_loss
from masksd.losses.segmentation import segmentation_loss as segmentation_loss
