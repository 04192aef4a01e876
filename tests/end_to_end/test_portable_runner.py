"""Beam's portable path, as clusters run it: job service, workers and driver in processes of their own."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.manifest import Manifest

SAMPLES = Path(__file__).parents[2] / "data_samples"
SECONDS_TO_START = 60
# Workers start by the name `python`, which must be the one that has the package installed.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def service(module, *flags, log):
    """A service of Beam's that runs within; its log is there at the end."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            cwd=log.parent,
            env=ENVIRONMENT,
            stdout=file,
            stderr=file,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS_TO_START)


def wait_for(condition, process, log):
    deadline = time.monotonic() + SECONDS_TO_START
    while not (found := condition()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found


def generate(output_dir, *flags):
    subprocess.run(
        [
            *(sys.executable, "-m", "launch", "generate"),
            f"--input_file={SAMPLES / 'english.txt'}",
            f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
            f"--output_dir={output_dir}",
            "--max_seq_length=48",
            "--max_predictions_per_seq=8",
            "--dupe_factor=2",
            "--eval_fraction=0.2",
            "--num_shards=4",
            "--drop_duplicates",
            *flags,
        ],
        cwd=output_dir.parent,
        env=ENVIRONMENT,
        timeout=180,
        check=True,
    )
    return {shard.name: shard.sha256 for shard in Manifest.read(output_dir).shards}


@pytest.fixture(scope="module")
def job_endpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("job_service")
    log, port_file = directory / "log.txt", directory / "port"
    module = "apache_beam.runners.portability.local_job_service_main"
    with service(module, "--port=0", f"--port_file={port_file}", log=log) as process:
        port = wait_for(lambda: port_file.exists() and port_file.read_text(), process, log)
        yield f"localhost:{port}"


@pytest.fixture(scope="module")
def worker_pool(tmp_path_factory):
    """The address of a service that starts workers, and its log."""
    log = tmp_path_factory.mktemp("worker_pool") / "log.txt"
    with service(
        "apache_beam.runners.worker.worker_pool_main", "--service_port=0", log=log
    ) as process:
        line = wait_for(lambda: "at port: " in log.read_text() and log.read_text(), process, log)
        yield line.partition("at port: ")[2].split()[0], log


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The shards' SHA-256 of the embedded runner."""
    return generate(tmp_path_factory.mktemp("embedded") / "data")


def test_workers_of_their_own_make_the_same_shards(tmp_path, job_endpoint, worker_pool, embedded):
    address, log = worker_pool
    shards = generate(
        tmp_path / "data",
        "--runner=PortableRunner",
        f"--job_endpoint={job_endpoint}",
        "--environment_type=EXTERNAL",
        f"--environment_config={address}",
        "--sdk_worker_parallelism=2",
    )
    assert shards == embedded
    assert "Starting worker with command" in log.read_text()


def test_the_drivers_own_process_makes_the_same_shards(tmp_path, job_endpoint, embedded):
    shards = generate(
        tmp_path / "data",
        "--runner=PortableRunner",
        f"--job_endpoint={job_endpoint}",
        "--environment_type=LOOPBACK",
    )
    assert shards == embedded
