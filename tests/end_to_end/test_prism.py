"""`clozemill generate` on Prism, Beam's own local engine, and what happens when a part is lost.

CLOZEMILL_PRISM names the program: prism of Beam 2.77, which `go install` builds from
github.com/apache/beam/sdks/v2/go/cmd/prism.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.manifest import Manifest

PRISM = os.environ.get("CLOZEMILL_PRISM", "")
pytestmark = pytest.mark.skipif(not PRISM, reason="needs Prism (CLOZEMILL_PRISM)")
ROOT = Path(__file__).parents[2]
SECONDS = 60
LOOPBACK = ["--environment_type=LOOPBACK"]
# A segmenter that waits when it is first called, so that a test can disturb the work meanwhile.
SEGMENTER = """
import time
from pathlib import Path

def cut(text):
    path = Path(__file__).with_name("began")
    if not path.exists():
        path.touch()
        time.sleep({seconds})
    return text.split()
"""
# The bounds, which are minutes, become seconds.
WITH_SHORT_BOUNDS = """
import sys
import pipeline.portable_runner
pipeline.portable_runner._SECONDS_TO_COME = 4.0
from launch.command_line import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def environments(boot, worker_pool):
    """The flags for each type of environment."""
    return {
        "LOOPBACK": LOOPBACK,
        "EXTERNAL": ["--environment_type=EXTERNAL", f"--environment_config={worker_pool[0]}"],
        "PROCESS": [
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps({'command': str(boot)})}",
        ],
    }


