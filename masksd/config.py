"""Every choice of the method, with the paper's best values as defaults."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from masksd.errors import check_choice, check_fraction, check_weight, unknown_name
from masksd.masking_config import BEST, RELEVANCE, TOKENS, MaskingConfig


class JsonConfig:
    """Base of configurations that are frozen dataclasses."""

    def to_json(self) -> str:
        """Return the configuration as JSON text, for :meth:`from_json`.

        Example:
            >>> DistillConfig(image=None, text=None).to_json().splitlines()[1]
            '  "image": null,'
        """
        return json.dumps(dataclasses.asdict(self), indent=2)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a configuration from JSON text; missing fields take their defaults.

        Args:
            text: what :meth:`to_json` wrote.

        Raises:
            ValueError: not a JSON object, an unknown field, or a value out of range.

        Example:
            >>> DistillConfig.from_json('{"image": {"ratio": 0.5}, "text": null}').image.ratio
            0.5
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the distillation config is not JSON: {error}") from None
        return _replaced(cls.__name__, cls(), fields)


def _replaced(what: str, default: Any, fields: Any) -> Any:
    """Return a configuration with the fields of a JSON object in it, however deep."""
    if not isinstance(fields, dict):
        raise ValueError(f"{what} must be a JSON object, got {fields!r}")
    known = [field.name for field in dataclasses.fields(default)]
    changed = {}
    for name, value in fields.items():
        if name not in known:
            raise unknown_name(f"field of {what}", name, known)
        inner = getattr(default, name)
        nested = dataclasses.is_dataclass(inner) and value is not None
        changed[name] = _replaced(name, inner, value) if nested else value
    return dataclasses.replace(default, **changed)


@dataclass(frozen=True)
class DistillConfig(JsonConfig):
    """The two masked branches and their losses (Sec. III-C, Eq. 9).

    Attributes:
        image: language-guided masked visual self-distillation (LMVSD); None turns the branch off.
        text: visual-guided masked language self-distillation (VMLSD); None turns the branch off.
        lambda_image: weight ``λ1`` of the LMVSD loss, 0 or more. At 0 the branch still runs, since
            a trainer may raise the weight later; ``image=None`` saves the pass.
        lambda_text: weight ``λ2`` of the VMLSD loss, 0 or more.
        lambda_main: weight of the plain pass's segmentation loss, 0 or more; the paper has 1. At 0
            no gradient runs back through the plain pass, but for features that a branch reuses,
            unless the host computes its own loss.
        target: what a branch learns to predict: the ``"main"`` branch's mask, the
            ``"ground_truth"`` (Table VI), or the mask of a ``"teacher"``: a copy of the model that
            follows it by an exponential average, or a model that you give.
        teacher_decay: of that average, in [0, 1); see :class:`masksd.passes.teacher.Teacher`.
        confidence: how much a pixel of the main branch's or the teacher's mask counts: ``"none"``
            counts all alike; ``"threshold"`` and ``"soft"`` count the sure ones more, see
            :func:`masksd.losses.consistency_loss`.
        detach_target: keep gradients from passing through the main branch's mask as a target.
        share_weights: one neck and decoder for all branches (Table VII); False gives each branch
            its own copies, for training only.
        dice_weight: weight of a Dice term in the loss of the plain pass, 0 or more; the paper has
            none.
        joint: mask patches and words in one pass of weight ``λ1 + λ2``, instead of one pass each.
        one_pass: mask at random in the only pass of a step, which then learns from the truth, and
            from the ``"teacher"`` with weight ``λ1 + λ2`` where that is the target. It costs no
            more than the host; see :mod:`masksd.passes.one_pass`.
        low_memory: run each pass with its own backward, so that the activations of one host pass
            are kept instead of three; the gradients are the same (:mod:`masksd.passes.low_memory`).
        seed: keys the draws and the initial mask tokens.

    Example:
        >>> DistillConfig().text.ratio, DistillConfig().text.rounding
        (0.1, 'stochastic')
        >>> config = DistillConfig(text=None, lambda_image=0.5)  # LMVSD alone
        >>> DistillConfig.from_json(config.to_json()) == config
        True
    """

    image: MaskingConfig | None = field(default_factory=MaskingConfig)
    text: MaskingConfig | None = field(default_factory=MaskingConfig)
    lambda_image: float = 0.75
    lambda_text: float = 0.10
    lambda_main: float = 1.0
    target: Literal["main", "ground_truth", "teacher"] = "main"
    teacher_decay: float = 0.999
    confidence: Literal["none", "threshold", "soft"] = "none"
    detach_target: bool = True
    share_weights: bool = True
    dice_weight: float = 0.0
    joint: bool = False
    one_pass: bool = False
    low_memory: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lambda_image", "lambda_text", "lambda_main", "dice_weight"):
            check_weight(name, getattr(self, name))
        for name in ("detach_target", "share_weights", "joint", "one_pass", "low_memory"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        check_choice("target", self.target, ("main", "ground_truth", "teacher"))
        check_choice("confidence", self.confidence, ("none", "threshold", "soft"))
        if self.confidence != "none" and self.target == "ground_truth":
            raise ValueError(
                f"confidence {self.confidence!r} weighs a predicted mask, which target "
                "'ground_truth' is not: use target 'teacher' or 'main'"
            )
        check_fraction("teacher_decay", self.teacher_decay)
        if self.teacher_decay == 1.0:
            raise ValueError("teacher_decay must be below 1, got 1.0: the teacher would never move")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed must be an integer, got {self.seed!r}")
        for modality in ("image", "text"):
            masking = getattr(self, modality)
            if masking is None:
                continue
            if not isinstance(masking, MaskingConfig):
                raise ValueError(f"{modality} must be a MaskingConfig or None, got {masking!r}")
            for name, does, known in (
                ("relevance", "rank", RELEVANCE[modality]),
                ("token", "stand for", TOKENS[modality]),
            ):
                if (value := getattr(masking, name)) not in known:
                    raise ValueError(
                        f"{name} {value!r} cannot {does} the tokens of {modality}; possible: "
                        f"{', '.join(map(repr, known))}"
                    )
            best: dict[str, Any] = BEST[modality]
            left_out = {name: best[name] for name in best if getattr(masking, name) is None}
            masking = dataclasses.replace(masking, **left_out)
            object.__setattr__(self, modality, masking)  # the dataclass is frozen
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Refuse ways of running the branches that exclude each other."""
        image, text = self.image, self.text
        if text is not None and text.layer:
            raise ValueError(f"text.layer must be 0, got {text.layer}; only patches go deeper")
        if text is not None and text.cell is not None:
            raise ValueError(f"text.cell must be None, got {text.cell}; only patches lie in cells")
        if self.joint:
            if image is None or text is None:
                raise ValueError("joint=True masks patches and words: image and text must be on")
            if (image.every, image.samples) != (text.every, text.samples):
                raise ValueError(
                    "joint=True has one pass: every and samples of image and text must agree, got "
                    f"{(image.every, image.samples)} and {(text.every, text.samples)}"
                )
        others = ("teacher",) if self.one_pass else ("teacher", "ground_truth")
        if self.lambda_main == 0 and self.target not in others:
            raise ValueError(
                f"lambda_main=0 leaves nothing that learns from the truth, got target="
                f"{self.target!r}, one_pass={self.one_pass}; raise it, or use another target"
            )
        if self.one_pass:
            self._check_one_pass()
        if self.low_memory and image is not None and image.layer:
            raise ValueError(
                f"low_memory=True does not work with image.layer={image.layer}, whose pass starts "
                "inside the image tower; use one of the two"
            )
        if self.low_memory and self.target == "main" and not self.detach_target:
            raise ValueError(
                "low_memory=True needs detach_target=True: a gradient through the target would "
                "keep the main pass until the last branch is done"
            )

    def _check_one_pass(self) -> None:
        """Refuse what needs a plain pass before the masked one."""
        if self.target == "main":
            raise ValueError(
                "one_pass=True has no plain pass to learn from, got target='main': use "
                "'ground_truth' or 'teacher'"
            )
        for name, wanted in (("joint", False), ("low_memory", False), ("share_weights", True)):
            if getattr(self, name) is not wanted:
                raise ValueError(
                    f"one_pass=True has one pass of one set of weights; leave {name} at {wanted}"
                )
        on = {name: each for name in BEST if (each := getattr(self, name)) is not None}
        if not on:
            raise ValueError("one_pass=True masks patches or words: image or text must be on")
        usual = {"relevance": ("auto", "random"), "layer": (0,), "every": (1,), "samples": (1,)}
        for modality, masking in on.items():
            for name, possible in usual.items():
                value = getattr(masking, name)
                if value not in possible:
                    raise ValueError(
                        f"one_pass=True masks every sample of every step, at random and where "
                        f"tokens are embedded, got {modality}.{name}={value!r}; leave it at "
                        f"{possible[0]!r}"
                    )

    @staticmethod
    def preset(name: str) -> DistillConfig:
        """Return a named configuration.

        Args:
            name: one of the presets below.

        Ours; ``benchmarks/evidence.md`` has results:

        - ``"cm-masksd"``: the best row of the paper's Tables III, IV and VII.
        - ``"masksd"``: masks more, anywhere, and the branches learn from the truth.
        - ``"augment"``: as many patches and words as in the paper, but at random and in the only
          pass of a step, which costs nothing.

        Other people's recipes, written from their formulas on our engine; the host, its optimiser
        and the loss of its plain pass stay yours:

        - ``"maskris"`` (MaskRIS, arXiv 2411.19067): one more pass with three quarters of the
          image's 32-pixel cells zeroed and 15 % of the words masked by BERT's rule; it learns the
          plain pass's mask. Half the weight each. Our learnable vector stands for ``[MASK]``,
          which CLIP's vocabulary lacks.
        - ``"amlris"`` (AMLRIS, arXiv 2602.22740, as its code is meant): one more pass with a
          quarter of those 32-pixel cells zeroed that attend to no word; it learns the truth. Half
          the weight each. Its published code takes pixel numbers for cell numbers and so zeroes
          nearly all; this is what its paper and comments intend.
        - ``"amlris-paper"`` (as its paper): the same masks, and the masked pass alone learns. The
          plain pass only ranks: a forward without backward, on hosts without a loss of their own.

        Raises:
            ValueError: an unknown name.

        Example:
            >>> DistillConfig.preset("masksd").target
            'ground_truth'
        """
        check_choice("preset", name, PRESETS)
        return PRESETS[name]


