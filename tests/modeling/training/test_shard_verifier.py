import subprocess
import sys
import threading
import time

import pytest

from modeling.training import shard_verifier
from modeling.training.shard_verifier import ShardVerifier
from pipeline.errors import UserError
from pipeline.files import sha256_of

pytestmark = pytest.mark.no_backend


@pytest.fixture
def shards(tmp_path, write_data_set):
    """A data set of three shards."""
    return write_data_set(tmp_path, [("train", 0, 5), ("train", 0, 6), ("train", 0, 7)])


@pytest.fixture
def read_files(monkeypatch):
    """The names of the files that were read, in order. Each takes a moment."""
    read = []

    def read_slowly(path):
        time.sleep(0.02)
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(shard_verifier, "sha256_of", read_slowly)
    return read


def test_intact_shards_are_each_read_once_in_the_order_in_which_they_are_given(shards, read_files):
    verifier = ShardVerifier(shards)
    first, second, third = shards.manifest.shards
    verifier.open([second, third])
    verifier.open([third, first, second])
    verifier.wait()
    verifier.open([first])
    verifier.wait()
    assert read_files == [second.name, third.name, first.name]


def test_a_damaged_shard_is_reported_by_what_comes_after_it(shards, swap_records, read_files):
    first, second, third = shards.manifest.shards
    swap_records(shards.path_of(second))
    verifier = ShardVerifier(shards)
    verifier.open([first])
    verifier.wait()
    verifier.open([second, third])
    verifier.check()
    for report in (verifier.wait, verifier.check, verifier.wait):
        with pytest.raises(UserError, match="SHA-256") as raised:
            report()
        message = str(raised.value)
        assert str(shards.path_of(second)) in message
        assert "clozemill verify" in message
        assert "generate the data set again" in message
        assert "\n" not in message
    # After the first damage, nothing more is read.
    assert read_files == [first.name, second.name]


@pytest.mark.parametrize("problem", ["missing", "a directory"])
def test_a_shard_that_cannot_be_read_is_reported(shards, problem):
    path = shards.path_of(shards.manifest.shards[1])
    path.unlink()
    if problem == "a directory":
        path.mkdir()
    verifier = ShardVerifier(shards)
    verifier.open(shards.manifest.shards)
    with pytest.raises(UserError, match="cannot read the shard") as raised:
        verifier.wait()
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_is_read_if_verification_is_skipped(shards, read_files):
    threads = set(threading.enumerate())
    verifier = ShardVerifier(shards, skip=True)
    verifier.open(shards.manifest.shards)
    verifier.wait()
    assert read_files == []
    assert set(threading.enumerate()) <= threads


ENDS_WHILE_VERIFYING = """
import time
from modeling.training import shard_verifier
from pipeline.manifest import DataSet
from pathlib import Path
shard_verifier.sha256_of = lambda _path: time.sleep(100)
data_set = DataSet.read(Path({directory!r}))
shard_verifier.ShardVerifier(data_set).open(data_set.manifest.shards)
time.sleep(0.1)
"""


def test_a_process_can_end_while_shards_are_verified(shards):
    code = ENDS_WHILE_VERIFYING.format(directory=str(shards.directory))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
