"""All tokenizers keep one convention: start, words, end, padding."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksd.kit.data.shapes import shapes_vocabulary
from masksd.kit.data.text.cleaning import clean_sentence
from masksd.kit.data.text.tokenizers import Tokenizer, load_tokenizer
from masksd.kit.data.text.vocabularies import words_of
from masksd.models.registry import REVISIONS


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


BERT_WORDS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_WORDS += [*"[]<>|!-.,", "the", "red", "circle", "re", "##d", "##ish", "left", "most", "##most"]
BERT_WORDS += ["se", "##p", "cafe", "pad", "end", "##of", "##text", *"abc", "##b", "##c"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT vocabulary, whose end token is not its largest id."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    return folder


@pytest.fixture(scope="module", params=["shapes", "clip", "bert"])
def tokenizer(request: pytest.FixtureRequest, clip_folder: Path, bert_folder: Path) -> Tokenizer:
    source = {"shapes": "shapes", "clip": clip_folder, "bert": bert_folder}[request.param]
    return load_tokenizer(source, max_length=9)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(
    text=texts
    | st.just("red!! !")
    | st.sampled_from(["<|endoftext|>", "[end] [start]", "<|endoftext|> red", "[pad]"])
    | st.sampled_from(["[SEP]", "[CLS] red [SEP] red", "red[PAD]", "[MASK]", "<|startoftext|>"])
)
def test_convention_holds_for_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.shape == (9,)
    assert ids.dtype == torch.int64
    assert ids[0] == tokenizer.start_token
    ends = (ids == tokenizer.end_token).nonzero().flatten().tolist()
    assert len(ends) == 1
    assert ends[0] >= 1
    assert (ids[ends[0] + 1 :] == tokenizer.pad_token).all()
    special = {tokenizer.start_token}
    if tokenizer.kind != "clip":  # there the padding is also the id of an exclamation mark
        special.add(tokenizer.pad_token)
    assert not set(ids[1 : ends[0]].tolist()) & special
    if tokenizer.kind != "bert":
        assert ends[0] == int(ids.argmax())
    valid = tokenizer.attention_mask(ids)
    assert valid.tolist() == [1] * (ends[0] + 1) + [0] * (8 - ends[0])


def test_empty_sentence_is_start_and_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").tolist() == [tokenizer.start_token, tokenizer.end_token] + [0] * 7


def test_end_is_the_largest_id_but_for_bert(tokenizer: Tokenizer) -> None:
    if tokenizer.kind == "bert":
        special = [tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token]
        assert [BERT_WORDS[each] for each in special] == ["[CLS]", "[SEP]", "[PAD]"]
        assert tokenizer.vocab_size == len(BERT_WORDS)
    else:
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
    for name in ("kind", "vocab_size", "start_token", "end_token", "pad_token"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert load_tokenizer(tmp_path / "new" / "folder", max_length=5).encode("red").shape == (5,)


def test_decoding_gives_the_words_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("red red")
    assert tokenizer.decode(ids[1:3]).split() == ["red", "red"]


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


# as ftfy 6.3.1 and html.unescape leave them, before the lower case
CLEANED = {
    "person’s bag": "person's bag",
    "the ‛left’ “red‟ hat": "the 'left' \"red\" hat",
    "tom &amp; jerry &amp;amp; co": "tom & jerry & co",
    "&lt;b&gt; man&rsquo;s &quot;hat&quot;&nbsp;caf&eacute;": '<b> man\'s "hat" café',
    "&lsquo;a&rsquo; <": "‘a’ <",
    "this&not that": "this¬ that",
    "ＲＥＤ　ｈａｔ！": "RED hat!",
    "ｶﾀｶﾅ": "カタカナ",
    "cafe\u0301": "café",
    "straße ÀÉÎ": "straße ÀÉÎ",
    "👩\u200d🚀 ❤\ufe0f": "👩\u200d🚀 ❤\ufe0f",
    "cafÃ© donâ€™t ðŸ˜€": "café don't 😀",
    "â€œquotedâ€\x9d": '"quoted"',
    "ﬁre ﬂag ĳs ŉ": "fire flag ijs 'n",
    "\ufeffred\x07 \x1b[31mhat\x1b[0m": "red hat",
    " red\r\n \t hat\u2028a\xa0b ": "red hat a b",
    "CAFÉ’S “été’”": "CAFÉ'S \"été'\"",
    "10° ½ № ™ a…b man—woman 日本語 лево": "10° ½ № ™ a…b man—woman 日本語 лево",
}


@pytest.mark.parametrize("text", CLEANED)
def test_clip_reads_what_openai_cleaned(clip_folder: Path, text: str) -> None:
    assert clean_sentence(text) == CLEANED[text]
    tokenizer = load_tokenizer(clip_folder, max_length=77)
    again = pickle.loads(pickle.dumps(tokenizer))
    plain = CLEANED[text].translate({ord(quote): None for quote in "‘’"})  # not in this vocabulary
    for each in (tokenizer, again):
        assert torch.equal(each.encode(text), tokenizer.encode(plain))
    assert tokenizer.kept(text) == text
    short = load_tokenizer(clip_folder, max_length=4)
    assert short.kept(text) == text or CLEANED[text].startswith(short.kept(text))


def cris_tokenize(start: int, end: int, body: list[int], context_length: int) -> list[int]:
    """CRIS's rule on the pieces of a text: the whole is cut, and its last token becomes the end."""
    tokens = [start, *body, end]
    result = [0] * context_length
    if len(tokens) > context_length:
        tokens = tokens[:context_length]
        tokens[-1] = end
    result[: len(tokens)] = tokens
    return result


