"""Train transformers' SAM 3 with CM-MaskSD without editing it.

    python examples/sam3_integration.py
    python examples/sam3_integration.py --checkpoint facebook/sam3 --freeze vision --low-memory
    python examples/sam3_integration.py --freeze vision text --union

The first command trains a tiny random SAM 3 on synthetic images, the second the published one
(downloaded, or from the Hugging Face cache; 0.8 billion parameters, images of 1008 x 1008).

On memory, which is what fine-tuning SAM 3 runs out of: with ``low_memory`` a step holds the
activations of one pass. A frozen vision tower keeps none, as long as nothing before it learns: the
mask token of the images would, so this script then sets masked cells of the image to 0 instead.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Config, Sam3Model

import masksd

TOWERS = {"vision": "vision_encoder", "text": "text_encoder"}


def train(host: Any, batch: dict[str, Tensor], truth: Tensor, options: Any, rate: float) -> None:
    """A training loop around SAM 3, which has no loss of its own."""
    for name in options.freeze:
        host.get_submodule(TOWERS[name]).requires_grad_(False)
    token = "zero" if "vision" in options.freeze else "shared"
    config = masksd.DistillConfig(
        image=masksd.MaskingConfig(token=token),
        text=masksd.MaskingConfig(ratio=0.5),  # sentences are short here
        low_memory=options.low_memory,
    )
    sd = masksd.CrossModalMaskedSelfDistill.wrap(host, config)
    sd.segmenter.union = options.union
    optimizer = torch.optim.AdamW((p for p in sd.parameters() if p.requires_grad), lr=rate)
    print(sd.describe(**batch))

    sd.train()
    for step in range(1, options.steps + 1):
        out = sd(**batch, target=truth)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            losses = "  ".join(f"{name} {value.item():.4f}" for name, value in out.losses.items())
            print(f"step {step:3}  loss {out.loss.item():.4f}  {losses}")

    host = sd.unwrap().eval()  # SAM 3 itself again, to save or push
    with torch.no_grad():
        seen = host(**batch).semantic_seg
    predicted = torch.nn.functional.interpolate(seen, truth.shape[-2:], mode="bilinear")[:, 0] > 0
    overlap = (predicted & (truth > 0)).sum() / (predicted | (truth > 0)).sum().clamp(min=1)
    print(f"IoU on the training samples: {overlap.item():.3f}")


def make_batch(samples: int, size: int, vocabulary: int) -> tuple[dict[str, Tensor], Tensor]:
    """Two squares of different colours; the words name the colour of one."""
    random = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(samples, 3, size, size, generator=random)
    truth = torch.zeros(samples, size, size)
    ids = torch.zeros(samples, 8, dtype=torch.long)
    half, side = size // 2, 3 * size // 8
    for sample in range(samples):
        colours = torch.randperm(3, generator=random)[:2]
        for place, colour in enumerate(colours):
            rows = slice(half // 2, half // 2 + side)
            columns = slice(place * half, place * half + side)
            images[sample, colour, rows, columns] += 2.0
            if place == sample % 2:
                truth[sample, rows, columns] = 1
                named = 20 + int(colour)
        words = [vocabulary - 2, 30, 31, named, named + 10, named + 20, vocabulary - 1]
        ids[sample, :7] = torch.tensor(words)  # start, five words, end
    return {"pixel_values": images, "input_ids": ids, "attention_mask": (ids > 0).long()}, truth


def tiny() -> Any:
    """A SAM 3 with random weights, small enough to train in a minute on a CPU."""
    part = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    layers = {**part, "num_layers": 2, "dropout": 0.0}
    patches = {"image_size": 112, "pretrain_image_size": 112, "patch_size": 14, "window_size": 4}
    words = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 0}
    tower = {**part, **patches, "num_hidden_layers": 2, "global_attn_indexes": [1]}
    config = Sam3Config(
        vision_config={
            "backbone_config": {"model_type": "sam3_vit_model", **tower},
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            **part,
            **words,
            "num_hidden_layers": 2,
            "max_position_embeddings": 32,
            "projection_dim": 32,
        },
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 5},
        mask_decoder_config=part,
    )
    return Sam3Model(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="name or folder of a SAM 3 for transformers")
    parser.add_argument("--freeze", nargs="*", choices=sorted(TOWERS), default=[])
    parser.add_argument("--low-memory", action="store_true", help="activations of one pass")
    parser.add_argument("--union", action="store_true", help="teach the queries' masks too")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    host = Sam3Model.from_pretrained(options.checkpoint) if options.checkpoint else tiny()
    size = host.config.vision_config.backbone_config.image_size
    samples, rate = (1, 1e-5) if options.checkpoint else (8, 1e-3)
    batch, truth = make_batch(samples, size, host.config.text_config.vocab_size)
    train(host, batch, truth, options, rate)


if __name__ == "__main__":
    main()
