"""A small data set in refer format and a model of plain arithmetic, to score by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from masksd.kit.checkpoints import Checkpoint, CheckpointConfig
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.text.tokenizers import load_tokenizer

SIZE = 32
SHORT_TABLE = ["mIoU", "oIoU", "gIoU", "cIoU", *(f"Pr@0.{n}" for n in range(5, 10)), "samples"]
"""The columns that commands print."""
SENTENCES = [
    "red",
    "the blue one",
    "the green square on the left of it",
    "it " * 11 + "is the one",
    "red circle",
]


def write_data(root: Path, pictures: int = 5) -> Path:
    """Write pictures of many proportions with two bright objects each; 2 sentences an object."""
    random = np.random.default_rng(7)
    images, annotations, refs = [], [], []
    (root / "images").mkdir(parents=True)
    for number in range(pictures):
        height, width = (int(side) for side in random.integers(21, 61, size=2))
        pixels = random.integers(0, 90, size=(height, width, 3), dtype=np.uint8)
        for side in range(2):
            x0, y0 = width // 2 * side + 2, int(random.integers(1, height // 3))
            x1 = x0 + int(random.integers(4, width // 2 - 3))
            y1 = y0 + int(random.integers(5, height // 2))
            pixels[y0:y1, x0:x1] = 125 + 105 * side
            annotation = 2 * number + side
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
            annotations.append(
                {
                    "id": annotation,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": [polygon],
                    "area": (x1 - x0) * (y1 - y0),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
            sentences = []
            for which in range(2):
                text = SENTENCES[(2 * annotation + which) % len(SENTENCES)]
                sentence = {"sent_id": 2 * annotation + which, "sent": text, "raw": text}
                sentences.append({**sentence, "tokens": text.split()})
            refs.append(
                {
                    "ref_id": 100 + annotation,
                    "ann_id": annotation,
                    "image_id": number,
                    "category_id": 1,
                    "file_name": f"{number}.png",
                    "split": "val",
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
        name = f"{number}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    (root / "small").mkdir()
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "small" / "instances.json").write_text(json.dumps(content))
    (root / "small" / "refs.json").write_text(json.dumps(refs))
    return root


def open_data(root: Path, fit: str = "squash", size: int = SIZE) -> ReferDataset:
    return ReferDataset(
        root, "small", "val", tokenizer=load_tokenizer("shapes", 17), image_size=size, fit=fit
    )


class Brightness(nn.Module):
    """Logits at a quarter of the size from the picture's brightness and the words.

    Every sample is computed by itself, so that logits do not depend on the batch.
    """

    takes_attention_mask = False

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        return torch.stack([self.one(*pair) for pair in zip(images, tokens, strict=True)])

    def one(self, image: Tensor, tokens: Tensor) -> Tensor:
        grey = image.double().mean(0)  # (S, S)
        side = grey.shape[0] // 4
        blocks = grey.reshape(side, 4, side, 4).mean(dim=(1, 3)).float()
        shift = 0.25 * int(tokens.sum() % 7) / 6
        logits = 12 * self.weight * (blocks - 0.4 - shift)[None]
        if self.channels == 1:
            return logits
        background = torch.sin(torch.arange(side * side).float()).reshape(1, side, side)
        return torch.cat([background, logits + background])


def make_checkpoint(
    channels: int = 1, threshold: float = 0.4, size: int = SIZE, fit: str = "squash"
) -> Checkpoint:
    config = CheckpointConfig(
        model="brightness",
        model_config={},
        image_size=size,
        max_length=17,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        threshold=threshold,
        distill=None,
        step=0,
        data={},
        version="0",
        fit=fit,
    )
    return Checkpoint(config, Brightness(channels), load_tokenizer("shapes", 17))
