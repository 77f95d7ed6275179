"""Which configs can learn from images without masks."""

from __future__ import annotations

import math
from typing import Any

from masksd.kit.data.selection import check_labels


def check_unlabelled(config: Any) -> None:
    """Raise a ``ValueError`` unless the options of a ``TrainConfig`` for unlabelled data fit."""
    if config.labels is not None:
        check_labels(config.labels)
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
