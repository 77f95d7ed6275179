"""Unmodified models as segmenters: by taps, or by a recipe that knows their parts."""

from masksd.hosts.layout import bert_words as bert_words
from masksd.hosts.layout import clip_words as clip_words
from masksd.hosts.recipes import segmenter_for as segmenter_for
from masksd.hosts.taps import Taps as Taps
from masksd.hosts.taps import TapSegmenter as TapSegmenter
