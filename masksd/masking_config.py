"""Which tokens of one modality are masked, and by what they are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from masksd.errors import check_choice, check_fraction

SELECTIONS = ("top", "bottom")
ROUNDINGS = ("nearest", "stochastic", "floor", "floor_or_one", "ceil", "independent")
COUNTS = ("words", "sequence")

RELEVANCE = {
    "image": (
        *("auto", "dot", "prediction", "projection", "attention", "neck", "random"),
        "ground_truth",
    ),
    "text": ("auto", "dot", "projection", "random"),
}
"""What may rank the tokens of a modality; see :mod:`masksd.relevance`."""

BEST = {
    "image": {"ratio": 0.25, "rounding": "nearest"},
    "text": {"ratio": 0.10, "rounding": "stochastic"},
}
"""What :class:`MaskingConfig` leaves to the modality: the paper's ratios, our rounding."""

TOKENS = {"image": ("shared", "position", "zero"), "text": ("shared", "position", "vocabulary")}
"""What may stand for a masked token; see :class:`MaskingConfig`."""


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
            the model's own ``"prediction"``, its ``"attention"`` (how sure a patch is of one word,
            see :func:`masksd.relevance.word_attention`), the spatial attention of its ``"neck"``,
            where that says so, as language-driven attention does, or, for study, the
            ``"ground_truth"``.
            ``"auto"`` is dot where the space is shared, else prediction for patches and random for
            words.
        threshold: only tokens whose relevance is below it may be masked, and ``top_k`` is a share
            of these; None lets all pass.
        rounding: ``"nearest"``, ``"stochastic"``, ``"floor"``, ``"floor_or_one"``, ``"ceil"`` or
            ``"independent"``; see :func:`masksd.masking.select_tokens`. None takes nearest for
            patches and stochastic for words, which are so few that nearest would mask one at any
            ratio.
        count: what ``top_k`` is a share of: the real ``"words"`` or the padded ``"sequence"``. The
            same for patches, which are all real.
        token: one learnable vector ``"shared"`` by all positions, or one for each ``"position"``.
            ``"zero"``, patches only, learns nothing: it zeroes what the embedding is given, which
            is the image where the embedding is its first module, and embeds again.
            ``"vocabulary"``, words only, is BERT's rule: of the words drawn 80 % become the shared
            vector, 10 % a random id of the embedding's table (any, its own included), and 10 %
            stay.
        positions: how many, for ``token="position"``: the patches of an image (the cells, with
            ``cell``), or the longest sentence.
        cell: patches only: side in pixels of square cells that are ranked and masked as one, at
            most an eighth of the image's shorter side; None takes the host's own patches.
            Features of a cell are the mean of its patches'. Cells of another size than the
            patches of the embedding reach it by nearest neighbour.
        layer: patches only: 0 replaces embeddings, before positions are added (our reading of the
            paper); ``n`` replaces the output of layer ``n`` of the image tower, and the masked pass
            runs only the layers above it. Needs a triple whose encoder can resume there.
        every: run the branch in one step out of this many. See
            :meth:`masksd.CrossModalMaskedSelfDistill.set_step`.
        samples: share of a batch that the branch sees, counted from its first sample, in (0, 1].

    Example:
        >>> MaskingConfig(top_k=0.5, ratio=0.75).ratio
        0.75
    """

    top_k: float = 0.5
    ratio: float | None = None
    selection: Literal["top", "bottom"] = "top"
    relevance: Literal[
        "auto", "dot", "prediction", "projection", "attention", "neck", "random", "ground_truth"
    ] = "auto"
    threshold: float | None = None
    rounding: (
        Literal["nearest", "stochastic", "floor", "floor_or_one", "ceil", "independent"] | None
    ) = None
    count: Literal["words", "sequence"] = "words"
    token: Literal["shared", "position", "zero", "vocabulary"] = "shared"
    positions: int | None = None
    cell: int | None = None
    layer: int = 0
    every: int = 1
    samples: float = 1.0

    def __post_init__(self) -> None:
        check_fraction("top_k", self.top_k)
        check_fraction("samples", self.samples)
        if self.samples == 0:
            raise ValueError("samples must be above 0, got 0; turn the branch off with None")
        cell = 1 if self.cell is None else self.cell
        for name, value, least in (
            ("layer", self.layer, 0),
            ("every", self.every, 1),
            ("cell", cell, 1),
        ):
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
        check_choice("token", self.token, {*TOKENS["image"], *TOKENS["text"]})
        threshold = self.threshold
        if threshold is not None and (
            not isinstance(threshold, int | float)
            or isinstance(threshold, bool)
            or not abs(threshold) < float("inf")
        ):
            raise ValueError(f"threshold must be a finite number or None, got {threshold!r}")
        if self.layer and (self.cell is not None or self.token == "zero"):
            raise ValueError(
                f"layer={self.layer} masks what a layer gives, one patch at a time: leave cell and "
                f"token='zero' out, got cell={self.cell!r} with token={self.token!r}"
            )
        if (self.token == "position") != (self.positions is not None):
            raise ValueError(
                "positions is the number of tokens of token='position' and of nothing else, "
                f"got token={self.token!r} with positions={self.positions!r}"
            )
        if self.positions is not None and (
            not isinstance(self.positions, int) or self.positions < 1
        ):
            raise ValueError(f"positions must be a positive integer, got {self.positions!r}")
