"""Sentences to token ids: words for the shapes data set, CLIP's byte pairs for everything else.

One convention for both: the start token, the words, the end token, then padding with 0. The end
token is the largest id of the vocabulary, so its first occurrence is also the argmax.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from masksd.errors import unknown_name

CLIP_NAME = "openai/clip-vit-base-patch16"
DEFAULT_LENGTH = 17  # the paper's for RefCOCO and RefCOCO+; 22 for G-Ref

_SETTINGS = "tokenizer_settings.json"
_MODEL = "tokenizer.json"
_UNKNOWN = "[unknown]"


class Tokenizer:
    """Turns sentences into ids of one length; see :func:`load_tokenizer`.

    Args:
        backend: a tokenizer of the ``tokenizers`` library without post-processing in use.
        start_token: the id put in front.
        end_token: the id put behind; the largest of the vocabulary.
        max_length: number of ids of every encoded sentence, at least 3.

    Attributes:
        vocab_size: number of ids.
        start_token: see above.
        end_token: see above.
        max_length: see above.

    Raises:
        ValueError: an end token that is not the largest id, or a ``max_length`` below 3.

    Example:
        >>> tokenizer = load_tokenizer("shapes", max_length=6)
        >>> ids = tokenizer.encode("the red circle")
        >>> ids.shape, int(ids.argmax()), int(ids[5])
        (torch.Size([6]), 4, 0)
    """

    def __init__(self, backend: Backend, start_token: int, end_token: int, max_length: int) -> None:
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3 (start, word, end), got {max_length}")
        self.vocab_size = backend.get_vocab_size()
        if end_token != self.vocab_size - 1:
            raise ValueError(
                f"end_token must be the largest id {self.vocab_size - 1}, got {end_token}"
            )
        # "<|endoftext|>" typed by somebody is text, never the end token
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.start_token = start_token
        self.end_token = end_token
        self.max_length = max_length

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Backend, int, int, int]]:
        # by the constructor: the backend's own pickle forgets how special tokens are read
        return Tokenizer, (self._backend, self.start_token, self.end_token, self.max_length)

    def encode(self, sentence: str) -> Tensor:
        """Encode one sentence.

        A long one keeps its first ``max_length - 2`` tokens, then the end token, as CRIS does. The
        empty sentence is start and end alone.

        Args:
            sentence: any text.

        Returns:
            ``(max_length,)`` int64.

        Raises:
            ValueError: text that is not valid Unicode (a lone surrogate).
        """
        body = [token for token, _ in self._pieces(sentence)[: self.max_length - 2]]
        ids = torch.zeros(self.max_length, dtype=torch.int64)
        ids[: len(body) + 2] = torch.tensor([self.start_token, *body, self.end_token])
        return ids

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words of a sentence that the vocabulary lacks (none with byte pairs).

        Args:
            sentence: any text.

        Returns:
            The words as written, in order.

        Raises:
            ValueError: as :meth:`encode`.
        """
        unknown = self._backend.token_to_id(_UNKNOWN)
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
            "start_token": self.start_token,
            "end_token": self.end_token,
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
            pairs), another CLIP repository on the Hub (``"owner/name"``), a folder that
            :meth:`Tokenizer.save` wrote, or one with CLIP's ``vocab.json`` and ``merges.txt``.
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
        >>> load_tokenizer("shape")
        Traceback (most recent call last):
        ...
        ValueError: unknown tokenizer 'shape'; did you mean 'shapes'? Known: 'clip', 'shapes'
    """
    folder = Path(name_or_dir)
    if (folder / _SETTINGS).is_file():
        return _load_saved(folder, max_length)
    length = DEFAULT_LENGTH if max_length is None else max_length
    name = str(name_or_dir)
    if name == "shapes":
        from masksd.data.expressions import shapes_vocabulary

        return _word_tokenizer(shapes_vocabulary(), length)
    if folder.is_dir():
        wanted = ("vocab.json", "merges.txt")
        if not all((folder / each).is_file() for each in wanted):
            raise ValueError(
                f"tokenizer folder {folder} has neither {_SETTINGS} (a saved tokenizer) nor "
                f"{' and '.join(wanted)} (CLIP's)"
            )
        return _clip_tokenizer(name, length)
    if name == "clip" or name.count("/") == 1:
        return _clip_tokenizer(CLIP_NAME if name == "clip" else name, length)
    raise unknown_name("tokenizer", name, ["clip", "shapes"])


def _load_saved(folder: Path, max_length: int | None) -> Tokenizer:
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        text = (folder / _MODEL).read_text(encoding="utf-8")
        start, end = int(settings["start_token"]), int(settings["end_token"])
        length = int(settings["max_length"]) if max_length is None else max_length
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tokenizer folder {folder} is damaged: {error!r}") from None
    return Tokenizer(_read_backend(text, folder), start, end, length)


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


def _word_tokenizer(words: list[str], max_length: int) -> Tokenizer:
    """Lower-case words, split at spaces and punctuation; 0 pads, 1 is unknown, start, end last."""
    vocabulary = {word: index for index, word in enumerate(["[pad]", _UNKNOWN, *words])}
    vocabulary |= {"[start]": len(vocabulary), "[end]": len(vocabulary) + 1}
    backend = Backend(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    return Tokenizer(backend, vocabulary["[start]"], vocabulary["[end]"], max_length)


def _clip_tokenizer(name: str, max_length: int) -> Tokenizer:
    from transformers import CLIPTokenizer
    from transformers.utils import cached_file

    try:
        # from_pretrained makes an empty tokenizer, without a word, where the files are missing
        files = [cached_file(name, each) for each in ("vocab.json", "merges.txt")]
    except OSError as error:
        raise ValueError(
            f"tokenizer {name!r} is not in the cache and cannot be downloaded "
            f"({type(error).__name__}); get vocab.json and merges.txt with `hf download {name} "
            "vocab.json merges.txt tokenizer_config.json` where there is a network, or pass a "
            "folder that holds them"
        ) from None
    folder = Path(files[0]).parent
    try:
        clip = CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises this very class
        reason = " ".join(str(error).split())
        raise ValueError(
            f"tokenizer folder {folder} is damaged: vocab.json, merges.txt or another file of it "
            f"cannot be read ({type(error).__name__}: {reason})"
        ) from None
    return Tokenizer(clip.backend_tokenizer, clip.bos_token_id, clip.eos_token_id, max_length)
