"""Top-k masking kernels: correlate, select, apply, and the call that does all three."""

from masksd.masking.api import apply_mask, correlate, mask_correlated, select_tokens
from masksd.masking.noise import keyed_noise

__all__ = ["apply_mask", "correlate", "keyed_noise", "mask_correlated", "select_tokens"]
