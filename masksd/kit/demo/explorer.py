"""What the page asks of a model: masks, what each word and patch is good for, what a step masks."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from masksd.config import DistillConfig
from masksd.errors import check_choice
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data.images import read_image
from masksd.kit.data.records import DataError
from masksd.kit.data.shapes.build import draw_sample, shapes_config
from masksd.kit.data.shapes.drawing import draw_image
from masksd.kit.data.shapes.scenes import LEVELS
from masksd.kit.data.survey import spread_indices
from masksd.kit.data.transforms import fit_image
from masksd.kit.data_config import DataConfig
from masksd.kit.evaluation.examples import hidden_words, on_square
from masksd.kit.evaluation.perturbation import GRID, paint_cells
from masksd.kit.feeding import model_inputs, predict_logits
from masksd.kit.prediction.predictor import Predictor, encode_expression
from masksd.kit.sources import open_split, wrap_model
from masksd.tapping.modules import evaluating

LONGEST_SIDE = 1024
"""Pixels; larger pictures are shrunk to it, so that a word costs milliseconds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An upright RGB picture, told from others by identity."""

    image: Image.Image

    def hide(self, cells: Sequence[int], mean: Sequence[float]) -> Image.Image:
        """Paint cells of an 8 x 8 grid, numbered row by row, as ``masksd evaluate --hide`` does."""
        hidden = torch.zeros(GRID**2, dtype=torch.bool)
        hidden[list(cells)] = True
        pixels = torch.from_numpy(np.array(self.image)).permute(2, 0, 1)
        painted = paint_cells(pixels, hidden.view(GRID, GRID), mean)
        return Image.fromarray(painted.permute(1, 2, 0).numpy())


class Found(NamedTuple):
    """What a model finds, and what it has to say about the sentence."""

    probabilities: NDArray[np.float32]  # (H, W)
    notes: tuple[str, ...]


class NextStep(NamedTuple):
    """What a training step would mask of one sample."""

    square: Image.Image  # the picture as the model takes it
    relevance: NDArray[np.float32] | None  # (h, w), of each patch, if a branch ranks patches
    patches: NDArray[np.bool_] | None  # (h, w), True where masked
    words: list[tuple[str, bool]]  # True where masked; empty if no branch masks words


class Explorer:
    """Answers questions about one checkpoint, from any thread.

    ``stands_in`` says why the default method stands in for the checkpoint's own, if it does.

    Args:
        checkpoint: the model, its tokenizer and config.
        name: what the page calls it.

    Raises:
        ValueError: the method stored in the checkpoint is not a valid DistillConfig.

    Example:
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> explorer = Explorer(build_model(TrainConfig()), "new")
        >>> picture = Picture(Image.new("RGB", (40, 30)))
        >>> explorer.find(picture, (), "the red circle").probabilities.shape
        (30, 40)
        >>> [word for word, _ in explorer.without_words(picture, (), "the red circle")]
        ['the', 'red', 'circle']
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        self.predictor = Predictor(checkpoint)
        self.config, self.stands_in = _method(checkpoint)
        sd = wrap_model(checkpoint.model, self.config, checkpoint.tokenizer)
        self.sd = sd.to(next(checkpoint.model.parameters()).device)
        self.find = functools.lru_cache(maxsize=64)(self._find)
        self._lock = threading.RLock()
        self._set: tuple[Picture, tuple[int, ...]] | None = None

    def _find(self, picture: Picture, hidden: tuple[int, ...], sentence: str) -> Found:
        """Return the probabilities of a sentence's object, with cells of the picture hidden."""
        with self._lock, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if self._set != (picture, hidden):
                self.predictor.set_image(self._shown(picture, hidden))
                self._set = picture, hidden
            found = self.predictor.predict(sentence)
        notes = (str(each.message) for each in caught if each.category is UserWarning)
        return Found(found.probabilities, tuple(notes))

    def without_words(
        self, picture: Picture, hidden: tuple[int, ...], sentence: str
    ) -> list[tuple[str, NDArray[np.float32] | None]]:
        """Return each word that the model reads with the probabilities without it.

        These are None where no word that the model knows is left.
        """
        tokenizer = self.checkpoint.tokenizer
        # a token a word at least, unless the tokenizer drops the word
        words = tokenizer.kept(sentence).split()[: tokenizer.max_length]
        found: list[tuple[str, NDArray[np.float32] | None]] = []
        for at, word in enumerate(words):
            rest = " ".join([*words[:at], *words[at + 1 :]])
            try:
                found.append((word, self.find(picture, hidden, rest).probabilities))
            except ValueError:
                found.append((word, None))
        return found

    def next_step(
        self, picture: Picture, hidden: tuple[int, ...], sentence: str, step: int
    ) -> NextStep:
        """Return what training step ``step`` would mask were this sample the first of its batch.

        Where the truth ranks the patches, the model's own mask stands in for it.
        """
        config = self.checkpoint.config
        fitted = fit_image(self._shown(picture, hidden), config.image_size, config.fit)
        device = next(self.checkpoint.model.parameters()).device
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # find says them
            tokens = encode_expression(self.checkpoint, sentence)
            images, ids = fitted[None].to(device), tokens[None].to(device)
            with evaluating(self.checkpoint.model), torch.no_grad():
                logits = predict_logits(self.checkpoint, images, ids)
            target = (logits.sigmoid() > config.threshold).float()
            self.sd.set_step(step)
            out = self.sd.preview(*model_inputs(self.checkpoint, images, ids), target=target)
        masks = {name: mask[0].cpu() for name, mask in out.masks.items() if len(mask)}
        relevance = patches = None
        if "lmvsd" in masks:
            relevance = on_square(out.relevance["lmvsd"][0].float())
            patches = on_square(masks["lmvsd"])
        words = []
        if "vmlsd" in masks:
            words = hidden_words(self.checkpoint.tokenizer, tokens, masks["vmlsd"])
        square = Image.fromarray(fitted.permute(1, 2, 0).numpy())
        return NextStep(square, relevance, patches, words)

    def _shown(self, picture: Picture, hidden: tuple[int, ...]) -> Image.Image:
        return picture.hide(hidden, self.checkpoint.config.mean)


