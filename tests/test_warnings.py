"""pytest's settings: a warning of ours is an error, a library's deprecation is not."""

from __future__ import annotations

import warnings

import pytest


def warn(module: str, category: type[Warning]) -> None:
    """Warn as a line of this module would."""
    exec("warnings.warn('planted', category)", {**globals(), **locals(), "__name__": module})


@pytest.mark.parametrize("module", ["masksd.planted", "masksd", "tests.planted"])
@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning])
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="planted"):
        warn(module, category)


# A library may point at the line of ours that calls it.
@pytest.mark.parametrize("module", ["transformers.planted", "masksd.planted"])
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_a_deprecation_is_not(module: str, category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warn(module, category)
    assert [warning.category for warning in seen] == [category]


def test_a_librarys_warning_is_not() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warn("transformers.planted", UserWarning)
    assert len(seen) == 1
