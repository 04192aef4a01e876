import threading

import pytest

from pipeline.progress import report_progress


def test_finished_files_are_reported_until_the_run_ends(tmp_path, monkeypatch):
    for name in ("a.parquet", "b.parquet", "c.tmp", "d.tfrecord"):
        (tmp_path / name).touch()
    reported = threading.Event()
    reports = []

    def record(message, *arguments):
        reports.append(message % arguments)
        reported.set()

    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_REPORTS", 0.01)
    monkeypatch.setattr("pipeline.progress.logging.info", record)
    num_threads = threading.active_count()
    with report_progress(tmp_path, 5, tmp_path, 7):
        assert reported.wait(timeout=10)
    assert reports[0] == "tokenized 2 of 5 splits, built 1 of 7 shards"
    assert threading.active_count() == num_threads


def test_a_failing_run_ends_the_reports(tmp_path):
    num_threads = threading.active_count()
    with pytest.raises(ValueError, match="failed"), report_progress(tmp_path, 1, tmp_path, 1):
        raise ValueError("failed")
    assert threading.active_count() == num_threads
