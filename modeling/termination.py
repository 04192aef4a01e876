"""SIGTERM, with which clusters announce that they take the machine away, and Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Termination:
    """Whether the process has been asked to end.

    Attributes:
      received: the signal that has asked for it last, if one has.
    """

    received: signal.Signals | None = None

    def request(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.received == number == signal.SIGINT:
            # Who presses Ctrl-C again does not want to wait.
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


@contextmanager
def noticing_termination() -> Iterator[Termination]:
    """SIGTERM and SIGINT end nothing inside this block but are noticed. Only for the main thread."""
    termination = Termination()
    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, termination.request) for number in signals]
    try:
        yield termination
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
