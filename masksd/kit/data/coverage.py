"""How much of a data set's sentences a tokenizer passes on to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masksd.kit.data.tokenizers import Tokenizer
from masksd.kit.evaluation.reading import spread_indices

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

_SAMPLED = 2_000  # sentences, which takes a fraction of a second


def check_words(dataset: ReferDataset, tokenizer: Tokenizer, name: str) -> str | None:
    """Look for sentences with unknown words and for those that are cut, in an even sample.

    Args:
        dataset: the items of a split; with refs as items, this epoch's sentence of each.
        tokenizer: that encodes them.
        name: of the tokenizer, as the user knows it.

    Returns:
        The shares of both in one sentence; None where every sentence passes whole.

    Raises:
        ValueError: not one sentence has a word that the tokenizer knows.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.refer import ReferDataset
        >>> from masksd.kit.data.shapes.build import ShapesConfig, build_shapes
        >>> from masksd.kit.data.tokenizers import load_tokenizer
        >>> small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
        >>> root = build_shapes(tempfile.mkdtemp(), small, progress=False)
        >>> tokenizer = load_tokenizer("shapes", 3)
        >>> data = ReferDataset(root, "shapes", "val", tokenizer=tokenizer, image_size=8,
        ...                     split_by="masksd")
        >>> check_words(data, tokenizer, "shapes")
        '100.0 % of the sentences are cut at max_length 3 (--max-length)'
    """
    sentences = [dataset.sentence(index) for index in spread_indices(len(dataset), _SAMPLED)]
    unknown = cut = known = 0
    for sentence in sentences:
        kept = tokenizer.kept(sentence)
        tokens = int(tokenizer.attention_mask(tokenizer.encode(sentence)).sum()) - 2
        known += tokens > len(tokenizer.unknown_words(kept))
        unknown += bool(tokenizer.unknown_words(sentence))
        cut += kept != sentence
    if sentences and not known:
        raise ValueError(
            f"tokenizer {name!r} knows no word of the sentences, as in {sentences[0][:80]!r}; "
            "choose another tokenizer (--tokenizer)"
        )
    parts = []
    if unknown:
        share = f"{100 * unknown / len(sentences):.1f} %"
        parts.append(
            f"{share} of the sentences hold words that tokenizer {name!r} does not know "
            "(--tokenizer)"
        )
    if cut:
        share = f"{100 * cut / len(sentences):.1f} %"
        of = "" if unknown else " of the sentences"
        parts.append(f"{share}{of} are cut at max_length {tokenizer.max_length} (--max-length)")
    return "; ".join(parts) or None
