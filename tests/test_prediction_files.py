"""Predictions on disk: as predicted, all or nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from masksd.kit.config import TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.figures import overlay
from masksd.kit.prediction.files import (
    coco_rle,
    predict_to_files,
    predict_to_folder,
)
from masksd.kit.prediction.places import list_images
from masksd.kit.prediction.predictor import Predictor
from masksd.kit.sources import build_model

# pycocotools' decoder does not know numpy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXPRESSIONS = ("the red circle", "the star on the left")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Predictor(build_model(TrainConfig(threshold=0.1)))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (50, 70), "b.jpg": (64, 64), "c.bmp": (33, 20)}.items():
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return list_images(folder)


def mask_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert set(np.unique(np.asarray(picture))) <= {0, 255}
        return np.asarray(picture) > 0


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
@settings(max_examples=60, deadline=None)
def test_run_lengths_decode_to_the_mask(mask: np.ndarray) -> None:
    encoded = json.loads(json.dumps(coco_rle(mask)))
    assert np.array_equal(coco.decode(encoded).astype(bool), mask)
    assert coco.area(encoded) == mask.sum()


def test_a_folder_holds_every_prediction(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    output, rle = tmp_path / "out", tmp_path / "out.json"
    found = predict_to_folder(predictor, pictures, EXPRESSIONS, output=output, rle=rle)
    assert found.images == 3
    areas = [0] * len(EXPRESSIONS)
    for record in json.loads(rle.read_text()):
        areas[EXPRESSIONS.index(record["expression"])] += record["area"]
    assert found.pixels == areas
    assert found.of == sum(math.prod(Image.open(picture).size) for picture in pictures)
    records = json.loads(rle.read_text())
    assert [(r["image"], r["expression"]) for r in records] == [
        (path.name, expression) for path in pictures for expression in EXPRESSIONS
    ]
    for path in pictures:
        predictor.set_image(path)
        for number, answer in enumerate(predictor.predict(EXPRESSIONS), start=1):
            name = f"{path.stem}-{number}.png"
            record = records.pop(0)
            assert np.array_equal(mask_of(output / "masks" / name), answer.mask)
            assert np.array_equal(coco.decode(record["segmentation"]).astype(bool), answer.mask)
            assert record["area"] == answer.mask.sum()
            with Image.open(output / "overlays" / name) as shown:
                expected = overlay(predictor.image, answer.mask)  # type: ignore[arg-type]
                assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert len(list(output.rglob("*.png"))) == 12


def test_one_expression_has_no_number_and_run_lengths_may_lie_inside(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    predict_to_folder(
        predictor, pictures, EXPRESSIONS[:1], output=output, rle=output / "masks.json"
    )
    assert sorted(path.name for path in output.iterdir()) == ["masks", "masks.json", "overlays"]
    assert [path.name for path in list_images(output / "masks")] == ["a.png", "b.png", "c.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures"]


def test_files_of_one_prediction(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    output, rle = tmp_path / "one.png", tmp_path / "one.json"
    path, pixels, share = predict_to_files(
        predictor, pictures[0], EXPRESSIONS[0], output=output, rle=rle, threshold=0.0
    )
    assert path == tmp_path / "one-mask.png"
    assert (pixels, share) == (50 * 70, 1.0)
    assert mask_of(path).all()
    [record] = json.loads(rle.read_text())
    assert record["segmentation"] == coco_rle(np.ones((70, 50), dtype=bool))


def test_pictures_that_cannot_be_read_stop_before_anything_is_written(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    pictures[1].write_bytes(pictures[1].read_bytes()[:300])
    before = sorted(tmp_path.rglob("*"))
    output, rle = tmp_path / "out", tmp_path / "out.json"
    with pytest.raises(DataError, match=r"b\.jpg: .* \(--skip-bad goes on without it\)"):
        predict_to_folder(predictor, pictures, EXPRESSIONS, output=output, rle=rle)
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_that_cannot_be_read_are_counted(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    pictures[1].write_bytes(b"no picture")
    output, rle = tmp_path / "out", tmp_path / "out.json"
    with pytest.warns(UserWarning, match=r"1 of 3 images were left out: .*b\.jpg: not a read"):
        found = predict_to_folder(
            predictor, pictures, EXPRESSIONS, output=output, rle=rle, skip_bad=True
        )
    assert found.images == 2
    assert {record["image"] for record in json.loads(rle.read_text())} == {"a.png", "c.bmp"}
    assert len(list(output.rglob("*.png"))) == 8
    for path in pictures:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        predict_to_folder(predictor, pictures, EXPRESSIONS, output=tmp_path / "two", skip_bad=True)
    assert not (tmp_path / "two").exists()


def test_wrong_expressions_and_places_are_refused_before_the_first_picture(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(pictures[0])
    before = sorted(tmp_path.rglob("*"))
    for expressions, output, rle, expected in (
        (("the red circle", ""), "out", None, "the expression is empty"),
        (("zeppelin",), "out", None, "knows no word of 'zeppelin'"),
        (EXPRESSIONS, "full", None, "exists and is not empty; choose another --output"),
        (EXPRESSIONS, "file", None, "is a file; choose another --output"),
        (EXPRESSIONS, "out", "nowhere/a.json", "there is no folder"),
        (EXPRESSIONS, "out", "folder.json", "is a folder; choose another --rle"),
        (EXPRESSIONS, "out", "pictures/a.png", r"a\.png must end in \.json; choose another --rle"),
        (EXPRESSIONS, "out", "link.json", "is the image itself; choose another --rle"),
        (EXPRESSIONS, "out", "out", "must be a file beside overlays and masks in the output"),
        (EXPRESSIONS, "out", "out/masks", "must be a file beside overlays and masks"),
        (EXPRESSIONS, "out", "out/masks/a.json", r"as in .*out.masks\.json, or lie outside it"),
    ):
        with pytest.raises(ValueError, match=expected):
            predict_to_folder(
                predictor,
                pictures,
                expressions,
                output=tmp_path / output,
                rle=rle and tmp_path / rle,
            )
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("rle", "expected"),
    [
        ("one.png", "is what --output writes; choose another --rle"),
        ("sub/../one-mask.png", "is what --output writes; choose another --rle"),
        ("other.png", r"other\.png must end in \.json"),
        ("link.json", "is the image itself; choose another --rle"),
        ("nowhere/a.json", "there is no folder"),
    ],
)
def test_run_lengths_take_nobody_elses_place(
    predictor: Predictor, pictures: list[Path], tmp_path: Path, rle: str, expected: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.json").symlink_to(pictures[0])
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=expected):
        predict_to_files(
            predictor,
            pictures[0],
            EXPRESSIONS[0],
            output=tmp_path / "one.png",
            rle=tmp_path / rle,
        )
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_folders_are_listed_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no image \(\.jpg, "):
        list_images(tmp_path)
    for name in ("b.PNG", "a.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG"]
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.jpeg and a\.png in .* rename one of them"):
        list_images(tmp_path)
