"""SIGTERM and SIGUSR1, with which clusters announce that they take the machine away, and Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modeling.job.group import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def noticing_termination(group: ProcessGroup | None = None) -> Iterator[None]:
    """These signals end nothing inside this block but ask the group to stop. Only for the main thread.

    Without a group, which is still to be met, they end the process with their exit code.
    """
    received = set()

    def handle(number: int, _frame: FrameType | None) -> None:
        if not group:
            raise SystemExit(exit_code(signal.Signals(number).name))
        if number in received and number == signal.SIGINT:
            # Who presses Ctrl-C again does not want to wait.
            raise KeyboardInterrupt
        received.add(number)
        group.request_stop(signal.Signals(number))

    previous = [signal.signal(number, handle) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, previous, strict=True):
            signal.signal(number, handler)


def exit_code(received: str) -> int:
    """The exit code of a process that has stopped upon a signal of that name.

    A cluster's announcement is SIGTERM's, whichever it sends.
    """
    is_interrupt = received == signal.SIGINT.name
    return 128 + (signal.SIGINT if is_interrupt else signal.SIGTERM)
