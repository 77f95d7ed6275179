"""The three vocabularies: words of the shapes data set, CLIP's byte pairs, BERT's word pieces.

Here are the files, where to find them, and what their special tokens are;
:class:`masksd.kit.data.tokenizers.Tokenizer` makes token ids of sentences with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_NAME = "openai/clip-vit-base-patch16"
CLIP_FILES = ("vocab.json", "merges.txt")
BERT_NAME = "bert-base-uncased"
BERT_FILES = ("vocab.txt",)
UNKNOWN = {"words": "[unknown]", "clip": None, "bert": "[UNK]"}
"""The token of a word that the vocabulary lacks, by kind; byte pairs lack none."""


class Vocabulary(NamedTuple):
    """A backend with its special tokens.

    Attributes:
        backend: a tokenizer of the ``tokenizers`` library; its post-processing is not used.
        kind: ``"words"``, ``"clip"`` or ``"bert"``.
        start_token: the id put in front of a sentence.
        end_token: the id put behind.
        pad_token: the id that fills up.
    """

    backend: Backend
    kind: str
    start_token: int
    end_token: int
    pad_token: int


def word_vocabulary(words: Sequence[str]) -> Vocabulary:
    """Build a vocabulary of lower-case words, split at spaces and punctuation.

    Args:
        words: each once; they get the ids from 2 on. 0 pads, 1 is unknown, start and end are last.

    Returns:
        The vocabulary.

    Example:
        >>> word_vocabulary(["red", "circle"]).end_token
        5
    """
    ids = {word: index for index, word in enumerate(["[pad]", "[unknown]", *words])}
    ids |= {"[start]": len(ids), "[end]": len(ids) + 1}
    backend = Backend(models.WordLevel(ids, unk_token=UNKNOWN["words"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    return Vocabulary(backend, "words", ids["[start]"], ids["[end]"], ids["[pad]"])


def clip_vocabulary(source: str | Path) -> Vocabulary:
    """Read CLIP's byte pairs; padding is 0, as in OpenAI's and CRIS's code.

    Args:
        source: a folder with ``vocab.json`` and ``merges.txt``, or a name on the Hugging Face Hub.

    Returns:
        The vocabulary.

    Raises:
        ValueError: files that cannot be had, or are damaged.
    """
    from transformers import CLIPTokenizer

    clip = _from_transformers(CLIPTokenizer, source, CLIP_FILES)
    return Vocabulary(clip.backend_tokenizer, "clip", clip.bos_token_id, clip.eos_token_id, 0)


def bert_vocabulary(source: str | Path) -> Vocabulary:
    """Read BERT's word pieces.

    Args:
        source: a folder with ``vocab.txt`` (one token a line; lower-case unless a
            ``tokenizer_config.json`` beside it says otherwise), or a name on the Hugging Face Hub.

    Returns:
        The vocabulary.

    Raises:
        ValueError: files that cannot be had or are damaged, or a special token that is missing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "vocab.txt").write_text("[PAD]\\n[UNK]\\n[CLS]\\n[SEP]\\n[MASK]\\nred\\n")
        >>> bert_vocabulary(folder)[1:]
        ('bert', 2, 3, 0)
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
                f"it has {tokens.count(wanted)}"
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
        reason = " ".join(str(error).split())
        raise ValueError(
            f"tokenizer folder {folder} is damaged: {', '.join(files)} or another file of it "
            f"cannot be read ({type(error).__name__}: {reason})"
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
