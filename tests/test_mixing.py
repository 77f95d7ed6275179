"""Several sets in one training: each as often as its weight says, no picture that is scored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from masksd.kit.checkpoints import load_checkpoint
from masksd.kit.cli import main
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.mixing import MixedDataset
from masksd.kit.sources import open_training
from tests.refer_folders import annotation, image, ref, write_refer

TOKENIZER = load_tokenizer("shapes", 9)


def write_set(root: Path, name: str, splits: str, first: int) -> Path:
    """A set of one picture, object and ref for each letter: t of train, v of val, n of no object.

    Pictures have a number's colour, and lie in the root's ``images``.
    """
    images, annotations, refs = [], [], []
    for place, letter in enumerate(splits):
        number = first + place
        images.append(image(number))
        annotations.append(annotation(number, number))
        said = [f"the big red circle {name} {number} {again}" for again in "ab"]
        split = "train" if letter == "t" else "val"
        new = ref(number, number, number, *said, split=split)
        refs.append(new | {"ann_id": [-1]} if letter == "n" else new)
    write_refer(root, images, annotations, refs, name)
    for number in range(first, first + len(splits)):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(root / "images" / f"{number}.png")
    return root / name


def opened(folder: Path) -> ReferDataset:
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "image_size": 8, "training": True}
    return ReferDataset(folder.parent, folder.name, "train", **options)


def said(data: MixedDataset) -> list[str]:
    return [data.sentence(index) for index in range(len(data))]


def numbers(data: MixedDataset) -> list[int]:
    return [int(sentence.split()[-2]) for sentence in said(data)]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Sets in two roots: 1 to 3 for training and 4 for scoring; 11 to 14 for training."""
    return write_set(tmp_path / "a", "one", "tttv", 1), write_set(tmp_path / "b", "two", "tttt", 11)


def test_sets_follow_one_another(two: tuple[Path, Path]) -> None:
    sets = [opened(folder) for folder in two]
    data = MixedDataset(sets, [1, 1])
    assert numbers(data) == [1, 2, 3, 11, 12, 13, 14]
    for index, item in enumerate(data):
        own = sets[index > 2][index - 3 * (index > 2)]
        assert item["index"] == index
        assert torch.equal(item["image"], own["image"])
        assert torch.equal(item["tokens"], own["tokens"])
    data.set_epoch(5)
    assert [each.epoch for each in sets] == [5, 5]
    loaded = [int(item["index"]) for item in DataLoader(data, batch_size=None, num_workers=2)]
    assert loaded == list(range(7))
    with pytest.raises(IndexError):
        data[7]


def test_weights_say_how_often_a_set_comes(two: tuple[Path, Path]) -> None:
    data = MixedDataset([opened(folder) for folder in two], [2.0, 0.5])
    seen: Counter[int] = Counter()
    heard = set()
    for epoch in range(10):
        data.set_epoch(epoch)
        found = numbers(data)
        assert found[:6] == [1, 2, 3, 1, 2, 3]
        assert len(set(found[6:])) == 2
        seen.update(found)
        sentences = said(data)
        heard |= {index for index in range(3) if sentences[index] != sentences[index + 3]}
    assert seen == {1: 20, 2: 20, 3: 20, 11: 5, 12: 5, 13: 5, 14: 5}
    assert heard == {0, 1, 2}  # a copy draws its own expressions
    data.set_epoch(3)
    assert said(data) == said(data)


def test_a_leaked_picture_is_left_out_and_counted(two: tuple[Path, Path]) -> None:
    one, two_ = two
    scored = (one.parent / "images" / "4.png").read_bytes()
    (two_.parent / "images" / "12.png").write_bytes(scored)  # under another name
    own = one / "refs(unc).p"
    with pytest.warns(
        UserWarning, match=r"left out of training, .*: 1 images with 1 refs of .*/b/two$"
    ):
        data = MixedDataset([opened(one), opened(two_)], [1, 2])
    assert numbers(data) == [1, 2, 3, *[11, 13, 14] * 2]
    assert own.is_file()


def test_a_picture_of_both_splits_of_one_set_is_left_out_too(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "one", "ttv", 1)
    other = write_set(tmp_path, "two", "vtt", 2)  # its val is picture 2, shared with the first
    with pytest.warns(UserWarning, match=r"1 images with 1 refs of .*one; 1 images with 1 refs of"):
        data = MixedDataset([opened(folder), opened(other)], [1, 1])
    assert numbers(data) == [1, 4]


