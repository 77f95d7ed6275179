"""Unmodified models as segmenters: by taps, or by a recipe that knows their parts."""

from masksd.hosts.layout import bert_words, clip_words
from masksd.hosts.recipes import segmenter_for
from masksd.hosts.tapped import TapSegmenter
from masksd.hosts.taps import Taps

__all__ = ["TapSegmenter", "Taps", "bert_words", "clip_words", "segmenter_for"]
