"""Processes that start at once; an object store; and one line says what skipped tests need."""

import multiprocessing.forkserver
import re
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from pipeline.storage import StoredPath
from tests.object_store import ObjectStore, object_store

MISSING_PACKAGE = re.compile(r"could not import '([\w.]+)'.*", re.DOTALL)


@pytest.fixture(scope="module")
def preload():
    """A function that makes a module's processes forks of one that has imported these modules.

    They are those of `multiprocessing` with its method forkserver.
    """
    yield lambda *modules: multiprocessing.set_forkserver_preload(list(modules))
    # The processes of the next module are forks of another one.
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(scope="session")
def records_of_wandb():
    """A function that reads the records of a run's only offline run of Weights & Biases.

    They come in the order of the file, which is a LevelDB log.
    """

    def records(run_dir):
        from wandb.proto.wandb_internal_pb2 import Record

        (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        content, position, parts = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if (left := 32768 - position % 32768) < 7:
                position += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, position)
            parts += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # the only or the last part of a record
                yield Record.FromString(parts)
                parts = b""

    return records


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    """A server of S3 on loopback, to which the environment leads."""
    with object_store() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(server: ObjectStore) -> StoredPath:
    """An empty bucket of its own for each test."""
    url = server.make_bucket()
    server.reset()
    return StoredPath(url)


def pytest_terminal_summary(terminalreporter):
    # A report's `longrepr` is file, line and reason. A module skipped as a whole is one report.
    counts = Counter(
        MISSING_PACKAGE.sub(r"needs \1", report.longrepr[2].removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", [])
    )
    if counts:
        parts = [
            f"{number} {reason if number == 1 else re.sub('^needs', 'need', reason)}"
            for reason, number in counts.most_common()
        ]
        terminalreporter.write_line(f"skipped: {', '.join(parts)}")
