import threading
from collections import Counter

import pytest

from pipeline.directories import Directories
from pipeline.manifest import Shard
from pipeline.progress import report_progress, report_reading
from pipeline.receipts import PartsReceipt, PortionReceipt, write_receipt
from pipeline.statistics import ShardResults

PORTIONS = (1_500_000, 500_000, 3_000_000)


@pytest.fixture
def directories(tmp_path):
    """Two of five megabytes are tokenized, one of nine files made, one of seven shards built."""
    directories = Directories(tmp_path / "data")
    directories.tokenized.mkdir(parents=True)
    directories.receipts.mkdir()
    directories.duplicates.mkdir()
    for number in (0, 1):
        write_receipt(directories.tokenized_file(number), portion_of(PORTIONS[number]))
    write_receipt(directories.duplicates / "digests-00000.parts", PartsReceipt("00" * 32))
    write_receipt(directories.receipts / "train-00000-of-00007.tfrecord", shard_of(1234))
    # These files have no receipts, so they are not finished.
    directories.tokenized_file(2).touch()
    (directories.output / "train-00001-of-00007.tfrecord").touch()
    return directories


def portion_of(text_bytes):
    return PortionReceipt([], "00" * 32, text_bytes, Counter())


def shard_of(instances):
    shard = Shard("train-00000-of-00007.tfrecord", "train", 0, 1, instances, 1, 1, "00" * 32)
    return ShardResults(shard, Counter(), Counter({16: instances}), Counter())


@pytest.fixture
def lines(monkeypatch):
    """The logged lines, and an event that is set by the next line."""
    reported = threading.Event()
    found = []

    def record(message, *arguments):
        found.append(message % arguments)
        reported.set()

    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr("pipeline.progress.logging.info", record)
    return found, reported


def test_reading_is_reported_now_and_then(lines):
    found, _ = lines
    with report_reading(5_000_000) as report:
        report(0)
        while not found:
            report(2_000_000)
    assert found[0].startswith("reading 2.0 of 5.0 MB")


def test_files_with_receipts_are_reported_until_the_run_ends(directories, lines):
    found, reported = lines
    threads = set(threading.enumerate())
    with report_progress(directories, PORTIONS, 7, 9):
        assert reported.wait(timeout=10)
        assert found[0].startswith("tokenizing 2.0 of 5.0 MB")
        assert "; finding duplicates 1 of 9 files" in found[0]
        assert "; building 1 of 7 shards" in found[0]
        write_receipt(directories.tokenized_file(2), portion_of(3_000_000))
        write_receipt(directories.receipts / "eval-00000-of-00001.tfrecord", shard_of(6))
        for _ in range(100):
            reported.clear()
            assert reported.wait(timeout=10)
            if "5.0 of 5.0 MB" in found[-1]:
                break
        assert "2 of 7 shards" in found[-1]
    assert set(threading.enumerate()) <= threads
    num_lines = len(found)
    assert not threading.Event().wait(0.05)
    assert len(found) == num_lines


def test_no_line_is_logged_early(directories, lines, monkeypatch):
    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_LINES", 60)
    with report_progress(directories, PORTIONS, 7):
        threading.Event().wait(0.1)
    assert lines[0] == []


def test_a_failing_run_ends_the_reports(directories, lines):
    threads = set(threading.enumerate())
    with pytest.raises(ValueError, match="failed"), report_progress(directories, [1], 1):
        raise ValueError("failed")
    assert set(threading.enumerate()) <= threads
    del lines


def test_missing_folders_are_not_an_error(tmp_path, lines):
    found, reported = lines
    with report_progress(Directories(tmp_path / "none"), [1_000_000], 3):
        assert reported.wait(timeout=10)
    assert found[0].startswith("tokenizing 0.0 of 1.0 MB; building 0 of 3 shards")


def test_a_terminal_shows_bars_instead_of_lines(directories, lines, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with report_progress(directories, PORTIONS, 7):
        threading.Event().wait(0.1)
        write_receipt(directories.tokenized_file(2), portion_of(3_000_000))
    shown = capsys.readouterr().err
    assert "tokenizing" in shown
    # The last look happens at the end of the run.
    assert "5.0 of 5.0 MB" in shown
    assert "1 of 7 shards" in shown
    assert lines[0] == []
