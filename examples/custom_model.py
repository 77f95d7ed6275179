"""Train your own model with CM-MaskSD: 30 lines of model, two lines to wrap it.

python examples/custom_model.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksd

WORDS = {name: index for index, name in enumerate(["<pad>", "the", "red", "green", "blue", "one"])}


class MyModel(nn.Module):
    """A small ViT, a word embedding, one cross-attention and a classifier; masksd is not used."""

    def __init__(self, width: int = 64, patch: int = 8, words: int = len(WORDS)) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.vision = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.classifier = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        maps = self.patch_embed(images)
        patches = self.vision(maps.flatten(2).mT)
        words = self.words(ids)
        gathered, _ = self.attend(patches, words, words, key_padding_mask=mask == 0)
        fused = (patches * gathered).mT.unflatten(2, maps.shape[2:])
        logits = self.classifier(F.interpolate(fused, scale_factor=2.0, mode="bilinear"))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear")


def make_batch(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three squares of three colours, "the red one", and the mask of that square."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(size, 3, 64, 64, generator=generator)
    ids = torch.zeros(size, 5, dtype=torch.long)
    target = torch.zeros(size, 64, 64)
    for sample in range(size):
        wanted = int(torch.randint(3, (), generator=generator))
        places = torch.randperm(9, generator=generator)[:3]
        for colour, place in enumerate(places.tolist()):
            row, column = 4 + 20 * (place // 3), 4 + 20 * (place % 3)
            images[sample, colour, row : row + 16, column : column + 16] = 1.0
            if colour == wanted:
                target[sample, row : row + 16, column : column + 16] = 1.0
        sentence = ["the", ("red", "green", "blue")[wanted], "one"]
        ids[sample, :3] = torch.tensor([WORDS[word] for word in sentence])
    return images, ids, (ids != 0).long(), target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = MyModel()

    # The two lines. The paths name modules of your model; `valid` names the argument of its forward
    # that marks real words.
    taps = masksd.Taps("patch_embed", "words", valid="mask")
    sd = masksd.CrossModalMaskedSelfDistill.wrap(model, taps=taps)

    images, ids, mask, target = make_batch(8, seed=0)
    print(sd.describe(images, ids, mask))
    optimizer = torch.optim.AdamW([*model.parameters(), *sd.distill_parameters()], lr=1e-3)
    for step in range(args.steps):
        images, ids, mask, target = make_batch(16, seed=step)
        out = sd(images, ids, mask, target=target)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == args.steps - 1:
            losses = ", ".join(f"{name} {loss.item():.4f}" for name, loss in out.losses.items())
            print(f"step {step:3d}: {losses}")

    model = sd.unwrap().eval()  # your model again, without hooks
    images, ids, mask, target = make_batch(64, seed=10_000)
    with torch.no_grad():
        predicted = model(images, ids, mask)[:, 0] > 0
    truth = target > 0.5
    overlap = (predicted & truth).sum((1, 2)) / (predicted | truth).sum((1, 2))
    print(f"mIoU on new images: {overlap.mean():.3f}")


if __name__ == "__main__":
    main()
