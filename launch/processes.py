"""Runs processes on this machine: together, or one after another.

Those that run together start, stop and fail together. Of others, none depends on another.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

# The exit codes of a process that was asked to stop. If one was asked, all were.
_CODES_OF_STOPPED = (128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM)
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SECONDS_BETWEEN_POLLS = 0.05
# A child that an ended process left behind may keep its output open.
_SECONDS_FOR_OUTPUT = 5
_PR_SET_PDEATHSIG = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Program:
    """The command line and the environment of a process.

    Attributes:
      arguments: the words of the command line.
      environment: the environment variables.
      log: the file that its output is appended to; None if others read it.
    """

    arguments: list[str]
    environment: dict[str, str]
    log: Path | None = None


@dataclass(frozen=True)
class Ending:
    """How the processes ended.

    Attributes:
      process_id: the number of the first process with a nonzero exit code; None if all succeeded.
      returncode: that process's exit code; -N if signal N killed it.
    """

    process_id: int | None = None
    returncode: int = 0

    @property
    def exit_code(self) -> int:
        """The exit code as a shell reports it: 128 + N if signal N killed the process."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def is_failure(self) -> bool:
        """Whether the process failed, rather than succeeded or stopped on request."""
        return self.returncode != 0 and self.returncode not in _CODES_OF_STOPPED


def run_together(programs: list[Program], grace_seconds: float) -> Ending:
    """Runs one process per program until all have ended. Call it from the main thread only.

    Each output line is written whole, prefixed with its process number: `[0] …`. SIGHUP, SIGINT,
    SIGTERM and SIGUSR1 are passed on to all processes. If one fails, the others get SIGTERM. No
    process outlives this one, however this one ends.

    Args:
      programs: the programs, in the order of their process numbers.
      grace_seconds: the seconds that a process has to end after another has failed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with _noticing(_PASSED_ON) as signals:
        try:
            # All start before the readers do, because it is unsafe to fork a process with threads.
            # The one thread that runs already waits for signals and holds no lock.
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


def run_in_turn(
    jobs: Sequence[T],
    num_places: int,
    begin: Callable[[T, int], Program],
    end: Callable[[T, int], None],
) -> signal.Signals | None:
    """Runs a process per job, some at a time. Call it from the main thread only.

    How one ends does not matter to the others. SIGHUP, SIGINT, SIGTERM and SIGUSR1 are passed on to
    those that run, and none begins after that. No process outlives this one, however this one ends.

    Args:
      jobs: the jobs, in the order in which they begin.
      num_places: the number of processes that run at a time.
      begin: gives the program of a job, which has a log, for a place from 0 on.
      end: is called with each job that has ended, and with its exit code as `Ending` has it.

    Returns:
      The signal that has stopped them, if any.
    """
    waiting = list(reversed(jobs))
    running: dict[int, tuple[T, subprocess.Popen[bytes]]] = {}
    stopped_by = None
    with _noticing(_PASSED_ON) as signals:
        try:
            while running or (waiting and not stopped_by):
                while signals:
                    stopped_by = stopped_by or signals[0]
                    for _, process in running.values():
                        process.send_signal(signals[0])
                    del signals[0]
                for place in range(num_places):
                    if place in running and running[place][1].poll() is not None:
                        job, process = running.pop(place)
                        end(job, process.returncode)
                    if place not in running and waiting and not stopped_by:
                        job = waiting.pop()
                        running[place] = job, _start(begin(job, place))
                time.sleep(_SECONDS_BETWEEN_POLLS)
        finally:
            for _, process in running.values():
                process.kill()
                process.wait()
    return stopped_by


def _start(program: Program) -> subprocess.Popen[bytes]:
    with ExitStack() as stack:
        log = stack.enter_context(program.log.open("ab")) if program.log else subprocess.PIPE
        return subprocess.Popen(
            program.arguments,
            env=program.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # In its own session, the process gets a terminal's Ctrl-C only once, from this process.
            start_new_session=True,
            preexec_fn=_ends_with_this_process(),  # noqa: PLW1509 - no other thread holds a lock
        )


def _ends_with_this_process() -> Callable[[], None] | None:
    """Returns a function that makes a new process die with this one; Linux only."""
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
    """Within the block, appends these signals to the yielded list; they do not end the process."""
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
    """Passes signals on until all processes end; kills them some time after one has failed."""
    first, deadline = Ending(), float("inf")
    running = dict(enumerate(processes))
    while running:
        while signals:
            number = signals.pop(0)
            for process in running.values():
                process.send_signal(number)
        for process_id, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[process_id]
            ending = Ending(process_id, process.returncode)
            if first.returncode == 0 and ending.returncode != 0:
                first = ending
            if ending.is_failure and deadline == float("inf"):
                deadline = time.monotonic() + grace_seconds
                for other in running.values():
                    other.terminate()
        if time.monotonic() > deadline:
            for process in running.values():
                process.kill()
        time.sleep(_SECONDS_BETWEEN_POLLS)
    return first


def _read_output(processes: list[subprocess.Popen[bytes]]) -> list[threading.Thread]:
    """Starts threads that copy the processes' output to stdout and stderr until it ends."""
    lock = threading.Lock()
    readers = [
        threading.Thread(target=_copy_lines, args=(source, process_id, target, lock), daemon=True)
        for process_id, process in enumerate(processes)
        for source, target in (
            (process.stdout, sys.stdout.buffer),
            (process.stderr, sys.stderr.buffer),
        )
    ]
    for reader in readers:
        reader.start()
    return readers


def _copy_lines(source: BinaryIO, process_id: int, target: BinaryIO, lock: threading.Lock) -> None:
    """Copies lines, prefixed with the process number, until nobody reads them.

    Then the source is closed, and the process gets SIGPIPE when it writes.
    """
    with source:
        for line in source:
            whole = line if line.endswith(b"\n") else line + b"\n"
            with lock:
                try:
                    target.write(b"[%d] %s" % (process_id, whole))
                    target.flush()
                except BrokenPipeError:
                    return
