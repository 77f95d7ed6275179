"""Both tokenizers keep one convention: start, words, end (the largest id), zeros."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksd.data.expressions import shapes_vocabulary
from masksd.data.tokenizers import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete small CLIP vocabulary: ASCII letters, with and without the end of a word."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{each}</w>" for each in letters), "re", "red</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({each: n for n, each in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return folder


@pytest.fixture(scope="module", params=["shapes", "clip"])
def tokenizer(request: pytest.FixtureRequest, clip_folder: Path) -> Tokenizer:
    return load_tokenizer("shapes" if request.param == "shapes" else clip_folder, max_length=9)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(
    text=texts | st.sampled_from(["<|endoftext|>", "[end] [start]", "<|endoftext|> red", "[pad]"])
)
def test_convention_holds_for_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.shape == (9,)
    assert ids.dtype == torch.int64
    assert ids[0] == tokenizer.start_token
    ends = (ids == tokenizer.end_token).nonzero().flatten().tolist()
    assert len(ends) == 1
    assert ends[0] == int(ids.argmax()) >= 1
    assert (ids[ends[0] + 1 :] == 0).all()
    assert (ids[1 : ends[0]] < tokenizer.start_token).all()


def test_empty_sentence_is_start_and_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").tolist() == [tokenizer.start_token, tokenizer.end_token] + [0] * 7


def test_end_is_the_largest_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_token == tokenizer.vocab_size - 1
    assert tokenizer.start_token == tokenizer.vocab_size - 2


def test_long_sentence_keeps_its_first_words(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("red " * 30)
    (red,) = set(ids[1:8].tolist())
    assert tokenizer.encode("red")[1] == red
    assert ids[8] == tokenizer.end_token


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    for text in ("The red circle!", "<|endoftext|> red", "", "zebra"):
        assert torch.equal(loaded.encode(text), tokenizer.encode(text))
        sent = pickle.loads(pickle.dumps(tokenizer))  # as to a worker
        assert torch.equal(sent.encode(text), tokenizer.encode(text))
    assert loaded.max_length == 9
    assert loaded.vocab_size == tokenizer.vocab_size
    assert load_tokenizer(tmp_path / "new" / "folder", max_length=5).encode("red").shape == (5,)


def test_shapes_words() -> None:
    tokenizer = load_tokenizer("shapes", max_length=6)
    words = shapes_vocabulary()
    assert tokenizer.vocab_size == len(words) + 4
    ids = tokenizer.encode("The RED, circle!")
    assert [words[index - 2] for index in ids[1:4].tolist()] == ["the", "red", "circle"]
    assert tokenizer.unknown_words("the Zebra, red okapi") == ["Zebra", "okapi"]
    assert all(len(set(load_tokenizer("shapes").encode(word).tolist())) == 4 for word in words)


def test_clip_pieces(clip_folder: Path) -> None:
    tokenizer = load_tokenizer(clip_folder, max_length=8)
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    expected = [vocabulary["red</w>"], vocabulary["a"], vocabulary["b</w>"]]
    assert tokenizer.encode("Red  ab")[1:4].tolist() == expected
    assert tokenizer.unknown_words("zebra") == []
    # typed by somebody, the end token's name is spelt out
    typed = tokenizer.encode("<|endoftext|>")
    assert typed[1:3].tolist() == [vocabulary["<"], vocabulary["|</w>"]]
    assert typed[7] == tokenizer.end_token


def test_default_length_is_the_papers() -> None:
    assert load_tokenizer("shapes").max_length == 17


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown tokenizer 'shapse'; did you mean 'shapes'"):
        load_tokenizer("shapse", 17)
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        load_tokenizer("shapes", 2)
    with pytest.raises(ValueError, match="has neither tokenizer_settings"):
        load_tokenizer(tmp_path, 17)
    with pytest.raises(ValueError, match="not valid Unicode"):
        load_tokenizer("shapes", 5).encode("\ud800")
    with pytest.raises(ValueError, match="not valid Unicode"):
        load_tokenizer("shapes", 5).unknown_words("\ud800")
    load_tokenizer("shapes", 5).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer(tmp_path)


def test_kept_is_what_is_encoded(clip_folder: Path) -> None:
    words = load_tokenizer("shapes", max_length=5)
    assert words.kept(" The red,  zebra circle!") == " The red,  zebra"
    assert words.kept("the red circle ...") == "the red circle ..."
    pieces = load_tokenizer(clip_folder, max_length=5)
    assert pieces.kept("Red abc") == "Red ab"
    for text in ("the red circle and the blue square", "red", "", "zebra, red zebra red"):
        assert torch.equal(words.encode(words.kept(text)), words.encode(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"model": {}}',
        '{"model": {"type": "WordLevel", "vocab": {"a": "b"}, "unk_token": "a"}}',
        '{"version": "1.0", "model": {"type": "Nothing"}}',
    ],
)
def test_damaged_tokenizer_is_one_error(tmp_path: Path, text: str) -> None:
    load_tokenizer("shapes", 5).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged: tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "b"}', '{"a": -1}'])
def test_damaged_clip_vocabulary_is_one_error(clip_folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "merges.txt").write_text((clip_folder / "merges.txt").read_text())
    (tmp_path / "vocab.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged") as caught:
        load_tokenizer(tmp_path, 9)
    assert "\n" not in str(caught.value)


def test_offline_error_says_what_to_get(tmp_path: Path) -> None:
    # in a process of its own: the hub library reads its settings once, when it is imported
    code = "from masksd.data.tokenizers import load_tokenizer; load_tokenizer('clip', 17)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ValueError: tokenizer 'openai/clip-vit-base-patch16' is not in the cache"
    )
    assert "hf download openai/clip-vit-base-patch16 vocab.json merges.txt" in last
