"""Train LAVT with CM-MaskSD without editing it.

    python examples/lavt_integration.py
    python examples/lavt_integration.py --repo LAVT-RIS --checkpoint model_best_refcoco.pth
    python examples/lavt_integration.py --repo LAVT-RIS --model lavt --checkpoint ...

The first command trains our own tiny LAVT on synthetic images. The others take the authors' code
(https://github.com/yz93/LAVT-RIS, with its requirements installed) and one of its checkpoints;
--model lavt keeps BERT outside the model, so ``wrap`` takes it as well.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import masksd


def train(
    host: nn.Module,
    bert: nn.Module | None,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    steps: int,
    rate: float,
) -> None:
    """A LAVT user's training loop; new lines are marked."""
    images, ids, mask, truth = batch
    parts = [part for part in (host, bert) if part is not None]
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=rate)

    sd = masksd.CrossModalMaskedSelfDistill.wrap(host, text_encoder=bert)  # new
    optimizer.add_param_group({"params": sd.distill_parameters()})  # new
    print(sd.describe(images, ids, mask))

    sd.train()
    for step in range(1, steps + 1):
        out = sd(images, ids, mask, target=truth)  # new: was `output = model(images, ids, mask)`
        loss = class_weighted(out.host_output, truth) + out.distill_loss  # new: the last term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            losses = "  ".join(f"{name} {value.item():.4f}" for name, value in out.losses.items())
            print(f"step {step:3}  loss {loss.item():.4f}  {losses}")

    sd.eval()
    with torch.no_grad():
        predicted = sd(images, ids, mask).argmax(1) == 1  # sd returns what LAVT does
    truth = truth > 0
    overlap = (predicted & truth).sum() / (predicted | truth).sum().clamp(min=1)
    print(f"IoU on the training samples: {overlap.item():.3f}")
    sd.unwrap()  # new: host and BERT are themselves again, to save


def class_weighted(logits: Tensor, truth: Tensor) -> Tensor:
    """LAVT's own loss: cross-entropy with weights 0.9 and 1.1."""
    weight = torch.tensor([0.9, 1.1], device=logits.device)
    return nn.functional.cross_entropy(logits, truth.long(), weight=weight)


def make_batch(samples: int, size: int, words: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two squares of different colours; the sentence's middle words name the colour of one."""
    random = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(samples, 3, size, size, generator=random)
    truth = torch.zeros(samples, size, size)
    ids = torch.zeros(samples, words, dtype=torch.int64)
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
                truth[sample, rows, columns] = 1
                named = 200 + int(colour)
        ids[sample, :7] = torch.tensor([101, 300, 301, named, named + 10, named + 20, 102])
    return images, ids, (ids != 0).long(), truth


def official(repo: str, model: str, bert: str, checkpoint: str | None) -> Any:
    """Build the model with the authors' code and load a checkpoint, if one is given."""
    sys.path.insert(0, str(Path(repo).resolve()))
    arguments = argparse.Namespace(
        swin_type="base", window12=True, mha="", fusion_drop=0.0, ck_bert=bert
    )
    host = getattr(importlib.import_module("lib.segmentation"), model)(
        pretrained="", args=arguments
    )
    outside = None
    if model == "lavt":
        outside = importlib.import_module("bert.modeling_bert").BertModel.from_pretrained(bert)
        outside.pooler = None
    if checkpoint is not None:
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # the file also holds its arguments
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        host.load_state_dict(saved["model"])
        if outside is not None:
            outside.load_state_dict(saved["bert_model"])
    return host, outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", help="folder of the authors' code")
    parser.add_argument("--model", choices=("lavt_one", "lavt"), default="lavt_one")
    parser.add_argument("--bert", default="bert-base-uncased", help="name or folder of LAVT's BERT")
    parser.add_argument("--checkpoint", help="the authors' .pth, with --repo")
    parser.add_argument("--size", type=int, help="side of the images, a multiple of 32")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if options.checkpoint and not options.repo:
        parser.error("--checkpoint needs --repo: the authors' weights only fit the authors' code")

    torch.manual_seed(0)
    if options.repo:
        host, bert = official(options.repo, options.model, options.bert, options.checkpoint)
        train(host, bert, make_batch(2, options.size or 480, 20), options.steps, 5e-5)
    else:
        from masksd.models import create_model

        train(
            create_model("lavt_tiny"),
            None,
            make_batch(8, options.size or 64, 12),
            options.steps,
            1e-3,
        )


if __name__ == "__main__":
    main()
