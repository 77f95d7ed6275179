from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksd import DistillConfig, MaskingConfig
from masksd.config import PRESETS

maskings = st.builds(
    MaskingConfig,
    top_k=st.floats(0, 1),
    ratio=st.floats(0, 1),
    selection=st.sampled_from(["top", "bottom"]),
    relevance=st.sampled_from(["dot", "random"]),
    threshold=st.none() | st.floats(-5, 5),
    rounding=st.sampled_from(
        ["nearest", "stochastic", "floor", "floor_or_one", "ceil", "independent"]
    ),
    count=st.sampled_from(["words", "sequence"]),
)
pictures = st.builds(
    dataclasses.replace,
    maskings,
    token=st.sampled_from(["shared", "zero"]),
    cell=st.none() | st.integers(1, 64),
)
sentences = st.builds(
    dataclasses.replace, maskings, token=st.sampled_from(["shared", "vocabulary"])
)
configs = st.builds(
    DistillConfig,
    image=st.none() | pictures,
    text=st.none() | sentences,
    lambda_image=st.floats(0, 10),
    target=st.sampled_from(["main", "ground_truth"]),
    share_weights=st.booleans(),
    seed=st.integers(),
)


@given(configs)
def test_json_round_trip(config):
    assert DistillConfig.from_json(config.to_json()) == config


def test_fields_left_out_of_json_take_the_defaults_of_their_own_modality():
    config = DistillConfig.from_json('{"text": {"top_k": 1.0}}')
    assert config == dataclasses.replace(
        DistillConfig(), text=MaskingConfig(top_k=1.0, ratio=0.10, rounding="stochastic")
    )


def test_what_is_left_out_is_the_papers_best_for_the_modality():
    config = DistillConfig(image=MaskingConfig(top_k=1.0), text=MaskingConfig(top_k=1.0))
    assert (config.image.ratio, config.image.rounding) == (0.25, "nearest")
    assert (config.text.ratio, config.text.rounding) == (0.10, "stochastic")
    chosen = DistillConfig(text=MaskingConfig(ratio=0.25, rounding="nearest"))
    assert (chosen.text.ratio, chosen.text.rounding) == (0.25, "nearest")


def test_the_preset_is_the_best_row_of_the_paper():
    config = DistillConfig.preset("cm-masksd")
    assert (config.image.top_k, config.image.ratio, config.lambda_image) == (0.5, 0.25, 0.75)
    assert (config.text.top_k, config.text.ratio, config.lambda_text) == (0.5, 0.10, 0.10)
    assert config.share_weights
    assert config.target == "main"


def test_our_preset_masks_anywhere_and_learns_from_the_ground_truth():
    config = DistillConfig.preset("masksd")
    assert (config.image.top_k, config.image.ratio, config.lambda_image) == (1.0, 0.5, 1.0)
    assert (config.text.top_k, config.text.ratio, config.lambda_text) == (1.0, 0.25, 1.0)
    assert config.image.relevance == config.text.relevance == "random"
    assert (config.target, config.dice_weight, config.share_weights) == ("ground_truth", 0.0, True)


def test_presets_of_others_are_theirs():
    maskris = DistillConfig.preset("maskris")
    assert (maskris.image.ratio, maskris.image.cell, maskris.text.ratio) == (0.75, 32, 0.15)
    assert maskris.lambda_main == maskris.lambda_image + maskris.lambda_text == 0.5
    assert (maskris.joint, maskris.target, maskris.detach_target) == (True, "main", True)
    code, paper = DistillConfig.preset("amlris"), DistillConfig.preset("amlris-paper")
    assert (code.lambda_main, code.lambda_image) == (0.5, 0.5)
    assert (paper.lambda_main, paper.lambda_image) == (0.0, 1.0)
    assert paper == dataclasses.replace(code, lambda_main=0.0, lambda_image=1.0)
    assert (code.image.threshold, code.image.ratio, code.text) == (0.4, 0.25, None)
    for config in (maskris, code, paper):
        assert DistillConfig.from_json(config.to_json()) == config