_LEAST_ATTENTIVE: dict[str, Any] = {
    "image": MaskingConfig(
        top_k=1.0,
        ratio=0.25,
        relevance="attention",
        threshold=0.4,
        rounding="floor_or_one",
        token="zero",
        cell=32,
    ),
    "text": None,
    "target": "ground_truth",
}

PRESETS = {
    "cm-masksd": DistillConfig(),
    "masksd": DistillConfig(
        image=MaskingConfig(top_k=1.0, ratio=0.5, relevance="random"),
        text=MaskingConfig(top_k=1.0, ratio=0.25, relevance="random"),
        lambda_image=1.0,
        lambda_text=1.0,
        target="ground_truth",
    ),
    "augment": DistillConfig(
        image=MaskingConfig(relevance="random"),
        text=MaskingConfig(relevance="random"),
        target="ground_truth",
        one_pass=True,
    ),
    "maskris": DistillConfig(
        image=MaskingConfig(
            top_k=1.0, ratio=0.75, relevance="random", rounding="ceil", token="zero", cell=32
        ),
        text=MaskingConfig(
            top_k=1.0, ratio=0.15, relevance="random", rounding="independent", token="vocabulary"
        ),
        lambda_image=0.25,
        lambda_text=0.25,
        lambda_main=0.5,
        joint=True,
    ),
    "amlris": DistillConfig(**_LEAST_ATTENTIVE, lambda_image=0.5, lambda_main=0.5),
    "amlris-paper": DistillConfig(**_LEAST_ATTENTIVE, lambda_image=1.0, lambda_main=0.0),
}


def checked_config(config: DistillConfig | None, teacher: object = None) -> DistillConfig:
    """Return the config, or the paper's for None; anything else is an error."""
    if config is not None and not isinstance(config, DistillConfig):
        raise ValueError(f"config must be a DistillConfig, got {type(config).__name__}")
    config = config or DistillConfig()
    if teacher is not None and config.target != "teacher":
        raise ValueError(
            f"a teacher was given, but the branches' target is {config.target!r}: use "
            "DistillConfig(target='teacher')"
        )
    return config
