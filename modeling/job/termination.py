"""SIGTERM and SIGUSR1, by which clusters take a machine away, SIGHUP, and Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from modeling.job.group import ProcessGroup

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class Termination:
    """What these signals do: after `ask`, they ask a group to stop; before, what they did before.

    Attributes:
      previous: the handlers that were there before, by signal.
    """

    def __init__(self) -> None:
        self.previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self._received: set[int] = set()

    def ask(self, group: ProcessGroup) -> None:
        """Makes signals ask a group to stop, at the same step in all its processes.

        Call it again when a backend has started: TensorFlow's strategy for several processes puts a
        handler of its own in the place of ours.
        """
        self._group = group
        for number in _SIGNALS:
            # `nohup` makes a process ignore SIGHUP.
            if (number, self.previous[number]) != (signal.SIGHUP, signal.SIG_IGN):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self.previous[signal.Signals(number)]
        if number in self._received and number == signal.SIGINT:
            # A user who presses Ctrl-C again does not want to wait.
            if callable(previous):
                previous(number, frame)
            raise KeyboardInterrupt
        self._received.add(number)
        self._group.request_stop(signal.Signals(number))


@contextmanager
def noticing_termination() -> Iterator[Termination]:
    """Within, these signals do what the `Termination` says. Only for the main thread."""
    termination = Termination()
    try:
        yield termination
    finally:
        for number, handler in termination.previous.items():
            signal.signal(number, handler)


def exit_code(received: str) -> int:
    """The exit code of a process that has stopped because of a signal of that name.

    Every announcement of a cluster counts as SIGTERM, whichever signal the cluster sends.
    """
    is_announcement = received == signal.SIGUSR1.name
    return 128 + (signal.SIGTERM if is_announcement else signal.Signals[received])
