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
    """Yield the name and result of each call as it ends; one job makes the calls here, in order.

    If a call fails, those under way are finished and yielded, and then its error is raised.
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
    """Set up a worker: its share of torch's threads, and an end when its parent ends."""
    torch.set_num_threads(threads)

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # nobody is left to take the result

    Thread(target=watch, daemon=True).start()
