"""Contrastive pretraining of the two towers, as CLIP was trained (arXiv 2103.00020, Fig. 3).

Trained from scratch, a referring model starts with towers that share no space, so that relevance,
which CM-MaskSD masks by, means nothing at first. The paper starts from CLIP. This gives small
towers the same start: images and expressions of the training split, a symmetric InfoNCE loss on
``image.pooled`` and ``text.pooled``, a learned temperature. CLIP's patches share its projection
(:mod:`masksd.models.clip`), which is enough after 400 M pairs; for small towers it is not, so by
default the same loss is also put on the patch nearest to the expression (the late interaction of
FILIP, arXiv 2111.07783, with a whole sentence). The report beside the weights says how well
relevance finds the object.

    masksd pretrain --level medium --output towers.safetensors
    masksd train --level medium --encoder-weights towers.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.views import ObjectViews, equal_sentences
from masksd.kit.data_config import check_finite, check_whole
from masksd.kit.devices import default_device
from masksd.kit.encoder_weights import encoder_bytes
from masksd.kit.evaluation.alignment import dot_relevance, retrieval_accuracy, similarities
from masksd.kit.randomness import keyed_randomness, keyed_seed
from masksd.kit.schedules import Schedule
from masksd.kit.sources import build_model, open_split, tokenizer_name
from masksd.kit.storage.files import write_files
from masksd.kit.training.loop import Batch, Batches, Loop, Terms
from masksd.kit.training.optimizers import parameter_groups

MAX_SCALE = 100.0
"""The largest factor of the cosines, as in CLIP."""


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        model: one with two towers: clip_cris_tiny, clip_cris_vit_s16, ...
        data: see DataConfig.
        split: to train on.
        eval_split: to score on.
        max_length: tokens per sentence, as in the training that follows.
        image_size: side of the square input, pixels; None takes the model's own.
        context: least and largest side of a view, as a multiple of the object's longer side.
        patches: weight of the same loss on the patch nearest to the expression; 0 trains as CLIP
            did.
        batch_size: pairs per step; each has all others as negatives.
        steps: optimiser steps.
        lr: peak learning rate; it falls to 0 by a cosine.
        warmup: steps over which it rises from 0.
        weight_decay: of matrices.
        seed: of weights, order, expressions and views.
        workers: processes that read data; 0 reads in the main process.
        log_every: steps between two points of the report's curve.
        eval_samples: expressions scored; 0 scores all.
        cpu: stay on the CPU even if there is a GPU.
        output: file of the weights; the report lies beside it, as .json.
        overwrite: replace an older file in the same place.
        progress: show a progress bar.

    Raises:
        ValueError: a field is out of range.

    Example:
        >>> PretrainConfig(context=(0.5, 2.0))
        Traceback (most recent call last):
        ValueError: context must be two finite numbers of at least 1, in order, got (0.5, 2.0)
    """

    model: str = "clip_cris_tiny"
    data: DataConfig = field(default_factory=DataConfig)
    split: str = "train"
    eval_split: str = "val"
    max_length: int = 17
    image_size: int | None = None
    context: tuple[float, float] = (1.2, 4.0)
    patches: float = 1.0
    batch_size: int = 64
    steps: int = 3000
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    eval_samples: int = 640
    cpu: bool = False
    output: Path = Path("runs/towers.safetensors")
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_whole(
            self,
            max_length=3,
            image_size=1,
            batch_size=2,
            steps=1,
            warmup=0,
            seed=0,
            workers=0,
            log_every=1,
            eval_samples=0,
        )
        if len(self.context) != 2 or not 1 <= self.context[0] <= self.context[1] < math.inf:
            raise ValueError(
                f"context must be two finite numbers of at least 1, in order, got {self.context}"
            )
        check_finite(self, "lr", "weight_decay", "patches", zero=True)
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output must end in .safetensors, got {self.output}")

    def run_config(self) -> TrainConfig:
        """Return a training run with the same model and data."""
        return TrainConfig(
            model=self.model,
            data=self.data,
            max_length=self.max_length,
            image_size=self.image_size,
            seed=self.seed,
        )