@pytest.mark.parametrize("length", [3, 17, 22, 20, 77])
@pytest.mark.parametrize("words", [0, 1, 14, 15, 16, 18, 20, 75, 76, 200])
def test_truncation_is_that_of_cris(tokenizer: Tokenizer, length: int, words: int) -> None:
    text = " ".join(["red"] * words)
    ids = Tokenizer(tokenizer._vocabulary, 300).encode(text).tolist()[: words + 2]
    assert (ids[0], ids[-1]) == (tokenizer.start_token, tokenizer.end_token)
    expected = cris_tokenize(ids[0], ids[-1], ids[1:-1], length)
    assert Tokenizer(tokenizer._vocabulary, length).encode(text).tolist() == expected


def test_pieces_of_a_word_are_cut_alike(bert_folder: Path) -> None:
    assert len(load_tokenizer(bert_folder, 20).encode("leftmost redish")) == 20
    ids = load_tokenizer(bert_folder, 5).encode("leftmost redish").tolist()
    assert [BERT_WORDS[each] for each in ids] == ["[CLS]", "left", "##most", "red", "[SEP]"]


def first_end(ids: list[int], end: int) -> int:
    return ids.index(end) if end in ids else len(ids) - 1


@given(
    body=st.lists(st.integers(4, 8), max_size=7),
    pad=st.sampled_from([0, 3]),
    cut=st.booleans(),
)
def test_attention_mask_goes_by_the_first_end_token(
    bert_folder: Path, body: list[int], pad: int, cut: bool
) -> None:
    # padded with 0 or with the end token itself, or cut so that there is none, as LAVT does
    tokenizer = load_tokenizer(bert_folder, 9)
    end = tokenizer.end_token
    body = [each if each != end else 9 for each in body]
    pads = {0: 0, 3: end}
    ids = [tokenizer.start_token, *body, end] + [pads[pad]] * 9
    ids = ids[: len(body) + 1] if cut else ids[:9]
    expected = [int(index <= first_end(ids, end)) for index in range(len(ids))]
    rows = torch.tensor([[ids, ids]])
    mask = tokenizer.attention_mask(rows)
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[expected, expected]]


def test_bert_pieces(bert_folder: Path) -> None:
    tokenizer = load_tokenizer(bert_folder, 20)

    def pieces(text: str) -> list[str]:
        ids = tokenizer.encode(text)
        return [BERT_WORDS[each] for each in ids[: int(tokenizer.attention_mask(ids).sum())]][1:-1]

    assert pieces("The RED Circle!") == ["the", "red", "circle", "!"]
    assert pieces("redish café") == ["red", "##ish", "cafe"]
    assert pieces("[SEP]") == ["[", "se", "##p", "]"]
    assert pieces("[PAD]") == ["[", "pad", "]"]
    assert pieces("<|endoftext|>") == ["<", "|", "end", "##of", "##text", "|", ">"]
    assert pieces("red zebra") == ["red", "[UNK]"]
    assert tokenizer.unknown_words("Zebra, red okapi") == ["Zebra", "okapi"]
    assert load_tokenizer(bert_folder, 4).kept("Leftmost café") == "Leftmost"


