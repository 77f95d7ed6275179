"""CLIP's modified ResNet with a dense attention pool, and its text tower: the encoder of CRIS.

The ResNet has three stem convolutions, pools before each strided step, and ends in attention
instead of a mean (CLIP, arXiv 2103.00020, Sec. 2.4). CRIS makes every cell of the last map a query
of that attention and adds a convolution around it, so that a map comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel

from masksd.models.base import load_weights
from masksd.models.clip import check_images
from masksd.models.clip_text import (
    at_position,
    checkpoint_layers,
    sentence_parts,
    text_config,
    text_states,
)
from masksd.models.cris import Attention
from masksd.models.official import clip_weights
from masksd.segmenter import ImageFeatures, TextFeatures

STRIDE = 32  # of the deepest map


class ClipResNetEncoder(nn.Module):
    """CLIP's ResNet and text tower as CRIS uses them.

    Words stay as wide as the text tower, as CRIS's decoder takes them; only the sentence is
    projected. ``image.pooled`` is the mean of the deepest map, carried back through that
    projection, so that ``image.pooled @ text.local`` is the image's vector times the projected
    words. The space is only roughly CLIP's: what CRIS adds to the attention pool starts at random.
    """

    image_embedding = "visual.conv3"  # the last convolution of the stem; it has no patches
    text_embedding = "text.embeddings.token_embedding"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.end_token = config.end_token
        self.visual = ModifiedResNet(
            config.stem, config.blocks, config.pool_side, config.projection
        )
        self.text = CLIPTextModel(text_config(config, "quick_gelu", "sdpa"))
        self.text_projection = nn.Linear(config.text_width, config.projection, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.text_width**-0.5)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Return ``local (B, N, P)``, one a cell of 32 pixels, and maps of strides 8, 16 and 32."""
        check_images(images, STRIDE, str(STRIDE))
        maps = self.visual(images)
        local = rearrange(maps[-1], "b p h w -> b (h w) p")
        # Only relevance reads it: v · (W w) of a word w is (v W) · w.
        pooled = local.detach().mean(1) @ self.text_projection.weight.detach()
        return ImageFeatures(local, (maps[-1].shape[2], maps[-1].shape[3]), pooled, maps)

    def real_words(self, tokens: Tensor) -> Tensor:
        """Mark the real words of ``tokens (B, L)``, bool ``(B, L)``."""
        return sentence_parts(tokens, self.end_token)[0]

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """Return ``local (B, L, C)`` words and ``pooled (B, P)`` the projected end token."""
        local = text_states(self.text, tokens)
        valid, attention_mask, end = sentence_parts(tokens, self.end_token)
        pooled = self.text_projection(at_position(local, end))
        return TextFeatures(local, pooled, valid, attention_mask)

    def gradient_checkpointing_enable(self, **kwargs: bool) -> None:
        """Recompute the layers of the text tower in backward, and leave the ResNet alone."""
        # Recomputed, its BatchNorm would count every image twice.
        checkpoint_layers(self.text, **kwargs)

    def load_clip(self, path: str | Path, trusted: bool = False) -> None:
        """Take the weights of OpenAI's archive, ``RN50.pt`` or ``RN101.pt``.

        It is a program, and opened only if it is what OpenAI published or ``trusted``. A file that
        does not fit is a ``ValueError``, and nothing has changed then.
        """
        weights = clip_weights(path, self.text.config.max_position_embeddings, trusted)
        self.load_converted(weights, str(path))

    def load_converted(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Load CLIP's weights by our names; what CRIS adds to the attention pool stays as it is."""
        prefix = "visual.attnpool.connect."
        kept = {key: value for key, value in self.state_dict().items() if key.startswith(prefix)}
        load_weights(self, {**kept, **weights}, source)


class ModifiedResNet(nn.Module):
    """Maps of strides 8, 16 and 32 of an image; modules have the names of CLIP's own weights."""

    def __init__(self, width: int, blocks: Sequence[int], pool_side: int, outputs: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = stage(width, width, blocks[0], stride=1)
        self.layer2 = stage(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = stage(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = stage(16 * width, 8 * width, blocks[3], stride=2)
        self.attnpool = DensePool(32 * width, outputs, heads=width // 2, side=pool_side)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn images ``(B, 3, H, W)`` into three maps ``(B, C, h, w)``, shallow to deep."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(F.relu(self.bn3(self.conv3(x))))
        stride8 = self.layer2(self.layer1(x))
        stride16 = self.layer3(stride8)
        return stride8, stride16, self.attnpool(self.layer4(stride16))


class Bottleneck(nn.Module):
    """A residual block whose strided step is a mean before a convolution of stride 1."""

    expansion = 4

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn3.weight)  # a new block returns its input
        self.pool = nn.AvgPool2d(stride)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(B, inputs, h, w)`` into ``(B, outputs, h / stride, w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(self.pool(x))))


def stage(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    """Chain blocks, the first of which takes the stride."""
    outputs = Bottleneck.expansion * inner
    return nn.Sequential(
        Bottleneck(inputs, inner, stride),
        *(Bottleneck(outputs, inner, 1) for _ in range(blocks - 1)),
    )


class DensePool(nn.Module):
    """CLIP's attention pool with every cell as a query, and a convolution around it."""

    def __init__(self, inputs: int, outputs: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.positions = nn.Parameter(torch.randn(side * side, inputs) * inputs**-0.5)
        self.attention = Attention(inputs, heads, dropout=0.0)
        self.attention.out = nn.Linear(inputs, outputs)
        self.connect = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(B, inputs, h, w)`` into ``(B, outputs, h, w)``."""
        height, width = x.shape[2:]
        positions = self.positions.T.unflatten(1, (self.side, self.side))[None]  # (1, C, s, s)
        positions = F.interpolate(
            positions, size=(height, width), mode="bicubic", align_corners=False
        )
        cells = rearrange(x + positions.to(x.dtype), "b c h w -> b (h w) c")
        mixed = self.attention(cells, cells, cells)
        mixed = rearrange(mixed, "b (h w) c -> b c h w", h=height, w=width)
        return F.relu(mixed + self.connect(x))
