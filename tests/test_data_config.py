"""What a run says of its data reaches the data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksd.kit.cli import _parse, main
from masksd.kit.cli.options import checked
from masksd.kit.config import TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.data_config import DataConfig
from masksd.kit.sources import open_split
from tests.refer_folders import annotation, image, ref, write_refer

TOKENIZER = load_tokenizer("shapes", 17)


def root_of(folder: Path, split_by: str = "unc", name: str = "mine") -> Path:
    """A data set whose second sentence has no raw form."""
    refs = [ref(1, 70, 7, "red circle", "the square")]
    refs[0]["sentences"][1]["raw"] = " "
    return write_refer(folder, [image(7)], [annotation(70, 7)], refs, name, split_by)


def test_the_refs_are_found_as_by_prepare(tmp_path: Path) -> None:
    root = root_of(tmp_path, split_by="somebody")
    assert len(open_split(DataConfig(root, name="mine"), "val", TOKENIZER, 8)) == 2
    root_of(tmp_path, split_by="unc")
    with pytest.raises(DataError, match=r"somebody, unc; name one with split_by \(--split-by\)"):
        open_split(DataConfig(root, name="mine"), "val", TOKENIZER, 8)
    chosen = DataConfig(root, name="mine", split_by="unc")
    assert len(open_split(chosen, "val", TOKENIZER, 8)) == 2
    with pytest.raises(DataError, match=r"did you mean 'unc'\? .* set split_by, --split-by"):
        open_split(DataConfig(root, name="mine", split_by="uncc"), "val", TOKENIZER, 8)


def test_a_sentence_without_raw_form_can_be_left_out(tmp_path: Path) -> None:
    root = root_of(tmp_path)
    says = "ref_id 1: sent_id 101: field 'raw' is missing or blank"
    with pytest.raises(DataError, match=rf"{says}.*; skip_bad \(--skip-bad\) leaves"):
        open_split(DataConfig(root, name="mine", text="raw"), "val", TOKENIZER, 8)
    config = DataConfig(root, name="mine", text="raw", skip_bad=True)
    with pytest.warns(UserWarning, match=f"1 bad record left out: .*{says}"):
        data = open_split(DataConfig.from_dict(config.to_dict()), "val", TOKENIZER, 8)
    assert [data.sentence(index) for index in range(len(data))] == ["red circle!"]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_options_of_the_data(command: str) -> None:
    def chosen(*options: str) -> DataConfig:
        found = _parse([command, *options])
        if command == "evaluate":
            return checked(DataConfig(), found.data)
        return checked(TrainConfig(), found.settings).data

    data = chosen("--skip-bad", "--index", "place", "--split-by", "unc")
    assert (data.skip_bad, data.index, data.split_by) == (True, Path("place"), "unc")
    assert chosen() == DataConfig(pictures=chosen().pictures)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "did you mean 'mine'? It is the only one; set name, --name"),
        (("--name", "mien"), "did you mean 'mine'? Known: 'mine'; set name, --name"),
        (("--name", "mine", "--split-by", "umd"), "did you mean 'unc'? It is the only one; set sp"),
        (("--name", "mine", "--index", "none"), "no index none (set index, --index"),
        (
            ("--name", "mine", "--tokenizer", "clpi"),
            "did you mean 'clip'? Known: 'bert', 'clip', 'shapes' (--token",
        ),
    ],
)
def test_errors_of_training_name_the_option(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    root_of(tmp_path / "data")
    shapes = () if "--tokenizer" in options else ("--tokenizer", "shapes")
    assert main(["train", "--data-root", "data", "--cpu", *shapes, *options]) == 2
    assert says in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
