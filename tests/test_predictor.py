"""Prediction on one picture: the model's answer at the picture's own size, or one clear error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masksd.kit.checkpoints import Checkpoint, save_checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.data.transforms import fit_image
from masksd.kit.feeding import predict_logits, probabilities_of
from masksd.kit.prediction.predictor import Predictor
from masksd.kit.sources import build_model
from masksd.models.base import CrisModel


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
    with pytest.raises(ValueError, match="no image was set; call set_image first"):
        predictor.predict("the red circle")
    predictor.set_image(picture)
    for empty in ("", "  \n", "\u200b", "\u2060 \u00ad\u200d", "\u3164\ufe0f", "\u2800"):
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
    assert predictor.image is not None
    expected = np.asarray(predictor.image)
    with Image.open(tmp_path / "layer.png") as opened:
        predictor.set_image(opened)
    assert np.array_equal(np.asarray(predictor.image), expected)
    predictor.set_image(np.asarray(layer.transpose(Image.Transpose.ROTATE_270)))
    assert np.array_equal(np.asarray(predictor.image), expected)
    with pytest.raises(DataError, match=r"image: F has 32 bits a channel"):
        predictor.set_image(Image.new("F", (4, 3)))
    assert np.array_equal(np.asarray(predictor.image), expected)


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


@pytest.mark.parametrize("model", ["clip_cris_tiny", "lavt_tiny"])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_every_expression_is_answered_as_the_whole_model_would(
    model: str, fit: Any, picture: Image.Image
) -> None:
    """Bit for bit, though the picture is encoded once where that can be."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        checkpoint = build_model(TrainConfig(model=model, fit=fit))
    predictor = Predictor(checkpoint)
    encoded = []
    if isinstance(checkpoint.model, CrisModel):
        patches = checkpoint.model.encoder.vision.embeddings.patch_embedding
        patches.register_forward_hook(lambda *_: encoded.append(1))
    predictor.set_image(picture)
    answers = predictor.predict(["the red circle", "the star on the left"])
    assert len(encoded) == (1 if model == "clip_cris_tiny" else 0)
    images = fit_image(picture, 64, fit)[None]
    for answer, sentence in zip(answers, ("the red circle", "the star on the left"), strict=True):
        tokens = checkpoint.tokenizer.encode(sentence)[None]
        with torch.no_grad():
            logits = predict_logits(
                checkpoint._replace(model=checkpoint.model.eval()), images, tokens
            )
        whole = probabilities_of(checkpoint.config, logits[0], (50, 70)).numpy()
        assert np.array_equal(answer.probabilities, whole)
        assert answer.mask.shape == (50, 70)
    assert not np.array_equal(answers[0].probabilities, answers[1].probabilities)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((4, 5, 3)), r"got float64 \(4, 5, 3\); pass \(255 \* array\)"),
        (None, "image must be a path, a PIL image or an array, got NoneType$"),
        (3, "image must be a path, a PIL image or an array, got int$"),
    ],
)
def test_what_is_no_picture_is_named_and_the_one_before_stays(
    checkpoint: Checkpoint, picture: Image.Image, image: Any, expected: str
) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    before = predictor.image
    with pytest.raises(ValueError, match=expected):
        predictor.set_image(image)
    assert predictor.image is before


def test_a_letterbox_is_undone_where_the_picture_lies() -> None:
    """A map that is the left part of the picture comes back as its left part."""
    config = build_model(TrainConfig(fit="letterbox")).config  # 64 px
    picture = np.zeros((40, 80, 3), dtype=np.uint8)
    picture[:, :40] = 255
    square = fit_image(Image.fromarray(picture), 64, "letterbox")[0].float()
    assert square.shape == (64, 64)
    logits = square[None] - 190.0  # the padding, 123, is background here
    found = probabilities_of(config, logits, (40, 80)).numpy() > 0.5
    assert found[:, :39].all()
    assert not found[:, 41:].any()


def test_a_failing_expression_of_several_is_named(
    checkpoint: Checkpoint, picture: Image.Image
) -> None:
    predictor = Predictor(checkpoint)
    predictor.set_image(picture)
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="knows no word of 'zeppelin'"):
        predictor.predict(["the red circle", "zeppelin"])
