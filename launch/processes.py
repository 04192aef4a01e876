"""Processes of this machine that start, are stopped and fail together."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

# With what a process ends that was asked to: Ctrl-C and SIGTERM. The others have been asked as well.
_CODES_OF_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SECONDS_BETWEEN_LOOKS = 0.05
# When a process of its own that it left behind holds its output open.
_SECONDS_FOR_OUTPUT = 5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """What one of the processes runs, and in which environment."""

    arguments: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Ending:
    """How the processes have ended.

    Attributes:
      rank: of the first that ended with another exit code than 0; of none if all were well.
      returncode: its exit code; -N if signal N killed it.
    """

    rank: int | None = None
    returncode: int = 0

    @property
    def exit_code(self) -> int:
        """As a shell gives it."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def is_failure(self) -> bool:
        """Whether it did not end because it was asked to."""
        return self.returncode != 0 and self.returncode not in _CODES_OF_STOPPED


def run_together(programs: list[Program], grace_seconds: float) -> Ending:
    """Runs a process for each of the programs until all have ended. Only for the main thread.

    Each line of their output is written as a whole, behind the process's rank: `[0] …`. SIGINT,
    SIGTERM and SIGUSR1 are passed on to all. When one fails, the others are asked to end. None
    outlives this process, however it ends.

    Args:
      programs: by rank.
      grace_seconds: how long a process has to end after another has failed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with _noticing(_PASSED_ON) as signals:
        try:
            # All are started before there is any thread, as a fork of a process with threads is not safe.
            for program in programs:
                processes.append(_start(program))
            readers = _read_output(processes)
            ending = _wait(processes, signals, grace_seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for reader in readers:
        reader.join(_SECONDS_FOR_OUTPUT)
    return ending


def _start(program: Program) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        program.arguments,
        env=program.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A session of its own: a terminal's Ctrl-C reaches it once, passed on from here.
        start_new_session=True,
        preexec_fn=_ends_with_this_process(),  # noqa: PLW1509 - there are no threads yet
    )


def _ends_with_this_process() -> Callable[[], None] | None:
    """What a new process calls so that it is killed when this one dies; only Linux has that."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return call


@contextmanager
def _noticing(numbers: tuple[signal.Signals, ...]) -> Iterator[list[signal.Signals]]:
    """Within, these signals end nothing but are appended to the list that is given."""
    signals: list[signal.Signals] = []
    previous = [
        signal.signal(number, lambda number, _: signals.append(signal.Signals(number)))
        for number in numbers
    ]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _wait(
    processes: list[subprocess.Popen[bytes]], signals: list[signal.Signals], grace_seconds: float
) -> Ending:
    """Passes signals on until all have ended, which they must soon after one has failed."""
    first, deadline = Ending(), float("inf")
    running = dict(enumerate(processes))
    while running:
        while signals:
            number = signals.pop(0)
            for process in running.values():
                process.send_signal(number)
        for rank, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[rank]
            ending = Ending(rank, process.returncode)
            if first.returncode == 0 and ending.returncode != 0:
                first = ending
            if ending.is_failure and deadline == float("inf"):
                deadline = time.monotonic() + grace_seconds
                for other in running.values():
                    other.terminate()
        if time.monotonic() > deadline:
            for process in running.values():
                process.kill()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return first


def _read_output(processes: list[subprocess.Popen[bytes]]) -> list[threading.Thread]:
    """Threads that write the processes' output to stdout and stderr, until it ends."""
    lock = threading.Lock()
    readers = [
        threading.Thread(target=_copy_lines, args=(source, rank, target, lock), daemon=True)
        for rank, process in enumerate(processes)
        for source, target in (
            (process.stdout, sys.stdout.buffer),
            (process.stderr, sys.stderr.buffer),
        )
    ]
    for reader in readers:
        reader.start()
    return readers


def _copy_lines(source: BinaryIO, rank: int, target: BinaryIO, lock: threading.Lock) -> None:
    """Copies lines behind the rank; when nobody reads them any more, the process is told by SIGPIPE."""
    with source:
        for line in source:
            whole = line if line.endswith(b"\n") else line + b"\n"
            with lock:
                try:
                    target.write(b"[%d] %s" % (rank, whole))
                    target.flush()
                except BrokenPipeError:
                    return
