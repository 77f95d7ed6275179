"""The text-to-pixel head of CRIS (CVPR 2022), and the convolution block that it is built of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.errors import check_choice, check_fraction

NORMS = ("batch", "group")


def convolution(
    inputs: int, outputs: int, kernel: int, norm: str, dilation: int = 1
) -> nn.Sequential:
    """Build convolution, normalisation and ReLU that keep the size of the map."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        normalization(outputs, norm),
        nn.ReLU(),
    )


def normalization(channels: int, norm: str) -> nn.Module:
    """Build batch normalisation, or group normalisation in at most 8 groups."""
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(channels, 8), channels)


class TextToPixelHead(nn.Module):
    """Enlarge the map four times, then convolve it by weights made of the sentence."""

    def __init__(self, *, inputs: int, hidden: int, sentence: int, norm: str, prior: float) -> None:
        super().__init__()
        check_fraction("prior", prior)
        if prior in (0, 1):
            raise ValueError(f"prior must lie strictly between 0 and 1, got {prior!r}")
        self.enlarge2 = convolution(inputs, 2 * hidden, 3, norm)
        self.enlarge4 = convolution(2 * hidden, hidden, 3, norm)
        self.project = nn.Conv2d(hidden, hidden, 1)
        self.kernel = nn.Linear(sentence, 9 * hidden + 1)  # nine taps a channel and the bias
        # Logits of order one: the sum over 9 H products is as large as a single one.
        nn.init.normal_(self.kernel.weight, std=(sentence * 9 * hidden) ** -0.5)
        nn.init.zeros_(self.kernel.bias)
        nn.init.constant_(self.kernel.bias[-1:], math.log(prior / (1 - prior)))

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Turn ``features (B, D, h, w)`` and ``sentence (B, P)`` into logits ``(B, 1, 4h, 4w)``."""
        x = self.enlarge2(F.interpolate(features, scale_factor=2.0, mode="bilinear"))
        x = self.enlarge4(F.interpolate(x, scale_factor=2.0, mode="bilinear"))
        return dynamic_convolution(self.project(x), self.kernel(sentence))


def dynamic_convolution(features: Tensor, kernel: Tensor) -> Tensor:
    """Convolve ``features (B, H, h, w)`` to ``(B, 1, h, w)``, each image by its own 3x3 kernel.

    ``kernel (B, 9 * H + 1)`` holds ``(H, 3, 3)`` row-major, then the bias. Each tap is a dot
    product at every pixel, then the nine maps are shifted and added. This equals a convolution with
    one group an image, but the batch may vary in a compiled graph.
    """
    height, width = features.shape[2:]
    weight, bias = kernel[:, :-1], kernel[:, -1]
    # fold adds at +offset what a convolution reads at +offset, hence the reversed taps
    taps = weight.unflatten(1, (-1, 9)).transpose(1, 2).flip(1)  # (B, 9, H)
    scores = torch.bmm(taps, features.flatten(2))  # (B, 9, h*w)
    return F.fold(scores, (height, width), kernel_size=3, padding=1) + bias[:, None, None, None]
