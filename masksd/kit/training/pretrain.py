"""Contrastive pretraining of the two towers, as CLIP was trained (arXiv 2103.00020, Fig. 3).

Run from scratch, a referring model starts with towers that share no space: relevance, which the
masks of CM-MaskSD go by, means nothing at first. The paper starts from CLIP. This gives small
towers the same start: pictures and sentences of the data's training split, a symmetric InfoNCE loss
on ``image.pooled`` and ``text.pooled``, a learned temperature. CLIP's patches mean something by
sharing the projection (:mod:`masksd.models.clip`) after 400 M pairs; small towers' do not by that
alone, so by default the same loss is also put on the patch that is nearest to the sentence (the
late interaction of FILIP, arXiv 2111.07783, with a whole sentence). Whether relevance means
something is measured and written beside the weights.

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
from torch.utils.data import DataLoader

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data_config import check_whole
from masksd.kit.devices import default_device
from masksd.kit.encoder_weights import encoder_bytes
from masksd.kit.evaluation.alignment import dot_relevance, retrieval_accuracy, similarities
from masksd.kit.files import write_files
from masksd.kit.randomness import EpochSampler, keyed_randomness, keyed_seed
from masksd.kit.schedules import Schedule
from masksd.kit.sources import build_model, open_split, tokenizer_name
from masksd.kit.training.optimizers import parameter_groups
from masksd.kit.training.views import ObjectViews, equal_sentences

HOTTEST = 100.0
"""The largest factor of the cosines, as in CLIP."""


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        model: of the registry, with two towers (clip_cris_tiny, clip_cris_vit_s16, ...).
        data: see DataConfig.
        split: to train on.
        eval_split: to score on.
        max_length: tokens of a sentence, as in the training that follows.
        image_size: side of the squared input, pixels; None takes the model's own.
        context: least and largest side of a view, as a multiple of the object's longer side.
        patches: weight of the same loss on the patch that is nearest to the sentence; 0 trains as
            CLIP did.
        batch_size: pairs a step; each has all others for negatives.
        steps: optimiser steps.
        lr: peak learning rate; it falls by a cosine to 0.
        warmup: steps over which it rises from 0.
        weight_decay: on matrices.
        seed: of weights, order, sentences and views.
        workers: processes that read data; 0 reads in the main one.
        log_every: steps between two lines of the report's curve.
        eval_samples: expressions scored; 0 takes all.
        cpu: stay on the CPU where there is a GPU.
        output: the file of weights; the report lies beside it, as .json.
        overwrite: replace an older file at the same place.
        progress: show a bar.

    Raises:
        ValueError: a field out of range, named.

    Example:
        >>> PretrainConfig(context=(0.5, 2.0))
        Traceback (most recent call last):
        ValueError: context must be two numbers from 1, in order, got (0.5, 2.0)
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
            raise ValueError(f"context must be two numbers from 1, in order, got {self.context}")
        for name in ("lr", "weight_decay", "patches"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite, 0 or more, got {getattr(self, name)}")
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output must end in .safetensors, got {self.output}")

    def run_config(self) -> TrainConfig:
        """Return the training run whose model this is, with all else at its default."""
        return TrainConfig(
            model=self.model,
            data=self.data,
            max_length=self.max_length,
            image_size=self.image_size,
            seed=self.seed,
        )


def pretrain(config: PretrainConfig, bits: int = 32) -> dict[str, Any]:
    """Train the two towers of a model on views of objects and their sentences.

    On a CPU it repeats bit for bit.

    Args:
        config: everything.
        bits: of a number in the file of weights, 32, 16 or 8.

    Returns:
        The report, which is written as JSON beside the weights: ``retrieval`` (among 64, or the
        whole of a small split) and ``relevance`` (of the patches of whole pictures) of the trained
        towers and, in ``untrained``, of those it started from; ``curve``, ``scale`` (the factor of
        the cosines), ``seconds`` and ``config``.

    Raises:
        ValueError: a config or data that cannot be run, an existing file, or a model without two
            towers.
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
        encoder = getattr(model, "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"model {config.model!r} has no two towers; choose a clip_cris model")
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
                f"{config.batch_size}; lower batch_size or name a larger split"
            )

        def scores() -> dict[str, Any]:
            views = ObjectViews(scoring, config.context, seed=0)
            limit = config.eval_samples
            size = min(64, len(views), limit or 64)
            return {
                "retrieval": retrieval_accuracy(checkpoint, views, limit=limit, candidates=size),
                "relevance": dot_relevance(checkpoint, scoring, limit=limit),
            }

        untrained = scores()
        views = ObjectViews(training, config.context, config.seed)
        scale, curve = _fit(config, checkpoint, views, device)
        report = {
            **scores(),
            "untrained": untrained,
            "scale": scale,
            "curve": curve,
            "seconds": round(time.perf_counter() - start, 1),
            "config": dataclasses.asdict(config),
        }
    report = json.loads(json.dumps(report, default=str))
    text = json.dumps(report, indent=2) + "\n"
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_files(
        {
            config.output: encoder_bytes(encoder, tokenizer_name(base), bits),
            config.output.with_suffix(".json"): text.encode(),
        }
    )
    return dict(report)