def test_every_preset_is_told_of():
    for name in PRESETS:
        assert f'``"{name}"``' in DistillConfig.preset.__doc__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskingConfig(ratio=1.2), r"ratio must be a number in \[0, 1\], got 1.2"),
        (lambda: MaskingConfig(top_k="half"), r"top_k must be a number in \[0, 1\], got 'half'"),
        (lambda: MaskingConfig(selection="tpo"), "unknown selection 'tpo'; did you mean 'top'"),
        (lambda: MaskingConfig(relevance="dots"), "unknown relevance 'dots'; did you mean 'dot'"),
        (lambda: MaskingConfig(token="position"), "got token='position' with positions=None"),
        (lambda: MaskingConfig(positions=4), "got token='shared' with positions=4"),
        (lambda: MaskingConfig(token="position", positions=0), "positions must be a positive"),
        (lambda: MaskingConfig(cell=0), "cell must be a whole number of at least 1, got 0"),
        (lambda: MaskingConfig(cell=32.0), "cell must be a whole number of at least 1, got 32.0"),
        (
            lambda: MaskingConfig(threshold="low"),
            "threshold must be a finite number or None, got 'low'",
        ),
        (lambda: MaskingConfig(threshold=float("nan")), "threshold must be a finite number"),
        (lambda: MaskingConfig(token="zeros"), "unknown token 'zeros'; did you mean 'zero'"),
        (
            lambda: MaskingConfig(layer=2, cell=32),
            "leave cell and token='zero' out, got cell=32 with token='shared'",
        ),
        (
            lambda: DistillConfig(text=MaskingConfig(token="zero")),
            "token 'zero' cannot stand for the tokens of text; possible: 'shared', 'position', 'v",
        ),
        (
            lambda: DistillConfig(image=MaskingConfig(token="vocabulary")),
            "token 'vocabulary' cannot stand for the tokens of image; possible: 'shared'",
        ),
        (lambda: DistillConfig(text=MaskingConfig(cell=8)), "text.cell must be None, got 8"),
        (
            lambda: DistillConfig(text=MaskingConfig(relevance="attention")),
            "relevance 'attention' cannot rank the tokens of text",
        ),
        (lambda: DistillConfig(lambda_text=-1), "lambda_text must be a finite number, 0 or more"),
        (lambda: DistillConfig(dice_weight=float("nan")), "dice_weight must be a finite number"),
        (
            lambda: DistillConfig(target="truth"),
            "unknown target 'truth'; did you mean 'ground_truth'",
        ),
        (lambda: DistillConfig(seed=0.5), "seed must be an integer, got 0.5"),
        (
            lambda: DistillConfig(detach_target="no"),
            "detach_target must be True or False",
        ),
        (lambda: DistillConfig(share_weights=1), "share_weights must be True or False, got 1"),
        (lambda: DistillConfig(image=0.5), "image must be a MaskingConfig or None, got 0.5"),
        (
            lambda: DistillConfig(text=MaskingConfig(relevance="ground_truth")),
            "relevance 'ground_truth' cannot rank the tokens of text; possible: 'auto', 'dot'",
        ),
        (lambda: DistillConfig.preset("cm-maskds"), "unknown preset .*did you mean 'cm-masksd'"),
        (lambda: DistillConfig.from_json("{"), "the distillation config is not JSON"),
        (lambda: DistillConfig.from_json("[]"), r"DistillConfig must be a JSON object, got \[\]"),
        (
            lambda: DistillConfig.from_json('{"lamda_image": 1}'),
            "unknown field of DistillConfig 'lamda_image'; did you mean 'lambda_image'",
        ),
        (
            lambda: DistillConfig.from_json('{"image": {"rato": 1}}'),
            "unknown field of image 'rato'; did you mean 'ratio'",
        ),
    ],
)
def test_errors_say_what_came_and_what_fits(make, message):
    with pytest.raises(ValueError, match=message):
        make()
