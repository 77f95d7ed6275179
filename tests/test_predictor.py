"""Prediction on one picture: the model's answer at the picture's own size, or one clear error."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from masksd.data.records import DataError
from masksd.engine.checkpoints import Checkpoint, save_checkpoint
from masksd.engine.config import TrainConfig
from masksd.engine.predictor import Predictor
from masksd.engine.sources import build_model


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(TrainConfig())


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_prediction_has_the_size_of_the_picture(
    checkpoint: Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    mask, probabilities = predictor.predict("the red circle", threshold=0.1)
    assert mask.shape == probabilities.shape == (50, 70)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, probabilities > 0.1)
    default = predictor.predict("the red circle")
    assert np.array_equal(default.mask, probabilities > checkpoint.config.threshold)
    folder = save_checkpoint(tmp_path / "checkpoint", checkpoint)
    picture.save(tmp_path / "picture.png")
    loaded = Predictor.from_checkpoint(folder)
    loaded.set_image(tmp_path / "picture.png")
    assert np.array_equal(loaded.predict("the red circle").probabilities, probabilities)


def test_pictures_are_turned_upright(
    checkpoint: Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(checkpoint)
    predictor.set_image(tmp_path / "turned.png")
    assert predictor.predict("the red circle").mask.shape == (70, 50)


def test_expressions_that_say_nothing_are_refused(
    checkpoint: Checkpoint, picture: Image.Image
) -> None:
    predictor = Predictor(checkpoint)
    with pytest.raises(ValueError, match="no picture was set; call set_image first"):
        predictor.predict("the red circle")
    predictor.set_image(picture)
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="the expression is empty; say what to find"):
            predictor.predict(empty)
    with pytest.raises(ValueError, match=r"'\.\.\.' holds no word"):
        predictor.predict("...")
    with pytest.raises(ValueError, match=r"no word of 'zeppelin wurst' \(unknown: 'zeppelin'"):
        predictor.predict("zeppelin wurst")
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0, 1\]"):
        predictor.predict("the red circle", threshold=35)


def test_unknown_words_are_named_in_a_warning(checkpoint: Checkpoint, picture: Image.Image) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    with pytest.warns(UserWarning, match="does not know 'zeppelin'") as caught:
        predictor.predict("the red zeppelin")
    assert caught[0].filename == __file__  # the caller's line, not ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict("the red circle")


def test_unreadable_picture_keeps_the_one_before(
    checkpoint: Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    before = predictor.predict("the red circle").probabilities
    (tmp_path / "text.png").write_text("no picture")
    picture.save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "cut.jpg", "missing.png"):
        with pytest.raises(ValueError, match=name):
            predictor.set_image(tmp_path / name)
    assert np.array_equal(predictor.predict("the red circle").probabilities, before)


def test_prediction_leaves_the_model_as_it_was(
    checkpoint: Checkpoint, picture: Image.Image
) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    checkpoint.model.train()
    first = predictor.predict("the red circle").probabilities
    assert checkpoint.model.training
    assert np.array_equal(predictor.predict("the red circle").probabilities, first)  # no dropout


def test_a_picture_in_memory_is_treated_as_its_file(
    checkpoint: Checkpoint, picture: Image.Image, tmp_path: Path
) -> None:
    layer = picture.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    layer.save(tmp_path / "layer.png", exif=exif)
    predictor = Predictor(checkpoint)
    predictor.set_image(tmp_path / "layer.png")
    assert predictor.picture is not None
    expected = np.asarray(predictor.picture)
    with Image.open(tmp_path / "layer.png") as opened:
        predictor.set_image(opened)
    assert np.array_equal(np.asarray(predictor.picture), expected)
    for mode in ("I;16", "F"):
        with pytest.raises(DataError, match=r"picture: .* has more than 8 bits a channel"):
            predictor.set_image(Image.new(mode, (4, 3)))
    assert np.array_equal(np.asarray(predictor.picture), expected)


def test_words_that_do_not_fit_are_a_warning_and_not_judged(
    checkpoint: Checkpoint, picture: Image.Image
) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    fits = "the red circle " * 5  # 15 words, start and end: 17
    with pytest.warns(UserWarning, match="only its first 15 words are used") as caught:
        long = predictor.predict(fits + "zeppelin zeppelin").probabilities
    assert [str(each.message) for each in caught] == [
        "the expression is too long; only its first 15 words are used"
    ]
    assert np.array_equal(predictor.predict(fits).probabilities, long)
    with pytest.raises(ValueError, match="knows no word of"):
        predictor.predict("zeppelin " * 15 + "red")
