"""Train with transformers' Trainer and CM-MaskSD.

    python examples/transformers_trainer.py

Trainer takes the first thing a model returns as the loss, and in training that is what `sd` returns
first. In evaluation `sd` returns what your model does, perhaps only logits: the six-line adapter
below adds the loss, and names the columns that Trainer passes on.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import masksd
from masksd.models import create_model

START, END = 510, 511  # in the tiny model's vocabulary; padding is 0


class Squares(Dataset):
    """Three squares of three colours, the colour's word, and the mask of that square."""

    def __init__(self, size: int, first: int = 0) -> None:
        self.size, self.first = size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.first + index)
        image = 0.2 * torch.rand(3, 64, 64, generator=generator)
        wanted = int(torch.randint(3, (), generator=generator))
        target = torch.zeros(64, 64)
        for colour, place in enumerate(torch.randperm(9, generator=generator)[:3].tolist()):
            row, column = 4 + 20 * (place // 3), 4 + 20 * (place % 3)
            image[colour, row : row + 16, column : column + 16] = 1.0
            if colour == wanted:
                target[row : row + 16, column : column + 16] = 1.0
        tokens = torch.tensor([START, 5, 10 + wanted, 6, END, 0, 0, 0])
        return {"images": image, "tokens": tokens, "target": target}


class ForTrainer(nn.Module):
    """What Trainer expects of a model: columns by name, and a loss in evaluation too."""

    def __init__(self, sd: masksd.CrossModalMaskedSelfDistill) -> None:
        super().__init__()
        self.sd = sd

    def forward(self, images: Tensor, tokens: Tensor, target: Tensor) -> tuple[Any, ...]:
        out = self.sd(images, tokens, target=target)
        if self.training:
            return out  # Trainer takes its first field, the loss
        return masksd.segmentation_loss(out, target), out  # `out` is what the host returns


class PrintLosses(TrainerCallback):
    """Print what Trainer logs."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        shown = {name: round(float(value), 4) for name, value in logs.items() if "loss" in name}
        if shown:
            print(f"step {state.global_step}: {shown}")


def miou(prediction: EvalPrediction) -> dict[str, float]:
    """Mean IoU at the size of the logits."""
    logits, truth = prediction.predictions[:, 0], prediction.label_ids
    step = truth.shape[-1] // logits.shape[-1]
    truth = truth[:, step // 2 :: step, step // 2 :: step] > 0.5
    predicted = logits > 0
    overlap = (predicted & truth).sum((1, 2)) / np.maximum((predicted | truth).sum((1, 2)), 1)
    return {"miou": float(overlap.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", help="folder for checkpoints; default: keep none")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = create_model("clip_cris_tiny")
    sd = masksd.CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder)
    print(sd.describe())
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=ForTrainer(sd),  # trains the model's parameters and the mask tokens
            args=TrainingArguments(
                output_dir=args.output or scratch,
                max_steps=args.steps,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=32,
                learning_rate=1e-3,
                lr_scheduler_type="cosine",
                logging_steps=max(1, args.steps // 5),
                save_strategy="steps" if args.output else "no",
                save_steps=args.steps,
                label_names=["target"],
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Squares(16 * args.steps),
            eval_dataset=Squares(64, first=10**6),
            compute_metrics=miou,
            callbacks=[PrintLosses()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        print(f"mIoU on new images: {trainer.evaluate()['eval_miou']:.3f}")
    sd.unwrap()  # removes the hooks: `model` is yours again, trained


if __name__ == "__main__":
    main()
