"""Sentences to token ids: start token, the words, end token, then padding.

Vocabularies are words of the shapes data set, CLIP's byte pairs, or BERT's word pieces. What is
padding is told by the position of the first end token, never by comparing with the padding: some
code pads with 0, some with the end token itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from masksd.errors import one_line
from masksd.kit.data.text.cleaning import clean_sentence
from masksd.kit.data.text.vocabularies import (
    MODEL,
    SETTINGS,
    UNKNOWN,
    Vocabulary,
    check_vocabulary,
    find_vocabulary,
    read_backend,
)

DEFAULT_LENGTH = 17  # the paper's for RefCOCO and RefCOCO+; 22 for G-Ref, LAVT has 20
_LONGEST = 65_536  # every sentence is padded to the length


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
        backend, self.kind, self.start_token, self.end_token, self.pad_token = vocabulary
        self.vocab_size = backend.get_vocab_size()
        # "<|endoftext|>" or "[SEP]" typed by somebody is text, never the end token
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = None  # start and end are added here
        self._vocabulary = vocabulary
        self._backend = backend
        self._clean: Callable[[str], str] = clean_sentence if self.kind == "clip" else str
        self.max_length = _check_length(max_length)

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
        """Return the beginning of a sentence that :meth:`encode` keeps, the whole if it fits."""
        pieces = self._pieces(sentence)
        most = self.max_length - 2
        return sentence if len(pieces) <= most else self._clean(sentence)[: pieces[most - 1][1][1]]

    def decode(self, tokens: Tensor) -> str:
        """Return the words of ids ``(L,)``, special ones included."""
        return self._backend.decode(tokens.tolist(), skip_special_tokens=False)

    def ids(self) -> dict[str, int]:
        """Return the id of every piece of text, special tokens included."""
        found: dict[str, int] = self._backend.get_vocab()
        return found

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into a folder, for :func:`load_tokenizer`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL).write_text(self._backend.to_str(pretty=False), encoding="utf-8")
        stored = ("kind", "start_token", "end_token", "pad_token", "max_length")
        settings = {name: getattr(self, name) for name in stored}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

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
            on the Hub (``"owner/name"`` or ``"owner/name@revision"``), a folder that
            :meth:`Tokenizer.save` wrote, one with CLIP's ``vocab.json`` and ``merges.txt``, or one
            with BERT's ``vocab.txt``.
        max_length: number of ids of every encoded sentence; None takes the one that was saved, or
            17, the paper's for RefCOCO.

    Example:
        >>> load_tokenizer("shapes", 22).max_length
        22
    """
    folder = Path(name_or_dir)
    if (folder / SETTINGS).is_file():
        return _load_saved(folder, max_length)
    length = DEFAULT_LENGTH if max_length is None else max_length
    return Tokenizer(check_vocabulary(find_vocabulary(name_or_dir)), length)


def _load_saved(folder: Path, max_length: int | None) -> Tokenizer:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        backend = read_backend((folder / MODEL).read_text(encoding="utf-8"))
        kind = settings.get("kind")
        if kind is None:  # written before there was a third kind
            kind = "clip" if backend.token_to_id("[unknown]") is None else "words"
        special = (settings["start_token"], settings["end_token"], settings.get("pad_token", 0))
        vocabulary = check_vocabulary(Vocabulary(backend, kind, *special))
        length = _check_length(settings["max_length"]) if max_length is None else max_length
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {error!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {one_line(error)}") from None
    return Tokenizer(vocabulary, length)


def _check_length(length: int) -> int:
    if type(length) is not int or not 3 <= length <= _LONGEST:
        raise ValueError(
            f"max_length must be from 3 (start, word, end) to {_LONGEST}, got {length!r}"
        )
    return length
