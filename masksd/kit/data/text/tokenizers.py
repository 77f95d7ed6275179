"""Sentences to token ids: start token, the words, end token, then padding.

Vocabularies are words of the shapes data set, CLIP's byte pairs, or BERT's word pieces. What is
padding is told by the position of the first end token, never by comparing with the padding: some
code pads with 0, some with the end token itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from masksd.errors import check_choice, one_line, unknown_name
from masksd.kit.data.text.cleaning import clean_sentence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_LENGTH = 17  # the paper's for RefCOCO and RefCOCO+; 22 for G-Ref, LAVT has 20

_SETTINGS = "tokenizer_settings.json"
_MODEL = "tokenizer.json"
CLIP_NAME = "openai/clip-vit-base-patch16"
CLIP_FILES = ("vocab.json", "merges.txt")
BERT_NAME = "bert-base-uncased"
BERT_FILES = ("vocab.txt",)
# the token of a word that the vocabulary lacks, by kind; byte pairs lack none
UNKNOWN = {"words": "[unknown]", "clip": None, "bert": "[UNK]"}


class Vocabulary(NamedTuple):
    """A backend of the ``tokenizers`` library with its kind and its special tokens."""

    backend: Backend
    kind: str
    start_token: int
    end_token: int
    pad_token: int


class Tokenizer:
    """Turns sentences into ids of one length; :func:`load_tokenizer` makes one.

    Attributes:
        kind: ``"words"``, ``"clip"`` or ``"bert"``.
        vocab_size: number of ids.
        start_token: the id in front.
        end_token: the id behind; the largest of the vocabulary, except for BERT's, since the models
            of the others find it by argmax.
        pad_token: the id that fills up.
        max_length: number of ids of every encoded sentence, at least 3.

    Example:
        >>> tokenizer = load_tokenizer("shapes", max_length=6)
        >>> ids = tokenizer.encode("the red circle")
        >>> ids.shape, int(ids.argmax()), int(ids[5])
        (torch.Size([6]), 4, 0)
    """

    def __init__(self, vocabulary: Vocabulary, max_length: int) -> None:
        backend = vocabulary.backend
        check_choice("kind", vocabulary.kind, UNKNOWN)
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3 (start, word, end), got {max_length}")
        self.vocab_size = backend.get_vocab_size()
        if vocabulary.kind != "bert" and vocabulary.end_token != self.vocab_size - 1:
            raise ValueError(
                f"end_token must be the largest id {self.vocab_size - 1}, "
                f"got {vocabulary.end_token}"
            )
        # "<|endoftext|>" or "[SEP]" typed by somebody is text, never the end token
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._vocabulary = vocabulary
        self._backend = backend
        self.kind = vocabulary.kind
        self._clean: Callable[[str], str] = clean_sentence if self.kind == "clip" else str
        self.start_token = vocabulary.start_token
        self.end_token = vocabulary.end_token
        self.pad_token = vocabulary.pad_token
        self.max_length = max_length

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary, int]]:
        # by the constructor: the backend's own pickle forgets how special tokens are read
        return Tokenizer, (self._vocabulary, self.max_length)

    def encode(self, sentence: str) -> Tensor:
        """Encode one sentence as ``(max_length,)`` int64; the empty one is start and end alone.

        A long one keeps its first ``max_length - 2`` tokens, then the end token, as CRIS does. LAVT
        cuts after ``max_length`` tokens, so that its longest sentences have no end token; ours keep
        it, since the attention mask and the masking of words both go by its position.
        """
        body = [token for token, _ in self._pieces(sentence)[: self.max_length - 2]]
        ids = [self.start_token, *body, self.end_token]
        return torch.tensor(ids + [self.pad_token] * (self.max_length - len(ids)))

    def attention_mask(self, tokens: Tensor) -> Tensor:
        """Tell ids ``(..., L)`` from their padding: 1 up to and with the first end token, then 0.

        A row without an end token (LAVT's longest sentences) is all 1.

        Example:
            >>> tokenizer = load_tokenizer("shapes", max_length=6)
            >>> tokenizer.attention_mask(tokenizer.encode("red circle"))
            tensor([1, 1, 1, 1, 0, 0])
        """
        ends = tokens == self.end_token
        return (ends.cumsum(dim=-1) - ends.long() == 0).long()

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words of a sentence that the vocabulary lacks (none with byte pairs)."""
        name = UNKNOWN[self.kind]
        if name is None:
            return []
        unknown = self._backend.token_to_id(name)
        return [
            sentence[start:end]
            for token, (start, end) in self._pieces(sentence)
            if token == unknown
        ]

    def kept(self, sentence: str) -> str:
        """Return the beginning of a sentence that :meth:`encode` keeps, the whole if it fits.

        Example:
            >>> load_tokenizer("shapes", max_length=4).kept("the red circle")
            'the red'
        """
        pieces = self._pieces(sentence)
        most = self.max_length - 2
        return sentence if len(pieces) <= most else self._clean(sentence)[: pieces[most - 1][1][1]]

    def decode(self, tokens: Tensor) -> str:
        """Return the words of ids ``(L,)``, special ones included.

        Example:
            >>> tokenizer = load_tokenizer("shapes")
            >>> tokenizer.decode(tokenizer.encode("red circle")[1:3])
            'red circle'
        """
        return self._backend.decode(tokens.tolist(), skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into a folder, for :func:`load_tokenizer`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MODEL).write_text(self._backend.to_str(pretty=False), encoding="utf-8")
        stored = ("kind", "start_token", "end_token", "pad_token", "max_length")
        settings = {name: getattr(self, name) for name in stored}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _pieces(self, sentence: str) -> list[tuple[int, tuple[int, int]]]:
        """Split into ids, each with the characters of the cleaned sentence it stands for."""
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"sentence is not valid Unicode text: {error}") from None
        encoding = self._backend.encode(self._clean(sentence), add_special_tokens=False)
        # CLIP's unknown token is its end token: a piece that a small vocabulary lacks is left out
        special = (self.start_token, self.end_token)
        pieces = zip(encoding.ids, encoding.offsets, strict=True)
        return [(token, span) for token, span in pieces if token not in special]


