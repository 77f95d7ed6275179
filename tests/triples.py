"""A two-layer encoder, a neck and a decoder, small enough for float64 gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from masksd import ImageFeatures, TextFeatures

WIDTH, SPACE, VOCABULARY, LENGTH, END = 12, 8, 20, 7, 19


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        x = x + torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v
        return x + self.feed(x)


class TwoTowers(nn.Module):
    """Its passes are written in stages, so that an oracle can mask between them without hooks."""

    image_embedding = "patch_embed"
    text_embedding = "words"

    def __init__(self, patches: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4)
        self.patch_positions = nn.Parameter(torch.randn(patches, WIDTH) * 0.1)
        self.image_blocks = nn.Sequential(Block(WIDTH), Block(WIDTH))
        self.image_projection = nn.Linear(WIDTH, SPACE, bias=False)
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.word_positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.text_blocks = nn.Sequential(Block(WIDTH), Block(WIDTH))
        self.text_projection = nn.Linear(WIDTH, SPACE, bias=False)

    def finish_image(self, embedded: Tensor, grid: tuple[int, int]) -> ImageFeatures:
        local = self.image_projection(self.image_blocks(embedded + self.patch_positions))
        return ImageFeatures(
            local, grid, local.mean(1), maps=local.transpose(1, 2).unflatten(2, grid)
        )

    def real_words(self, tokens: Tensor) -> Tensor:
        position = torch.arange(tokens.shape[1], device=tokens.device)
        return (position > 0) & (position < (tokens == END).int().argmax(1, keepdim=True))

    def finish_text(self, embedded: Tensor, tokens: Tensor) -> TextFeatures:
        local = self.text_projection(self.text_blocks(embedded + self.word_positions))
        position = torch.arange(tokens.shape[1], device=tokens.device)
        end = (tokens == END).int().argmax(1, keepdim=True)
        pooled = local[torch.arange(len(local)), end[:, 0]]
        return TextFeatures(local, pooled, self.real_words(tokens), position <= end)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        embedded = self.patch_embed(images)
        return self.finish_image(embedded.flatten(2).transpose(1, 2), tuple(embedded.shape[-2:]))

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        return self.finish_text(self.words(tokens), tokens)


class Neck(nn.Module):
    """With a BatchNorm, as nearly every neck has, unless told otherwise."""

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(SPACE, SPACE, 3, padding=1)
        self.norm = nn.BatchNorm2d(SPACE) if batch_norm else nn.GroupNorm(2, SPACE)
        self.gate = nn.Linear(SPACE, SPACE)

    def forward(self, maps: Tensor, sentence: Tensor) -> Tensor:
        return self.norm(self.conv(maps)) * self.gate(sentence)[:, :, None, None].tanh()


class Decoder(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.key = nn.Linear(SPACE, SPACE)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.ConvTranspose2d(SPACE, 1, 2, stride=2)

    def forward(self, fused: Tensor, words: Tensor, attention_mask: Tensor) -> Tensor:
        pixels = fused.flatten(2).transpose(1, 2)
        scores = (pixels @ self.key(words).transpose(1, 2)).masked_fill(
            ~attention_mask[:, None, :], float("-inf")
        )
        pixels = pixels + self.dropout(scores.softmax(-1) @ words)
        return self.head(pixels.transpose(1, 2).unflatten(2, fused.shape[-2:]))


def make_triple(
    seed: int = 0, batch_norm: bool = True, dropout: float = 0.0
) -> tuple[TwoTowers, Neck, Decoder]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TwoTowers(), Neck(batch_norm), Decoder(dropout)


def make_batch(batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, sentences of 1 to 5 words between start (1) and end, and masks of another size."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 16, 16, generator=generator)
    tokens = torch.zeros(batch, LENGTH, dtype=torch.long)
    for row in range(batch):
        words = 1 + row % (LENGTH - 2)
        tokens[row, 0] = 1
        tokens[row, 1 : 1 + words] = torch.randint(2, END, (words,), generator=generator)
        tokens[row, 1 + words] = END
    target = (torch.rand(batch, 32, 32, generator=generator) > 0.6).float()
    return images, tokens, target
