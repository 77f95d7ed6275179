"""Predictions as files: overlays, masks and COCO's run lengths, all of them or none."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.kit.data.records import DataError
from masksd.kit.figures import overlay
from masksd.kit.files import StagedFolder, write_files
from masksd.kit.prediction.places import (
    PARTS,
    check_files,
    check_folder,
    lies_in,
    mask_beside,
)
from masksd.kit.prediction.predictor import Predictor, encode_expression


def coco_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run lengths.

    Args:
        mask: bool ``(H, W)``.

    Returns:
        ``{"size": [H, W], "counts": str}``, which ``pycocotools.mask.decode`` turns back.

    Example:
        >>> coco_rle(np.ones((2, 3), dtype=bool))
        {'size': [2, 3], 'counts': '06'}
    """
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def predict_to_files(
    predictor: Predictor,
    picture: Path,
    expression: str,
    *,
    output: Path,
    rle: Path | None = None,
    threshold: float | None = None,
) -> tuple[Path, int, float]:
    """Predict one expression on one picture; write the overlay and, beside it, the mask.

    Args:
        predictor: with its model.
        picture: a picture file.
        expression: what to find.
        output: the overlay, a PNG; the mask is ``...-mask.png``.
        rle: a JSON file for the mask as :func:`coco_rle`; None writes none.
        threshold: as in :meth:`Predictor.predict`.

    Returns:
        Where the mask is, how many pixels were found, and their share of the picture.

    Raises:
        ValueError: a picture, expression or place that cannot be used; nothing is written then.
    """
    check_files(picture, output, rle)
    mask_output = mask_beside(output)
    predictor.set_image(picture)
    mask = predictor.predict(expression, threshold).mask
    files = {output: _overlay(predictor, mask), mask_output: _mask(mask)}
    if rle is not None:
        files[rle] = _json([_record(picture, expression, mask)])
    write_files(files)
    return mask_output, int(mask.sum()), float(mask.mean())


def predict_to_folder(
    predictor: Predictor,
    pictures: Sequence[Path],
    expressions: tuple[str, ...],
    *,
    output: Path,
    rle: Path | None = None,
    threshold: float | None = None,
    skip_bad: bool = False,
    progress: bool = False,
) -> int:
    """Predict every expression on every picture; write a folder of overlays and masks.

    ``overlays/NAME.png`` and ``masks/NAME.png``, where NAME is the picture's without its suffix,
    and ``-1``, ``-2``, ... behind it where there are several expressions.

    Args:
        predictor: with its model.
        pictures: picture files of different stems.
        expressions: what to find in each.
        output: the folder, which must not exist or be empty.
        rle: a JSON file for all masks: a list of objects with ``image`` (file name),
            ``expression``, ``segmentation`` (:func:`coco_rle`) and ``area`` in pixels; None writes
            none. It may lie in ``output``.
        threshold: as in :meth:`Predictor.predict`.
        skip_bad: leave out pictures that cannot be read; their number and the first reasons are a
            ``UserWarning`` at the end. Otherwise the first one is an error.
        progress: show a bar.

    Returns:
        How many pictures were read.

    Raises:
        ValueError: a picture, expression or place that cannot be used; nothing is written then.
    """
    from tqdm import tqdm

    for expression in expressions:
        encode_expression(predictor.checkpoint, expression)
    check_folder(output, rle, pictures)
    inside = rle is not None and lies_in(rle, output)
    bad: list[str] = []
    records = []
    with StagedFolder(output, lambda: check_folder(output, rle, pictures)) as staged:
        for name in PARTS:
            (staged.path / name).mkdir()
        for picture in tqdm(pictures, desc="predict", unit="picture", disable=not progress):
            try:
                predictor.set_image(picture)
            except DataError as error:
                if not skip_bad:
                    raise DataError(f"{error} (--skip-bad goes on without it)") from None
                bad.append(str(error))
                continue
            for number, (expression, mask) in enumerate(
                _masks(predictor, expressions, threshold), start=1
            ):
                name = f"{picture.stem}-{number}" if len(expressions) > 1 else picture.stem
                (staged.path / f"overlays/{name}.png").write_bytes(_overlay(predictor, mask))
                (staged.path / f"masks/{name}.png").write_bytes(_mask(mask))
                if rle is not None:
                    records.append(_record(picture, expression, mask))
        if len(bad) == len(pictures):
            raise DataError(f"none of the {len(pictures)} pictures can be read: {bad[0]}")
        if rle is not None and inside:
            (staged.path / rle.name).write_bytes(_json(records))
        elif rle is not None:  # before the folder takes its place, so that none is there alone
            write_files({rle: _json(records)})
        staged.publish()
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        warnings.warn(
            f"{len(bad)} of {len(pictures)} pictures were left out: {'; '.join(bad[:3])}{more}",
            UserWarning,
            stacklevel=2,
        )
    return len(pictures) - len(bad)


def _masks(
    predictor: Predictor, expressions: tuple[str, ...], threshold: float | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Predict one at a time: the probabilities of a large picture need much memory."""
    for expression in expressions:
        yield expression, predictor.predict(expression, threshold).mask


def _overlay(predictor: Predictor, mask: NDArray[np.bool_]) -> bytes:
    if predictor.picture is None:
        raise ValueError("no picture was set; call set_image first")
    return _png(overlay(predictor.picture, mask))


def _mask(mask: NDArray[np.bool_]) -> bytes:
    from PIL import Image

    return _png(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)))


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _record(picture: Path, expression: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "image": picture.name,
        "expression": expression,
        "segmentation": coco_rle(mask),
        "area": int(mask.sum()),
    }


def _json(records: list[dict[str, Any]]) -> bytes:
    return ("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n").encode()