def load_tokenizer(name_or_dir: str | Path, max_length: int | None = None) -> Tokenizer:
    """Load a tokenizer by name or from a folder.

    Args:
        name_or_dir: ``"shapes"`` (the words of the shapes data set), ``"clip"`` (CLIP's byte
            pairs), ``"bert"`` (the word pieces of ``bert-base-uncased``), another CLIP repository
            on the Hub (``"owner/name"``), a folder that :meth:`Tokenizer.save` wrote, one with
            CLIP's ``vocab.json`` and ``merges.txt``, or one with BERT's ``vocab.txt``.
        max_length: number of ids of every encoded sentence; None takes the one that was saved, or
            17, the paper's for RefCOCO.

    Example:
        >>> load_tokenizer("shapes", 22).max_length
        22
    """
    folder = Path(name_or_dir)
    if (folder / _SETTINGS).is_file():
        return _load_saved(folder, max_length)
    length = DEFAULT_LENGTH if max_length is None else max_length
    return Tokenizer(_vocabulary(name_or_dir), length)


def _vocabulary(name_or_dir: str | Path) -> Vocabulary:
    folder, name = Path(name_or_dir), str(name_or_dir)
    if name == "shapes":
        from masksd.kit.data.shapes import shapes_vocabulary

        return _word_vocabulary(shapes_vocabulary())
    if folder.is_dir():
        if all((folder / each).is_file() for each in CLIP_FILES):
            return _clip_vocabulary(folder)
        if all((folder / each).is_file() for each in BERT_FILES):
            return _bert_vocabulary(folder)
        raise ValueError(
            f"tokenizer folder {folder} has neither {_SETTINGS} (a saved tokenizer) nor "
            f"{' and '.join(CLIP_FILES)} (CLIP's) nor {' and '.join(BERT_FILES)} (BERT's)"
        )
    if name == "bert":
        return _bert_vocabulary(BERT_NAME)
    if name == "clip" or name.count("/") == 1:
        return _clip_vocabulary(CLIP_NAME if name == "clip" else name)
    error = unknown_name("tokenizer", name, ["bert", "clip", "shapes"])
    raise ValueError(f"{error} (--tokenizer)")


