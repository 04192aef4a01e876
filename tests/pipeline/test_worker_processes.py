import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.failures import StepError
from pipeline.stages import Stage
from pipeline.worker_processes import worker_processes

ROOT = Path(__file__).parents[2]


class Work(Stage):
    """Sleeps for a number of milliseconds, and yields the number; or raises an exception."""

    loaded = 0

    def load(self):
        self.loaded += 1

    def process(self, item):
        if isinstance(item, Exception):
            raise item
        time.sleep(item / 1000)
        yield item
        yield self.loaded, os.getpid()


class Killed(Stage):
    """Its process dies."""

    def process(self, item):
        os.kill(os.getpid(), item)
        time.sleep(60)
        yield item


@pytest.fixture
def processes():
    with worker_processes(2) as found:
        yield found


def start(processes, stage, items):
    return [processes.start(stage, item) for item in items]


def test_results_are_in_the_order_of_items_and_a_stage_is_loaded_once(processes):
    items = [100, *range(10)]
    results = list(processes.results(start(processes, Work(), items)))
    assert results[::2] == items
    assert {loaded for loaded, _ in results[1::2]} == {1}
    assert len({process for _, process in results[1::2]} - {os.getpid()}) == 2


def test_work_that_was_started_ahead_is_not_started_again(processes, tmp_path):
    processes.start_ahead(Append(tmp_path), [(1, "a"), (2, "b")])
    started = start(processes, Append(tmp_path), [(2, "b"), (1, "a"), (3, "c")])
    assert list(processes.results(started)) == [2, 1, 3]
    assert sorted((tmp_path / "file").read_text()) == ["a", "b", "c"]


class Append(Stage):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def process(self, item):
        number, text = item
        with (self.folder / "file").open("a") as file:
            file.write(text)
        yield number


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("do something"), UserError, "do something"),
        (ValueError("a bug"), StepError, r"ValueError\('a bug'\)"),
        (OSError(28, "No space left"), StepError, "No space left"),
    ],
)
def test_an_error_is_raised_at_once(error, kind, message, processes):
    started = time.monotonic()
    with pytest.raises(kind, match=message):
        list(processes.results(start(processes, Work(), [60_000, error])))
    assert time.monotonic() - started < 30


def test_the_death_of_a_process_is_reported(processes):
    with pytest.raises(UserError, match=r"a worker process died, .*: run the same"):
        list(processes.results(start(processes, Killed(), [signal.SIGKILL])))
    with pytest.raises(UserError, match="a worker process died"):
        processes.start(Work(), 0)


def test_signals_that_stop_a_program_do_not_reach_the_work(processes):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        started = processes.start(IgnoresSignals(), number)
        assert list(processes.results([started])) == [number]


class IgnoresSignals(Stage):
    def process(self, item):
        os.kill(os.getpid(), item)
        yield item


def test_processes_end_though_they_work():
    with worker_processes(2) as processes:
        started = start(processes, Work(), [0, 60_000, 60_000, 60_000])
        _, (_, process) = started[0].result()
    assert not Path(f"/proc/{process}").exists()


def test_no_processes_are_none():
    with worker_processes(0) as processes:
        assert processes is None


def test_processes_die_with_their_parent():
    code = """
import os, signal
from pipeline.worker_processes import worker_processes
with worker_processes(1) as processes:
    print(processes._executor.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGKILL
    process = Path("/proc", result.stdout.strip(), "stat")
    deadline = time.monotonic() + 10
    while process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
