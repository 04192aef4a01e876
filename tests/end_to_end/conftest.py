"""Shared fixtures of the runners' tests: Beam's services, and `generate` on a small corpus."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.manifest import Manifest

SAMPLES = Path(__file__).parents[2] / "data_samples"
SECONDS_TO_START = 60
# Workers start `python` by name, so it must be the one that has the package installed.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONSAFEPATH": "1",
}


@contextmanager
def service(*command, log, env=ENVIRONMENT):
    """Runs a service within the block and writes its output to `log`.

    Its directory holds foreign code, which neither it nor its workers may import.
    """
    (log.parent / "pipeline.py").write_text("raise ImportError('foreign code')")
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=log.parent, env=env, stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS_TO_START)


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition, process, log):
    deadline = time.monotonic() + SECONDS_TO_START
    while not (found := condition()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found


@contextmanager
def worker_pool_service(directory, *flags, before=(), env=ENVIRONMENT):
    """Runs a service that starts workers; yields its address and its log.

    Args:
      directory: for its log.
      flags: of the service.
      before: words of a command that runs the service.
      env: the environment of the service and its workers.
    """
    log = directory / "log.txt"
    command = (*before, sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main")
    with service(*command, "--service_port=0", *flags, log=log, env=env) as process:
        line = wait_for(lambda: "at port: " in log.read_text() and log.read_text(), process, log)
        yield line.partition("at port: ")[2].split()[0], log


@pytest.fixture(scope="session")
def generate_command():
    """A function that gives the words of `clozemill generate` on a small corpus, with flags."""

    def words(output_dir, *flags):
        return [
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
        ]

    return words


@pytest.fixture(scope="session")
def assert_one_line():
    """A function that checks that `generate` failed, with one line at last that contains `says`."""

    def check(returncode, stderr, *says):
        assert returncode == 1, stderr
        assert "Traceback" not in stderr
        assert stderr.count("clozemill generate: ") == 1
        last_line = stderr.splitlines()[-1]
        assert last_line.startswith("clozemill generate: ")
        for part in says:
            assert part in last_line

    return check


@pytest.fixture(scope="session")
def start_service():
    """The function `service`."""
    return service


@pytest.fixture(scope="session")
def start_pool():
    """The function `worker_pool_service`."""
    return worker_pool_service


@pytest.fixture(scope="session")
def run_generate(generate_command):
    """A function that runs `clozemill generate` with flags and returns the completed process."""

    def run(output_dir, *flags, **environment):
        return subprocess.run(
            generate_command(output_dir, *flags),
            cwd=output_dir.parent,
            env=ENVIRONMENT | environment,
            timeout=180,
            check=False,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def generate(run_generate):
    """A function that runs `clozemill generate` and returns the shards' SHA-256."""

    def run(output_dir, *flags):
        result = run_generate(output_dir, *flags)
        assert result.returncode == 0, result.stderr
        return {shard.name: shard.sha256 for shard in Manifest.read(output_dir).shards}

    return run


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, generate):
    """The SHA-256 of the shards that the embedded runner writes."""
    return generate(tmp_path_factory.mktemp("embedded") / "data")


@pytest.fixture(scope="session")
def job_endpoint(tmp_path_factory):
    """The address of Beam's own job service, while it runs."""
    directory = tmp_path_factory.mktemp("job_service")
    log, port_file = directory / "log.txt", directory / "port"
    command = (sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main")
    with service(*command, "--port=0", f"--port_file={port_file}", log=log) as process:
        port = wait_for(lambda: port_file.exists() and port_file.read_text(), process, log)
        yield f"localhost:{port}"


@pytest.fixture(scope="session")
def worker_pool(tmp_path_factory):
    """The address of a service that starts workers, and its log."""
    with worker_pool_service(tmp_path_factory.mktemp("worker_pool")) as address_and_log:
        yield address_and_log


@pytest.fixture(scope="session")
def boot(tmp_path_factory):
    """A program that starts a worker as the README describes for PROCESS."""
    path = tmp_path_factory.mktemp("boot") / "worker"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m launch.worker "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def pool_of_boot(tmp_path_factory, boot):
    """Like `worker_pool`, but `boot` starts the workers."""
    flag = f"--container_executable={boot}"
    with worker_pool_service(tmp_path_factory.mktemp("pool_of_boot"), flag) as address_and_log:
        yield address_and_log