def read_picture(path: str | Path) -> Picture:
    """Read an upload as :func:`read_image` does; a DataError names the file without its folder."""
    path = Path(path)
    try:
        image = read_image(path, upright=True)
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from None
    return shrunk(image)


def shrunk(image: Image.Image) -> Picture:
    """Bring a picture to the largest size that the page works with.

    Example:
        >>> shrunk(Image.new("RGB", (4096, 1024))).image.size
        (1024, 256)
    """
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return Picture(image)


def read_examples(checkpoint: Checkpoint, count: int = 8) -> list[tuple[Picture, str]]:
    """Return pictures of the split on which the training was scored, with a sentence each.

    Of generated data these alone are drawn.

    Raises:
        ValueError: the data are not where they were in training.
    """
    config = checkpoint.config
    data = DataConfig.from_dict(config.data)
    if data.generated():
        shapes = shapes_config(data)
        check_choice("split", config.eval_split, shapes.images())
        examples = []
        for at, index in enumerate(spread_indices(shapes.images()[config.eval_split], count)):
            sample = draw_sample(shapes, config.eval_split, index)
            image = draw_image(sample.scene, LEVELS[shapes.level], shapes.size)
            lines = [line for _, found in sorted(sample.expressions.items()) for _, line in found]
            examples.append((Picture(image), lines[at % len(lines)]))
        return examples
    split = open_split(
        data, config.eval_split, checkpoint.tokenizer, config.image_size, cache=False
    )
    indices = spread_indices(len(split), count)
    return [(shrunk(split.image(index)), split.sentence(index)) for index in indices]


def _method(checkpoint: Checkpoint) -> tuple[DistillConfig, str]:
    """Return the method of the training, or the default and why that stands in."""
    fields = checkpoint.config.distill
    if fields is None or (fields["image"] is None and fields["text"] is None):
        return DistillConfig(), "it was trained without masked branches"
    config = DistillConfig.from_json(json.dumps(fields))
    if "projection" in {each.relevance for each in (config.image, config.text) if each}:
        return DistillConfig(), "its learned projection is not in the checkpoint"
    return config, ""
