"""``masksd predict``."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from masksd.cli.shared import CHECKPOINT, device_name


@dataclass(frozen=True)
class Predict:
    """Find what an expression refers to in a picture; write an overlay and the mask as PNG.

    Attributes:
        image: a JPEG, PNG, WEBP or BMP file.
        expression: what to find, as in "the red circle".
        checkpoint: folder that training wrote.
        output: the overlay, a PNG; None takes IMAGE-prediction.png in the working folder. The mask
            goes beside it, as ...-mask.png.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            checkpoint's.
        device: cpu, cuda, cuda:1; None takes a GPU where there is one.
    """

    image: Annotated[Path, tyro.conf.Positional]
    expression: Annotated[str, tyro.conf.Positional]
    checkpoint: Path = CHECKPOINT
    output: Path | None = None
    threshold: float | None = None
    device: str | None = None

    def run(self) -> None:
        """Predict and write."""
        import numpy as np
        from PIL import Image

        from masksd.engine.figures import overlay, save_pictures
        from masksd.engine.predictor import Predictor

        output = self.output or Path(f"{self.image.stem}-prediction.png")
        if output.suffix.lower() != ".png":
            raise ValueError(f"output {output} must end in .png")
        if not output.parent.is_dir():
            raise ValueError(f"output {output}: there is no folder {output.parent}; make it first")
        mask_output = output.with_name(f"{output.stem}-mask.png")
        for path in (output, mask_output):
            if path.is_dir():
                raise ValueError(f"output {path} is a folder; choose another --output")
            if path.exists() and self.image.exists() and path.samefile(self.image):
                raise ValueError(f"output {path} is the picture itself; choose another --output")
        predictor = Predictor.from_checkpoint(self.checkpoint, device_name(self.device))
        predictor.set_image(self.image)
        mask, _ = predictor.predict(self.expression, self.threshold)
        shown = overlay(typing.cast(Image.Image, predictor.picture), mask)
        save_pictures({output: shown, mask_output: Image.fromarray(mask.astype(np.uint8) * 255)})
        print(f"{output} and {mask_output.name}: {mask.sum()} pixels ({mask.mean():.1%}) found")
