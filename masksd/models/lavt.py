"""LAVT (Yang et al., CVPR 2022), written from the paper on timm's Swin and transformers' BERT.

Words are fused into the image at every stage of the backbone: pixels attend to words (pixel-word
attention), a gate decides how much of that enters the next stage, and a light decoder reads the
fused maps from deep to shallow. No code is copied, and checkpoints of other LAVTs do not fit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from masksd.errors import check_fraction
from masksd.models.base import ModelConfig
from masksd.models.registry import hub_source
from masksd.models.text_to_pixel import convolution


@dataclass(frozen=True)
class LavtConfig(ModelConfig):
    """All sizes of :class:`Lavt`; the defaults are the paper's, on Swin-B and BERT-base.

    Attributes:
        image_size: side in pixels that the model is meant for; others work too.
        embed_width: channels of the first stage; each next one has twice as many.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of an attention window.
        drop_path: stochastic depth of the deepest block, in [0, 1].
        vocab_size: token ids are 0 ... vocab_size - 1; 0 is padding.
        text_width: width of BERT, a multiple of ``text_heads``.
        text_layers: its layers.
        text_heads: its attention heads.
        max_length: longest sentence in tokens, including start and end.
        dropout: of BERT, in [0, 1].

    Raises:
        ValueError: a field is out of range or does not fit another.

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
        object.__setattr__(self, "depths", tuple(self.depths))  # JSON turns tuples into lists
        object.__setattr__(self, "heads", tuple(self.heads))
        if not 2 <= len(self.depths) == len(self.heads):
            raise ValueError(
                "depths and heads must have one number a stage, for two stages or more, got "
                f"{self.depths} and {self.heads}"
            )
        self.check_integers()
        self.check_multiple("text_width", "text_heads")
        check_fraction("drop_path", self.drop_path)
        check_fraction("dropout", self.dropout)


class PixelWordAttention(nn.Module):
    """Every pixel gathers the words that concern it, and is multiplied by them (PWAM)."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Conv2d(width, width, 1), nn.InstanceNorm2d(width))
        self.key = nn.Linear(text_width, width)
        self.value = nn.Linear(text_width, width)
        self.gathered = nn.Sequential(nn.Conv2d(width, width, 1), nn.InstanceNorm2d(width))
        self.pixels = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())
        self.fused = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())

    def forward(self, pixels: Tensor, words: Tensor, valid: Tensor) -> Tensor:
        """Fuse ``pixels (B, C, h, w)`` with the ``valid (B, L)`` ones of ``words (B, L, T)``."""
        height, width = pixels.shape[2:]
        valid = valid | ~valid.any(1, keepdim=True)  # all of none: a softmax over nothing is NaN
        query = rearrange(self.query(pixels), "b c h w -> b 1 (h w) c")
        key, value = self.key(words)[:, None], self.value(words)[:, None]  # (B, 1, L, C)
        gathered = F.scaled_dot_product_attention(query, key, value, valid[:, None, None])
        gathered = rearrange(gathered, "b 1 (h w) c -> b c h w", h=height, w=width)
        return self.fused(self.pixels(pixels) * self.gathered(gathered))


class LanguageGate(nn.Sequential):
    """How much of a fused map ``(B, h, w, C)`` enters the next stage: a factor in (-1, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.Tanh(),
        )


class LanguageAwareSwin(nn.Module):
    """The patch embedding and stages of timm's Swin, whose stages see the words."""

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
    """Enlarge, join with the next shallower map, convolve twice; then two classes."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        hidden = widths[-1] // 2
        above = [widths[-1], *[hidden] * (len(widths) - 2)]
        self.steps = nn.ModuleList(
            nn.Sequential(
                *convolution(deep + shallow, hidden, 3, "batch"),
                *convolution(hidden, hidden, 3, "batch"),
            )
            for deep, shallow in zip(above, reversed(widths[:-1]), strict=True)
        )
        self.classes = nn.Conv2d(hidden, 2, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Turn fused maps into logits ``(B, 2, h, w)`` at the size of the first."""
        *shallower, hidden = maps
        for step, shallow in zip(self.steps, reversed(shallower), strict=True):
            hidden = F.interpolate(hidden, shallow.shape[2:], mode="bilinear")
            hidden = step(torch.cat([hidden, shallow], dim=1))
        return self.classes(hidden)


class Lavt(nn.Module):
    """Segment the object that a sentence describes, by words fused inside the backbone.

    ``backbone`` is a :class:`LanguageAwareSwin`, ``text_encoder`` transformers' ``BertModel``
    without its pooler, ``classifier`` a :class:`LightDecoder`.

    Example:
        >>> from masksd.models import create_model
        >>> model = create_model("lavt_tiny").eval()
        >>> tokens = torch.tensor([[101, 200, 300, 102, 0]])
        >>> model(torch.zeros(1, 3, 64, 96), tokens, tokens != 0).shape
        torch.Size([1, 2, 64, 96])
    """

    config_class: ClassVar[type[LavtConfig]] = LavtConfig
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
            strict_img_size=False,
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
            attention_mask: ``(B, L)``, zero for padding.

        Returns:
            Logits ``(B, 2, H, W)`` of background and foreground, at the size of the image.

        Raises:
            ValueError: the image has another size.
        """
        height, width = images.shape[2:]
        if height % 32 or width % 32 or min(height, width) < 64:
            raise ValueError(
                f"the image size {height}x{width} must be multiples of 32 of at least 64; resize "
                "or pad the images"
            )
        valid = attention_mask != 0
        words = self.text_encoder(tokens, attention_mask=valid).last_hidden_state
        logits = self.classifier(self.backbone(images, words, valid))
        return F.interpolate(logits, (height, width), mode="bilinear")

    def load_towers(self, swin: str, bert: str) -> None:
        """Take pretrained weights for the two towers; fusion and decoder stay as they are.

        Args:
            swin: name of a Swin in timm; ``"name@revision"`` pins its repository ``timm/name``.
            bert: name of a BERT on the Hugging Face Hub, or a folder; ``"name@revision"`` takes
                another commit than :data:`masksd.models.registry.REVISIONS` has.

        Raises:
            ValueError: the weights cannot be had, or do not fit.
        """
        (swin_name, swin_at), (bert_name, bert_at) = hub_source(swin), hub_source(bert)
        pinned = {"hf_hub_id": f"timm/{swin}"} if "@" in swin else None
        try:
            vision = timm.create_model(
                swin_name,
                pretrained=True,
                pretrained_cfg_overlay=pinned,
                num_classes=0,
                img_size=self.config.image_size,
            )
            text = BertModel.from_pretrained(bert_name, revision=bert_at, add_pooling_layer=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"weights {swin!r} (timm) or {bert!r} (transformers) are not in the cache and "
                f"could not be downloaded; run `hf download timm/{swin_name} --revision {swin_at}` "
                f"and `hf download {bert_name} --revision {bert_at}` on a machine with a network"
            ) from error
        try:
            self.backbone.patch_embed.load_state_dict(vision.patch_embed.state_dict())
            self.backbone.stages.load_state_dict(vision.layers.state_dict())
            self.text_encoder.load_state_dict(text.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"weights {swin!r} and {bert!r} do not fit the sizes of this model: {error}"
            ) from error
