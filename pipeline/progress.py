"""Progress of a running pipeline, told from the files that its workers have finished.

Beam's `run` blocks and has no hook for progress on the embedded runner; finished files can be
counted on every runner.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging

_SECONDS_BETWEEN_REPORTS = 10.0


@contextmanager
def report_progress(
    tokenized_dir: Path, num_splits: int, shard_dir: Path, num_shards: int
) -> Iterator[None]:
    """Logs every ten seconds how many splits are tokenized and how many shards built."""
    finished = threading.Event()

    def report() -> None:
        while not finished.wait(_SECONDS_BETWEEN_REPORTS):
            logging.info(
                "tokenized %d of %d splits, built %d of %d shards",
                _count(tokenized_dir, "*.parquet"),
                num_splits,
                _count(shard_dir, "*.tfrecord"),
                num_shards,
            )

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _count(directory: Path, pattern: str) -> int:
    return sum(1 for _ in directory.glob(pattern))
