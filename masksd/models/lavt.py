"""LAVT (Yang et al., CVPR 2022), written after the paper from timm's Swin and transformers' BERT.

Words are fused into the picture at every stage of the backbone: pixels attend to words (pixel-word
attention), a gate decides how much of that enters the next stage, and a light decoder reads the
fused maps from deep to shallow. Not a copy of any code, and its checkpoints are its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from masksd.errors import check_fraction, unknown_name


@dataclass(frozen=True)
class LavtConfig:
    """All sizes of :class:`Lavt`; the defaults are the paper's, on Swin-B and BERT-base.

    Attributes:
        image_size: side in pixels that the model is meant for; others work too.
        embed_width: channels of the first stage; each next one has twice as many.
        depths: blocks a stage.
        heads: attention heads a stage.
        window: side of an attention window.
        drop_path: stochastic depth of the deepest block, in [0, 1].
        vocab_size: token ids are 0 ... vocab_size - 1; 0 is padding.
        text_width: width of BERT, a multiple of ``text_heads``.
        text_layers: its layers.
        text_heads: its attention heads.
        max_length: longest sentence in tokens, start and end included.
        dropout: of BERT, in [0, 1].

    Raises:
        ValueError: a field out of range.

    Example:
        >>> LavtConfig().embed_width
        128
    """

    image_size: int = 480
    embed_width: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    drop_path: float = 0.3
    vocab_size: int = 30522
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    max_length: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))  # JSON has lists
        object.__setattr__(self, "heads", tuple(self.heads))
        if not 2 <= len(self.depths) == len(self.heads):
            raise ValueError(
                f"depths and heads must name the same stages, two or more, got {self.depths} and "
                f"{self.heads}"
            )
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in ("drop_path", "dropout"):
                check_fraction(name, value)
            elif not all(
                isinstance(number, int) and not isinstance(number, bool) and number >= 1
                for number in (value if isinstance(value, tuple) else (value,))
            ):
                raise ValueError(f"{name} must be whole numbers from 1, got {value!r}")
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_width {self.text_width} must be a multiple of text_heads {self.text_heads}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LavtConfig:
        """Build a config from a dictionary.

        Raises:
            ValueError: a name that is no field ("did you mean ..."), or a wrong value.

        Example:
            >>> LavtConfig.from_dict({"window": 7}).window
            7
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("model option", name, known)
        return cls(**values)


class PixelWordAttention(nn.Module):
    """Every pixel gathers the words that concern it, and is multiplied by them (PWAM).

    Args:
        width: channels C of the map.
        text_width: channels T of the words.

    Example:
        >>> attention = PixelWordAttention(8, 6)
        >>> words, valid = torch.zeros(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
        >>> attention(torch.zeros(2, 8, 3, 4), words, valid).shape
        torch.Size([2, 8, 3, 4])
    """

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Conv2d(width, width, 1), nn.InstanceNorm2d(width))
        self.key = nn.Linear(text_width, width)
        self.value = nn.Linear(text_width, width)
        self.gathered = nn.Sequential(nn.Conv2d(width, width, 1), nn.InstanceNorm2d(width))
        self.pixels = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())
        self.fused = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())

    def forward(self, pixels: Tensor, words: Tensor, valid: Tensor) -> Tensor:
        """Fuse ``pixels (B, C, h, w)`` with ``words (B, L, T)``, those that are ``valid (B, L)``.

        A row without any valid word is treated as if all were, or its softmax would be of nothing.
        """
        height, width = pixels.shape[2:]
        valid = valid | ~valid.any(1, keepdim=True)
        query = rearrange(self.query(pixels), "b c h w -> b 1 (h w) c")
        key, value = self.key(words)[:, None], self.value(words)[:, None]  # (B, 1, L, C)
        gathered = F.scaled_dot_product_attention(query, key, value, valid[:, None, None])
        gathered = rearrange(gathered, "b 1 (h w) c -> b c h w", h=height, w=width)
        fused: Tensor = self.fused(self.pixels(pixels) * self.gathered(gathered))
        return fused


