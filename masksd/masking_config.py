"""Which tokens of one modality are masked, and by what they are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from masksd.errors import check_choice, check_fraction
from masksd.masking.api import COUNTS, ROUNDINGS, SELECTIONS

RELEVANCE = {
    "image": ("auto", "dot", "prediction", "projection", "random", "ground_truth"),
    "text": ("auto", "dot", "projection", "random"),
}
"""What may rank the tokens of a modality; see :mod:`masksd.relevance`."""

BEST = {
    "image": {"ratio": 0.25, "rounding": "nearest"},
    "text": {"ratio": 0.10, "rounding": "stochastic"},
}
"""What :class:`MaskingConfig` leaves to the modality: the paper's ratios, our rounding."""


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens of one modality are masked (Sec. III-B, Tables III and IV).

    Attributes:
        top_k: share of the tokens, by relevance, that passes the filter, in [0, 1] (``K``).
        ratio: share of those that is masked, in [0, 1] (``α``); None takes the paper's best for the
            modality, 0.25 of the patches and 0.10 of the words.
        selection: keep the ``"top"`` or the ``"bottom"`` of the ranking.
        relevance: what ranks: the ``"dot"`` product with the other modality's vector (the paper,
            for hosts whose patches and words share a space); ``"projection"``, the same after a
            learned linear map, trained by text-to-pixel alignment; ``"random"``; for patches only,
            the model's own ``"prediction"`` or, for study, the ``"ground_truth"``. ``"auto"`` is
            dot where the space is shared, else prediction for patches and random for words.
        rounding: ``"nearest"``, ``"stochastic"``, ``"floor"`` or ``"ceil"``; see
            :func:`masksd.masking.select_tokens`. None takes nearest for patches and stochastic for
            words, which are so few that nearest would mask one at any ratio.
        count: what ``top_k`` is a share of: the real ``"words"`` or the padded ``"sequence"``. The
            same for patches, which are all real.
        token: one learnable vector ``"shared"`` by all positions, or one for each ``"position"``.
        positions: how many, for ``token="position"``: the patches of an image, or the longest
            sentence.
        layer: patches only: 0 replaces embeddings, before positions are added (our reading of the
            paper); ``n`` replaces the output of layer ``n`` of the image tower, and the masked pass
            runs only the layers above it. Needs a triple whose encoder can resume there.
        every: run the branch in one step out of this many. See
            :meth:`masksd.CrossModalMaskedSelfDistill.set_step`.
        samples: share of a batch that the branch sees, counted from its first sample, in (0, 1].

    Example:
        >>> MaskingConfig(top_k=0.5, ratio=0.75).ratio
        0.75
        >>> MaskingConfig(rounding="nearst")
        Traceback (most recent call last):
        ...
        ValueError: unknown rounding 'nearst'; did you mean 'nearest'? Known: 'ceil', 'floor', ...
    """

    top_k: float = 0.5
    ratio: float | None = None
    selection: Literal["top", "bottom"] = "top"
    relevance: Literal["auto", "dot", "prediction", "projection", "random", "ground_truth"] = "auto"
    rounding: Literal["nearest", "stochastic", "floor", "ceil"] | None = None
    count: Literal["words", "sequence"] = "words"
    token: Literal["shared", "position"] = "shared"
    positions: int | None = None
    layer: int = 0
    every: int = 1
    samples: float = 1.0

    def __post_init__(self) -> None:
        check_fraction("top_k", self.top_k)
        check_fraction("samples", self.samples)
        if self.samples == 0:
            raise ValueError("samples must be above 0, got 0; turn the branch off with None")
        for name, least in (("layer", 0), ("every", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
        if self.ratio is not None:
            check_fraction("ratio", self.ratio)
        check_choice("selection", self.selection, SELECTIONS)
        check_choice("relevance", self.relevance, RELEVANCE["image"])
        if self.rounding is not None:
            check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("count", self.count, COUNTS)
        check_choice("token", self.token, ("shared", "position"))
        if (self.token == "position") != (self.positions is not None):
            raise ValueError(
                "positions is the number of tokens of token='position' and of nothing else, "
                f"got token={self.token!r} with positions={self.positions!r}"
            )
        if self.positions is not None and (
            not isinstance(self.positions, int) or self.positions < 1
        ):
            raise ValueError(f"positions must be a positive integer, got {self.positions!r}")
