"""From a config to its data, its tokenizer, its model and the wrapper around it."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from masksd.config import DistillConfig
from masksd.cross_modal import CrossModalDistill
from masksd.distill import CrossModalMaskedSelfDistill
from masksd.hosts import lavt
from masksd.kit.checkpoints import Checkpoint, CheckpointConfig
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.config.mixing import parse_share
from masksd.kit.data.layout import data_sets, find_split_by
from masksd.kit.data.refer import Encoder, ReferDataset
from masksd.kit.data.selection import choose_refs
from masksd.kit.data.shapes import build_shapes, shapes_config, shapes_folder
from masksd.kit.data.text.tokenizers import Tokenizer, load_tokenizer
from masksd.kit.data.transforms import CLIP_MEAN, CLIP_STD
from masksd.kit.encoder_weights import load_encoder
from masksd.kit.mixing import MixedDataset
from masksd.kit.randomness import keyed_seed
from masksd.kit.start import load_start
from masksd.models import create_model
from masksd.models.clip_text import sentence_parts
from masksd.models.registry import check_pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP, BERT = (49408, 77), (30522, 512)
"""Vocabulary size and positions of every CLIP that OpenAI published, and of BERT (uncased)."""


def find_root(data: DataConfig, progress: bool = True) -> Path:
    """Return the folder of the data; generate shapes where none is named."""
    if not data.generated() and data.data_root is not None:
        return data.data_root
    shapes = shapes_config(data)
    return build_shapes(shapes_folder(shapes), shapes, progress=progress)


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
    """Open a split to score on, or to train on where ``train_items`` says what an item is."""
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


def open_training(
    config: TrainConfig, tokenizer: Encoder, image_size: int, **options: Any
) -> tuple[ReferDataset | MixedDataset, ReferDataset | None]:
    """Open what a run is trained on: the refs whose masks are used, and unlabelled ones, if any."""
    common = {"train_items": config.train_items, **options}
    split = config.train_split
    whole = open_split(config.data, split, tokenizer, image_size, seed=config.seed, **common)
    if config.mix:
        shares = [parse_share(share) for share in config.mix]
        others = [
            open_split(_beside(config.data, folder), split, tokenizer, image_size, **common)
            for folder, _ in shares
        ]
        weights = [1.0, *(weight for _, weight in shares)]
        return MixedDataset([whole, *others], weights, config.seed), None
    training, left = whole, np.arange(0)
    if config.label_noise:
        training = whole.mislabelled(config.label_noise, config.seed)
    if config.labels is not None:
        chosen, left = choose_refs(config.labels, whole.refs, config.seed)
        training = training.part(chosen)
    if config.unlabelled is None:
        return training, None
    data = unlabelled_data(config)
    if data is not config.data:
        whole = open_split(data, split, tokenizer, image_size, **common)
        left = np.arange(whole.refs)
    own = keyed_seed(config.seed, "unlabelled")
    return training, whole.part(left, masks=False, seed=own)


def _beside(data: DataConfig, folder: Path) -> DataConfig:
    """Return where a data set lies that is mixed in; in the same root it has the same images."""
    root = data.data_root
    images = data.images if root is not None and root.resolve() == folder.resolve().parent else None
    return dataclasses.replace(
        data, data_root=folder.parent, name=folder.name, images=images, split_by=None, index=None
    )


def unlabelled_data(config: TrainConfig) -> DataConfig:
    """Return where the unlabelled data of a run lie: its own, others in its root, or a folder."""
    data, wanted = config.data, config.unlabelled or ""
    if wanted == data.name:
        return data
    known = [] if data.data_root is None else data_sets(data.data_root)
    if wanted in known:
        return dataclasses.replace(data, name=wanted, split_by=None, index=None)
    if Path(wanted).is_dir():
        return dataclasses.replace(data, data_root=Path(wanted), images=None, index=None)
    raise ValueError(
        f"unlabelled {wanted!r} is neither a data set in the root of the training data "
        f"({', '.join(map(repr, known or [data.name]))}) nor a folder that holds {data.name!r}; "
        "name one of them (--unlabelled)"
    )


def build_model(config: TrainConfig) -> Checkpoint:
    """Build the tokenizer and the model of a run; weights are drawn from torch's global stream.

    Args:
        config: of the run; its data are not opened.

    Returns:
        A named tuple of ``config``, ``model`` (in train mode) and ``tokenizer``, as
        :func:`masksd.kit.load_checkpoint` returns it.

    Raises:
        ValueError: an unknown model or tokenizer, or weights that do not exist or do not fit.

    Example:
        >>> checkpoint = build_model(TrainConfig(max_length=9))
        >>> checkpoint.config.image_size, checkpoint.model.config.max_length
        (64, 9)
    """
    if config.pretrained:
        check_pretrained(config.model)
    name = tokenizer_name(config)
    tokenizer = load_tokenizer(name, config.max_length)
    lavt_model = _is_lavt(config)
    if config.pretrained:
        expected = "bert" if lavt_model else "clip"
        _check_fits(name, tokenizer.vocab_size, config.max_length, expected)
    overrides = {**model_options(config), "vocab_size": tokenizer.vocab_size}
    if not lavt_model:  # LAVT finds the end of a sentence by its attention mask
        overrides["end_token"] = tokenizer.end_token
    model = create_model(config.model, config.pretrained, **overrides)
    if config.encoder_weights is not None:  # after all draws, so that neck and decoder stay equal
        load_encoder(model, config.encoder_weights, name)
    checkpoint = Checkpoint(
        CheckpointConfig(
            model=config.model,
            model_config=dataclasses.asdict(model.config),
            image_size=model.config.image_size,
            max_length=config.max_length,
            mean=IMAGENET_MEAN if lavt_model else CLIP_MEAN,
            std=IMAGENET_STD if lavt_model else CLIP_STD,
            threshold=config.threshold,
            distill=dataclasses.asdict(config.distill),
            step=0,
            data=config.data.to_dict(),
            version=version("masksd"),
            fit=config.fit,
            train_split=config.train_split,
            eval_split=config.eval_split,
        ),
        model,
        tokenizer,
    )
    if config.start_from is not None:
        load_start(checkpoint, config.start_from)
    return checkpoint


def tokenizer_name(config: TrainConfig) -> str:
    """Return the name of a run's tokenizer, given or by default."""
    if config.tokenizer is not None:
        return config.tokenizer
    if config.data.name == "shapes" and not config.pretrained:
        return "shapes"
    return "bert" if _is_lavt(config) else "clip"


