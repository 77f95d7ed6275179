"""Prediction on one image: load a checkpoint, set an image, ask for expressions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masksd.errors import check_fraction
from masksd.kit.checkpoints import Checkpoint, load_checkpoint
from masksd.kit.data.images import from_array, read_image, to_rgb
from masksd.kit.data.text.cleaning import is_blank
from masksd.kit.data.transforms import fit_image, normalize
from masksd.kit.feeding import foreground_logits, predict_logits, probabilities_of
from masksd.models.base import CrisModel
from masksd.tapping.modules import evaluating

if TYPE_CHECKING:
    from masksd.segmenter import ImageFeatures


class Prediction(NamedTuple):
    """What the model finds, at the image's own size."""

    mask: NDArray[np.bool_]  # (H, W)
    probabilities: NDArray[np.float32]  # (H, W), in [0, 1]


class Predictor:
    """Finds what an expression refers to.

    An image is encoded once where the model encodes it without the sentence, as CRIS does; LAVT
    fuses the sentence inside its image encoder and runs as a whole for each expression.

    Args:
        checkpoint: the model with its tokenizer and config.

    Attributes:
        checkpoint: as given.
        image: the image set last, upright RGB; None before.

    Example:
        >>> from PIL import Image
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> predictor = Predictor(build_model(TrainConfig()))
        >>> predictor.set_image(Image.new("RGB", (40, 30)))
        >>> predictor.predict("the red circle").mask.shape
        (30, 40)
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.image: Image.Image | None = None
        self._input: Tensor | None = None
        self._encoded: ImageFeatures | None = None

    @classmethod
    def from_checkpoint(cls, folder: str | Path, device: str | torch.device = "cpu") -> Predictor:
        """Load a checkpoint that training wrote, as in ``runs/NAME/checkpoint``."""
        return cls(load_checkpoint(folder, device))

    def set_image(self, image: str | Path | Image.Image | NDArray[Any]) -> None:
        """Choose the image, and encode it where the model encodes it without a sentence.

        Args:
            image: a JPEG, PNG, WEBP, BMP, GIF or TIFF file, a PIL image, or an array ``(H, W)``,
                ``(H, W, 3)`` or ``(H, W, 4)`` of uint8 or uint16, colours in the order RGB. It is
                turned upright as its EXIF says, and laid onto white where it is transparent.

        Raises:
            ValueError: neither a path nor an image, or an array of another shape or type.
            DataError: a file that is missing, damaged, too large or has 32 bits a channel; the
                image set before stays.
        """
        if isinstance(image, np.ndarray):
            image = from_array(image)
        if isinstance(image, Image.Image):
            upright = to_rgb(image, upright=True)
        elif isinstance(image, str | Path):
            upright = read_image(image, upright=True)
        else:
            raise ValueError(
                f"image must be a path, a PIL image or an array, got {type(image).__name__}"
            )
        config, model = self.checkpoint.config, self.checkpoint.model
        fitted = fit_image(upright, config.image_size, config.fit)[None]
        fitted = fitted.to(next(model.parameters()).device)
        encoded = None
        if isinstance(model, CrisModel):
            with evaluating(model), torch.inference_mode():
                encoded = model.encoder.encode_image(normalize(fitted, config.mean, config.std))
        self.image, self._input, self._encoded = upright, fitted, encoded

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
            expression: words, or several expressions. Unknown words, and words that do not fit in,
                are a ``UserWarning``.
            threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes
                the checkpoint's (the paper's is 0.35).

        Returns:
            The mask and the probabilities; a list of them for several expressions.

        Raises:
            ValueError: no image was set, an empty expression, one of unknown words only, or a
                threshold outside [0, 1].
        """
        if self.image is None or self._input is None:
            raise ValueError("no image was set; call set_image first")
        config, model = self.checkpoint.config, self.checkpoint.model
        threshold = config.threshold if threshold is None else threshold
        check_fraction("threshold", threshold)
        width, height = self.image.size
        found = []
        for each in [expression] if isinstance(expression, str) else expression:
            tokens = encode_expression(self.checkpoint, each)[None].to(self._input.device)
            with evaluating(model), torch.inference_mode():
                if isinstance(model, CrisModel) and self._encoded is not None:
                    logits = foreground_logits(model.segment(self._encoded, tokens))
                else:
                    logits = predict_logits(self.checkpoint, self._input, tokens)
                at_size = probabilities_of(config, logits[0], (height, width))
            probabilities = at_size.cpu().numpy()
            found.append(Prediction(probabilities > threshold, probabilities))
        return found[0] if isinstance(expression, str) else found


def encode_expression(checkpoint: Checkpoint, expression: str) -> Tensor:
    """Turn what a user typed into tokens ``(L,)``; a ``ValueError`` if the model knows no word."""
    if is_blank(expression):
        raise ValueError("the expression is empty; say what to find, as in 'the red circle'")
    tokenizer = checkpoint.tokenizer
    tokens = tokenizer.encode(expression)
    kept = tokenizer.kept(expression)
    unknown = tokenizer.unknown_words(kept)
    words = int((tokens == tokenizer.end_token).long().argmax()) - 1
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
    return tokens
