"""Beam's portable runner, with job service, workers and driver in separate processes.

Clusters run pipelines in the same way.
"""

import json

import pytest


@pytest.fixture
def portable(job_endpoint):
    """The flags for Beam's own job service."""
    return ["--runner=PortableRunner", f"--job_endpoint={job_endpoint}"]


@pytest.fixture
def assert_fails(run_generate, assert_one_line, tmp_path):
    """A function that runs `generate`, which must fail with one line that contains all `says`."""

    def run(*flags, says):
        result = run_generate(tmp_path / "data", *flags)
        assert_one_line(result.returncode, result.stderr, *says)

    return run


@pytest.mark.parametrize("pool", ["worker_pool", "pool_of_boot"])
def test_separate_workers_make_the_same_shards(
    pool, tmp_path, portable, embedded, generate, request
):
    address, log = request.getfixturevalue(pool)
    shards = generate(
        tmp_path / "data",
        *portable,
        "--environment_type=EXTERNAL",
        f"--environment_config={address}",
        "--sdk_worker_parallelism=2",
    )
    assert shards == embedded
    assert "Starting worker with command" in log.read_text()


def test_the_drivers_own_process_makes_the_same_shards(tmp_path, portable, embedded, generate):
    assert generate(tmp_path / "data", *portable, "--environment_type=LOOPBACK") == embedded


def test_a_job_service_that_starts_no_processes_is_reported(assert_fails, portable, boot):
    assert_fails(
        *portable,
        "--environment_type=PROCESS",
        f"--environment_config={json.dumps({'command': str(boot)})}",
        says=["PortableRunner failed", "starts no processes", "EXTERNAL"],
    )


def test_a_missing_worker_pool_is_reported(assert_fails, portable):
    assert_fails(
        *portable,
        "--environment_type=EXTERNAL",
        "--environment_config=localhost:1",
        says=["PortableRunner failed", "Connection refused", "--environment_config"],
    )


def test_input_that_a_worker_cannot_read_is_reported(assert_fails, portable, worker_pool, tmp_path):
    (tmp_path / "corpus.jsonl").write_text("no JSON\n")
    assert_fails(
        f"--input_file={tmp_path / 'corpus.jsonl'}",
        "--input_format=jsonl",
        *portable,
        "--environment_type=EXTERNAL",
        f"--environment_config={worker_pool[0]}",
        says=[f"{tmp_path / 'corpus.jsonl'}, line 1: ", "--on_bad_record=skip"],
    )
