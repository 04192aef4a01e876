"""Ends a verb on Ctrl-C, SIGTERM, SIGHUP or SIGUSR1: one line, its exit code, and no child left.

A signal raises KeyboardInterrupt in the main thread, so that all code on the way cleans up. Another
thread ends the process if that takes too long: a library that computes for minutes holds up the
main thread, and may also swallow the exception.

This module is imported first of all, so it imports only what takes no time: not even `logging`.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pipeline.errors import in_one_line

# SIGUSR1 announces, as SIGTERM does, that a cluster takes the machine away.
_EXIT_CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
# After this time the exception is raised once more, and after as much again the process ends.
_SECONDS_TO_CLEAN_UP = 5.0
_SECONDS_BETWEEN_LOOKS = 0.1
_PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl.h
_SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar may have hidden

_blocks_at_once = 0


@contextmanager
def at_once() -> Iterator[None]:
    """Around work that has nothing to clean up: a signal ends the process without an exception.

    An exception would do harm while libraries start, and wait where a library computes for long.
    """
    global _blocks_at_once  # noqa: PLW0603 - signals are the whole process's, too
    _blocks_at_once += 1
    try:
        yield
    finally:
        _blocks_at_once -= 1


def open_closed_streams() -> None:
    """Lets a command that is started with closed streams (`>&-`) write to nowhere.

    Otherwise, the next file that is opened would take the place of the output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the smallest free number, which is this one
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


@contextmanager
def stopping(arguments: Sequence[str]) -> Iterator[None]:
    """Around a whole command: a signal ends it. Only for the main thread, and once in a process.

    Args:
      arguments: the words of the command line; the message names the first one, the verb.
    """
    process = _Process(in_one_line(" ".join(["clozemill", *arguments[:1]])))
    try:
        process.is_at_work = True
        process.keep_temporary_files_together()
        yield
    finally:
        process.is_at_work = False
        if process.received:
            process.end(process.received)


class _Process:
    """The process that a signal ends.

    Attributes:
      received: the signal that it has received, if any.
      is_at_work: whether an exception would reach the `finally` of `stopping`.
    """

    def __init__(self, name: str):
        self._name = name
        self.received: signal.Signals | None = None
        self.is_at_work = False
        self._raises_again = False
        self._temporary = ""
        self._stderr = os.dup(2)  # because stderr is hidden while libraries start
        self._is_ending = threading.RLock()
        # Python writes a signal's number here at once, even while the main thread is held up.
        self._numbers, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in _EXIT_CODES:
            # `nohup` makes a process ignore SIGHUP.
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
                signal.signal(number, self._handle)
        threading.Thread(target=self._watch, daemon=True).start()

    def keep_temporary_files_together(self) -> None:
        """Gives the process a directory for temporary files, which is removed when it ends.

        Libraries remove theirs when Python exits, but a signal ends the process before that.
        """
        import tempfile  # noqa: PLC0415 - after the handlers, because it takes time

        # Not by `mkdtemp`, which first writes a file to try the place: a signal could leave that.
        parent = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")  # noqa: PTH100
        self._temporary = f"{parent}/clozemill-{os.getpid()}-{os.urandom(8).hex()}"
        try:
            os.mkdir(self._temporary, 0o700)  # noqa: PTH102 - `pathlib` sets no mode but by umask
            tempfile.tempdir = self._temporary
            # The first to be registered is the last to be called: after libraries have cleaned up.
            atexit.register(self.remove_temporary_files)
        except OSError:  # none can be made: so may it be for whoever needs one
            self._temporary = ""

    def remove_temporary_files(self) -> None:
        """Removes that directory, if there is one."""
        if self._temporary:
            import shutil  # noqa: PLC0415 - `tempfile` has imported it

            shutil.rmtree(self._temporary, ignore_errors=True)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        """Raises an exception in the main thread, which calls this between two of its steps."""
        if _blocks_at_once or not self.is_at_work:
            self.end(signal.Signals(number))
        if self.received and not self._raises_again:
            return  # a second signal would only interrupt the cleaning up
        self._raises_again = False
        self.received = self.received or signal.Signals(number)
        os.write(self._wakeup, bytes([number]))  # the handler of a library may have called this one
        # What fails from now on, in any thread, fails because of the signal.
        if "logging" in sys.modules:
            sys.modules["logging"].disable()
        threading.excepthook = lambda _: None
        sys.unraisablehook = lambda _: None
        # With a text, because Beam turns an exception without arguments into another one.
        raise KeyboardInterrupt(self._line(self.received))

    def _watch(self) -> None:
        """Ends the children at a signal, and the process a while later.

        It does nothing while a handler of other code is in charge of the signal.
        """
        while True:
            number = signal.Signals(os.read(self._numbers, 1)[0])
            if self.received or signal.getsignal(number) == self._handle:
                break
        if not _blocks_at_once:
            self._kill_children_for(_SECONDS_TO_CLEAN_UP)
            # A library may wait forever while it cleans up; then it is our code's turn.
            self._raises_again = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            self._kill_children_for(_SECONDS_TO_CLEAN_UP)
        self.end(number)

    def _kill_children_for(self, seconds: float) -> None:
        """Kills children again and again, because other threads may still start some."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            kill_children()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def end(self, number: signal.Signals) -> None:
        """Ends the process. Nothing else can delay that: no thread, and no exit handler."""
        self._is_ending.acquire()
        if "subprocess" in sys.modules:  # no other thread may start a child any more
            vars(sys.modules["subprocess"])["Popen"] = None
        kill_children()
        self.remove_temporary_files()
        cursor = _SHOW_CURSOR if os.isatty(self._stderr) else b""
        with suppress(OSError):
            os.write(self._stderr, cursor + self._line(number).encode() + b"\n")
        os._exit(_EXIT_CODES[number])

    def _line(self, number: signal.Signals) -> str:
        is_interrupt = number == signal.SIGINT
        return f"{self._name}: {'interrupted' if is_interrupt else f'terminated by {number.name}'}"


def kill_children() -> None:
    """Kills all processes that this one has started, and theirs. Linux only."""
    # From now on, the child of a process that dies becomes ours. So none is lost that was started
    # between the look at the processes and the death of its parent.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while children := _descendants(os.getpid()):
        for child in children:
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The running processes that descend from a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The program's name, before the last parenthesis, may hold anything.
            state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
            if state not in b"ZX":  # ended, but not yet waited for
                parents[int(stat.parent.name)] = int(parent)
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family[1:]
