"""Top-k masking kernels: correlate, select, apply, and the call that does all three."""

from masksd.masking.api import apply_mask as apply_mask
from masksd.masking.api import correlate as correlate
from masksd.masking.api import mask_correlated as mask_correlated
from masksd.masking.api import select_tokens as select_tokens
from masksd.masking.noise import keyed_noise as keyed_noise
