"""A few runs at a time, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def in_workers(
    function: Callable[..., Result], calls: Mapping[str, tuple[Any, ...]], jobs: int
) -> Iterator[tuple[str, Result]]:
    """Yield the name and the result of each call as it ends.

    When a call fails, those under way are finished and yielded and no more are begun; then its
    error is raised.

    Args:
        function: that is called; with its arguments and result to be pickled for several jobs.
        calls: arguments by name.
        jobs: calls at a time; 1 makes them here, one after another.
    """
    if jobs == 1:
        for name, arguments in calls.items():
            yield name, function(*arguments)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=begin_worker, initargs=(threads,)
    ) as pool:
        waiting = {pool.submit(function, *arguments): name for name, arguments in calls.items()}
        failed: BaseException | None = None
        try:
            for future in as_completed(waiting):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield waiting[future], future.result()
                elif failed is None:
                    failed = error
                    for other in waiting:
                        other.cancel()
        finally:
            pool.shutdown(cancel_futures=True)
        if failed is not None:
            raise failed


def begin_worker(threads: int) -> None:
    """Begin a process: it takes so many threads, and ends when its parent does.

    Args:
        threads: of torch.
    """
    torch.set_num_threads(threads)

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # nobody is left to take what is under way

    Thread(target=watch, daemon=True).start()
