"""Contrastive pretraining of the two towers, as CLIP was trained (arXiv 2103.00020, Fig. 3).

Trained from scratch, towers share no space, so that relevance, which CM-MaskSD masks by, means
nothing at first; the paper starts from CLIP. This gives small towers the same start: a symmetric
InfoNCE loss on ``image.pooled`` and ``text.pooled`` with a learned temperature. CLIP's patches
share its projection (:mod:`masksd.models.clip`), which is enough after 400 M pairs; for small
towers it is not, so by default the same loss is also put on the patch nearest to the expression
(the late interaction of FILIP, arXiv 2111.07783, with a whole sentence).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import PretrainConfig
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.views import ObjectViews, equal_sentences
from masksd.kit.devices import default_device
from masksd.kit.encoder_weights import encoder_bytes
from masksd.kit.evaluation.alignment import dot_relevance, retrieval_accuracy, similarities
from masksd.kit.randomness import keyed_randomness, keyed_seed
from masksd.kit.schedules import Schedule
from masksd.kit.sources import build_model, open_split, tokenizer_name
from masksd.kit.storage.files import write_files
from masksd.kit.training.loop import Batch, Batches, Loop, Terms
from masksd.kit.training.optimizers import parameter_groups

MAX_SCALE = 100.0  # the largest factor of the cosines, as in CLIP


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
    """Symmetric InfoNCE on cosines ``(B, B)``, an image a row; ``equal`` pairs are no negatives."""
    logits = (scale * cosines).masked_fill(equal, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
