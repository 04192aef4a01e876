"""Worker processes on this machine, which do the work while Beam hands it out.

They are forked first of all. So they import nothing anew, inherit no lock that a thread holds, and
do not contain Beam. They begin to tokenize while Beam is imported, which takes half a second.

While a file is on its way to its place, on a store for example, its process makes the next one.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from typing import Any

from pipeline.errors import UserError
from pipeline.failures import step_errors_marked
from pipeline.stages import Stage, loaded

_STOPPING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


class WorkerProcesses:
    """A number of processes that do the work of stages.

    They ignore the signals that stop a program, as a terminal sends Ctrl-C to all processes: only
    their parent ends them, or its death.
    """

    def __init__(self, number: int):
        global _of_this_process  # noqa: PLW0603 - see `__reduce__`
        _of_this_process = self
        fork = multiprocessing.get_context("fork")
        self._number = number
        self._executor = ProcessPoolExecutor(number, fork, _begin, (fork.Barrier(number),))
        self._ahead: dict[Any, Future[list[Any]]] = {}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING_SIGNALS)
        self._executor.submit(os.getpid)  # the first call forks all of them
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __reduce__(self) -> tuple[Any, ...]:
        """Beam pickles all that is in its graph, even what stays in this process."""
        return _processes, ()

    def start_ahead(self, stage: Stage, items: Iterable[Any]) -> None:
        """Starts the work on items that can be told from each other by their hash."""
        self._ahead = {item: self._submit(stage, item) for item in items}

    def start(self, stage: Stage, item: Any) -> Future[list[Any]]:
        """Starts the work on an item, if that was not started ahead."""
        if self._ahead and (started := self._ahead.pop(item, None)):
            return started
        return self._submit(stage, item)

    def results(self, started: Sequence[Future[list[Any]]]) -> Iterator[Any]:
        """Yields what comes of some items when all of them are done.

        Raises:
          UserError: the input cannot be read, or a process died.
          StepError: the work on an item failed in another way.
        """
        with _death_reported():
            for future in as_completed(started):
                future.result()  # the first error counts
            last_ones = [self._executor.submit(_finish_last) for _ in range(self._number)]
            for last_one in last_ones:
                last_one.result()
        for future in started:
            yield from future.result()

    def _submit(self, stage: Stage, item: Any) -> Future[list[Any]]:
        with _death_reported():
            return self._executor.submit(_process, stage, item)

    def end(self) -> None:
        """Ends them, whatever they do."""
        for process in multiprocessing.active_children():
            process.kill()
        self._executor.shutdown(cancel_futures=True)


_of_this_process: WorkerProcesses | None = None


def number_of_processes(running_mode: str | None, num_workers: int) -> int:
    """How many processes Beam's --direct_running_mode and --direct_num_workers ask for."""
    if running_mode != "multi_processing":
        return 1
    return num_workers or multiprocessing.cpu_count()


@contextmanager
def worker_processes(number: int) -> Iterator[WorkerProcesses | None]:
    """Yields that many processes, or None instead of none. There must be no other threads yet."""
    processes = WorkerProcesses(number) if number else None
    try:
        yield processes
    finally:
        if processes:
            processes.end()


@contextmanager
def _death_reported() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps because memory ran out: run the same command again to "
            "resume; fewer --direct_num_workers need less memory"
        ) from error


def _processes() -> WorkerProcesses | None:
    return _of_this_process


class _Finisher:
    """Finishes files in a thread, one at a time.

    Args:
      all_processes: where each of the processes waits for all others.
    """

    def __init__(self, all_processes: Barrier):
        self.all_processes = all_processes
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __call__(self, finish: Callable[[], None]) -> None:
        """Begins to finish a file when the one before is finished.

        Raises:
          Exception: the one before could not be finished.
        """
        self.wait()
        self._last = self._thread.submit(finish)

    def wait(self) -> None:
        """Waits until all files are finished.

        Raises:
          Exception: one could not be finished.
        """
        last, self._last = self._last, None
        if last:
            last.result()


_finisher: _Finisher


def _begin(all_processes: Barrier) -> None:
    """Makes a process ignore signals, and die with its parent."""
    global _finisher  # noqa: PLW0603 - of this process
    _finisher = _Finisher(all_processes)
    signal.set_wakeup_fd(-1)
    for number in _STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _process(stage: Stage, item: Any) -> list[Any]:
    with step_errors_marked():
        stage = loaded(stage)
        stage.finish = _finisher
        return list(stage.process(item))


def _finish_last() -> None:
    """Finishes this process's last file; as it waits for the other processes, each does so once."""
    _finisher.all_processes.wait()
    with step_errors_marked():
        _finisher.wait()