@given(text=texts | st.text("redishcl .,-é", max_size=40))
def test_bert_ids_are_those_of_transformers(bert_folder: Path, text: str) -> None:
    from transformers import BertTokenizer

    theirs = BertTokenizer.from_pretrained(bert_folder)
    options = {"truncation": True, "max_length": 9, "padding": "max_length"}
    expected = theirs(text, return_tensors="pt", **options)
    ours = load_tokenizer(bert_folder, 9)
    ids = ours.encode(text)
    assert ids.tolist() == expected["input_ids"][0].tolist()
    assert ours.attention_mask(ids).tolist() == expected["attention_mask"][0].tolist()


def test_cased_bert_keeps_its_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT_WORDS[:6], "Red", "red", "SEP", "[", "]"]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = load_tokenizer(tmp_path, 5)
    assert tokenizer.encode("Red red").tolist() == [3, 6, 7, 4, 0]
    assert tokenizer.encode("[SEP]").tolist() == [3, 9, 8, 10, 4]


@pytest.mark.parametrize("missing", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
def test_bert_vocabulary_without_a_special_token(tmp_path: Path, missing: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(w for w in BERT_WORDS if w != missing))
    with pytest.raises(ValueError, match=r"is damaged: vocab.txt must have one line") as caught:
        load_tokenizer(tmp_path, 9)
    assert repr(missing) in str(caught.value)


def test_bert_vocabulary_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe[PAD]\n")
    with pytest.raises(ValueError, match=r"is damaged: vocab.txt"):
        load_tokenizer(tmp_path, 9)


@pytest.mark.parametrize("source", ["shapes", "clip"])
def test_tokenizers_saved_before_there_were_kinds(
    source: str, clip_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer("shapes" if source == "shapes" else clip_folder, 9)
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_settings.json").read_text())
    del settings["kind"], settings["pad_token"]
    (tmp_path / "tokenizer_settings.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.pad_token) == (tokenizer.kind, 0)
    assert torch.equal(loaded.encode("a red b"), tokenizer.encode("a red b"))


@pytest.mark.parametrize("settings", ["[]", "{}", '{"start_token": "x"}', '{"start_token": null}'])
def test_damaged_settings_are_one_error(tmp_path: Path, settings: str) -> None:
    load_tokenizer("shapes", 5).save(tmp_path)
    (tmp_path / "tokenizer_settings.json").write_text(settings)
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer(tmp_path)


def test_default_length_is_the_papers() -> None:
    assert load_tokenizer("shapes").max_length == 17


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"unknown tokenizer 'shapse'; did you mean 'shapes'.*--tokenizer"
    ):
        load_tokenizer("shapse", 17)
    with pytest.raises(
        ValueError, match=r"max_length must be from 3 \(start, word, end\) to 65536, got 2"
    ):
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


CATASTROPHE = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000}
EXTRA = {"id": 49, "content": "zz", "special": False}
EXTRA |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]] * 49}


@pytest.mark.parametrize(
    ("tokenizer", "settings", "expected"),
    [
        ({"pre_tokenizer": {**CATASTROPHE, "invert": False}}, {}, r"changes text by .*\(a\+\)\+\$"),
        ({"normalizer": {"type": "Sequence", "normalizers": [BOMB] * 5}}, {}, "changes text by"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}},
            {},
            "has 10[0-9] steps, at most 8",
        ),
        ({"model.vocab.red": 10**6}, {}, "has 49 tokens, but an id of 1000000"),
        ({"model.unk_token": "nothing"}, {}, "the token of unknown words, 'nothing', is not in"),
        ({"model": UNIGRAM}, {}, "is a Unigram, that of kind 'words' is a WordLevel"),
        ({"added_tokens": [EXTRA]}, {}, "end_token must be the largest id 49, got 48"),
        ({}, {"start_token": float("inf")}, "start_token must be an id from 0 to 48, got inf"),
        ({}, {"start_token": float("nan")}, "start_token must be an id from 0 to 48, got nan"),
        ({}, {"start_token": -1}, "start_token must be an id from 0 to 48, got -1"),
        ({}, {"start_token": 1.5}, r"start_token must be an id from 0 to 48, got 1\.5"),
        ({}, {"start_token": True}, "start_token must be an id from 0 to 48, got True"),
        ({}, {"pad_token": 10**9}, "pad_token must be an id from 0 to 48, got 1000000000"),
        ({}, {"end_token": 49}, "end_token must be an id from 0 to 48, got 49"),
        ({}, {"max_length": float("inf")}, "max_length must be from 3 .* got inf"),
        ({}, {"max_length": 10**9}, "max_length must be from 3 .* got 1000000000"),
        ({}, {"kind": ["words"]}, "unknown kind"),
        ({}, {"kind": "clip"}, "is a WordLevel, that of kind 'clip' is a BPE"),
    ],
)
def test_a_hostile_tokenizer_is_one_error(
    tmp_path: Path, tokenizer: dict[str, object], settings: dict[str, object], expected: str
) -> None:
    load_tokenizer("shapes", 9).save(tmp_path)
    for name, changes in (("tokenizer", tokenizer), ("tokenizer_settings", settings)):
        path = tmp_path / f"{name}.json"
        content = json.loads(path.read_text())
        for key, value in changes.items():
            *outer, last = key.split(".")
            inner = content
            for each in outer:
                inner = inner[each]
            inner[last] = value
        path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"tokenizer folder .* is damaged: .*{expected}"
    ) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).isprintable()