def pretrain(config: PretrainConfig, bits: int = 32) -> dict[str, Any]:
    """Train the two towers of a model on views of objects and their expressions.

    Writes the weights, for ``TrainConfig(encoder_weights=...)``, and the report beside them. On a
    CPU it repeats bit for bit.

    Args:
        config: everything.
        bits: of a number in the file of weights, 32, 16 or 8.

    Returns:
        The report: ``retrieval`` (among 64, or the whole of a small split) and ``relevance`` (of
        the patches of whole images) of the trained towers and, in ``untrained``, of those it
        started from; ``curve``, ``scale`` (the factor of the cosines), ``seconds`` and ``config``.

    Raises:
        ValueError: a config or data that cannot be run, an existing file, or a model without two
            towers.

    Example:
        >>> pretrain(PretrainConfig(model="lavt_tiny"))
        Traceback (most recent call last):
        ValueError: model 'lavt_tiny' does not have two towers; choose a clip_cris model
    """
    start = time.perf_counter()
    base = config.run_config()
    if config.output.is_dir() or (config.output.exists() and not config.overwrite):
        raise ValueError(
            f"output {config.output} exists; choose another --output, or pass --overwrite to "
            "replace a file"
        )
    device = default_device(cpu=config.cpu)
    with keyed_randomness(device):
        torch.manual_seed(keyed_seed(config.seed, "weights"))
        checkpoint = build_model(base)
        model: Any = checkpoint.model
        if not isinstance(getattr(model, "encoder", None), nn.Module):
            raise ValueError(
                f"model {config.model!r} does not have two towers; choose a clip_cris model"
            )
        model.to(device).train()
        training, scoring = (
            open_split(
                config.data,
                split,
                checkpoint.tokenizer,
                checkpoint.config.image_size,
                train_items=items,
                seed=config.seed,
                progress=config.progress,
            )
            for split, items in ((config.split, "refs"), (config.eval_split, None))
        )
        if len(training) < config.batch_size:
            raise ValueError(
                f"split {config.split!r} has {len(training)} items, one step takes "
                f"{config.batch_size}; lower --batch-size or name a larger split"
            )
        untrained = _scores(config, checkpoint, scoring)
        run = Pretraining(config, checkpoint, ObjectViews(training, config.context, config.seed))
        run.fit(config.progress)
        report = {
            **_scores(config, checkpoint, scoring),
            "untrained": untrained,
            "scale": float(run.log_scale.detach().exp()),
            "curve": run.curve,
            "seconds": round(time.perf_counter() - start, 1),
            "config": dataclasses.asdict(config),
        }
    report = json.loads(json.dumps(report, default=str))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_files(
        {
            config.output: encoder_bytes(model.encoder, tokenizer_name(base), bits),
            config.output.with_suffix(".json"): (json.dumps(report, indent=2) + "\n").encode(),
        }
    )
    return dict(report)


def _scores(
    config: PretrainConfig, checkpoint: Checkpoint, dataset: ReferDataset
) -> dict[str, dict[str, float]]:
    views = ObjectViews(dataset, config.context, seed=0)
    limit = config.eval_samples
    candidates = min(64, len(views), limit or 64)
    return {
        "retrieval": retrieval_accuracy(checkpoint, views, limit=limit, candidates=candidates),
        "relevance": dot_relevance(checkpoint, dataset, limit=limit),
    }


class Pretraining(Loop):
    """Trains the towers of a checkpoint in place, and the logarithm of the cosines' factor."""

    def __init__(self, config: PretrainConfig, checkpoint: Checkpoint, views: ObjectViews) -> None:
        self.config, self.checkpoint = config, checkpoint
        model: Any = checkpoint.model
        self.towers: nn.Module = model.encoder
        self.device = next(self.towers.parameters()).device
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), device=self.device))
        groups = parameter_groups(self.towers, self.towers, config.weight_decay, 1.0)
        groups.append({"params": [self.log_scale], "weight_decay": 0.0, "scale": 1.0})
        self.curve: list[dict[str, float]] = []
        super().__init__(
            Batches(views, batch_size=config.batch_size, seed=config.seed, workers=config.workers),
            torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98)),
            Schedule("cosine", lr=config.lr, steps=config.steps, warmup=config.warmup),
            log_every=config.log_every,
            title="pretrain",
        )

    def take_step(self, batches: list[Batch]) -> Terms:
        """Forward, loss, backward, clip, step."""
        [batch] = batches
        images, tokens = batch["image"].to(self.device), batch["tokens"].to(self.device)
        equal = equal_sentences(tokens)
        pooled, patches = similarities(self.checkpoint, images, tokens)
        loss = contrastive_loss(pooled, self.log_scale.exp(), equal)
        on_patches = contrastive_loss(patches, self.log_scale.exp(), equal)
        loss = loss + self.config.patches * on_patches
        loss.backward()
        nn.utils.clip_grad_norm_(self.towers.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return {"loss": loss.detach()}

    def log(self, means: Terms, steps: int, seconds: float) -> float:
        """Add a point to the curve."""
        loss = float(means["loss"])
        self.curve.append({"step": self.done, "loss": loss})
        return loss


def contrastive_loss(cosines: Tensor, scale: Tensor, equal: Tensor) -> Tensor:
    """Symmetric InfoNCE on cosines ``(B, B)``, an image a row; ``equal`` pairs are no negatives.

    Example:
        >>> no = torch.zeros(2, 2, dtype=torch.bool)
        >>> round(float(contrastive_loss(torch.zeros(2, 2), torch.tensor(1.0), no)), 4)  # ln 2
        0.6931
    """
    logits = (scale * cosines).masked_fill(equal, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