class LanguageGate(nn.Sequential):
    """How much of the fused map enters the next stage, in (-1, 1) a channel and pixel.

    Args:
        width: channels C; maps ``(B, h, w, C)`` to the same shape.

    Example:
        >>> LanguageGate(4)(torch.zeros(1, 2, 2, 4)).shape
        torch.Size([1, 2, 2, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.Tanh(),
        )


class LanguageAwareSwin(nn.Module):
    """A Swin transformer whose stages see the words.

    Args:
        swin: timm's, whose patch embedding and stages are taken; its head is not.
        text_width: channels T of the words.

    Attributes:
        widths: channels of the stages' maps.

    Example:
        >>> swin = SwinTransformer(64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
        >>> backbone = LanguageAwareSwin(swin, text_width=6)
        >>> maps = backbone(torch.zeros(1, 3, 64, 64), torch.zeros(1, 5, 6), torch.ones(1, 5) > 0)
        >>> [tuple(map.shape) for map in maps]
        [(1, 8, 16, 16), (1, 16, 8, 8)]
    """

    def __init__(self, swin: SwinTransformer, text_width: int) -> None:
        super().__init__()
        self.widths = [info["num_chs"] for info in swin.feature_info]
        self.patch_embed = swin.patch_embed
        self.stages = swin.layers
        self.fusions = nn.ModuleList(PixelWordAttention(width, text_width) for width in self.widths)
        self.gates = nn.ModuleList(LanguageGate(width) for width in self.widths[:-1])

    def forward(self, images: Tensor, words: Tensor, valid: Tensor) -> list[Tensor]:
        """Return the fused maps ``(B, C, h, w)``, shallow to deep (strides 4, 8, 16, 32)."""
        maps = []
        hidden = self.patch_embed(images)  # (B, h, w, C)
        gates = itertools.chain(self.gates, [None])  # nothing comes after the last stage
        for stage, fusion, gate in zip(self.stages, self.fusions, gates, strict=True):
            hidden = stage(hidden)
            maps.append(fusion(hidden.permute(0, 3, 1, 2), words, valid))
            if gate is not None:
                fused = maps[-1].permute(0, 2, 3, 1)
                hidden = hidden + gate(fused) * fused
        return maps


class LightDecoder(nn.Module):
    """Enlarge, join with the next shallower map, convolve twice; then two classes.

    Args:
        widths: channels of the maps, shallow to deep.

    Example:
        >>> decoder = LightDecoder([4, 8])
        >>> decoder([torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)]).shape
        torch.Size([1, 2, 8, 8])
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        hidden = widths[-1] // 2
        above = [widths[-1], *[hidden] * (len(widths) - 2)]
        self.steps = nn.ModuleList(
            nn.Sequential(*_convolution(deep + shallow, hidden), *_convolution(hidden, hidden))
            for deep, shallow in zip(above, reversed(widths[:-1]), strict=True)
        )
        self.classes = nn.Conv2d(hidden, 2, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Turn fused maps into logits ``(B, 2, h, w)`` at the size of the first."""
        *shallower, hidden = maps
        for step, shallow in zip(self.steps, reversed(shallower), strict=True):
            hidden = F.interpolate(hidden, shallow.shape[2:], mode="bilinear")
            hidden = step(torch.cat([hidden, shallow], dim=1))
        logits: Tensor = self.classes(hidden)
        return logits


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


class Lavt(nn.Module):
    """Segment the object that a sentence names, by words fused inside the backbone.

    Attributes:
        takes_attention_mask: whether ``forward`` takes an attention mask behind the tokens.
        config: the :class:`LavtConfig` that it was built from.
        backbone: :class:`LanguageAwareSwin`.
        text_encoder: transformers' ``BertModel``, without its pooler.
        classifier: :class:`LightDecoder`.

    Example:
        >>> from masksd.models import create_model
        >>> model = create_model("lavt_tiny").eval()
        >>> tokens = torch.tensor([[101, 200, 300, 102, 0]])
        >>> model(torch.zeros(1, 3, 64, 96), tokens, tokens != 0).shape
        torch.Size([1, 2, 64, 96])
    """

    takes_attention_mask: ClassVar[bool] = True

    def __init__(self, config: LavtConfig) -> None:
        super().__init__()
        self.config = config
        swin = SwinTransformer(
            config.image_size,
            embed_dim=config.embed_width,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window,
            drop_path_rate=config.drop_path,
            num_classes=0,
            dynamic_img_size=True,
        )
        bert = BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=4 * config.text_width,
            max_position_embeddings=config.max_length,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
        self.backbone = LanguageAwareSwin(swin, config.text_width)
        self.text_encoder = BertModel(bert, add_pooling_layer=False)
        self.classifier = LightDecoder(self.backbone.widths)

    def forward(self, images: Tensor, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Predict.

        Args:
            images: ``(B, 3, H, W)``, floating, normalised by ImageNet's mean and standard
                deviation; H and W multiples of 32, 64 or more.
            tokens: BERT ids ``(B, L)`` int64.
            attention_mask: ``(B, L)``, nonzero for the ids that are no padding.

        Returns:
            Logits ``(B, 2, H, W)`` of background and foreground, at the size of the picture.

        Raises:
            ValueError: a picture of another size.
        """
        height, width = images.shape[2:]
        if height % 32 or width % 32 or min(height, width) < 64:
            raise ValueError(
                f"the image size {height}x{width} must be multiples of 32, 64 or more; resize or "
                "pad the images"
            )
        valid = attention_mask != 0
        words = self.text_encoder(tokens, attention_mask=valid).last_hidden_state
        logits = self.classifier(self.backbone(images, words, valid))
        return F.interpolate(logits, (height, width), mode="bilinear")

    def load_towers(self, swin: str, bert: str) -> None:
        """Take pretrained weights of the two towers; fusion and decoder stay as they are.

        Args:
            swin: name of a Swin in timm.
            bert: name of a BERT on the Hugging Face Hub, or a folder.

        Raises:
            ValueError: weights that are not in the cache and cannot be downloaded, or do not fit.
        """
        try:
            vision = timm.create_model(
                swin, pretrained=True, num_classes=0, img_size=self.config.image_size
            )
            text = BertModel.from_pretrained(bert, add_pooling_layer=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"the weights of {swin!r} (timm) or {bert!r} (transformers) are neither in the "
                f"cache nor to be downloaded; get them with `hf download timm/{swin}` and "
                f"`hf download {bert}` where there is a network"
            ) from error
        try:
            self.backbone.patch_embed.load_state_dict(vision.patch_embed.state_dict())
            self.backbone.stages.load_state_dict(vision.layers.state_dict())
            self.text_encoder.load_state_dict(text.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {swin!r} and {bert!r} do not fit the sizes of this model: {error}"
            ) from error
