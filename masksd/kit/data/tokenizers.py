"""Sentences to token ids: start token, the words, end token, then padding.

Three vocabularies (see :mod:`masksd.kit.data.vocabularies`) share this convention. Which ids are no
padding is told by the position of the first end token, never by comparing with the padding: some
code pads with 0, some with the end token itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from masksd.errors import check_choice, unknown_name
from masksd.kit.data.vocabularies import (
    BERT_FILES,
    BERT_NAME,
    CLIP_FILES,
    CLIP_NAME,
    UNKNOWN,
    Vocabulary,
    bert_vocabulary,
    clip_vocabulary,
    word_vocabulary,
)

DEFAULT_LENGTH = 17  # the paper's for RefCOCO and RefCOCO+; 22 for G-Ref, LAVT has 20

_SETTINGS = "tokenizer_settings.json"
_MODEL = "tokenizer.json"


class Tokenizer:
    """Turns sentences into ids of one length; see :func:`load_tokenizer`.

    Args:
        vocabulary: the backend, its kind and its special tokens.
        max_length: number of ids of every encoded sentence, at least 3.

    Attributes:
        kind: ``"words"``, ``"clip"`` or ``"bert"``.
        vocab_size: number of ids.
        start_token: the id in front.
        end_token: the id behind; the largest of the vocabulary, except for BERT's.
        pad_token: the id that fills up.
        max_length: see above.

    Raises:
        ValueError: an unknown kind, an end token that is not the largest id of words or byte pairs
            (their models find it by argmax), or a ``max_length`` below 3.

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
        self.start_token = vocabulary.start_token
        self.end_token = vocabulary.end_token
        self.pad_token = vocabulary.pad_token
        self.max_length = max_length

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary, int]]:
        # by the constructor: the backend's own pickle forgets how special tokens are read
        return Tokenizer, (self._vocabulary, self.max_length)

    def encode(self, sentence: str) -> Tensor:
        """Encode one sentence.

        A long one keeps its first ``max_length - 2`` tokens, then the end token, as CRIS does. LAVT
        cuts after ``max_length`` tokens, so that its longest sentences have no end token; ours keep
        it, since the attention mask and the masking of words both go by its position. The empty
        sentence is start and end alone.

        Args:
            sentence: any text.

        Returns:
            ``(max_length,)`` int64.

        Raises:
            ValueError: text that is not valid Unicode (a lone surrogate).
        """
        body = [token for token, _ in self._pieces(sentence)[: self.max_length - 2]]
        ids = [self.start_token, *body, self.end_token]
        return torch.tensor(ids + [self.pad_token] * (self.max_length - len(ids)))

    def attention_mask(self, tokens: Tensor) -> Tensor:
        """Tell the ids of a sentence from its padding.

        Args:
            tokens: ``(..., L)`` int64, padded with any id, the end token among them.

        Returns:
            ``(..., L)`` int64: 1 up to and including the first end token, 0 behind. A row without
            one (LAVT's longest sentences) is all 1.

        Example:
            >>> tokenizer = load_tokenizer("shapes", max_length=6)
            >>> tokenizer.attention_mask(tokenizer.encode("red circle"))
            tensor([1, 1, 1, 1, 0, 0])
        """
        ends = tokens == self.end_token
        return (ends.cumsum(dim=-1) - ends.long() == 0).long()

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words of a sentence that the vocabulary lacks (none with byte pairs).

        Args:
            sentence: any text.

        Returns:
            The words as written, in order.

        Raises:
            ValueError: as :meth:`encode`.
        """
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

        Args:
            sentence: any text.

        Raises:
            ValueError: as :meth:`encode`.

        Example:
            >>> load_tokenizer("shapes", max_length=4).kept("the red circle")
            'the red'
        """
        pieces = self._pieces(sentence)
        most = self.max_length - 2
        return sentence if len(pieces) <= most else sentence[: pieces[most - 1][1][1]]

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into a folder, for :func:`load_tokenizer`.

        Args:
            folder: created if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MODEL).write_text(self._backend.to_str(pretty=False), encoding="utf-8")
        settings = {
            "kind": self.kind,
            "start_token": self.start_token,
            "end_token": self.end_token,
            "pad_token": self.pad_token,
            "max_length": self.max_length,
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _pieces(self, sentence: str) -> list[tuple[int, tuple[int, int]]]:
        """Split into ids, each with the characters it stands for."""
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"sentence is not valid Unicode text: {error}") from None
        encoding = self._backend.encode(sentence, add_special_tokens=False)
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

    Returns:
        The tokenizer.

    Raises:
        ValueError: an unknown name, a folder without the files, or a Hub repository that is
            neither in the cache nor to be reached.

    Example:
        >>> load_tokenizer("shapes", 22).max_length
        22
        >>> load_tokenizer("bart")
        Traceback (most recent call last):
        ...
        ValueError: unknown tokenizer 'bart'; did you mean 'bert'? Known: 'bert', ...
    """
    folder = Path(name_or_dir)
    if (folder / _SETTINGS).is_file():
        return _load_saved(folder, max_length)
    length = DEFAULT_LENGTH if max_length is None else max_length
    return Tokenizer(_vocabulary(name_or_dir), length)


def _vocabulary(name_or_dir: str | Path) -> Vocabulary:
    folder, name = Path(name_or_dir), str(name_or_dir)
    if name == "shapes":
        from masksd.kit.data.shapes.expressions import shapes_vocabulary

        return word_vocabulary(shapes_vocabulary())
    if folder.is_dir():
        if all((folder / each).is_file() for each in CLIP_FILES):
            return clip_vocabulary(folder)
        if all((folder / each).is_file() for each in BERT_FILES):
            return bert_vocabulary(folder)
        raise ValueError(
            f"tokenizer folder {folder} has neither {_SETTINGS} (a saved tokenizer) nor "
            f"{' and '.join(CLIP_FILES)} (CLIP's) nor {' and '.join(BERT_FILES)} (BERT's)"
        )
    if name == "bert":
        return bert_vocabulary(BERT_NAME)
    if name == "clip" or name.count("/") == 1:
        return clip_vocabulary(CLIP_NAME if name == "clip" else name)
    error = unknown_name("tokenizer", name, ["bert", "clip", "shapes"])
    raise ValueError(f"{error} (--tokenizer)")


def _load_saved(folder: Path, max_length: int | None) -> Tokenizer:
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        text = (folder / _MODEL).read_text(encoding="utf-8")
        start, end = int(settings["start_token"]), int(settings["end_token"])
        pad = int(settings.get("pad_token", 0))
        kind = settings.get("kind")
        length = int(settings["max_length"]) if max_length is None else max_length
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {error!r}") from None
    backend = _read_backend(text, folder)
    if kind is None:  # written before there was a third kind
        kind = "clip" if backend.token_to_id("[unknown]") is None else "words"
    return Tokenizer(Vocabulary(backend, kind, start, end, pad), length)


def _read_backend(text: str, folder: Path) -> Backend:
    try:
        if "model" not in json.loads(text):
            raise ValueError("no field 'model'")
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {_MODEL}: {error}") from None
    try:
        return Backend.from_str(text)
    except Exception as error:  # the library raises this very class, whatever is wrong
        raise ValueError(f"tokenizer folder {folder} is damaged: {_MODEL}: {error}") from None
