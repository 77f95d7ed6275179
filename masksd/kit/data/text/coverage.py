"""What a tokenizer loses of the sentences of a data set."""

from __future__ import annotations

from typing import Protocol

from masksd.kit.data.survey import spread_indices
from masksd.kit.data.text.tokenizers import Tokenizer

_CHECKED = 2_000  # expressions that check_words reads, which takes a fraction of a second
_REMEDY = "`masksd data words ROOT NAME` makes a tokenizer of your own sentences (--tokenizer)"


class Sentences(Protocol):
    """What :func:`check_words` reads of a data set."""

    def __len__(self) -> int: ...

    def sentence(self, index: int) -> str:
        """Return the expression of an item."""
        ...


def check_words(dataset: Sentences, tokenizer: Tokenizer, name: str) -> str | None:
    """Say how many words are unknown and expressions cut, in an even sample; None if none.

    A ValueError where the tokenizer does not know half of the words: little could be learned.
    """
    sentences = [dataset.sentence(index) for index in spread_indices(len(dataset), _CHECKED)]
    words = unknown = holding = cut = 0
    for sentence in sentences:
        kept = tokenizer.kept(sentence)
        lost = len(tokenizer.unknown_words(kept))
        words += int(tokenizer.attention_mask(tokenizer.encode(sentence)).sum()) - 2
        unknown += lost
        holding += bool(lost or tokenizer.unknown_words(sentence))
        cut += kept != sentence
    of = f"{100 * unknown / max(1, words):.1f} % of the words"
    if sentences and 2 * unknown > words - (words == 0):
        known = "no word" if unknown == words else "too few words"
        raise ValueError(
            f"tokenizer {name!r} knows {known} of the sentences, as in {sentences[0][:80]!r}: "
            f"{of} are unknown; "
            f"{_REMEDY}, or choose another"
        )
    parts = []
    if holding:
        parts.append(
            f"tokenizer {name!r} does not know {of}, in {_share(holding, sentences)} of the "
            f"sentences; {_REMEDY}"
        )
    if cut:
        parts.append(
            f"{_share(cut, sentences)} of the sentences are cut at max_length "
            f"{tokenizer.max_length} (--max-length)"
        )
    return "; ".join(parts) or None


def _share(count: int, sentences: list[str]) -> str:
    return f"{100 * count / len(sentences):.1f} %"
