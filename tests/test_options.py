"""Options that do nothing are said, and nothing else is."""

from __future__ import annotations

import pytest

from masksd.kit.cli import _parse, main
from masksd.kit.cli.options import given_options
from masksd.kit.cli.switched_off import options_without_effect
from masksd.kit.cli.train import _chosen

WITHOUT_EFFECT = {
    "--gamma 0.5": "only --schedule multistep falls by it",
    "--power 2 --schedule cosine": "only --schedule poly falls by it",
    "--distill.teacher-decay 0.9": "no average of the weights is kept",
    "--distill.no-detach-target --distill.target ground_truth": "the target is not the main",
    "--ramp 0 0.5 --branches none": "no branch is on (--branches)",
    "--split-by unc": "the data are generated; name --data-root",
    "--level hard --data-root here": "the data are read from --data-root",
    "--distill.image.ratio 0.5 --branches vmlsd": "the branch that masks patches is off",
    "--distill.lambda-text=1 --branches lmvsd": "the branch that masks words is off",
}
FINE = (
    "--level hard --pictures 9 --lr 0.1",
    "--distill.image.ratio 0.5 --branches lmvsd",
    "--schedule poly --power 2",
    "--data-root here --split-by unc",
    "--distill.target teacher --distill.teacher-decay 0.9",
)


def lost(options: str) -> list[str]:
    arguments = ["train", *options.split()]
    return [*options_without_effect(_chosen(_parse(arguments)), given_options(arguments))]


@pytest.mark.parametrize("options", WITHOUT_EFFECT)
def test_an_option_without_effect_is_named_with_the_reason(options: str) -> None:
    [line] = lost(options)
    option = options.split()[0].partition("=")[0]
    assert line.startswith(f"{option} does nothing: {WITHOUT_EFFECT[options]}")


@pytest.mark.parametrize("options", FINE)
def test_others_are_not(options: str) -> None:
    assert lost(options) == []


def test_an_option_of_a_branch_that_is_switched_off_beside_it_is_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = "--branches none --distill.target teacher"
    assert main(["train", *options.split()]) == 2
    says = "--distill.target does nothing: no branch is on (--branches); leave one of them out"
    assert says in capfd.readouterr().err
