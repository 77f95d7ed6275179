"""What a tokenizer loses of a data set is said before training starts."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from masksd.kit.cli import _parse, main
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.text.coverage import check_words
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.sources import open_split
from masksd.kit.training.trainer import train
from tests.refer_folders import annotation, image, ref, write_refer

REMEDY = "`masksd data words ROOT NAME` makes a tokenizer of your own sentences (--tokenizer)"
TOKENIZER = load_tokenizer("shapes", 17)


def data_of(folder: Path, *sentences: str) -> DataConfig:
    refs = [ref(1, 70, 7, *sentences, split="train"), ref(2, 70, 7), ref(3, 71, 7)]
    annotations = [annotation(70, 7), annotation(71, 7)]
    return DataConfig(write_refer(folder, [image(7)], annotations, refs), name="mine")


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["the red circle", "blue square"], None),
        (
            ["red circle", "red dirigible", "zeppelin", "the circle"],
            "tokenizer 'shapes' does not know 28.6 % of the words, in 50.0 % of the sentences; "
            f"{REMEDY}",
        ),
        (
            ["red " * 15, "red " * 16],
            "50.0 % of the sentences are cut at max_length 17 (--max-length)",
        ),
        (
            ["zeppelin circle", "red " * 15 + "zeppelin"],
            "tokenizer 'shapes' does not know 5.9 % of the words, in 100.0 % of the sentences; "
            f"{REMEDY}; 50.0 % of the sentences are cut at max_length 17 (--max-length)",
        ),
    ],
)
def test_shares(tmp_path: Path, sentences: list[str], expected: str | None) -> None:
    config = data_of(tmp_path, *sentences)
    data = open_split(config, "train", TOKENIZER, 8, train_items="sentences")
    assert check_words(data, TOKENIZER, "shapes") == expected


def run(data: DataConfig, output: Path) -> TrainConfig:
    small = {"steps": 1, "batch_size": 1, "warmup": 0, "eval_samples": 1, "sheet_rows": 1}
    return TrainConfig(
        data=data, tokenizer="shapes", output=output, cpu=True, progress=False, **small
    )


def test_training_warns_once(tmp_path: Path) -> None:
    data = data_of(tmp_path / "data", "red dirigible")
    says = "^tokenizer 'shapes' does not know 50.0 % of the words, in 100.0 % of the sentences"
    with pytest.warns(UserWarning, match=says) as caught:
        train(run(data, tmp_path / "run"))
    assert ["tokenizer" in str(warning.message) for warning in caught].count(True) == 1


@pytest.mark.parametrize(
    ("sentences", "says"),
    [
        (("zeppelin", "ein Luftschiff"), "no word of the .*: 100.0 % of the words are unknown"),
        (("the zeppelin flies",), "too few words of the .*: 66.7 % of the words"),
    ],
)
def test_training_refuses_data_of_unknown_words(
    tmp_path: Path, sentences: tuple[str, ...], says: str
) -> None:
    data = data_of(tmp_path / "data", *sentences)
    with pytest.raises(ValueError, match=rf"'shapes' knows {says}.*; `masksd data words ROOT"):
        train(run(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_own_sentences(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = ("Der rote Kreis, links!", "der GRÜNE Stern", "der Kreis")
    config = data_of(tmp_path / "data", *own)
    assert main(["data", "words", str(config.data_root), "mine"]) == 0
    folder = tmp_path / "data/mine/words"
    first, following = capfd.readouterr().out.splitlines()
    assert first == f"{folder}: 6 words of 3 sentences of split train"
    assert following.startswith(f"next: masksd train --data-root {config.data_root} --name mine ")
    _parse(shlex.split(following)[2:])
    tokenizer = load_tokenizer(folder, 17)
    assert [tokenizer.unknown_words(each) for each in own] == [[]] * 3
    assert tokenizer.unknown_words("der blaue Kreis") == ["blaue"]
    data = open_split(config, "train", tokenizer, 8, train_items="sentences")
    assert check_words(data, tokenizer, str(folder)) is None
    assert main(["data", "words", str(config.data_root), "mine", "--least", "2"]) == 0
    assert load_tokenizer(folder, 17).unknown_words(own[0]) == ["rote", "links"]
    assert main(["data", "words", str(config.data_root), "mine", "--split", "tain"]) == 2
    assert "did you mean 'train'?" in capfd.readouterr().err
    assert main(["data", "words", str(config.data_root), "mine", "--least", "9"]) == 2
    assert "no word occurs 9 times; lower --least" in capfd.readouterr().err


@pytest.mark.long
def test_training_with_own_words(tmp_path: Path) -> None:
    data = data_of(tmp_path / "data", "der rote Kreis")
    assert main(["data", "words", str(data.data_root), "mine"]) == 0
    folder = tmp_path / "data/mine/words"
    config = dataclasses.replace(run(data, tmp_path / "run"), tokenizer=str(folder))
    with pytest.warns(UserWarning, match="images of split 'train' are in other splits"):
        result = train(config)
    assert load_tokenizer(result.checkpoint / "tokenizer").unknown_words("roter Kreis") == ["roter"]
