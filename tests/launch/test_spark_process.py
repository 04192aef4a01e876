"""Processes of a job that runs `generate` on Spark, with the variables that Kubernetes sets."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.job import COORDINATOR_VARIABLE, NUM_PROCESSES_VARIABLE, TOKEN_VARIABLE
from pipeline.manifest import Manifest

pytestmark = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
SECONDS = 150
FLAGS = ("--max_seq_length=64", "--num_shards=30")


def command(output_dir):
    return (
        "generate",
        f"--input_file={SAMPLES / 'english.txt'}",
        f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
        f"--output_dir={output_dir}",
        *FLAGS,
    )


@pytest.fixture
def start(tmp_path):
    """A function that starts a process of a job of two."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    token = secrets.token_hex()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    started = []

    def run(index, *words):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.spark_process", *words],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(temporary),
                "JOB_COMPLETION_INDEX": str(index),
                COORDINATOR_VARIABLE: address,
                NUM_PROCESSES_VARIABLE: "2",
                TOKEN_VARIABLE: token,
            },
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    run.token = token
    yield run
    for process in started:
        process.kill()
        process.communicate()
    assert not list(temporary.iterdir())


def end_of(process):
    """The exit code and what was printed."""
    _, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stderr


def shards_in(directory):
    return {shard.name: shard.sha256 for shard in Manifest.read(directory).shards}


def until(condition, process):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_job_that_is_stopped_and_started_again_makes_the_same_shards(start, tmp_path):
    data = tmp_path / "data"
    worker, first = start(1, *command(data)), start(0, *command(data))
    until(lambda: list(data.rglob("receipts/*.tfrecord.json")), first)
    arguments = [file.read_text() for file in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [words for words in arguments if start.token in words]
    first.send_signal(signal.SIGTERM)
    code, stderr = end_of(first)
    assert code == 143, stderr
    # The worker waits for process 0 to come back.
    code, stderr = end_of(start(0, *command(data)))
    assert code == 0, stderr
    code, stderr = end_of(worker)
    assert code == 0, stderr
    embedded = [sys.executable, "-m", "launch", *command(tmp_path / "embedded")]
    subprocess.run(embedded, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert shards_in(data) == shards_in(tmp_path / "embedded")


@pytest.mark.slow
def test_wrong_flags_and_a_lost_master_are_one_line(start, tmp_path):
    code, stderr = end_of(start(0, *command(tmp_path / "data"), "--dupe_factor=0"))
    assert code == 1
    assert "--dupe_factor=0" in stderr
    code, stderr = end_of(start(1, *command(tmp_path / "data"), "--no_such_flag"))
    assert code == 2
    assert "no_such_flag" in stderr
    assert "Traceback" not in stderr
