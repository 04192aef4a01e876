"""SIGTERM, with which clusters announce that they take the machine away."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Termination:
    """Whether SIGTERM has been received.

    Attributes:
      is_requested: so far.
    """

    is_requested = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True


@contextmanager
def noticing_termination() -> Iterator[Termination]:
    """SIGTERM ends nothing inside this block but is noticed. Only for the main thread."""
    termination = Termination()
    previous = signal.signal(signal.SIGTERM, termination._request)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, previous)
