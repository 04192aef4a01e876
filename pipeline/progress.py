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
    directories: Directories,
    portion_bytes: Sequence[int],
    num_shards: int,
    num_files_of_duplicates: int = 0,
) -> Iterator[None]:
    """Shows the amount of tokenized text, the number of finished shards and the time left.

    A terminal gets two progress bars, or three. Otherwise a line is logged every ten seconds. Each
    look lists two folders, or three, and reads no file.

    Args:
      directories: the directories in which the workers finish files.
      portion_bytes: the amount of text of each portion, in bytes.
      num_shards: number of shards to build.
      num_files_of_duplicates: number of files that are made to find duplicates; 0 if they are kept.
    """
    progress = _new_progress()
    text_bytes = sum(portion_bytes)
    bytes_of_file = {
        directories.tokenized_file(number).name: num_bytes
        for number, num_bytes in enumerate(portion_bytes)
    }
    ended = threading.Event()

    def look() -> tuple[int, int, int]:
        """The amount of tokenized text, and the numbers of finished files and shards."""
        tokenized = files_with_receipt(directories.tokenized, "split-*.parquet")
        compared = num_files_of_duplicates and len(files_with_receipt(directories.duplicates, "*"))
        built = files_with_receipt(directories.receipts, "*.tfrecord")
        return sum(bytes_of_file.get(name, 0) for name in tokenized), compared, len(built)

    def show(tokenized: int, compared: int, built: int) -> None:
        files = f"{compared:,} of {num_files_of_duplicates:,} files"
        progress.update(comparing, completed=compared, done=files)
        megabytes = f"{tokenized / _MEGABYTE:,.1f} of {text_bytes / _MEGABYTE:,.1f} MB"
        progress.update(tokenizing, completed=tokenized, done=megabytes)
        progress.update(building, completed=built, done=f"{built:,} of {num_shards:,} shards")

    def watch() -> None:
        seconds = _SECONDS_BETWEEN_LINES if progress.disable else _SECONDS_BETWEEN_LOOKS
        while not ended.wait(seconds):
            with suppress(OSError):  # a store that does not answer now may do so later
                show(*look())
            if progress.disable:
                shown = [task for task in progress.tasks if task.visible]
                logging.info("%s", "; ".join(map(_describe, shown)))

    # Files that an earlier, killed run finished must not count towards this run's speed.
    tokenized, compared, built = look()
    tokenizing = progress.add_task("tokenizing", total=text_bytes, completed=tokenized)
    comparing = progress.add_task(
        "finding duplicates",
        total=num_files_of_duplicates,
        completed=compared,
        visible=num_files_of_duplicates > 0,
    )
    building = progress.add_task("building", total=num_shards, completed=built)
    show(tokenized, compared, built)
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
