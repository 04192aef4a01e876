"""SIGTERM and SIGUSR1, by which clusters announce that they take the machine away, and Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modeling.job.group import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Termination:
    """What one of these signals does: it ends this process at once, or asks a group to stop.

    Attributes:
      group: the processes that a signal asks to stop at the same step. None: a signal ends this
        process, with its exit code.
    """

    def __init__(self) -> None:
        self.group: ProcessGroup | None = None
        self._received: set[int] = set()
        self.previous = [signal.signal(number, self._handle) for number in _SIGNALS]

    def ask(self, group: ProcessGroup) -> None:
        """Makes signals ask a group from now on.

        It also takes the signals back from the backend: TensorFlow's strategy for several processes
        puts a handler of its own in the place of ours when it is created.
        """
        self.group = group
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.group:
            raise SystemExit(exit_code(signal.Signals(number).name))
        if number in self._received and number == signal.SIGINT:
            # A user who presses Ctrl-C again does not want to wait.
            raise KeyboardInterrupt
        self._received.add(number)
        self.group.request_stop(signal.Signals(number))


@contextmanager
def noticing_termination() -> Iterator[Termination]:
    """Within, these signals do what the `Termination` says. Only for the main thread."""
    termination = Termination()
    try:
        yield termination
    finally:
        for number, handler in zip(_SIGNALS, termination.previous, strict=True):
            signal.signal(number, handler)


def exit_code(received: str) -> int:
    """The exit code of a process that has stopped because of a signal of that name.

    Every announcement of a cluster counts as SIGTERM, whichever signal the cluster sends.
    """
    is_interrupt = received == signal.SIGINT.name
    return 128 + (signal.SIGINT if is_interrupt else signal.SIGTERM)
