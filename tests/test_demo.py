"""What the demo's page asks of a model, without a browser: answers, drawings, errors."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masksd import DistillConfig, MaskingConfig
from masksd.kit.checkpoints import Checkpoint, save_checkpoint
from masksd.kit.cli import main
from masksd.kit.cli.demo import _newest_or_new
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.transforms import fit_image
from masksd.kit.demo.drawing import (
    CELLS,
    Asked,
    about,
    draw_mask,
    draw_step,
    draw_words,
    enlarged,
    figures,
    toggled,
)
from masksd.kit.demo.explorer import Explorer, Picture, read_examples, read_picture
from masksd.kit.demo.server import load_gradio
from masksd.kit.feeding import model_inputs
from masksd.kit.prediction.predictor import Predictor
from masksd.kit.sources import build_model, open_split, wrap_model
from tests.test_broken_pictures import png

SENTENCE = "the red circle"


def new_checkpoint(seed: int = 0, **changes: object) -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        checkpoint = build_model(TrainConfig())
    return checkpoint._replace(config=dataclasses.replace(checkpoint.config, **changes))


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(new_checkpoint(), "new")


@pytest.fixture(scope="module")
def picture() -> Picture:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels))


def predicted(image: Image.Image, sentence: str) -> np.ndarray:
    predictor = Predictor(new_checkpoint())
    predictor.set_image(image)
    return predictor.predict(sentence).probabilities


def test_hidden_patches_are_painted_before_the_model_sees_the_picture(
    explorer: Explorer, picture: Picture
) -> None:
    assert np.array_equal(
        explorer.find(picture, (), SENTENCE).probabilities, predicted(picture.image, SENTENCE)
    )
    painted = np.array(picture.image)
    painted[6:12, 70:80] = (123, 117, 104)  # CLIP's mean colour
    painted[42:48, :10] = (123, 117, 104)
    hidden = (CELLS.index("H2"), CELLS.index("A8"))
    found = explorer.find(picture, hidden, SENTENCE).probabilities
    assert np.array_equal(found, predicted(Image.fromarray(painted), SENTENCE))
    assert explorer.find(picture, hidden, SENTENCE).probabilities is found  # not computed again
    again = explorer.find(picture, (), "the blue star").probabilities
    assert np.array_equal(again, predicted(picture.image, "the blue star"))


def test_without_a_word_is_the_sentence_without_it(explorer: Explorer, picture: Picture) -> None:
    found = explorer.without_words(picture, (), SENTENCE)
    assert [word for word, _ in found] == ["the", "red", "circle"]
    for (_, without), rest in zip(found, ["red circle", "the circle", "the red"], strict=True):
        assert without is not None
        assert np.array_equal(without, predicted(picture.image, rest))
    assert explorer.without_words(picture, (), "circle") == [("circle", None)]
    assert explorer.without_words(picture, (), "red wombat")[0] == ("red", None)


def test_words_that_the_tokenizer_drops_cost_no_predictions(
    explorer: Explorer, picture: Picture
) -> None:
    nothing = "\x00 " * 5000  # no token at all
    assert len(explorer.without_words(picture, (), f"red circle {nothing}")) <= 17


@pytest.mark.parametrize("hidden", [(), (0, 9)])
def test_next_step_is_what_the_wrapper_masks(
    explorer: Explorer, picture: Picture, hidden: tuple[int, ...]
) -> None:
    checkpoint = new_checkpoint()
    sd = wrap_model(checkpoint.model, DistillConfig())
    image = picture.hide(hidden, checkpoint.config.mean)
    inputs = model_inputs(
        checkpoint,
        fit_image(image, checkpoint.config.image_size)[None],
        checkpoint.tokenizer.encode(SENTENCE)[None],
    )
    drawn = []
    for number in (0, 7):
        step = explorer.next_step(picture, hidden, SENTENCE, number)
        sd.set_step(number)
        out = sd.preview(*inputs)
        assert step.patches is not None
        assert step.relevance is not None
        assert step.patches.flatten().tolist() == out.masks["lmvsd"][0].tolist()
        assert np.array_equal(step.relevance.flatten(), out.relevance["lmvsd"][0].numpy())
        assert [word for word, _ in step.words] == SENTENCE.split()
        assert [masked for _, masked in step.words] == out.masks["vmlsd"][0, 1:4].tolist()
        drawn.append(step.patches.tolist())
    assert drawn[0] != drawn[1]  # another step draws anew
    assert explorer.next_step(picture, hidden, SENTENCE, 0).patches.tolist() == drawn[0]


def test_a_model_trained_without_branches_is_shown_what_the_default_masks(
    picture: Picture,
) -> None:
    none = dataclasses.asdict(DistillConfig(image=None, text=None))
    plain = Explorer(new_checkpoint(distill=none), "host")
    assert about(plain).endswith("since it was trained without masked branches")
    learned = dataclasses.asdict(DistillConfig(image=MaskingConfig(relevance="projection")))
    projected = Explorer(new_checkpoint(distill=learned), "projected")
    assert about(projected).endswith("since its learned projection is not in the checkpoint")
    assert "since" not in about(Explorer(new_checkpoint(), "ours"))
    assert plain.next_step(picture, (), SENTENCE, 0).patches is not None
    words = dataclasses.asdict(DistillConfig(image=None))
    [(_, caption)] = draw_step(
        Explorer(new_checkpoint(distill=words), "words"), Asked(picture, SENTENCE, (), 0.5), 0
    )
    assert "no patch is masked; masked words, in brackets: " in caption


@pytest.mark.parametrize("preset", ["augment", "masksd", "maskris", "amlris"])
def test_every_method_shows_what_it_masks(picture: Picture, preset: str) -> None:
    fields = dataclasses.asdict(DistillConfig.preset(preset))
    step = Explorer(new_checkpoint(distill=fields), preset).next_step(picture, (), SENTENCE, 3)
    assert step.patches is not None or step.words


def test_thresholds_and_notes(explorer: Explorer, picture: Picture) -> None:
    for threshold, note in (
        (0.0, "100.0% of the picture found"),
        (1.0, "0.0% of the picture found"),
    ):
        assert draw_mask(explorer, Asked(picture, SENTENCE, (), threshold))[1] == [note]
    for sentence, note in {
        "": "the expression is empty",
        "wombat": "the model knows no word of 'wombat'",
        "red wombat": "the model does not know 'wombat'",
        "red circle " * 1000: "the expression is too long; only its first 15 words are used",
        "wombat " * 1500: "the model knows no word of",
    }.items():
        image, lines = draw_mask(explorer, Asked(picture, sentence, (), 0.5))
        assert image is not None
        assert lines[0].startswith(note)
        assert max(map(len, lines)) <= 302
    assert draw_mask(explorer, Asked(None, SENTENCE, (), 0.5))[0] is None


def test_words_are_drawn_with_their_iou(explorer: Explorer, picture: Picture) -> None:
    captions = [text for _, text in draw_words(explorer, Asked(picture, SENTENCE, (), 0.0))]
    assert captions == [f"without “{word}”: IoU 1.00" for word in SENTENCE.split()]
    [(_, caption)] = draw_words(explorer, Asked(picture, "circle", (), 0.0))
    assert caption == "without “circle” no known word is left"
    threshold = float(np.median(explorer.find(picture, (), SENTENCE).probabilities))
    whole, without = (
        explorer.find(picture, (), line).probabilities > threshold
        for line in (SENTENCE, "red circle")
    )
    expected = (whole & without).sum() / (whole | without).sum()
    caption = draw_words(explorer, Asked(picture, SENTENCE, (), threshold))[0][1]
    assert caption == f"without “the”: IoU {expected:.2f}"


def test_what_a_user_types_is_no_html(explorer: Explorer, picture: Picture) -> None:
    asked = Asked(picture, "red <script>alert(1)</script>", (), 0.5)
    text = figures(draw_words(explorer, asked), "<b>name</b>")
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;" in text


@given(
    place=st.tuples(st.integers(-5, 700), st.integers(-5, 700)),
    hidden=st.sets(st.sampled_from(CELLS)),
)
def test_a_click_hides_the_patch_under_it_and_another_shows_it(
    place: tuple[int, int], hidden: set[str]
) -> None:
    square = Picture(Image.new("RGB", (96, 96)))  # 640 pixels a side on the page, 80 a patch
    once = toggled(square, sorted(hidden), place)
    x, y = (min(max(at, 0), 639) // 80 for at in place)
    assert set(once) ^ hidden == {f"{'ABCDEFGH'[x]}{y + 1}"}
    assert set(toggled(square, once, place)) == hidden


def test_pictures_of_any_shape_are_shown(explorer: Explorer) -> None:
    for size in ((1, 1), (1024, 1), (3, 500)):
        image, _ = draw_mask(explorer, Asked(Picture(Image.new("RGB", size)), SENTENCE, (0,), 0.5))
        assert image is not None
        assert image.size == enlarged(Image.new("RGB", size)).size
        assert max(image.size) == 640


def test_uploads_are_guarded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(10_000, 10_000, b""))
    (tmp_path / "page.png").write_text("<html>")
    for name, message in {
        "bomb.png": r"^bomb.png: 10000x10000 pixels; at most",
        "page.png": "^page.png: .*it looks like a web page",
        "none.png": "^none.png: no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            read_picture(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter
    Image.new("RGB", (3000, 2000)).save(tmp_path / "large.jpg", exif=exif)
    assert read_picture(tmp_path / "large.jpg").image.size == (683, 1024)


def test_examples_are_of_the_data_that_the_checkpoint_knows(tmp_path: Path) -> None:
    build_shapes(tmp_path, ShapesConfig(train=1, val=3, test_a=1, test_b=1), progress=False)
    checkpoint = new_checkpoint(data=DataConfig(data_root=tmp_path).to_dict())
    dataset = open_split(DataConfig(data_root=tmp_path), "testB", checkpoint.tokenizer, 64)
    config = dataclasses.replace(checkpoint.config, eval_split="testB")
    [(example, sentence)] = read_examples(checkpoint._replace(config=config), 1)
    assert np.array_equal(np.asarray(example.image), np.asarray(dataset.image(0)))
    assert sentence == dataset.sentence(0)


def test_of_generated_data_the_examples_alone_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSD_CACHE", str(tmp_path))
    examples = read_examples(new_checkpoint(eval_split="testA"))
    assert len(examples) == 8
    assert len({sentence for _, sentence in examples}) > 5
    assert list(tmp_path.iterdir()) == []
    small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
    data = DataConfig(data_root=build_shapes(tmp_path / "small", small, progress=False))
    dataset = open_split(data, "testA", new_checkpoint().tokenizer, 64)
    drawn, written = (np.asarray(each, float) for each in (examples[0][0].image, dataset.image(0)))
    assert np.abs(drawn - written).mean() < 3  # of 255, by JPEG
    assert examples[0][1] == dataset.sentence(0)
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test"):
        read_examples(new_checkpoint(eval_split="tset"))


def test_the_newest_checkpoint_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, time in (("a", 200), ("b", 300), ("c", 100)):
        folder = save_checkpoint(tmp_path / "runs" / name / "checkpoint", new_checkpoint())
        os.utime(folder / "manifest.json", (time, time))
    (tmp_path / "runs/empty/checkpoint").mkdir(parents=True)
    assert _newest_or_new() == Path("runs/b/checkpoint")


def test_errors_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--port", "0"]) == 2
    assert "port must be from 1 to 65535, got 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "before")
    with pytest.raises(ValueError, match=r"pip install 'masksd\[demo\]'"):
        load_gradio(tmp_path)
