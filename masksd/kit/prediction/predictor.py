"""Prediction on one picture: load a checkpoint, set a picture, ask for expressions.

The picture is encoded once where the model allows it: that of a CRIS goes to neck and decoder with
each sentence, while a LAVT fuses the sentence inside its image encoder and runs as a whole.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksd.errors import check_fraction
from masksd.kit.checkpoints import Checkpoint, CheckpointConfig, load_checkpoint
from masksd.kit.data.images import read_image, to_rgb
from masksd.kit.data.transforms import fit_image, normalize
from masksd.kit.feeding import foreground_logits, predict_logits, resize_probabilities
from masksd.kit.scores.resampling import unletterbox
from masksd.models.base import CrisModel
from masksd.modes import evaluating

if TYPE_CHECKING:
    from PIL import Image

    from masksd.segmenter import ImageFeatures


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
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> predictor = Predictor(build_model(TrainConfig()))
        >>> predictor.set_image(Image.new("RGB", (40, 30)))
        >>> predictor.predict("the red circle").mask.shape
        (30, 40)
        >>> [answer.mask.shape for answer in predictor.predict(["the red circle", "the star"])]
        [(30, 40), (30, 40)]
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.picture: Image.Image | None = None
        self._image: Tensor | None = None
        self._encoded: ImageFeatures | None = None

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
        """Choose the picture, and encode it where the model encodes it without a sentence.

        Args:
            image: a JPEG, PNG, WEBP or BMP file, or a picture of any mode of 8 bits; it is turned
                upright as its EXIF says and laid onto white where it is transparent.

        Raises:
            ValueError: neither a path nor a picture.
            DataError: a file that is missing, or a picture that is damaged, too large or of 16
                bits; the picture before stays.
        """
        from PIL import Image

        if not isinstance(image, str | Path | Image.Image):
            hint = "; use Image.fromarray(array)" if isinstance(image, np.ndarray) else ""
            raise ValueError(
                f"image must be a path or a PIL picture, got {type(image).__name__}{hint}"
            )
        picture = (
            to_rgb(image, upright=True)
            if isinstance(image, Image.Image)
            else read_image(image, upright=True)
        )
        config, model = self.checkpoint.config, self.checkpoint.model
        resized = fit_image(picture, config.image_size, config.fit)[None]
        resized = resized.to(next(model.parameters()).device)
        encoded = None
        if isinstance(model, CrisModel):
            with evaluating(model), torch.inference_mode():
                encoded = model.encoder.encode_image(normalize(resized, config.mean, config.std))
        self.picture, self._image, self._encoded = picture, resized, encoded

    @overload
    def predict(self, expression: str, threshold: float | None = None) -> Prediction: ...

    @overload
    def predict(
        self, expression: list[str] | tuple[str, ...], threshold: float | None = None
    ) -> list[Prediction]: ...

    def predict(
        self, expression: str | list[str] | tuple[str, ...], threshold: float | None = None
    ) -> Prediction | list[Prediction]:
        """Find what an expression refers to.

        Args:
            expression: words, or several expressions; unknown words, and that not all fit in, are
                a ``UserWarning``.
            threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes
                the checkpoint's (the paper's is 0.35).

        Returns:
            The mask and the probabilities; for several expressions a list of them.

        Raises:
            ValueError: no picture was set, an empty expression, one of unknown words only, or a
                threshold outside [0, 1].
        """
        if self.picture is None or self._image is None:
            raise ValueError("no picture was set; call set_image first")
        threshold = self.checkpoint.config.threshold if threshold is None else threshold
        check_fraction("threshold", threshold)
        found = []
        for each in [expression] if isinstance(expression, str) else expression:
            tokens = encode_expression(self.checkpoint, each)[None].to(self._image.device)
            with evaluating(self.checkpoint.model), torch.inference_mode():
                logits = self._logits(self._image, tokens)[0]
                width, height = self.picture.size
                at_size = probabilities_of(self.checkpoint.config, logits, (height, width))
            probabilities = at_size.cpu().numpy()
            found.append(Prediction(probabilities > threshold, probabilities))
        return found[0] if isinstance(expression, str) else found

    def _logits(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Return ``(1, 1, h, w)`` for one sentence ``(1, L)``."""
        model = self.checkpoint.model
        if isinstance(model, CrisModel) and self._encoded is not None:
            return foreground_logits(model.segment(self._encoded, tokens))
        return predict_logits(self.checkpoint, image, tokens)


def probabilities_of(config: CheckpointConfig, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a model's answer to a picture's own size.

    Args:
        config: says how the picture became the model's square.
        logits: ``(1, h, w)`` of one sample.
        size: height and width of the picture, in pixels.

    Returns:
        float32 ``(H, W)`` in [0, 1]. Logits are resized bilinearly, those of a letterbox from the
        part that the picture covers.
    """
    if config.fit == "squash":
        return resize_probabilities(logits, size)
    inside = unletterbox(logits, size, config.image_size, mode="bilinear", border="edge")
    return inside[0].sigmoid_()


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
            "use words of the tokenizer's vocabulary"
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