def contrastive_loss(cosines: Tensor, scale: Tensor, equal: Tensor) -> Tensor:
    """Symmetric InfoNCE: every picture shall choose its sentence, every sentence its picture.

    Args:
        cosines: ``(B, B)``, a picture a row.
        scale: 0-d factor, the inverse of the temperature.
        equal: bool ``(B, B)``: pairs that are right as well, and no negatives.

    Returns:
        0-d.

    Example:
        >>> no = torch.zeros(2, 2, dtype=torch.bool)
        >>> round(float(contrastive_loss(torch.zeros(2, 2), torch.tensor(1.0), no)), 4)  # ln 2
        0.6931
    """
    logits = (scale * cosines).masked_fill(equal, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def _fit(
    config: PretrainConfig, checkpoint: Checkpoint, views: ObjectViews, device: torch.device
) -> tuple[float, list[dict[str, float]]]:
    """Take all steps; return the factor of the cosines and the losses."""
    from tqdm import tqdm

    towers: Any = checkpoint.model.encoder
    log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), device=device))
    groups = parameter_groups(towers, towers, config.weight_decay, 1.0)
    groups.append({"params": [log_scale], "weight_decay": 0.0, "scale": 1.0})
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    schedule = Schedule("cosine", lr=config.lr, steps=config.steps, warmup=config.warmup)
    sampler = EpochSampler(len(views), config.seed)
    loader: Any = DataLoader(
        views,
        batch_size=config.batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(keyed_seed(config.seed, "workers")),
    )
    curve: list[dict[str, float]] = []
    window: list[Tensor] = []
    done = 0
    with tqdm(total=config.steps, desc="pretrain", unit="step", disable=not config.progress) as bar:
        while done < config.steps:
            for batch in loader:
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(done)
                images, tokens = batch["image"].to(device), batch["tokens"].to(device)
                equal = equal_sentences(tokens)
                pooled, patches = similarities(checkpoint, images, tokens)
                loss = contrastive_loss(pooled, log_scale.exp(), equal)
                loss = loss + config.patches * contrastive_loss(patches, log_scale.exp(), equal)
                loss.backward()
                nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    log_scale.clamp_(max=math.log(HOTTEST))
                window.append(loss.detach())
                done += 1
                bar.update()
                if done % config.log_every == 0 or done == config.steps:
                    mean = float(torch.stack(window).mean())
                    curve.append({"step": done, "loss": mean})
                    bar.set_postfix(loss=mean)
                    window = []
                if done == config.steps:
                    break
            sampler.epoch += 1
            views.dataset.set_epoch(sampler.epoch)
    return float(log_scale.detach().exp()), curve
