"""Vocabularies of the tokenizers: our words, CLIP's byte pairs, BERT's word pieces, and checks.

A file can hold any regular expression, rewriting and ids: only steps that ours have are accepted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from masksd.errors import check_choice, one_line, unknown_name
from masksd.models.registry import hub_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_NAME = "openai/clip-vit-base-patch16"
CLIP_FILES = ("vocab.json", "merges.txt")
BERT_NAME = "bert-base-uncased"
BERT_FILES = ("vocab.txt",)
# the token of a word that the vocabulary lacks, by kind; byte pairs lack none
UNKNOWN = {"words": "[unknown]", "clip": None, "bert": "[UNK]"}
SETTINGS, MODEL = "tokenizer_settings.json", "tokenizer.json"

_MODELS: dict[str, Any] = {"words": models.WordLevel, "clip": models.BPE, "bert": models.WordPiece}
_CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_STEPS = {  # what takes time by the length of the text and no more
    *("NFC", "Lowercase", "BertNormalizer"),
    *("WhitespaceSplit", "Punctuation", "ByteLevel", "BertPreTokenizer"),
}
_PATTERNS = (  # of steps with a regular expression: what, pattern, replacement
    ("Replace", {"Regex": r"\s+"}, " "),
    ("Split", {"Regex": _CLIP_PATTERN}, None),
    ("Split", {"Regex": r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP_PATTERN}, None),
)
_MOST_STEPS = 8


class Vocabulary(NamedTuple):
    """A backend of the ``tokenizers`` library with its kind and its special tokens."""

    backend: Backend
    kind: str
    start_token: int
    end_token: int
    pad_token: int


def find_vocabulary(name_or_dir: str | Path) -> Vocabulary:
    """Find a vocabulary by name, in a folder, or on the Hub, as ``load_tokenizer`` says."""
    folder, name = Path(name_or_dir), str(name_or_dir)
    if name == "shapes":
        from masksd.kit.data.shapes import shapes_vocabulary

        return word_vocabulary(shapes_vocabulary())
    if folder.is_dir():
        if all((folder / each).is_file() for each in CLIP_FILES):
            return _clip_vocabulary(folder)
        if all((folder / each).is_file() for each in BERT_FILES):
            return _bert_vocabulary(folder)
        raise ValueError(
            f"tokenizer folder {folder} has neither {SETTINGS} (a saved tokenizer) nor "
            f"{' and '.join(CLIP_FILES)} (CLIP's) nor {' and '.join(BERT_FILES)} (BERT's)"
        )
    if name == "bert":
        return _bert_vocabulary(BERT_NAME)
    if name == "clip" or name.partition("@")[0].count("/") == 1:
        return _clip_vocabulary(CLIP_NAME if name == "clip" else name)
    error = unknown_name("tokenizer", name, ["bert", "clip", "shapes"])
    raise ValueError(f"{error} (--tokenizer)")


def read_backend(text: str) -> Backend:
    """Read a ``tokenizer.json``; a ``ValueError`` where it is none."""
    try:
        if "model" not in json.loads(text):
            raise ValueError("no field 'model'")
        return Backend.from_str(text)
    except Exception as error:  # the library raises this very class, whatever is wrong
        raise ValueError(f"{MODEL}: {error}") from None


def check_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """Return a vocabulary; a ``ValueError`` unless it is one of its kind, and safe to use.

    A regular expression can take time without end, replacements all memory, and an id that is too
    large leads out of a model's table.
    """
    backend, kind = vocabulary.backend, vocabulary.kind
    model: Any = backend.model
    check_choice("kind", kind, UNKNOWN)
    if type(model) is not _MODELS[kind]:
        raise ValueError(
            f"the vocabulary is a {type(model).__name__}, that of kind {kind!r} is a "
            f"{_MODELS[kind].__name__}"
        )
    size = backend.get_vocab_size()
    largest = max(backend.get_vocab().values(), default=0)
    if largest >= size:
        raise ValueError(f"the vocabulary has {size} tokens, but an id of {largest}")
    for name in ("start_token", "end_token", "pad_token"):
        token = getattr(vocabulary, name)
        if type(token) is not int or not 0 <= token < size:
            raise ValueError(f"{name} must be an id from 0 to {size - 1}, got {token!r}")
    if kind != "bert" and vocabulary.end_token != size - 1:
        raise ValueError(f"end_token must be the largest id {size - 1}, got {vocabulary.end_token}")
    unknown = model.unk_token
    if unknown is not None and model.token_to_id(unknown) is None:
        raise ValueError(f"the token of unknown words, {unknown!r}, is not in the vocabulary")
    steps = [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
    for step in steps:
        found = (step["type"], step.get("pattern"), step.get("content"))
        if step["type"] not in _STEPS and found not in _PATTERNS:
            raise ValueError(
                f"the vocabulary changes text by {json.dumps(step)[:80]}, which may take any time; "
                "only the steps of CLIP, BERT and plain words are run"
            )
    if len(steps) > _MOST_STEPS:
        raise ValueError(f"the vocabulary has {len(steps)} steps, at most {_MOST_STEPS} are run")
    return vocabulary


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the single steps of a normaliser or pre-tokeniser, as the library stores them."""
    return [] if part is None else list(_flat(json.loads(part.__getstate__())))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] == "Sequence":
        for each in step.get("normalizers", step.get("pretokenizers", ())):
            yield from _flat(each)
    else:
        yield step


def words_of(sentences: Iterable[str], least: int = 1) -> list[str]:
    """Return the words that occur so often at the least, the most frequent first."""
    backend = word_vocabulary(()).backend
    split, lower = backend.pre_tokenizer.pre_tokenize_str, backend.normalizer.normalize_str
    counts = Counter(word for each in sentences for word, _ in split(lower(each)))
    return sorted((word for word in counts if counts[word] >= least), key=lambda w: (-counts[w], w))


def word_vocabulary(words: Sequence[str]) -> Vocabulary:
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
    """Read BERT's word pieces, lower-case unless a ``tokenizer_config.json`` says otherwise."""
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
    name, revision = hub_source(source)
    try:
        for file in files:
            path = try_to_load_from_cache(name, file, revision=revision)
            if not isinstance(path, str):
                # asked once: where there is no network, a download tries again for 23 seconds
                if not has_file(name, file, revision):
                    raise FileNotFoundError(f"no {file}")
                path = hf_hub_download(name, file, revision=revision)
    except (OSError, HFValidationError) as error:
        wanted = " ".join(files)
        raise ValueError(
            f"tokenizer {name!r} is not in the cache and cannot be downloaded "
            f"({type(error).__name__}); get {' and '.join(files)} with `hf download {name} "
            f"{wanted} tokenizer_config.json --revision {revision}` where there is a network, or "
            "pass a folder that holds them; `masksd data words ROOT NAME` makes one of your own "
            "sentences"
        ) from None
    return Path(path).parent
