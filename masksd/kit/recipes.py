"""Training runs by name: the hyper-parameters of the papers, complete except for the data folder.

What a paper does not state is as in the default run, except that gradients are not clipped.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from masksd.config import PRESETS, DistillConfig
from masksd.errors import unknown_name
from masksd.kit.config import DataConfig, TrainConfig

_REFCOCO = DataConfig(name="refcoco", split_by="unc")

_LARGE = TrainConfig(  # common to all runs on RefCOCO
    pretrained=True,
    data=_REFCOCO,
    steps=None,
    epochs=1,
    warmup=0,
    clip_norm=math.inf,
    workers=8,
    cache=False,
    log_every=50,
    evaluate_every=5000,
    eval_samples=0,
    eval_batch_size=32,
)

_CM_MASKSD = dataclasses.replace(  # Sec. IV-A
    _LARGE,
    model="clip_cris_vit_b16",
    train_items="sentences",  # "120,624 training samples"
    max_length=17,
    image_size=576,
    batch_size=32,
    epochs=100,
    optimizer="adam",
    lr=1e-5,
    schedule="cosine",
    warmup=None,
    warmup_epochs=10,
    weight_decay=5e-4,
    threshold=0.35,
)

TOWERS = Path(__file__).parent / "data/shapes/towers.safetensors"
"""Small towers that agree, made by the following command; its report lies beside them.

masksd pretrain --steps 1200 --lr 1.5e-3 --bits 8 --cpu \\
    --output masksd/kit/data/shapes/towers.safetensors
"""

RECIPES: dict[str, TrainConfig] = {
    # What `masksd train` runs. Change it here and not in TrainConfig: results of older runs are
    # found by how they differ from the defaults there.
    "cm-masksd": TrainConfig(
        encoder_weights=TOWERS,
        data=DataConfig(pictures=1500),  # each object is seen about once
        dropout=0.0,  # drawing it takes a quarter of a step, and nothing overfits here
        steps=250,
        warmup=30,
    ),
    "paper-refcoco-vit-b": _CM_MASKSD,
    "paper-refcoco-vit-l": dataclasses.replace(
        _CM_MASKSD, model="clip_cris_vit_l14", image_size=532
    ),
    "paper-ablation-vit-b": dataclasses.replace(_CM_MASKSD, image_size=480),
    # config/refcoco/cris_r50.yaml and train.py of CRIS.pytorch. Its first epoch has the towers at
    # the full learning rate, an oversight in how its scheduler starts; ours does not.
    "cris-r50": dataclasses.replace(
        _LARGE,
        model="clip_cris_rn50",
        dropout=0.1,
        train_items="refs",
        max_length=17,
        image_size=416,
        fit="letterbox",
        batch_size=64,
        epochs=50,
        optimizer="adam",
        lr=1e-4,
        schedule="multistep",
        milestones=(0.7,),  # epoch 35
        gamma=0.1,
        backbone_lr=0.1,
        weight_decay=0.0,
        mixed_precision="fp16",
        threshold=0.35,
    ),
    # README, args.py and train.py of LAVT-RIS. Its optimiser leaves out BERT's embeddings and last
    # two layers. There all biases except those of norms decay; here no vector does.
    "lavt-swin-b": dataclasses.replace(
        _LARGE,
        model="lavt_swin_b",
        data=dataclasses.replace(_REFCOCO, text="raw"),
        train_items="refs",
        max_length=20,
        image_size=480,
        batch_size=32,
        epochs=40,
        optimizer="adamw",
        lr=5e-5,
        schedule="poly",
        power=0.9,
        weight_decay=1e-2,
        class_weights=(0.9, 1.1),
        frozen=(
            "text_encoder.embeddings.",
            "text_encoder.encoder.layer.10.",
            "text_encoder.encoder.layer.11.",
        ),
        threshold=0.5,  # the larger of two channels
    ),
}


def get_recipe(name: str) -> TrainConfig:
    """Return a training run by name.

    Args:
        name: ``"cm-masksd"`` (the default run), ``"paper-refcoco-vit-b"``,
            ``"paper-refcoco-vit-l"``, ``"paper-ablation-vit-b"`` (all of the CM-MaskSD paper),
            ``"cris-r50"`` or ``"lavt-swin-b"``; or a preset of :class:`DistillConfig`, for the
            default run with that method.

    Returns:
        The config; ``data.data_root`` of those on RefCOCO still has to be set.

    Raises:
        ValueError: an unknown name, with the nearest one.

    Example:
        >>> get_recipe("cris-r50").lr
        0.0001
        >>> get_recipe("augment").distill.one_pass
        True
        >>> get_recipe("cris-r5")
        Traceback (most recent call last):
        ValueError: unknown preset 'cris-r5'; did you mean 'cris-r50'? Known: ...
    """
    if name in RECIPES:
        return RECIPES[name]
    if name in PRESETS:
        return dataclasses.replace(RECIPES["cm-masksd"], distill=DistillConfig.preset(name))
    raise unknown_name("preset", name, [*RECIPES, *PRESETS])
