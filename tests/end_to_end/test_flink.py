"""`clozemill generate` on Flink: on its local master, and on a cluster of three processes.

The cluster is of PyPI's `apache-flink-libraries`, which the Makefile installs apart. Jobs also need
Beam's job server for Flink, whose path is in CLOZEMILL_FLINK_JAR:
beam-runners-flink-2.2-job-server-2.77.0.jar from Maven Central.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

JAR = os.environ.get("CLOZEMILL_FLINK_JAR")
LIBRARIES = Path(os.environ.get("CLOZEMILL_FLINK", Path(sys.prefix) / "flink")) / "pyflink"
SECONDS = 120
pytestmark = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
needs_jar = pytest.mark.skipif(not JAR, reason="needs a Flink job server (CLOZEMILL_FLINK_JAR)")
needs_libraries = pytest.mark.skipif(
    not LIBRARIES.exists(), reason=f"needs {LIBRARIES} (make test-slow)"
)
_OPENED = [
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED"
    for name in ("io", "lang", "net", "nio", "text", "time", "util", "util.concurrent")
]
_MARK = "BASH_JAVA_UTILS_EXEC_RESULT:"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Cluster:
    """A job manager and task managers of one slot each, on loopback.

    Args:
      folder: for settings, logs and temporary files.
    """

    def __init__(self, folder):
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        settings = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": free_port(),
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.memory.process.size": "1200m",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self.address.partition(":")[2],
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": 1,
            "taskmanager.memory.process.size": "1200m",
            "io.tmp.dirs": str(folder),
        }
        lines = [f"{name}: {value}\n" for name, value in settings.items()]
        (folder / "config.yaml").write_text("".join(lines))
        self._processes = []
        self._start("entrypoint.StandaloneSessionClusterEntrypoint", "-Xmx400m")
        # Task managers that start before it answers try again only ten seconds later.
        self._until(lambda: self.ask("overview"))
        for _ in range(2):
            self.start_task_manager()

    def _start(self, name, *options, arguments=()):
        classes = [f"org.apache.flink.runtime.{name}", "--configDir", self._folder, *arguments]
        log = (self._folder / f"{len(self._processes)}.log").open("w")
        with log:
            process = subprocess.Popen(
                ["java", *options, *_OPENED, "-cp", LIBRARIES / "lib" / "*", *classes],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)

    def start_task_manager(self):
        result = subprocess.run(
            [
                *("java", "-cp", f"{LIBRARIES}/bin/bash-java-utils.jar:{LIBRARIES}/lib/*"),
                *("org.apache.flink.runtime.util.bash.BashJavaUtils", "GET_TM_RESOURCE_PARAMS"),
                *("--configDir", self._folder),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = result.stdout.splitlines()
        heap, settings = (
            line.removeprefix(_MARK).split() for line in lines if line.startswith(_MARK)
        )
        self._start("taskexecutor.TaskManagerRunner", *heap, arguments=settings)

    def _until(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            for process in self._processes:
                assert process.poll() is None, self._logs()
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.2)

    def _logs(self):
        return "\n".join(path.read_text()[-3000:] for path in sorted(self._folder.glob("*.log")))

    def wait_for_task_managers(self, number):
        self._until(lambda: self.ask("overview").get("taskmanagers") == number)

    def ask(self, what):
        """What the job manager answers to a request of its REST interface; nothing if it is off."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/{what}") as answer:
                return json.load(answer)
        except OSError:
            return {}

    def kill_task_manager(self):
        """Kills the newest task manager, as a power cut does."""
        process = self._processes.pop()
        process.kill()
        process.wait()

    def stop(self):
        while self._processes:
            self.kill_task_manager()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster with two task managers."""
    cluster = Cluster(tmp_path_factory.mktemp("flink"))
    try:
        cluster.wait_for_task_managers(2)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def make_shards(generate, tmp_path):
    """A function that runs `generate` on Flink and returns the shards' SHA-256."""

    def run(environment_type, *flags, master="[local]"):
        return generate(
            tmp_path / "data",
            "--runner=FlinkRunner",
            f"--flink_master={master}",
            f"--flink_job_server_jar={JAR}",
            "--parallelism=2",
            f"--environment_type={environment_type}",
            *flags,
        )

    return run


@needs_jar
def test_the_drivers_own_process_makes_the_same_shards(make_shards, embedded):
    assert make_shards("LOOPBACK") == embedded


@needs_jar
def test_a_worker_pool_makes_the_same_shards(make_shards, embedded, worker_pool):
    address, _ = worker_pool
    assert make_shards("EXTERNAL", f"--environment_config={address}") == embedded


@needs_jar
def test_processes_that_flink_starts_make_the_same_shards(make_shards, embedded, boot):
    config = json.dumps({"command": str(boot)})
    assert make_shards("PROCESS", f"--environment_config={config}") == embedded


@needs_libraries
@pytest.mark.slow
def test_a_cluster_has_two_task_managers_with_a_slot_each(cluster):
    assert cluster.ask("config")["flink-version"] == "2.2.1"
    overview = cluster.ask("overview")
    assert (overview["taskmanagers"], overview["slots-total"]) == (2, 2)
    assert len(cluster.ask("taskmanagers")["taskmanagers"]) == 2


@needs_jar
@needs_libraries
@pytest.mark.slow
@pytest.mark.parametrize("environment", ["EXTERNAL", "PROCESS"])
def test_a_cluster_makes_the_same_shards(
    environment, cluster, make_shards, embedded, worker_pool, boot
):
    config = worker_pool[0] if environment == "EXTERNAL" else json.dumps({"command": str(boot)})
    flags = [environment, f"--environment_config={config}"]
    assert make_shards(*flags, master=cluster.address) == embedded


@needs_jar
@needs_libraries
@pytest.mark.slow
def test_a_task_manager_is_lost_and_the_same_command_goes_on(
    cluster, generate_command, make_shards, embedded, boot, tmp_path
):
    """Flink may finish the job on what is left, or end it with one line."""
    flags = ["PROCESS", f"--environment_config={json.dumps({'command': str(boot)})}"]
    run = subprocess.Popen(
        generate_command(
            tmp_path / "data",
            "--runner=FlinkRunner",
            f"--flink_master={cluster.address}",
            f"--flink_job_server_jar={JAR}",
            "--parallelism=2",
            f"--environment_type={flags[0]}",
            flags[1],
        ),
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        sign = tmp_path / "data" / "clozemill_in_progress" / "worker"
        cluster._until(lambda: sign.exists() or run.poll() is not None)
        cluster.kill_task_manager()
        _, stderr = run.communicate(timeout=10 * SECONDS)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait()
    assert run.returncode == 0 or stderr.splitlines()[-1].startswith("clozemill generate: ")
    assert "Traceback" not in stderr
    cluster.start_task_manager()
    cluster.wait_for_task_managers(2)
    assert make_shards(*flags, master=cluster.address) == embedded
