"""The kit's face: every name is there, is documented, and is loaded only when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from masksd import kit
from tests.test_import import HEAVY, brought_by


@pytest.mark.parametrize("name", kit.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    assert len(getattr(kit, name).__doc__.splitlines()) > 1
    assert name in dir(kit)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        kit.trian  # noqa: B018


def test_importing_the_kit_is_light_and_using_it_is_not() -> None:
    assert brought_by("masksd.kit").isdisjoint(HEAVY)
    assert "safetensors" in brought_by("masksd.kit; masksd.kit.train")


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "masksd", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("masksd ")