def model_options(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of the model's config that a run sets, apart from its vocabulary."""
    options: dict[str, Any] = {}
    if not config.pretrained:  # pretrained tables of positions have a length of their own
        options["max_length"] = config.max_length
    for option in ("dropout", "image_size"):
        if getattr(config, option) is not None:
            options[option] = getattr(config, option)
    return options


def _is_lavt(config: TrainConfig) -> bool:
    return config.model.startswith("lavt_")


def _check_fits(tokenizer: str, vocab_size: int, max_length: int, expected: str) -> None:
    """Raise unless pretrained weights fit, before hundreds of megabytes of them are loaded."""
    known, positions = BERT if expected == "bert" else CLIP
    if vocab_size != known:
        raise ValueError(
            f"pretrained weights know {known} tokens, tokenizer {tokenizer!r} has "
            f"{vocab_size}; use --tokenizer {expected}, or train without --pretrained"
        )
    if max_length > positions:
        raise ValueError(
            f"pretrained weights have {positions} positions, max_length is {max_length}; "
            f"use at most {positions}"
        )


def wrap_model(
    model: Any, config: DistillConfig, tokenizer: Tokenizer | None = None
) -> CrossModalMaskedSelfDistill:
    """Wrap a registered model: by its ``taps``, if it has any, or as what it is recognised as.

    No tokenizer stands for the one of its pretrained weights.
    """
    taps = getattr(model, "taps", None)
    if taps is not None:
        return CrossModalMaskedSelfDistill.wrap(model, config, taps=taps)
    if all(hasattr(model, part) for part in ("encoder", "neck", "decoder")):
        return CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)
    if not lavt.recognise(model):
        return CrossModalMaskedSelfDistill.wrap(model, config)
    bert = tokenizer is None or tokenizer.kind == "bert"  # whose ids the recipe tells words by
    valid = None if bert or tokenizer is None else WordsBeforeEnd(tokenizer.end_token)
    return CrossModalMaskedSelfDistill.wrap(model, config, valid=valid)


def learn_from(
    sd: CrossModalMaskedSelfDistill,
    teacher: Any,
    config: TrainConfig,
    example: tuple[Tensor, ...],
    tokenizer: Tokenizer | None = None,
) -> None:
    """Let a wrapped model learn from a frozen one; ``example`` is a batch of what both take."""
    teaching = wrap_model(teacher, DistillConfig(image=None, text=None), tokenizer)
    CrossModalDistill(sd, teaching, config.knowledge, example=example)


class WordsBeforeEnd:
    """Mark the words, those between the start token and the first end token: bool ``(B, L)``."""

    def __init__(self, end_token: int) -> None:
        self.end_token = end_token

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the mask for ids ``(B, L)``."""
        return sentence_parts(tokens, self.end_token)[0]
