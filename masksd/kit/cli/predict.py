"""``masksd predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from masksd.errors import check_fraction
from masksd.kit.cli.shared import CHECKPOINT, device_name


@dataclass(frozen=True)
class Predict:
    """Find what expressions refer to in pictures; write overlays and masks as PNG.

    One expression on one picture makes two files, more make a folder. All is written or nothing.

    Attributes:
        image: a JPEG, PNG, WEBP or BMP file, or a folder of them.
        expressions: what to find, as in "the red circle"; several are found one by one.
        checkpoint: folder that training wrote.
        output: the overlay, a PNG, with the mask beside it as ...-mask.png; or a new folder, for
            overlays/ and masks/ in it. None takes IMAGE-prediction.png or IMAGE-predictions in the
            working folder. Files that are there are replaced, a folder with anything in it is not.
        rle: a file for all masks as COCO's run lengths, which pycocotools decodes; it ends in
            .json. A file that is there is replaced, a folder is not.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            checkpoint's.
        skip_bad: go on without pictures of a folder that cannot be read; they are counted at the
            end.
        device: cpu, cuda, cuda:1; None takes a GPU where there is one.
        progress: show a progress bar for a folder.
    """

    image: Annotated[Path, tyro.conf.Positional]
    expressions: Annotated[tuple[str, ...], tyro.conf.Positional]
    checkpoint: Path = CHECKPOINT
    output: Path | None = None
    rle: Path | None = None
    threshold: float | None = None
    skip_bad: bool = False
    device: str | None = None
    progress: bool = True

    def run(self) -> None:
        """Predict and write."""
        from masksd.kit.prediction.files import predict_to_files, predict_to_folder
        from masksd.kit.prediction.places import check_files, check_folder, list_pictures
        from masksd.kit.prediction.predictor import Predictor

        if not self.expressions:
            raise ValueError("no expression; say what to find, as in 'the red circle'")
        folder = self.image.is_dir()
        several = folder or len(self.expressions) > 1
        pictures = list_pictures(self.image) if folder else [self.image]
        name = self.image.resolve().name if folder else self.image.stem
        default = f"{name}-predictions" if several else f"{name}-prediction.png"
        output = Path(default) if self.output is None else self.output
        if output.suffix.lower() not in ("", ".png"):
            raise ValueError(f"output {output} must end in .png, or be a folder, without an ending")
        if several and output.suffix:
            raise ValueError(
                f"output {output} is one file, and there are several predictions; name a folder, "
                f"as in {output.with_suffix('')}"
            )
        if self.threshold is not None:
            check_fraction("threshold", self.threshold)
        if output.suffix:
            check_files(self.image, output, self.rle)
        else:
            check_folder(output, self.rle, pictures)
        predictor = Predictor.from_checkpoint(self.checkpoint, device_name(self.device))
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
        read = predict_to_folder(
            predictor,
            pictures,
            self.expressions,
            output=output,
            rle=self.rle,
            threshold=self.threshold,
            skip_bad=self.skip_bad,
            progress=self.progress and len(pictures) > 1,
        )
        numbered = "".join(f"\n  -{n}: {text}" for n, text in enumerate(self.expressions, start=1))
        print(
            f"{output}: overlays and masks of {read} {'picture' if read == 1 else 'pictures'}"
            + (numbered if len(self.expressions) > 1 else "")
        )
