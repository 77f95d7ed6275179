"""Prediction on one picture: load a checkpoint, set a picture, ask for expressions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksd.data.pictures import read_picture, to_rgb
from masksd.data.transforms import resize_picture
from masksd.engine.checkpoints import Checkpoint, load_checkpoint
from masksd.engine.feeding import predict_logits, resize_probabilities
from masksd.errors import check_fraction
from masksd.modes import evaluating

if TYPE_CHECKING:
    from PIL import Image


class Prediction(NamedTuple):
    """What the model finds, at the picture's own size.

    Attributes:
        mask: bool ``(H, W)``.
        probabilities: float32 ``(H, W)`` in [0, 1].
    """

    mask: NDArray[np.bool_]
    probabilities: NDArray[np.float32]


class Predictor:
    """Finds what an expression refers to.

    Args:
        checkpoint: the model with its tokenizer and config.

    Attributes:
        checkpoint: as given.
        picture: the picture set last, upright RGB; None before.

    Example:
        >>> from PIL import Image
        >>> from masksd.engine.config import TrainConfig
        >>> from masksd.engine.sources import build_model
        >>> predictor = Predictor(build_model(TrainConfig()))
        >>> predictor.set_image(Image.new("RGB", (40, 30)))
        >>> predictor.predict("the red circle").mask.shape
        (30, 40)
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.picture: Image.Image | None = None
        self._image: Tensor | None = None

    @classmethod
    def from_checkpoint(cls, folder: str | Path, device: str | torch.device = "cpu") -> Predictor:
        """Load a checkpoint that training wrote.

        Args:
            folder: as in ``runs/NAME/checkpoint``.
            device: where the model runs.

        Raises:
            ValueError: the checkpoint is missing or damaged.
        """
        return cls(load_checkpoint(folder, device))

    def set_image(self, image: str | Path | Image.Image) -> None:
        """Choose the picture.

        Args:
            image: a JPEG, PNG, WEBP or BMP file, or a picture of any mode of 8 bits; it is turned
                upright as its EXIF says and laid onto white where it is transparent.

        Raises:
            DataError: a file that is missing, or a picture that is damaged, too large or of 16
                bits; the picture before stays.
        """
        picture = (
            read_picture(image, upright=True)
            if isinstance(image, str | Path)
            else to_rgb(image, upright=True)
        )
        resized = resize_picture(picture, self.checkpoint.config.image_size)
        device = next(self.checkpoint.model.parameters()).device
        self.picture, self._image = picture, resized[None].to(device)

    def predict(self, expression: str, threshold: float | None = None) -> Prediction:
        """Find what an expression refers to.

        Args:
            expression: words; unknown ones, and that not all fit in, are a ``UserWarning``.
            threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes
                the checkpoint's (the paper's is 0.35).

        Returns:
            The mask and the probabilities.

        Raises:
            ValueError: no picture was set, an empty expression, one of unknown words only, or a
                threshold outside [0, 1].
        """
        if self.picture is None or self._image is None:
            raise ValueError("no picture was set; call set_image first")
        threshold = self.checkpoint.config.threshold if threshold is None else threshold
        check_fraction("threshold", threshold)
        tokens = encode_expression(self.checkpoint, expression)[None].to(self._image.device)
        with evaluating(self.checkpoint.model), torch.inference_mode():
            logits = predict_logits(self.checkpoint, self._image, tokens)
            width, height = self.picture.size
            probabilities = resize_probabilities(logits[0], (height, width)).cpu().numpy()
        return Prediction(probabilities > threshold, probabilities)


def encode_expression(checkpoint: Checkpoint, expression: str) -> Tensor:
    """Turn what a user typed into tokens ``(L,)`` int64.

    Raises:
        ValueError: nothing in it that the model knows.
    """
    if not expression.strip():
        raise ValueError("the expression is empty; say what to find, as in 'the red circle'")
    tokenizer = checkpoint.tokenizer
    kept = tokenizer.kept(expression)
    unknown = tokenizer.unknown_words(kept)
    words = int((tokenizer.encode(expression) == tokenizer.end_token).long().argmax()) - 1
    listed = ", ".join(map(repr, dict.fromkeys(unknown)))
    if words <= 0:
        raise ValueError(f"the expression {expression!r} holds no word")
    if len(unknown) >= words:
        raise ValueError(
            f"the model knows no word of {expression!r} (unknown: {listed}); "
            "use words that it was trained with"
        )
    if kept != expression:
        warnings.warn(
            f"the expression is too long; only its first {len(kept.split())} words are used",
            UserWarning,
            stacklevel=3,
        )
    if unknown:
        warnings.warn(f"the model does not know {listed}", UserWarning, stacklevel=3)
    return tokenizer.encode(expression)