def _load_saved(folder: Path, max_length: int | None) -> Tokenizer:
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        start, end = int(settings["start_token"]), int(settings["end_token"])
        pad = int(settings.get("pad_token", 0))
        kind = settings.get("kind")
        length = int(settings["max_length"]) if max_length is None else max_length
        backend = _read_backend((folder / _MODEL).read_text(encoding="utf-8"))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {error!r}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {one_line(error)}") from None
    if kind is None:  # written before there was a third kind
        kind = "clip" if backend.token_to_id("[unknown]") is None else "words"
    return Tokenizer(Vocabulary(backend, kind, start, end, pad), length)


def _read_backend(text: str) -> Backend:
    try:
        if "model" not in json.loads(text):
            raise ValueError("no field 'model'")
        return Backend.from_str(text)
    except Exception as error:  # the library raises this very class, whatever is wrong
        raise ValueError(f"{_MODEL}: {error}") from None


def _word_vocabulary(words: Sequence[str]) -> Vocabulary:
    """Build a vocabulary of lower-case words, split at spaces and punctuation.

    The words get the ids from 2 on; 0 pads, 1 is unknown, start and end come last.
    """
    ids = {word: index for index, word in enumerate(["[pad]", "[unknown]", *words])}
    ids |= {"[start]": len(ids), "[end]": len(ids) + 1}
    backend = Backend(models.WordLevel(ids, unk_token=UNKNOWN["words"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    return Vocabulary(backend, "words", ids["[start]"], ids["[end]"], ids["[pad]"])


def _clip_vocabulary(source: str | Path) -> Vocabulary:
    """Read CLIP's byte pairs, from a folder or by a name on the Hub; padding is 0, as in CRIS."""
    from transformers import CLIPTokenizer

    clip = _from_transformers(CLIPTokenizer, source, CLIP_FILES)
    return Vocabulary(clip.backend_tokenizer, "clip", clip.bos_token_id, clip.eos_token_id, 0)


def _bert_vocabulary(source: str | Path) -> Vocabulary:
    """Read BERT's word pieces, from a folder or by a name on the Hub.

    They are lower-case unless a ``tokenizer_config.json`` beside ``vocab.txt`` says otherwise.
    """
    from transformers import BertTokenizer

    folder = _folder_of(source, BERT_FILES)
    try:
        tokens = (folder / BERT_FILES[0]).read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: vocab.txt: {error}") from None
    # the library adds what is missing behind the others, where no model looks for it
    for wanted in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        if tokens.count(wanted) != 1:
            raise ValueError(
                f"tokenizer folder {folder} is damaged: vocab.txt must have one line {wanted!r}, "
                f"got {tokens.count(wanted)}"
            )
    bert = _from_transformers(BertTokenizer, folder, BERT_FILES)
    ids = (bert.cls_token_id, bert.sep_token_id, bert.pad_token_id)
    return Vocabulary(bert.backend_tokenizer, "bert", *ids)


def _from_transformers(
    kind: type[PreTrainedTokenizerBase], source: str | Path, files: Sequence[str]
) -> PreTrainedTokenizerBase:
    folder = _folder_of(source, files)
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises this very class
        raise ValueError(
            f"tokenizer folder {folder} is damaged: {', '.join(files)} or another file of it "
            f"cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from None


def _folder_of(source: str | Path, files: Sequence[str]) -> Path:
    """Return the folder of a tokenizer's files, from the Hub's cache or a download if need be."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from transformers.utils.hub import has_file

    if Path(source).is_dir():
        return Path(source)
    name = str(source)
    try:
        for file in files:
            path = try_to_load_from_cache(name, file)
            if not isinstance(path, str):
                # asked once: where there is no network, a download tries again for 23 seconds
                if not has_file(name, file):
                    raise FileNotFoundError(f"no {file}")
                path = hf_hub_download(name, file)
    except (OSError, HFValidationError) as error:
        wanted = " ".join(files)
        raise ValueError(
            f"tokenizer {name!r} is not in the cache and cannot be downloaded "
            f"({type(error).__name__}); get {' and '.join(files)} with `hf download {name} "
            f"{wanted} tokenizer_config.json` where there is a network, or pass a folder that "
            "holds them"
        ) from None
    return Path(path).parent
