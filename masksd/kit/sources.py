"""From a config to data and model: generated shapes or a folder, a tokenizer, a fresh model."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

from masksd.kit.checkpoints import Checkpoint, CheckpointConfig
from masksd.kit.config import DataConfig, TrainConfig, cache_folder
from masksd.kit.data.layout import find_split_by
from masksd.kit.data.refer import Encoder, ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.tokenizers import load_tokenizer
from masksd.kit.data.transforms import CLIP_MEAN, CLIP_STD
from masksd.kit.encoder_weights import load_encoder
from masksd.models import create_model
from masksd.models.registry import check_pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP, BERT = (49408, 77), (30522, 512)
"""Token ids and positions of every CLIP that OpenAI published, and of BERT (uncased)."""


def find_root(data: DataConfig, progress: bool = True) -> Path:
    """Return the folder of the data, after generating shapes where none is named.

    Args:
        data: what to open.
        progress: show a bar while generating.

    Raises:
        ValueError: an unknown level or variant, or a data set that is not generated.
        DataError: the folder does not exist.
    """
    if not data.generated() and data.data_root is not None:
        return data.data_root
    shapes = shapes_config(data)
    return build_shapes(shapes_folder(shapes), shapes, progress=progress)


def shapes_folder(shapes: ShapesConfig) -> Path:
    """Return the place of generated shapes in the cache folder, one for each config.

    Example:
        >>> shapes_folder(ShapesConfig(level="hard", train=10)).name
        'shapes-hard-10-300-300-300-96px-seed0'
    """
    pictures = "-".join(map(str, shapes.images().values()))
    name = f"shapes-{shapes.level}{shapes.variant}-{pictures}-{shapes.size}px-seed{shapes.seed}"
    return cache_folder() / name


def shapes_config(data: DataConfig) -> ShapesConfig:
    """Return the configuration of the shapes that are generated.

    Example:
        >>> shapes_config(DataConfig(level="medium", pictures=10)).train
        10
    """
    default = ShapesConfig()
    train = default.train if data.pictures is None else data.pictures
    return ShapesConfig(level=data.level, variant=data.variant, train=train)


def open_split(
    data: DataConfig,
    split: str,
    tokenizer: Encoder,
    image_size: int,
    *,
    train_items: str | None = None,
    fit: str = "squash",
    seed: int = 0,
    cache: bool = True,
    progress: bool = True,
) -> ReferDataset:
    """Open a split.

    Args:
        data: where it lies.
        split: ``"train"``, ``"val"``, ``"testA"``, ``"testB"``.
        tokenizer: turns sentences into ids.
        image_size: side of the squared input, pixels.
        train_items: ``"refs"`` or ``"sentences"`` to train on it; None to score on it.
        fit: ``"squash"`` or ``"letterbox"``.
        seed: of the sentences drawn.
        cache: keep decoded pictures in memory.
        progress: show a bar while generating shapes.

    Raises:
        ValueError: an unknown name, or data that are missing or damaged.
    """
    root = find_root(data, progress)
    return ReferDataset(
        root,
        data.name,
        split,
        tokenizer=tokenizer,
        image_size=image_size,
        split_by=data.split_by or find_split_by(root, data.name),
        images=data.images,
        text=data.text,
        train_items=train_items or "sentences",
        training=train_items is not None,
        fit=fit,
        seed=seed,
        cache=cache,
        skip_bad=data.skip_bad,
        index=data.index,
    )


def build_model(config: TrainConfig) -> Checkpoint:
    """Build the tokenizer and the model of a run; weights are drawn from torch's global stream.

    Args:
        config: of the run.

    Returns:
        The model in train mode, at step 0.

    Raises:
        ValueError: an unknown model or tokenizer, or weights that do not exist or cannot be had.

    Example:
        >>> checkpoint = build_model(TrainConfig(max_length=9))
        >>> checkpoint.config.image_size, checkpoint.model.config.max_length
        (64, 9)
    """
    if config.pretrained:
        check_pretrained(config.model)
    name = tokenizer_name(config)
    tokenizer = load_tokenizer(name, config.max_length)
    lavt = _is_lavt(config)
    if config.pretrained:
        _check_fits(name, tokenizer.vocab_size, config.max_length, *(BERT if lavt else CLIP))
    overrides = {**model_options(config), "vocab_size": tokenizer.vocab_size}
    if not lavt:  # which finds the end of a sentence by its attention mask
        overrides["end_token"] = tokenizer.end_token
    model = create_model(config.model, config.pretrained, **overrides)
    if config.encoder_weights is not None:  # after the draws, which thus are those of a run without
        load_encoder(model, config.encoder_weights, name)
    return Checkpoint(
        CheckpointConfig(
            model=config.model,
            model_config=dataclasses.asdict(model.config),
            image_size=model.config.image_size,
            max_length=config.max_length,
            mean=IMAGENET_MEAN if lavt else CLIP_MEAN,
            std=IMAGENET_STD if lavt else CLIP_STD,
            threshold=config.threshold,
            distill=dataclasses.asdict(config.distill),
            step=0,
            data=config.data.to_dict(),
            version=version("masksd"),
            fit=config.fit,
        ),
        model,
        tokenizer,
    )


def tokenizer_name(config: TrainConfig) -> str:
    """Return the tokenizer of a run, as :func:`masksd.kit.data.tokenizers.load_tokenizer` takes it.

    Example:
        >>> tokenizer_name(TrainConfig()), tokenizer_name(TrainConfig(pretrained=True))
        ('shapes', 'clip')
    """
    if config.tokenizer is not None:
        return config.tokenizer
    if config.data.name == "shapes" and not config.pretrained:
        return "shapes"
    return "bert" if _is_lavt(config) else "clip"


def model_options(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of the model's config that a run sets, apart from its vocabulary.

    Example:
        >>> model_options(TrainConfig(dropout=0.0))
        {'max_length': 17, 'dropout': 0.0}
    """
    options: dict[str, Any] = {}
    if not config.pretrained:  # the towers' tables of positions have a length of their own
        options["max_length"] = config.max_length
    for option in ("dropout", "image_size"):
        if getattr(config, option) is not None:
            options[option] = getattr(config, option)
    return options


def _is_lavt(config: TrainConfig) -> bool:
    return config.model.startswith("lavt_")


def _check_fits(
    tokenizer: str, vocab_size: int, max_length: int, known: int, positions: int
) -> None:
    """Raise unless pretrained weights fit, before hundreds of megabytes of them are loaded."""
    if vocab_size != known:
        right = "clip" if (known, positions) == CLIP else "bert"
        raise ValueError(
            f"pretrained weights know {known} tokens, tokenizer {tokenizer!r} has "
            f"{vocab_size}; use --tokenizer {right}, or train without --pretrained"
        )
    if max_length > positions:
        raise ValueError(
            f"pretrained weights have {positions} positions, max_length is {max_length}; "
            f"use at most {positions}"
        )