class Run:
    """A run of `generate` whose first worker waits before it tokenizes anything."""

    def __init__(self, command, output_dir, folder, seconds=0.0, **kwargs):
        self._output_dir = output_dir
        self._began = folder / "began"
        (folder / "waiting.py").write_text(SEGMENTER.format(seconds=seconds))
        self.process = subprocess.Popen(
            [*command, "--word_segmenter=waiting:cut"], stderr=subprocess.PIPE, text=True, **kwargs
        )

    def wait_for_worker(self):
        until(lambda: self._began.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.stderr.read()

    def end(self):
        """Waits for the end; gives the exit code and what was printed."""
        _, stderr = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, stderr

    def shards(self):
        """Waits for the end, which must be a good one; gives the shards' SHA-256."""
        code, stderr = self.end()
        assert code == 0, stderr
        return {shard.name: shard.sha256 for shard in Manifest.read(self._output_dir).shards}


@pytest.fixture
def start(generate_command, tmp_path):
    """A function that starts `generate`; in its `env`, workers find the segmenter."""
    path = f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"

    def run(*flags, seconds=0.0, name="data"):
        command = generate_command(tmp_path / name, *flags)
        return Run(command, tmp_path / name, tmp_path, seconds, cwd=tmp_path, env=env)

    run.env = env
    return run


@pytest.fixture
def prism(start_service, start, tmp_path):
    """The process of a Prism that others use, and the flags for it."""
    folder = tmp_path / "prism"
    folder.mkdir()
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    log = folder / "log.txt"
    command = (PRISM, f"--job_port={port}", "--serve_http=false")
    with start_service(*command, log=log, env=start.env) as process:
        until(lambda: "Serving JobManagement" in log.read_text())
        yield process, ["--runner=PrismRunner", f"--job_endpoint=localhost:{port}"]


@pytest.fixture
def pool(start, start_pool, tmp_path):
    """The flags for a pool of this test alone, whose workers find the segmenter."""
    (tmp_path / "pool").mkdir()
    with start_pool(tmp_path / "pool", env=start.env) as (address, _):
        yield ["--environment_type=EXTERNAL", f"--environment_config={address}"]


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def processes_with(*words):
    """The processes of this user whose command line has all these words."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if all(word in " ".join(process.info["cmdline"] or []) for word in words)
    ]


@pytest.mark.parametrize("environment", ["LOOPBACK", "EXTERNAL", "PROCESS"])
def test_prism_makes_the_same_shards_and_ends(
    environment, environments, generate, embedded, tmp_path
):
    flags = ["--runner=PrismRunner", f"--prism_location={PRISM}", *environments[environment]]
    before = processes_with(PRISM)
    assert generate(tmp_path / "data", *flags) == embedded
    assert processes_with(PRISM) == before


@pytest.mark.slow
def test_a_prism_that_runs_already_makes_the_same_shards(
    prism, environments, generate, embedded, tmp_path
):
    _, flags = prism
    for name, environment in environments.items():
        assert generate(tmp_path / name, *flags, *environment) == embedded


@pytest.mark.slow
def test_a_job_may_last_longer_than_a_request(start):
    run = start(
        "--runner=PrismRunner",
        f"--prism_location={PRISM}",
        "--job_server_timeout=2",
        seconds=4,
    )
    code, stderr = run.end()
    assert code == 0, stderr
    assert "Prism" not in stderr  # its log
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["EXTERNAL", "PROCESS"])
def test_a_lost_worker_is_one_line_and_the_same_command_goes_on(
    environment, prism, environments, start, request, assert_one_line
):
    _, flags = prism
    is_external = environment == "EXTERNAL"
    flags += request.getfixturevalue("pool") if is_external else environments[environment]
    run = start(*flags, seconds=SECONDS)
    run.wait_for_worker()
    time.sleep(0.5)  # Prism itself waits forever for a worker that dies just when a bundle begins
    for worker in processes_with("SdkHarness" if is_external else "launch.worker", "job-001"):
        worker.kill()
    assert_one_line(*run.end(), "a worker died", "run the same command again to resume")
    assert start(*flags).shards() == start(name="embedded").shards()


@pytest.mark.slow
def test_a_pool_that_is_killed_leaves_its_worker_at_work(prism, pool, start):
    _, flags = prism
    run = start(*flags, *pool, seconds=4)
    run.wait_for_worker()
    for process in processes_with("worker_pool_main"):
        if process.environ().get("PYTHONPATH") == start.env["PYTHONPATH"]:
            process.kill()
    assert run.shards() == start(name="embedded").shards()


@pytest.mark.parametrize("environment", ["LOOPBACK", "PROCESS"])
def test_a_service_that_is_killed_is_one_line(
    environment, prism, environments, start, assert_one_line
):
    process, flags = prism
    run = start(*flags, *environments[environment], seconds=SECONDS)
    run.wait_for_worker()
    process.kill()
    assert_one_line(*run.end(), "the job service ended", "start it again")


def test_a_pool_that_is_not_there_ends_the_service_and_is_one_line(prism, start, assert_one_line):
    _, flags = prism
    run = start(*flags, "--environment_type=EXTERNAL", "--environment_config=localhost:1")
    assert_one_line(*run.end(), "no pool answered at --environment_config")


@pytest.mark.slow
def test_a_worker_that_never_comes_is_one_line(prism, generate_command, assert_one_line, tmp_path):
    _, flags = prism
    words = generate_command(
        tmp_path / "data",
        *flags,
        "--environment_type=PROCESS",
        f"--environment_config={json.dumps({'command': '/bin/false'})}",
    )
    result = subprocess.run(
        [sys.executable, "-c", WITH_SHORT_BOUNDS, *words[3:]],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    what = "no worker has come"
    assert_one_line(result.returncode, result.stderr, f"{what} for 4 seconds", '"command": "/bin/f')
    assert f"{what}; run the command" in result.stderr


@pytest.mark.parametrize("hidden", ["data", "text", "tokenized"])
def test_a_worker_that_misses_a_directory_says_that_all_must_reach_it(
    hidden, prism, start_pool, start, generate_command, assert_one_line, tmp_path
):
    folders = {name: tmp_path / name for name in ("data", "text", "tokenized", "pool")}
    for folder in folders.values():
        folder.mkdir()
    (folders["text"] / "a.txt").write_text("One sentence.\nAnother one.\n\nA third.\n")
    apart = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = [f'mount -t tmpfs none {folders[hidden]} && exec "$@"', "sh"]
    if subprocess.run([*apart, *mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs mount namespaces")
    _, flags = prism
    with start_pool(folders["pool"], before=[*apart, *mount], env=start.env) as (address, _):
        command = generate_command(
            folders["data"] / "english",
            *flags,
            "--environment_type=EXTERNAL",
            f"--environment_config={address}",
            f"--input_file={folders['text'] / 'a.txt'}",
            f"--tokenized_dir={folders['tokenized'] / 'english'}",
        )
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=start.env
        )
    says = [str(folders[hidden]), "all workers must reach this directory"]
    assert_one_line(result.returncode, result.stderr, *says)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_prism_too(number, start):
    before = processes_with(PRISM)
    run = start("--runner=PrismRunner", f"--prism_location={PRISM}", seconds=SECONDS)
    run.wait_for_worker()
    run.process.send_signal(number)
    code, stderr = run.end()
    assert code in (130, 143)
    assert stderr.splitlines()[-1].startswith("clozemill generate: ")
    assert "Traceback" not in stderr
    assert processes_with(PRISM) == before
