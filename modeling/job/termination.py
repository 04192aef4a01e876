"""SIGTERM and SIGUSR1, by which clusters announce that they take the machine away, and Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from modeling.job.group import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class Termination:
    """What one of these signals does.

    Attributes:
      group: the processes that a signal asks to stop at the same step. None: a signal ends this
        process at once, with its exit code.
    """

    group: ProcessGroup | None = None


@contextmanager
def noticing_termination(group: ProcessGroup | None = None) -> Iterator[Termination]:
    """Within, these signals do what the `Termination` says. Only for the main thread.

    Args:
      group: the first value of `Termination.group`.
    """
    termination = Termination(group)
    received = set()

    def handle(number: int, _frame: FrameType | None) -> None:
        if not termination.group:
            raise SystemExit(exit_code(signal.Signals(number).name))
        if number in received and number == signal.SIGINT:
            # A user who presses Ctrl-C again does not want to wait.
            raise KeyboardInterrupt
        received.add(number)
        termination.group.request_stop(signal.Signals(number))

    previous = [signal.signal(number, handle) for number in _SIGNALS]
    try:
        yield termination
    finally:
        for number, handler in zip(_SIGNALS, previous, strict=True):
            signal.signal(number, handler)


def exit_code(received: str) -> int:
    """The exit code of a process that has stopped because of a signal of that name.

    Every announcement of a cluster counts as SIGTERM, whichever signal the cluster sends.
    """
    is_interrupt = received == signal.SIGINT.name
    return 128 + (signal.SIGINT if is_interrupt else signal.SIGTERM)
