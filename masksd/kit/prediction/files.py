"""Predictions as files: overlays, masks and COCO's run lengths, all of them or none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masksd.kit.data.records import DataError
from masksd.kit.figures import overlay, png_bytes
from masksd.kit.prediction.places import PARTS, check_files, check_folder, mask_beside
from masksd.kit.prediction.predictor import Predictor, encode_expression
from masksd.kit.storage.files import write_files
from masksd.kit.storage.places import StagedFolder


def coco_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask ``(H, W)`` as COCO's compressed run lengths, which pycocotools decodes."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


class Predicted(NamedTuple):
    """How many images were read, the pixels of all masks of each expression, and of all images."""

    images: int
    pixels: list[int]
    of: int


def predict_to_files(
    predictor: Predictor,
    image: Path,
    expression: str,
    *,
    output: Path,
    rle: Path | None = None,
    threshold: float | None = None,
) -> tuple[Path, int, float]:
    """Write overlay and mask of one prediction; return the mask's place, pixels and share."""
    check_files(image, output, rle)
    predictor.set_image(image)
    mask = predictor.predict(expression, threshold).mask
    mask_output = mask_beside(output)
    shown, alone = _pngs(predictor, mask)
    files = {output: shown, mask_output: alone}
    if rle is not None:
        files[rle] = _json([_record(image, expression, mask)])
    write_files(files)
    return mask_output, int(mask.sum()), float(mask.mean())


def predict_to_folder(
    predictor: Predictor,
    images: Sequence[Path],
    expressions: tuple[str, ...],
    *,
    output: Path,
    rle: Path | None = None,
    threshold: float | None = None,
    skip_bad: bool = False,
    progress: bool = False,
) -> Predicted:
    """Predict every expression on every image; write a folder and say what was found.

    It has ``overlays/NAME.png`` and ``masks/NAME.png``, named after the image, with ``-1``, ``-2``,
    ... behind it for several expressions; ``rle`` lists them as JSON. With ``skip_bad``, unreadable
    images are a ``UserWarning`` at the end, else the first one is an error.
    """
    from tqdm import tqdm

    for expression in expressions:
        encode_expression(predictor.checkpoint, expression)
    bad: list[str] = []
    records = []
    found, of = [0] * len(expressions), 0
    with StagedFolder(output, lambda: check_folder(output, rle, images)) as staged:
        for part in PARTS:
            (staged.path / part).mkdir()
        for image in tqdm(images, desc="predict", unit="image", disable=not progress):
            try:
                predictor.set_image(image)
            except DataError as error:
                if not skip_bad:
                    raise DataError(f"{error} (--skip-bad goes on without it)") from None
                bad.append(str(error))
                continue
            of += predictor.image.width * predictor.image.height if predictor.image else 0
            # one at a time: the probabilities of a large image need much memory
            for number, expression in enumerate(expressions, start=1):
                mask = predictor.predict(expression, threshold).mask
                found[number - 1] += int(mask.sum())
                name = f"{image.stem}-{number}.png" if len(expressions) > 1 else f"{image.stem}.png"
                for part, png in zip(PARTS, _pngs(predictor, mask), strict=True):
                    (staged.path / part / name).write_bytes(png)
                if rle is not None:
                    records.append(_record(image, expression, mask))
        if len(bad) == len(images):
            raise DataError(f"none of the {len(images)} images can be read: {bad[0]}")
        if rle is not None:
            inside = rle.resolve().parent == output.resolve()
            # a file outside comes first, so that the folder is never there without it
            write_files({staged.path / rle.name if inside else rle: _json(records)})
        staged.publish()
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        warnings.warn(
            f"{len(bad)} of {len(images)} images were left out: {'; '.join(bad[:3])}{more}",
            UserWarning,
            stacklevel=2,
        )
    return Predicted(len(images) - len(bad), found, of)


def _pngs(predictor: Predictor, mask: NDArray[np.bool_]) -> tuple[bytes, bytes]:
    """Return the overlay and the mask as PNG."""
    if predictor.image is None:
        raise ValueError("no image was set; call set_image first")
    alone = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return png_bytes(overlay(predictor.image, mask)), png_bytes(alone)


def _record(image: Path, expression: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "image": image.name,
        "expression": expression,
        "segmentation": coco_rle(mask),
        "area": int(mask.sum()),
    }


def _json(records: list[dict[str, Any]]) -> bytes:
    return ("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n").encode()
