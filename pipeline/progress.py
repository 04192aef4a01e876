"""Shows the progress of a running pipeline, based on the receipts of the finished files.

Beam's `run` blocks, and the embedded runner has no hook for progress. Receipts exist with every
runner.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Generic

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn

from pipeline.directories import Directories
from pipeline.receipts import PortionReceipt, R, files_with_receipt, read_receipt
from pipeline.statistics import ShardResults
from pipeline.storage import Location

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0
_MEGABYTE = 1_000_000


@contextmanager
def report_progress(directories: Directories, text_bytes: int, num_shards: int) -> Iterator[None]:
    """Shows the amount of tokenized text, the number of finished shards and the time left.

    A terminal gets two progress bars. Otherwise a line is logged every ten seconds.

    Args:
      directories: the directories in which the workers finish files.
      text_bytes: amount of text to tokenize, in bytes.
      num_shards: number of shards to build.
    """
    progress = _new_progress()
    tokenized = _Finished(
        directories.tokenized, "split-*.parquet", PortionReceipt, lambda receipt: receipt.text_bytes
    )
    built = _Finished(
        directories.receipts, "*.tfrecord", ShardResults, lambda results: results.shard.instances
    )
    ended = threading.Event()

    def look() -> None:
        for finished in (tokenized, built):
            finished.look()
        progress.update(
            tokenizing,
            completed=tokenized.total,
            done=f"{tokenized.total / _MEGABYTE:,.1f} of {text_bytes / _MEGABYTE:,.1f} MB",
        )
        progress.update(
            building,
            completed=len(built),
            done=f"{len(built):,} of {num_shards:,} shards, {built.total:,} instances",
        )

    def watch() -> None:
        next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            look()
            if progress.disable and time.monotonic() >= next_line:
                logging.info("%s", "; ".join(map(_describe, progress.tasks)))
                next_line += _SECONDS_BETWEEN_LINES

    # Files that an earlier, killed run finished must not count towards this run's speed.
    tokenized.look()
    built.look()
    tokenizing = progress.add_task("tokenizing", total=text_bytes, completed=tokenized.total)
    building = progress.add_task("building", total=num_shards, completed=len(built))
    look()
    thread = threading.Thread(target=watch, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()


@contextmanager
def report_reading(num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of some files is read, and the time left: a bar, or a line every ten seconds.

    Args:
      num_bytes: the size of all files.

    Yields:
      A function to call, from time to time, with the number of bytes read so far.
    """
    progress = _new_progress()
    next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def update(bytes_read: int) -> None:
        nonlocal next_line
        done = f"{bytes_read / _MEGABYTE:,.1f} of {num_bytes / _MEGABYTE:,.1f} MB"
        progress.update(reading, completed=bytes_read, done=done)
        if progress.disable and time.monotonic() >= next_line:
            logging.info("%s", _describe(progress.tasks[0]))
            next_line += _SECONDS_BETWEEN_LINES

    reading = progress.add_task("reading", total=num_bytes, done="")
    with progress:
        yield update


def _new_progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=timedelta(hours=1).total_seconds(),
    )


class _Finished(dict[str, int], Generic[R]):
    """The finished files of a folder, with a count for each.

    Args:
      folder: the folder that holds their receipts.
      pattern: glob that the names of the files match.
      kind: the kind of their receipts.
      count: returns a file's count, given its receipt.
    """

    def __init__(self, folder: Location, pattern: str, kind: type[R], count: Callable[[R], int]):
        super().__init__()
        self._folder = folder
        self._pattern = pattern
        self._kind = kind
        self._count = count

    @property
    def total(self) -> int:
        return sum(self.values())

    def look(self) -> None:
        """Adds the files that received a receipt since the last look."""
        for name in files_with_receipt(self._folder, self._pattern):
            if name not in self and (receipt := read_receipt(self._folder / name, self._kind)):
                self[name] = self._count(receipt)


def _describe(task: Task) -> str:
    left = "" if task.time_remaining is None else f", {timedelta(seconds=task.time_remaining)} left"
    return f"{task.description} {task.fields['done']}{left}"
