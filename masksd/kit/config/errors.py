"""How a training run ends early."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on: too many steps in a row had a gradient that is not finite.

    Example:
        >>> raise TrainingError("the gradient was not finite in 20 steps in a row")
        Traceback (most recent call last):
        masksd.kit.config.errors.TrainingError: the gradient was not finite in 20 steps in a row
    """


class TrainingStopped(RuntimeError):
    """A signal asked a training run to stop; it has saved its state and can be resumed.

    ``signal`` is the number of the signal, such as ``signal.SIGTERM``.

    Example:
        >>> TrainingStopped("stopped by SIGTERM", signal=15).signal
        15
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal
