"""A neck of language-driven attention (LDA).

Of its paper, "Referring Image Segmentation via Language-Driven Attention" (2021), only the abstract
was at hand. The abstract says that

- the cross-modal representation is built from the **correlation** of the two modalities, to reflect
  "the attention between every single visual element and the entire query sentence";
- the correlation is **decoupled to channel attention and spatial attention**, which "reveal how
  sensitive each channel or each pixel of a particular feature map is" to the sentence;
- both are **integrated** into the cross-modal representation, which is
- **strengthened** "for capturing the multi-receptive-field and multi-level-semantic".

It has no formula: those below are **our reading**, made of well-known relatives. For every level,
with its map ``I``, the sentence ``t``, channels ``c`` and pixels ``p``::

    V = relu(norm(conv1x1(I)))    s = LayerNorm(Linear(t))       both of D channels
    R[c, p] = V[c, p] s[c]                                       correlation
    u[c] = mlp(mean_p R[c, p]) + mlp(max_p R[c, p])              channel attention
    v[p] = conv3x3([mean_c R[c, p], max_c R[c, p]])              spatial attention
    A[c, p] = sigmoid(u[c] + v[p])                               integrated
    X[c, p] = V[c, p] + A[c, p] R[c, p]                          cross-modal representation
    Y = pyramid(X)                                               several receptive fields

and ``relu(norm(conv1x1([Y of every level])))`` fuses the levels. Summed over channels, ``R[c, p]``
is the dot product of a pixel and the sentence: ``v`` weighs the pixels and ``u`` the channels of
one correlation. The relatives: ``mlp`` is the bottleneck of SE (arXiv 1709.01507). The mean, the
maximum and the convolution over them are CBAM's (arXiv 1807.06521), whose 7x7 taps are for larger
maps. The sum under one sigmoid and the residual are BAM's (arXiv 1807.06514). ``pyramid`` is the
atrous spatial pyramid of DeepLabv3 (arXiv 1706.05587). Unlike CRIS's neck it adds no coordinates of
the cells, which the abstract does not name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masksd.losses import averaged
from masksd.models.clip_cris import ClipCris, ClipCrisConfig
from masksd.models.cris import Fused, check_levels
from masksd.models.text_to_pixel import convolution


class AtrousPyramid(nn.Module):
    """See a map through several receptive fields and join what they see; the size stays."""

    def __init__(self, width: int, rates: Sequence[int], norm: str) -> None:
        super().__init__()
        self.fields = nn.ModuleList(
            [
                convolution(width, width, 1, norm),
                *(convolution(width, width, 3, norm, rate) for rate in rates),
            ]
        )
        # of the mean over the map; LayerNorm, so that a batch of one can be trained on
        self.whole = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        self.join = convolution((2 + len(rates)) * width, width, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Strengthen ``features (B, D, h, w)``."""
        whole = self.whole(features.mean((2, 3)))[:, :, None, None].expand_as(features)
        return self.join(torch.cat([*(field(features) for field in self.fields), whole], dim=1))


class LanguageDrivenAttention(nn.Module):
    """Attend to the channels and pixels of one level that the sentence speaks of."""

    def __init__(self, inputs: int, sentence: int, hidden: int, norm: str) -> None:
        super().__init__()
        inside = max(1, hidden // 4)  # SE divides by 16, for wider maps
        self.visual = convolution(inputs, hidden, 1, norm)
        self.sentence = nn.Sequential(nn.Linear(sentence, hidden), nn.LayerNorm(hidden))
        self.channels = nn.Sequential(
            nn.Linear(hidden, inside), nn.ReLU(), nn.Linear(inside, hidden)
        )
        self.pixels = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, level: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-modal representation ``(B, D, h, w)`` and ``v (B, 1, h, w)``."""
        visual = self.visual(level)
        correlation = visual * self.sentence(sentence)[:, :, None, None]
        channels = self.channels(correlation.mean((2, 3)))
        channels = channels + self.channels(correlation.amax((2, 3)))
        pixels = self.pixels(
            torch.cat([correlation.mean(1, keepdim=True), correlation.amax(1, keepdim=True)], dim=1)
        )
        attention = (channels[:, :, None, None] + pixels).sigmoid()
        return visual + attention * correlation, pixels


class LdaNeck(nn.Module):
    """Fuse maps of several levels with the sentence by language-driven attention.

    The maps may differ in size: each level is attended to at its own, then averaged to that of the
    last. The result says where the sentence was found (the mean of ``sigmoid(v)`` over the levels),
    so that relevance ``"neck"`` can rank.
    """

    def __init__(
        self,
        *,
        inputs: Sequence[int],
        sentence: int,
        hidden: int,
        outputs: int,
        rates: Sequence[int],
        norm: str,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            LanguageDrivenAttention(width, sentence, hidden, norm) for width in inputs
        )
        self.pyramids = nn.ModuleList(AtrousPyramid(hidden, rates, norm) for _ in inputs)
        self.fuse = convolution(len(inputs) * hidden, outputs, 1, norm)

    def forward(self, maps: Sequence[Tensor], sentence: Tensor) -> Fused:
        """Fuse ``maps (B, C, h, w)``, shallow to deep, with ``sentence (B, P)``."""
        check_levels(maps, sentence, len(self.attentions))
        size = (maps[-1].shape[2], maps[-1].shape[3])
        levels, seen = [], []
        for level, attention, pyramid in zip(maps, self.attentions, self.pyramids, strict=True):
            representation, pixels = attention(level, sentence)
            levels.append(averaged(pyramid(representation), size))
            seen.append(averaged(pixels.sigmoid(), size))
        return Fused(self.fuse(torch.cat(levels, dim=1)), sentence, torch.stack(seen).mean(0))


@dataclass(frozen=True)
class ClipLdaConfig(ClipCrisConfig):
    """All sizes and options of :class:`ClipLda`; the defaults are those of ``clip_lda_vit_b16``.

    Attributes:
        neck_width: channels D inside the neck.
        rates: dilations of the neck's atrous pyramid, at least one; the rest is as in
            :class:`masksd.models.ClipCrisConfig`.

    Raises:
        ValueError: a field is out of range or does not fit another.

    Example:
        >>> ClipLdaConfig(rates=[6, 12]).rates
        (6, 12)
    """

    neck_width: int = 480
    rates: tuple[int, ...] = (6, 12, 18)

    def __post_init__(self) -> None:
        if not isinstance(self.rates, (tuple, list)) or not self.rates:
            raise ValueError(f"rates must be whole numbers, at least one, got {self.rates!r}")
        object.__setattr__(self, "rates", tuple(self.rates))  # JSON turns tuples into lists
        super().__post_init__()


class ClipLda(ClipCris):
    """CLIP's towers and CRIS's decoder, as :class:`masksd.models.ClipCris`, and :class:`LdaNeck`.

    Example:
        >>> from masksd.models import create_model
        >>> model = create_model("clip_lda_tiny", vocab_size=50).eval()
        >>> tokens = torch.tensor([[48, 7, 12, 49, 0]])  # start, two words, end, padding
        >>> model(torch.zeros(1, 3, 64, 64), tokens).shape
        torch.Size([1, 1, 32, 32])
    """

    config_class = ClipLdaConfig

    @staticmethod
    def build_neck(config: ClipLdaConfig) -> LdaNeck:  # type: ignore[override]
        """Build the neck for a config's sizes."""
        return LdaNeck(
            inputs=config.level_widths,
            sentence=config.projection,
            hidden=config.neck_width,
            outputs=config.width,
            rates=config.rates,
            norm=config.norm,
        )
