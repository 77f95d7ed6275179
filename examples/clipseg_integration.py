"""Train transformers' CLIPSeg with CM-MaskSD without editing it.

    python examples/clipseg_integration.py
    python examples/clipseg_integration.py --checkpoint CIDAS/clipseg-rd64-refined
    python examples/clipseg_integration.py --freeze-encoder

The first command trains a tiny random CLIPSeg on synthetic images, the second the published one
(downloaded, or from the Hugging Face cache). CLIPSeg's own forward encodes under ``no_grad``, where
the mask tokens learn nothing, so this script trains the encoder unless told to freeze it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

import masksd


def train(host: Any, batch: dict[str, Tensor], steps: int, rate: float, freeze: bool) -> None:
    """A CLIPSeg user's training loop; new lines are marked."""
    sd = masksd.CrossModalMaskedSelfDistill.wrap(host)  # new
    sd.segmenter.train_encoder = not freeze  # new
    optimizer = torch.optim.AdamW(sd.parameters(), lr=rate)  # new: was host.parameters()
    print(sd.describe(**batch))

    sd.train()
    for step in range(1, steps + 1):
        out = sd(**batch)  # new: was `host(**batch)`; we use its labels too
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            losses = "  ".join(f"{name} {value.item():.4f}" for name, value in out.losses.items())
            print(f"step {step:3}  loss {out.loss.item():.4f}  {losses}")

    host = sd.unwrap().eval()  # new: CLIPSeg itself again, to save or push
    with torch.no_grad():
        predicted, truth = host(**batch).logits > 0, batch["labels"] > 0
    overlap = (predicted & truth).sum() / (predicted | truth).sum().clamp(min=1)
    print(f"IoU on the training samples: {overlap.item():.3f}")


def make_batch(samples: int, config: CLIPSegConfig) -> dict[str, Tensor]:
    """Two squares of different colours; the words name the colour of one."""
    random = torch.Generator().manual_seed(0)
    size, end = config.vision_config.image_size, config.text_config.vocab_size - 1
    images = 0.1 * torch.randn(samples, 3, size, size, generator=random)
    labels = torch.zeros(samples, size, size)
    ids = torch.full((samples, 8), end)
    half, side = size // 2, 3 * size // 8
    for sample in range(samples):
        colours = torch.randperm(3, generator=random)[:2]
        for place, colour in enumerate(colours):
            rows, columns = (
                slice(half // 2, half // 2 + side),
                slice(place * half, place * half + side),
            )
            images[sample, colour, rows, columns] += 2.0
            if place == sample % 2:
                labels[sample, rows, columns] = 1
                named = 20 + int(colour)
        ids[sample, :6] = torch.tensor([end - 1, 30, 31, named, named + 10, named + 20])
    mask = (torch.arange(8) <= 6).long().expand(samples, -1)  # up to and including the end token
    return {"input_ids": ids, "pixel_values": images, "attention_mask": mask, "labels": labels}


def tiny() -> Any:
    """A CLIPSeg with random weights, small enough to train in a minute on a CPU."""
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
    }
    words = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 0}
    words["max_position_embeddings"] = 16
    return CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config={**tower, **words},
            vision_config={**tower, "image_size": 64, "patch_size": 8},
            extract_layers=[0, 1, 2],
            reduce_dim=32,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=64,
            projection_dim=32,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="name or folder of a CLIPSeg for transformers")
    parser.add_argument(
        "--freeze-encoder",
        action="store_true",
        help="train only the decoder, as CLIPSeg itself does",
    )
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.checkpoint:
        host = CLIPSegForImageSegmentation.from_pretrained(options.checkpoint)
        batch, rate = make_batch(2, host.config), 1e-5
    else:
        host = tiny()
        batch, rate = make_batch(8, host.config), 1e-3
    train(host, batch, options.steps, rate, options.freeze_encoder)


if __name__ == "__main__":
    main()
