"""``masksd predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from masksd.errors import check_fraction
from masksd.kit.cli.shared import CHECKPOINT


@dataclass(frozen=True)
class Predict:
    """Find what expressions refer to in images; write overlays and masks as PNG.

    One expression on one image gives two files: an overlay and a mask. Several expressions, or a
    folder of images, give a new folder. After an error nothing is left behind.

    Attributes:
        image: a JPEG, PNG, WEBP, BMP, GIF or TIFF file, or a folder of them.
        expressions: what to find, as in "the red circle"; several are found one by one.
        checkpoint: folder that training wrote.
        output: the overlay, a PNG, with the mask beside it as ...-mask.png; or a new folder, for
            overlays/ and masks/ in it. None takes IMAGE-prediction.png or IMAGE-predictions in the
            working folder. Older files are replaced; a folder must be new or empty.
        rle: a .json file for all masks as COCO's run lengths, which pycocotools decodes. An older
            file is replaced.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            checkpoint's.
        skip_bad: go on without images of a folder that cannot be read; they are counted at the
            end.
        cpu: stay on the CPU even if there is a GPU.
        progress: show a progress bar for a folder.
    """

    image: Annotated[Path, tyro.conf.Positional]
    expressions: Annotated[tuple[str, ...], tyro.conf.Positional]
    checkpoint: Path = CHECKPOINT
    output: Path | None = None
    rle: Path | None = None
    threshold: float | None = None
    skip_bad: bool = False
    cpu: bool = False
    progress: bool = True

    def check(self) -> None:
        """Refuse what cannot be predicted or written."""
        from masksd.kit.checkpoints import read_config
        from masksd.kit.prediction.places import plan_output

        plan_output(self.image, self.expressions, self.output, self.rle)
        if self.threshold is not None:
            check_fraction("threshold", self.threshold)
        read_config(self.checkpoint)

    def run(self) -> None:
        """Predict and write."""
        from masksd.kit.devices import default_device
        from masksd.kit.prediction.files import predict_to_files, predict_to_folder
        from masksd.kit.prediction.places import plan_output
        from masksd.kit.prediction.predictor import Predictor

        images, output = plan_output(self.image, self.expressions, self.output, self.rle)
        device = default_device(cpu=self.cpu)
        predictor = Predictor.from_checkpoint(self.checkpoint, device)
        if output.suffix:
            mask, pixels, share = predict_to_files(
                predictor,
                self.image,
                self.expressions[0],
                output=output,
                rle=self.rle,
                threshold=self.threshold,
            )
            print(f"{output} and {mask.name}: {pixels} pixels ({share:.1%}) found")
            return
        found = predict_to_folder(
            predictor,
            images,
            self.expressions,
            output=output,
            rle=self.rle,
            threshold=self.threshold,
            skip_bad=self.skip_bad,
            progress=self.progress and len(images) > 1,
        )
        read = f"{found.images} {'image' if found.images == 1 else 'images'}"
        print(f"{output}: overlays and masks of {read}")
        several = len(self.expressions) > 1
        for number, (expression, pixels) in enumerate(
            zip(self.expressions, found.pixels, strict=True), start=1
        ):
            name = f"-{number}: {expression}" if several else expression
            print(f"  {name}: {pixels} pixels ({pixels / found.of:.1%}) found")
