"""What every test process shares: one thread, no network, and a cache folder of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Before torch is imported, and inherited by the processes that tests start: two pytest workers
# with a thread a core each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


LONGEST = ("test_study.py", "test_trainer.py", "test_cli.py", "test_budget.py", "test_check.py")
"""Files that start first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and pytest's workers, out of the user's cache and out of each other's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _compiled_code_is_forgotten() -> Iterator[None]:
    """Start every test without what torch has compiled for another."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