def test_a_set_without_any_picture_left_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "one", "tv", 1)
    other = write_set(tmp_path, "two", "t", 2)
    with pytest.raises(DataError, match=r"two.*all its 1 training images are in other splits"):
        MixedDataset([opened(folder), opened(other)], [1, 1])


@pytest.mark.parametrize("share", ["", "=2", "a=0", "a=-1", "a=nan", "a=b", "a=1000"])
def test_wrong_shares(share: str) -> None:
    with pytest.raises(ValueError, match=r"mix has .*expected the folder of a data set, ROOT/NAME"):
        TrainConfig(mix=(share,))


@pytest.mark.parametrize("changes", [{"labels": 3}, {"unlabelled": "other"}, {"label_noise": 0.1}])
def test_what_mixing_does_not_go_with(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not go together; leave one of them out"):
        TrainConfig(mix=("a",), **changes)


def test_kinds_and_places_of_mixed_sets(tmp_path: Path) -> None:
    one = write_set(tmp_path / "a", "one", "tv", 1)
    write_set(tmp_path / "a", "near", "t", 21)
    (one.parent / "images").rename(tmp_path / "elsewhere")
    far = tmp_path / "b" / "far"
    far.mkdir(parents=True)
    Image.new("RGB", (8, 6), (31, 0, 0)).save(far / "1.png")
    row = {"picture": "1.png", "sentence": "red circle far 31 a", "mask": [[1, 1, 5, 1, 5, 5]]}
    (far / "train.jsonl").write_text(json.dumps(row))
    data = DataConfig(data_root=tmp_path / "a", images=tmp_path / "elsewhere", name="one")
    mix = (str(tmp_path / "a" / "near"), f"{far}=2")
    mixed, rest = open_training(TrainConfig(data=data, mix=mix), TOKENIZER, 8)
    assert isinstance(mixed, MixedDataset)
    assert rest is None
    assert numbers(mixed) == [1, 21, 31, 31]
    assert len(list(mixed)) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")  # the program prints them
def test_a_mixed_run(
    two: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second set holds a scored picture; the same run, resumed, has the same weights."""
    _, other = two
    one = write_set(tmp_path / "a", "one", "tttvn", 1)
    leaked = other.parent / "images" / "12.png"
    leaked.write_bytes((one.parent / "images" / "4.png").read_bytes())
    out = tmp_path / "run"
    common = ["--data-root", str(one.parent), "--name", "one", "--tokenizer", "shapes"]
    common += ["--mix", f"{other}=1.5", "--batch-size", "2", "--sheet-rows", "1", "--cpu"]
    common += ["--schedule", "multistep", "--milestones", "0.99", "--warmup", "0"]  # one rate
    arguments = ["train", *common, "--output", str(out)]
    assert main([*arguments, "--steps", "6"]) == 0
    said = capfd.readouterr()
    assert "left out of training, since they are in other splits of the mixed data: 1 images" in (
        said.err
    )
    assert "N-acc" in said.out
    report = tmp_path / "report"
    scored = ["evaluate", "--checkpoint", str(out / "checkpoint"), "--output", str(report)]
    assert main(scored) == 0
    assert "T-acc" in capfd.readouterr().out
    found = json.loads((report / "report.json").read_text())["scores"]["own"]
    assert found["all"]["samples"] == 4
    assert found["small object"]["samples"] == 2  # the others have no object
    state = json.loads((out / "config.json").read_text())
    assert state["mix"] == [f"{other}=1.5"]
    whole = load_checkpoint(out / "checkpoint").model.state_dict()
    half = tmp_path / "half"
    arguments[-1] = str(half)
    assert main([*arguments, "--steps", "3"]) == 0
    assert main(["train", "--resume", str(half), "--steps", "6", "--allow", "steps"]) == 0
    resumed = load_checkpoint(half / "checkpoint").model.state_dict()
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_weight_that_leaves_nothing_is_refused(two: tuple[Path, Path]) -> None:
    sets = [opened(each) for each in two]
    with pytest.raises(ValueError, match=r"mix: weight 0.01 of .* leaves none for an epoch; give"):
        MixedDataset(sets, [1.0, 0.01])
