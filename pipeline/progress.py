"""Shows the progress of a running pipeline, based on the receipts of the finished files.

Beam's `run` blocks, and the embedded runner has no hook for progress. Receipts exist with every
runner.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn

from pipeline.directories import Directories
from pipeline.receipts import files_with_receipt

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0
_MEGABYTE = 1_000_000


@contextmanager
def report_progress(
    directories: Directories, portion_bytes: Sequence[int], num_shards: int
) -> Iterator[None]:
    """Shows the amount of tokenized text, the number of finished shards and the time left.

    A terminal gets two progress bars. Otherwise a line is logged every ten seconds. Each look lists
    two folders and reads no file.

    Args:
      directories: the directories in which the workers finish files.
      portion_bytes: the amount of text of each portion, in bytes.
      num_shards: number of shards to build.
    """
    progress = _new_progress()
    text_bytes = sum(portion_bytes)
    bytes_of_file = {
        directories.tokenized_file(number).name: num_bytes
        for number, num_bytes in enumerate(portion_bytes)
    }
    ended = threading.Event()

    def look() -> tuple[int, int]:
        """The amount of tokenized text, and the number of finished shards."""
        tokenized = files_with_receipt(directories.tokenized, "split-*.parquet")
        built = files_with_receipt(directories.receipts, "*.tfrecord")
        return sum(bytes_of_file.get(name, 0) for name in tokenized), len(built)

    def show(tokenized: int, built: int) -> None:
        megabytes = f"{tokenized / _MEGABYTE:,.1f} of {text_bytes / _MEGABYTE:,.1f} MB"
        progress.update(tokenizing, completed=tokenized, done=megabytes)
        progress.update(building, completed=built, done=f"{built:,} of {num_shards:,} shards")

    def watch() -> None:
        seconds = _SECONDS_BETWEEN_LINES if progress.disable else _SECONDS_BETWEEN_LOOKS
        while not ended.wait(seconds):
            with suppress(OSError):  # a store that does not answer now may do so later
                show(*look())
            if progress.disable:
                logging.info("%s", "; ".join(map(_describe, progress.tasks)))

    # Files that an earlier, killed run finished must not count towards this run's speed.
    tokenized, built = look()
    tokenizing = progress.add_task("tokenizing", total=text_bytes, completed=tokenized)
    building = progress.add_task("building", total=num_shards, completed=built)
    show(tokenized, built)
    thread = threading.Thread(target=watch, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if not progress.disable:
                with suppress(OSError):
                    show(*look())


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


def _describe(task: Task) -> str:
    left = "" if task.time_remaining is None else f", {timedelta(seconds=task.time_remaining)} left"
    return f"{task.description} {task.fields['done']}{left}"
