"""What a tokenizer loses of a data set is said before training starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.survey import check_words
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.sources import open_split
from masksd.kit.training.trainer import train
from tests.refer_folders import annotation, image, ref, write_refer

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
            "50.0 % of the sentences hold words that tokenizer 'shapes' does not know "
            "(--tokenizer)",
        ),
        (
            ["red " * 15, "red " * 16],
            "50.0 % of the sentences are cut at max_length 17 (--max-length)",
        ),
        (
            ["red circle", "red " * 15 + "zeppelin"],
            "50.0 % of the sentences hold words that tokenizer 'shapes' does not know "
            "(--tokenizer); 50.0 % are cut at max_length 17 (--max-length)",
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
    says = "^100.0 % of the sentences hold words that tokenizer 'shapes' does not know"
    with pytest.warns(UserWarning, match=says) as caught:
        train(run(data, tmp_path / "run"))
    assert ["tokenizer" in str(warning.message) for warning in caught].count(True) == 1


def test_training_refuses_data_without_a_known_word(tmp_path: Path) -> None:
    data = data_of(tmp_path / "data", "zeppelin", "ein Luftschiff")
    with pytest.raises(ValueError, match=r"'shapes' knows no word of the .*; .*--tokenizer"):
        train(run(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
