"""Options of a ``TrainConfig`` that must fit each other."""

from __future__ import annotations

import math
from typing import Any

from masksd.kit.config.stored import METHODS
from masksd.kit.data_config import DataConfig
from masksd.knowledge.config import ChannelDistillConfig


def check_kinds(config: Any) -> None:
    """Raise a ``ValueError`` if a config inside is anything else, such as a dict from JSON."""
    for name, kind in {"data": DataConfig, **METHODS}.items():
        value = getattr(config, name)
        if not isinstance(value, kind):
            raise ValueError(
                f"{name} must be a {kind.__name__}, got a {type(value).__name__}; JSON becomes a "
                "config with TrainConfig.from_json(text)"
            )


def check_unlabelled(config: Any) -> None:
    """Raise a ``ValueError`` unless something can learn from images without masks."""
    labels = config.labels
    number = type(labels) is int and labels >= 1
    if not (labels is None or number or (type(labels) is float and 0 < labels < 1)):
        raise ValueError(
            "labels must be a whole number of masks of at least 1, or a share in (0, 1), got "
            f"{labels!r}"
        )
    if config.unlabelled is None:
        if config.unlabelled_batch is not None:
            raise ValueError(
                f"unlabelled_batch is {config.unlabelled_batch}, but there are no unlabelled data; "
                "name them with unlabelled (--unlabelled), or leave it out"
            )
        return
    where = f"unlabelled={config.unlabelled!r}"
    if config.unlabelled == config.data.name and config.labels is None:
        raise ValueError(
            f"{where} stands for the refs that labels leaves out, but labels is None and leaves "
            "none out; set labels (--labels), or name other data"
        )
    distill = config.distill
    branches = [each for each in (distill.image, distill.text) if each is not None]
    if not branches:
        if config.teacher is not None:
            return
        raise ValueError(
            f"{where}, but nothing would learn from it: distill.image and distill.text are None; "
            "turn a branch on, name a teacher, or leave unlabelled out"
        )
    if distill.target == "ground_truth":
        raise ValueError(
            f"{where}, but distill.target 'ground_truth' needs masks, which these images do not "
            "have; take target 'teacher' or 'main'"
        )
    share = max(each.samples for each in branches)
    seen = math.ceil(share * config.images_per_pass() - 1e-9)
    if seen <= config.batch_size:
        raise ValueError(
            f"{where}, but the branches see only the first {seen} images of a batch, of which "
            f"{config.batch_size} are labelled; raise samples, or unlabelled_batch"
        )


def check_knowledge(config: Any) -> None:
    """Raise a ``ValueError`` if it is said what to learn from a teacher, and there is none."""
    if config.teacher is None and config.knowledge != ChannelDistillConfig():
        raise ValueError(
            "knowledge says what to learn from a teacher, but there is none; name its checkpoint "
            "with teacher (--teacher), or leave knowledge out"
        )


def check_class_weights(config: Any) -> None:
    """Raise a ``ValueError`` unless class weights are valid and can replace the loss."""
    weights = config.class_weights
    if weights is None:
        return
    if len(weights) != 2 or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"class_weights must be two finite numbers above 0, got {weights}")
    if config.distill.low_memory:
        raise ValueError(
            "class_weights put the loss outside the wrapper, but distill.low_memory runs the "
            "backward inside it; set one of the two"
        )
    if config.distill.dice_weight:
        raise ValueError(
            "class_weights replace the segmentation loss, which distill.dice_weight belongs "
            "to; set one of the two"
        )