def test_the_regular_expression_above_would_never_end(tmp_path: Path) -> None:
    """The backend alone panics, with an exception that ``except Exception`` does not catch."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(CATASTROPHE["pattern"]["Regex"]), "isolated")
    with pytest.raises(BaseException, match="retry-limit-in-match over"):
        split.pre_tokenize_str("a" * 40 + "!")


def test_saved_tokenizers_of_every_kind_are_accepted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.kind == tokenizer.kind
    for text in ("The RED circle's left-most", "<|endoftext|> [SEP] red", "ⵣ 12 'll"):
        assert torch.equal(loaded.encode(text), tokenizer.encode(text))


def test_the_pinned_revision_is_read_from_the_cache_and_another_by_name(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "openai/clip-vit-base-patch16"
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f" * 40)
    changed = repository / "snapshots" / ("f" * 40)
    shutil.copytree(clip_folder, changed)
    vocabulary = json.loads((changed / "vocab.json").read_text())
    end = len(vocabulary)
    vocabulary["<|endoftext|>"], vocabulary["new"] = end, end - 1
    (changed / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="is not in the cache"):  # main moved on
        load_tokenizer("clip", 9)
    shutil.copytree(clip_folder, repository / "snapshots" / REVISIONS[name])
    assert load_tokenizer("clip", 9).vocab_size == end
    assert load_tokenizer(f"{name}@main", 9).vocab_size == end + 1
    assert load_tokenizer(f"{name}@{'f' * 40}", 9).vocab_size == end + 1


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "b"}', '{"a": -1}'])
def test_damaged_clip_vocabulary_is_one_error(clip_folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "merges.txt").write_text((clip_folder / "merges.txt").read_text())
    (tmp_path / "vocab.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged") as caught:
        load_tokenizer(tmp_path, 9)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "repository", "files"),
    [
        ("clip", "openai/clip-vit-base-patch16", "vocab.json merges.txt"),
        ("bert", "bert-base-uncased", "vocab.txt"),
    ],
)
@pytest.mark.parametrize("network", ["switched off", "unreachable"])
def test_offline_error_says_what_to_get_and_soon(
    tmp_path: Path, name: str, repository: str, files: str, network: str
) -> None:
    # in a process of its own: the hub library reads its settings once, when it is imported
    code = (
        "import time, huggingface_hub, transformers.utils.hub\n"
        "from masksd.kit.data.text.tokenizers import load_tokenizer\n"
        "start = time.perf_counter()\n"
        f"try:\n    load_tokenizer({name!r}, 17)\n"
        "except ValueError as error:\n    print(time.perf_counter() - start, error)\n"
    )
    off = {
        "switched off": {"HF_HUB_OFFLINE": "1"},
        "unreachable": {"HF_ENDPOINT": "http://[::1]:9"},
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **off[network]},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, _, error = done.stdout.partition(" ")
    assert error.startswith(f"tokenizer {repository!r} is not in the cache")
    command = f"hf download {repository} {files} tokenizer_config.json --revision "
    assert f"{command}{REVISIONS[repository]}" in error
    # the library's own retries take 23 s
    assert float(seconds) < 8


def test_words_come_by_how_often_they_occur() -> None:
    assert words_of(["the red circle", "The star!"]) == ["the", "circle", "red", "star"]
    assert words_of(["the red circle", "The star!"], least=2) == ["the"]
