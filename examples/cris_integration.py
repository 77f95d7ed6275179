"""Train CRIS with CM-MaskSD without editing it.

    python examples/cris_integration.py
    python examples/cris_integration.py --repo CRIS.pytorch --checkpoint best_model.pth

The first command trains a small stand-in with CRIS's structure on synthetic images. The second
takes the authors' code (https://github.com/DerrickWang005/CRIS.pytorch, with its requirements
installed) and one of its checkpoints; CRIS also needs the CLIP file that its config names (--clip).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksd

START, END = 49406, 49407  # in CLIP's vocabulary; padding is 0


def train(host: nn.Module, batch: tuple[Tensor, Tensor, Tensor], steps: int, rate: float) -> None:
    """A CRIS user's training loop; new lines are marked."""
    optimizer = torch.optim.Adam(host.parameters(), lr=rate)
    images, tokens, masks = batch

    sd = masksd.CrossModalMaskedSelfDistill.wrap(host)  # new
    optimizer.add_param_group({"params": sd.distill_parameters()})  # new
    print(sd.describe(images, tokens))

    sd.train()
    for step in range(1, steps + 1):
        out = sd(images, tokens, masks)  # new: was `pred, target, loss = host(...)`
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            losses = "  ".join(f"{name} {loss.item():.4f}" for name, loss in out.losses.items())
            print(f"step {step:3}  loss {out.loss.item():.4f}  {losses}")

    host = sd.unwrap()  # new: CRIS itself again, to save or evaluate
    with torch.no_grad():
        predicted = host.eval()(images, tokens).sigmoid() > 0.35
    truth = F.interpolate(masks, predicted.shape[-2:]) > 0.5
    overlap = (predicted & truth).sum() / (predicted | truth).sum().clamp(min=1)
    print(f"IoU on the training samples: {overlap.item():.3f}")


def make_batch(samples: int, size: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two squares of different colours side by side; the sentence names the colour of one."""
    random = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(samples, 3, size, size, generator=random)
    masks = torch.zeros(samples, 1, size, size)
    tokens = torch.zeros(samples, length, dtype=torch.int64)
    half = size // 2
    for index in range(samples):
        here, there = torch.randperm(8, generator=random)[:2].tolist()
        side, top = index % 2 * half, torch.randint(0, half, (), generator=random).item()
        for colour, left in ((here, side), (there, half - side)):
            signs = torch.tensor([colour >> bit & 1 for bit in range(3)]) * 2.0 - 1
            images[index, :, top : top + half, left : left + half] += 2 * signs[:, None, None]
        masks[index, :, top : top + half, side : side + half] = 1
        tokens[index, :5] = torch.tensor([START, 320 + here, 530, 736, END])
    return images, tokens, masks


def official(repo: Path, checkpoint: Path, config: str, clip: Path | None) -> tuple[nn.Module, Any]:
    """Build the model with the authors' code and load one of their checkpoints."""
    sys.path.insert(0, str(repo))
    from model.segmenter import CRIS
    from utils.config import load_cfg_from_cfg_file

    options = load_cfg_from_cfg_file(str(repo / config))
    options.clip_pretrain = str(clip or repo / options.clip_pretrain)
    host = CRIS(options)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    host.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return host, options


class StandIn(nn.Module):
    """The parts of CRIS under their names, each as small as possible."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = Backbone(width)
        self.neck = Neck(width)
        self.decoder = Decoder(2 * width, width)
        self.proj = Projector(2 * width, 4 * width)

    def forward(self, img: Tensor, word: Tensor, mask: Tensor | None = None) -> Any:
        pad_mask = word == 0
        vis = self.backbone.encode_image(img)
        word, state = self.backbone.encode_text(word)
        fq = self.neck(vis, state)
        fq = self.decoder(fq, word, pad_mask).reshape(fq.shape)
        pred = self.proj(fq, state)
        if not self.training:
            return pred.detach()
        mask = F.interpolate(mask, pred.shape[-2:])
        return pred.detach(), mask, F.binary_cross_entropy_with_logits(pred, mask)


class Visual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layers = nn.ModuleList(block(width, 2 * width) for width in (width, 2 * width))
        self.attnpool = block(4 * width, 4 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for number in (1, 2, 3):
            convolution, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            x = F.relu(norm(convolution(x)))
        third = self.layers[0](self.avgpool(x))
        fourth = self.layers[1](third)
        return third, fourth, self.attnpool(fourth)


class Backbone(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual = Visual(width)
        self.token_embedding = nn.Embedding(END + 1, 2 * width)
        self.transformer = nn.TransformerEncoderLayer(2 * width, 2, 4 * width, dropout=0.0)
        self.text_projection = nn.Parameter(torch.randn(2 * width, 4 * width) * width**-0.5)

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.visual(image)

    def encode_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        x = self.token_embedding(text).transpose(0, 1)
        causal = nn.Transformer.generate_square_subsequent_mask(len(x), device=x.device)
        x = self.transformer(x, causal).transpose(0, 1)
        return x, x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection


class Neck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.text = nn.Linear(4 * width, 4 * width)
        self.join = nn.Conv2d(10 * width, 2 * width, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, maps: tuple[Tensor, ...], state: Tensor) -> Tensor:
        third, fourth, fifth = maps
        fifth = F.interpolate(fifth * self.text(state)[:, :, None, None], scale_factor=2.0)
        third = F.avg_pool2d(third, 2)
        return F.relu(self.norm(self.join(torch.cat([third, fourth, fifth], 1))))


class Decoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.words = nn.MultiheadAttention(width, heads // 4, dropout=0.1, batch_first=True)

    def forward(self, fq: Tensor, words: Tensor, pad_mask: Tensor) -> Tensor:
        pixels = fq.flatten(2).transpose(1, 2)
        pixels = pixels + self.words(pixels, words, words, key_padding_mask=pad_mask)[0]
        return pixels.transpose(1, 2)


class Projector(nn.Module):
    def __init__(self, width: int, sentence: int) -> None:
        super().__init__()
        self.vis = block(width, width, stride=1)
        self.txt = nn.Linear(sentence, width + 1)

    def forward(self, fq: Tensor, state: Tensor) -> Tensor:
        pixels = self.vis(F.interpolate(fq, scale_factor=4.0))
        kernel = self.txt(state)
        weight, bias = kernel[:, :-1] * pixels.shape[1] ** -0.5, kernel[:, -1]
        return torch.einsum("bchw,bc->bhw", pixels, weight)[:, None] + bias[:, None, None, None]


def block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repo", type=Path, help="a clone of CRIS.pytorch")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint written by CRIS.pytorch")
    parser.add_argument(
        "--config", default="config/refcoco/cris_r50.yaml", help="path in the clone"
    )
    parser.add_argument("--clip", type=Path, help="CLIP's RN50.pt; default: the config's")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument(
        "--size", type=int, default=128, help="side of the images, a multiple of 32"
    )
    arguments = parser.parse_args()
    if (arguments.repo is None) != (arguments.checkpoint is None):
        parser.error("--repo needs --checkpoint, and --checkpoint needs --repo")

    torch.manual_seed(0)
    if arguments.repo is None:
        host, length, rate = StandIn(), 17, 3e-3
    else:
        warnings.filterwarnings("ignore", "torch.meshgrid")  # from CRIS's own code
        host, options = official(
            arguments.repo, arguments.checkpoint, arguments.config, arguments.clip
        )
        length, rate = options.word_len, 1e-4
    train(host, make_batch(arguments.samples, arguments.size, length), arguments.steps, rate)


if __name__ == "__main__":
    main()
