"""`clozemill generate` on Flink's local master.

The tests need Java, and the path of Beam's job server for Flink in CLOZEMILL_FLINK_JAR:
beam-runners-flink-2.2-job-server-2.77.0.jar from Maven Central.
"""

import json
import os
import shutil

import pytest

JAR = os.environ.get("CLOZEMILL_FLINK_JAR")
pytestmark = [
    pytest.mark.skipif(not JAR, reason="needs a Flink job server (CLOZEMILL_FLINK_JAR)"),
    pytest.mark.skipif(not shutil.which("java"), reason="needs Java"),
]


@pytest.fixture
def make_shards(generate, tmp_path):
    """A function that runs `generate` on Flink and returns the shards' SHA-256."""

    def run(environment_type, *flags):
        return generate(
            tmp_path / "data",
            "--runner=FlinkRunner",
            "--flink_master=[local]",
            f"--flink_job_server_jar={JAR}",
            "--parallelism=2",
            f"--environment_type={environment_type}",
            *flags,
        )

    return run


def test_the_drivers_own_process_makes_the_same_shards(make_shards, embedded):
    assert make_shards("LOOPBACK") == embedded


def test_a_worker_pool_makes_the_same_shards(make_shards, embedded, worker_pool):
    address, _ = worker_pool
    assert make_shards("EXTERNAL", f"--environment_config={address}") == embedded


def test_processes_that_flink_starts_make_the_same_shards(make_shards, embedded, boot):
    config = json.dumps({"command": str(boot)})
    assert make_shards("PROCESS", f"--environment_config={config}") == embedded
