"""Signals that ask a run to stop: it finishes its step and saves."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_SAME_REQUEST = 2.0
"""Seconds in which a repeated signal is the same request: torchrun passes on what a terminal or a
scheduler has sent to every process already."""


class StopRequest:
    """Notes the first signal, in the main thread; a later one acts at once, as without this."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _SAME_REQUEST:
            self.__exit__()
            signal.raise_signal(number)
