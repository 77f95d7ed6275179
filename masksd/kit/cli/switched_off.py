"""Options that another option switches off."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from masksd.kit.config import TrainConfig

_GENERATED = ("level", "variant", "pictures")
_ON_DISK = ("images", "split_by", "index", "skip_bad")
_BRANCHES = ("target", "confidence", "detach_target", "share_weights", "joint", "one_pass")

# the beginnings of options, when they do nothing, and why
RULES: tuple[tuple[tuple[str, ...], Callable[[TrainConfig], bool], str], ...] = (
    (
        ("distill.image", "distill.lambda_image"),
        lambda c: c.distill.image is None,
        "the branch that masks patches is off (--branches)",
    ),
    (
        ("distill.text", "distill.lambda_text"),
        lambda c: c.distill.text is None,
        "the branch that masks words is off (--branches)",
    ),
    (
        ("ramp", *(f"distill.{name}" for name in _BRANCHES)),
        lambda c: c.distill.image is None and c.distill.text is None,
        "no branch is on (--branches)",
    ),
    (
        ("distill.teacher_decay",),
        lambda c: c.distill.target != "teacher",
        "no average of the weights is kept; --distill.target teacher keeps one",
    ),
    (
        ("distill.detach_target",),
        lambda c: c.distill.target != "main",
        "the target is not the main branch's mask (--distill.target)",
    ),
    (_GENERATED, lambda c: not c.data.generated(), "the data are read from --data-root"),
    (_ON_DISK, lambda c: c.data.generated(), "the data are generated; name --data-root"),
    (("gamma",), lambda c: c.schedule != "multistep", "only --schedule multistep falls by it"),
    (("power",), lambda c: c.schedule != "poly", "only --schedule poly falls by it"),
)


def options_without_effect(config: TrainConfig, given: Collection[str]) -> Iterator[str]:
    """Say which of the options given do nothing in a run, and why.

    Example:
        >>> list(options_without_effect(TrainConfig(), ["--power", "--lr"]))
        ['--power does nothing: only --schedule poly falls by it']
    """
    for option in given:
        name = option.removeprefix("--").replace("-", "_")
        name = name.removeprefix("no_").replace(".no_", ".")
        for beginnings, off, why in RULES:
            starts = any(name == each or name.startswith(f"{each}.") for each in beginnings)
            if starts and off(config):
                yield f"{option} does nothing: {why}"
                break
