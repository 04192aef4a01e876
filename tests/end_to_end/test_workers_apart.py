"""`generate` to a store, by workers that share no file system with the driver or each other.

The kernel's namespaces take the place of machines: a machine has its own network, in which it
reaches the driver's machine alone, and an empty disk over the folder of the test.

Prism tells each worker to reach it at `localhost`. So Beam's workers have only a disk of their own,
and no network. Prism gives a job one worker, whatever the pool.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyspark
import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
SPARK = Path(pyspark.__file__).parent
SECONDS = 150
PRISM = os.environ.get("CLOZEMILL_PRISM", "")
APART = ["unshare", "--map-root-user", "--mount", "--net"]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "a-key",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "PYTHONPATH": str(ROOT),
    "PYTHONSAFEPATH": "1",
}
DRIVER_ADDRESS = "10.99.0.1"
# Serves a store until its input ends; a line for each request that was answered.
STORE = """
import sys
sys.path.insert(0, sys.argv[1])
from object_store import object_store
with object_store(sys.argv[2]) as store:
    store.make_bucket("bucket")
    store.after = lambda _, method, path: print(method, path, flush=True)
    print(store.environment["AWS_ENDPOINT_URL"], flush=True)
    sys.stdin.read()
"""
# Prints the files that are text.
READ = """
import sys
from pipeline.storage import location
place = location(sys.argv[1])
for file in [place] if place.is_file() else place.rglob("*"):
    if not file.name.endswith(".tfrecord"):
        print(file.read_text())
"""
UPLOAD = """
import pathlib, sys
from pipeline.storage import location
location(sys.argv[2]).upload(pathlib.Path(sys.argv[1]))
"""


class Host:
    """Where commands run: this machine.

    Args:
      folder: where they may write.
    """

    def __init__(self, folder):
        self.folder = folder
        self.environment = {}

    def words(self, *words):
        """A command that runs another one here."""
        return ["env", f"--chdir={self.folder}", *map(str, words)]

    def start(self, *words, **kwargs):
        """Starts a command."""
        return subprocess.Popen(
            self.words(*words), env=os.environ | self.environment, text=True, **kwargs
        )

    def run(self, *words):
        """Runs a command and returns what it prints."""
        process = self.start(*words, stdout=subprocess.PIPE)
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, words
        return output

    def upload(self, file, url):
        """Sends a file to the store."""
        self.run(sys.executable, "-c", UPLOAD, file, url)

    def texts(self, url):
        """What a file of the store holds, or all in a folder but the shards."""
        return self.run(sys.executable, "-c", READ, url)

    def shards(self, url):
        """The SHA-256 of the shards of a data set."""
        manifest = json.loads(self.texts(f"{url}/manifest.json"))
        return {shard["name"]: shard["sha256"] for shard in manifest["shards"]}


class Machine(Host):
    """A machine with its own network and its own disk.

    Args:
      enter: the words before a command that make it run where this machine is made.
      folder: where it may write.
    """

    def __init__(self, enter, folder):
        super().__init__(folder)
        self._sleeper = subprocess.Popen([*enter, "sleep", "infinity"])
        until(lambda: self._command() == ["sleep", "infinity"])
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self):
        """The process that keeps the machine in being."""
        return self._sleeper.pid

    def _command(self):
        return Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[:-1]

    def words(self, *words):
        """A command that runs another one on the machine."""
        enter = ["nsenter", f"--target={self.pid}", "--user", "--preserve-credentials"]
        return [*enter, "--mount", "--net", *super().words(*words)]

    def end(self):
        """Ends the machine, if its processes have ended."""
        self._sleeper.kill()
        self._sleeper.wait()


def machines_of(folder):
    """The driver's machine and two others, each with a cable to it."""
    driver = Machine(APART, folder)
    driver.run("ip", "address", "add", f"{DRIVER_ADDRESS}/32", "dev", "lo")
    workers = []
    for number in (1, 2):
        worker = Machine(driver.words("unshare", "--mount", "--net"), folder)
        cable = ("ip", "link", "add", f"cable{number}", "type", "veth")
        driver.run(*cable, "peer", "name", "cable", "netns", worker.pid)
        for machine, name, end in ((driver, f"cable{number}", 1), (worker, "cable", 2)):
            machine.run("ip", "address", "add", f"10.99.{number}.{end}/30", "dev", name)
            machine.run("ip", "link", "set", name, "up")
        worker.run("ip", "route", "add", DRIVER_ADDRESS, "via", f"10.99.{number}.1")
        worker.run("mount", "-t", "tmpfs", "none", folder)
        worker.address = f"10.99.{number}.2"
        workers.append(worker)
    driver.address = DRIVER_ADDRESS
    for machine in (driver, *workers):
        machine.run("mkdir", "--parents", folder / "temporary")
        machine.environment = {
            **ENVIRONMENT,
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_HOME": str(SPARK),
            "SPARK_LOCAL_IP": machine.address,
            "SPARK_LOCAL_DIRS": str(folder / "temporary"),
            "TMPDIR": str(folder / "temporary"),
        }
    return driver, workers


class Cluster:
    """A store and a master of Spark on the driver's machine, and a worker on each of the others."""

    def __init__(self, folder):
        self.folder = folder
        self.driver, self.machines = machines_of(folder)
        self._started = []
        store = (sys.executable, "-c", STORE, ROOT / "tests", self.driver.address)
        self._start(self.driver, "store", *store)
        until(lambda: self.log("store"))
        for machine in (self.driver, *self.machines):
            machine.environment["AWS_ENDPOINT_URL"] = self.log("store").split()[0]
        self.master = f"spark://{self.driver.address}:7077"
        self._start_spark(self.driver, "master.Master", "--port", "7077")
        self.workers = [None, None]
        self.start_workers()

    def _start(self, machine, name, *words):
        with (self.folder / f"{name}.log").open("a") as log:
            process = machine.start(*words, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._started.append(process)
        return process

    def _start_spark(self, machine, kind, *arguments):
        program = (SPARK / "bin" / "spark-class", f"org.apache.spark.deploy.{kind}")
        return self._start(machine, kind, *program, "--host", machine.address, *arguments)

    def start_workers(self):
        """Starts a worker on each machine that has none."""
        for number, machine in enumerate(self.machines):
            if not self.workers[number]:
                flags = ("--cores", "1", "--memory", "700m", "--work-dir", self.folder / "work")
                self.workers[number] = self._start_spark(
                    machine, "worker.Worker", *flags, self.master
                )
        num_workers = len(self._started) - 2  # besides the store and the master
        until(lambda: self.log("master.Master").count("Registering worker") == num_workers)

    def log(self, name):
        """What a program has printed: the store, each request that it has answered."""
        return (self.folder / f"{name}.log").read_text()

    def kill_worker(self):
        """Kills a worker, with its executor and that one's Python, as a power cut does."""
        worker, self.workers[1] = self.workers[1], None
        for pid in [worker.pid, *descendants(worker.pid)]:
            os.kill(pid, signal.SIGKILL)
        worker.wait()

    def end(self):
        for process in self._started:
            for pid in [process.pid, *descendants(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
        for machine in (*self.machines, self.driver):
            machine.end()


def skip_unless(*command):
    """Skips the test if the system does not let us make namespaces by this command."""
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs namespaces (unshare, ip)")


def descendants(pid):
    children = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").glob("*")
        for child in (thread / "children").read_text().split()
    ]
    return [each for child in children for each in (child, *descendants(child))]


def until(condition, process=None):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if not shutil.which("java"):
        pytest.skip("needs Java")
    skip_unless(*APART, "ip", "link")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.end()


@pytest.fixture
def start(cluster, generate_command):
    """A function that starts `generate` on the driver's machine, for the cluster."""
    shutil.copy(SAMPLES / "english_vocab.txt", cluster.folder)
    cluster.driver.upload(SAMPLES / "english.txt", "s3://bucket/english.txt")
    conf = {
        "driver.host": cluster.driver.address,
        "driver.bindAddress": cluster.driver.address,
        "eventLog.enabled": "true",
        "eventLog.dir": cluster.folder,
        "eventLog.compress": "false",
        # No task starts before both workers are there.
        "cores.max": 2,
        "scheduler.minRegisteredResourcesRatio": 1,
    }
    flags = [f"--spark_conf=spark.{name}={conf[name]}" for name in conf]
    flags.append(f"--spark_master={cluster.master}")
    return partial(start_on, cluster.driver, generate_command, flags)


def start_on(driver, generate_command, flags, url, *more):
    """Starts `generate` on the driver's machine.

    The text is on the store, and the vocabulary on the driver's disk.
    """
    return driver.start(
        *generate_command(url, "--input_file=s3://bucket/english.txt"),
        f"--vocab_file={driver.folder / 'english_vocab.txt'}",
        *flags,
        *more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ends_well(process):
    """Waits for the end of `generate`."""
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr


def arguments_of_processes():
    """The command lines of all processes."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield file.read_text(errors="replace")


@pytest.mark.slow
def test_spark_makes_the_same_shards(cluster, start, embedded):
    leftover = cluster.folder / "temporary" / f"clozemill.{'0' * 32}.tmp"
    for machine in cluster.machines:
        machine.run("mkdir", leftover)  # as of a worker that was killed
    process = start("s3://bucket/data")
    until(
        lambda: "PUT /bucket/data/clozemill_in_progress/receipts/" in cluster.log("store"), process
    )
    arguments = "".join(arguments_of_processes())
    ends_well(process)
    assert cluster.driver.shards("s3://bucket/data") == embedded
    (events,) = [file.read_text() for file in cluster.folder.rglob("events_*")]
    assert {f'"Executor ID":"{number}"' in events for number in (0, 1)} == {True}
    for machine in cluster.machines:
        assert machine.run("ls", cluster.folder).split() == ["temporary", "work"]
    for machine in (cluster.driver, *cluster.machines):
        assert "clozemill" not in machine.run("ls", cluster.folder / "temporary")
        secret = machine.environment["AWS_SECRET_ACCESS_KEY"]
        assert secret not in arguments + events + cluster.driver.texts("s3://bucket/data")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tokenized/split-00000", "receipts/"])
def test_spark_loses_a_worker_and_no_work(file, cluster, start, generate, tmp_path):
    flags = ["--num_shards=30"]
    url = f"s3://bucket/{tmp_path.name}"
    process = start(url, *flags)
    begun = f"PUT /bucket/{tmp_path.name}/clozemill_in_progress/{file}"
    until(lambda: begun in cluster.log("store"), process)
    cluster.kill_worker()
    ends_well(process)
    assert cluster.driver.shards(url) == generate(tmp_path / "data", *flags)
    cluster.start_workers()


# A segmenter that waits when it is first called, so that a test can kill the worker meanwhile.
SEGMENTER = """
import time
from pathlib import Path

def cut(text):
    path = Path(__file__).with_name("began")
    if not path.exists():
        path.touch()
        time.sleep(600)
    return text.split()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store on this machine; its environment, and the file with what it has answered."""
    host = Host(tmp_path_factory.mktemp("store"))
    log = host.folder / "log.txt"
    with log.open("w") as file:
        words = (sys.executable, "-c", STORE, ROOT / "tests", "127.0.0.1")
        process = host.start(*words, stdin=subprocess.PIPE, stdout=file)
    url = until(log.read_text).split()[0]
    yield {**ENVIRONMENT, "AWS_SECRET_ACCESS_KEY": secrets.token_hex(), "AWS_ENDPOINT_URL": url}
    process.communicate()


@pytest.fixture
def driver(store, tmp_path):
    """The driver's machine, on whose disk is the vocabulary."""
    driver = Host(tmp_path / "driver")
    driver.folder.mkdir()
    shutil.copy(SAMPLES / "english_vocab.txt", driver.folder)
    installed = tmp_path / "installed"  # on all machines
    installed.mkdir()
    (installed / "waiting.py").write_text(SEGMENTER)
    driver.environment = {
        **store,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{installed}",
        "TMPDIR": str(driver.folder),
    }
    driver.upload(SAMPLES / "english.txt", "s3://bucket/english.txt")
    return driver


@pytest.fixture(params=["EXTERNAL", "PROCESS"])
def environment_flags(request, driver, start_pool, tmp_path):
    """The flags for workers that have an empty disk in place of the driver's."""
    folder = driver.folder
    apart = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    apart += [f'mount -t tmpfs none {folder} && cd {folder} && exec "$@"', "sh"]
    skip_unless(*apart, "true")
    flags = [
        "--runner=PrismRunner",
        f"--prism_location={PRISM}",
        f"--environment_type={request.param}",
    ]
    if request.param == "PROCESS":
        boot = tmp_path / "boot"
        words = shlex.join([*apart, sys.executable, "-P", "-m", "launch.worker"])
        boot.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        boot.chmod(0o755)
        yield [*flags, f"--environment_config={json.dumps({'command': str(boot)})}"]
        return
    (tmp_path / "pool").mkdir()
    env = os.environ | driver.environment
    with start_pool(tmp_path / "pool", before=apart, env=env) as (address, _):
        yield [*flags, f"--environment_config={address}"]


@pytest.mark.slow
@pytest.mark.skipif(not PRISM, reason="needs Prism (CLOZEMILL_PRISM)")
class TestBeam:
    """On Prism."""

    def test_it_makes_the_same_shards(
        self, driver, environment_flags, generate_command, embedded, tmp_path
    ):
        url = f"s3://bucket/{tmp_path.name}"
        ends_well(start_on(driver, generate_command, environment_flags, url))
        assert driver.shards(url) == embedded
        secret = driver.environment["AWS_SECRET_ACCESS_KEY"]
        assert secret not in driver.texts(url)

    def test_a_lost_worker_is_one_line_and_the_same_command_goes_on(
        self, driver, environment_flags, generate_command, generate, assert_one_line, tmp_path
    ):
        url = f"s3://bucket/{tmp_path.name}"
        flags = [*environment_flags, "--word_segmenter=waiting:cut"]
        process = start_on(driver, generate_command, flags, url)
        until((tmp_path / "installed" / "began").exists, process)
        time.sleep(0.5)  # Prism itself waits forever for a worker that dies as a bundle begins
        arguments = "".join(arguments_of_processes())
        assert driver.environment["AWS_SECRET_ACCESS_KEY"] not in arguments
        for pid in workers_of_beam(str(tmp_path)):
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _, stderr = process.communicate(timeout=SECONDS)
        assert time.monotonic() - began < 30
        assert_one_line(process.returncode, stderr, "a worker died", "the same command again")
        ends_well(start_on(driver, generate_command, flags, url))
        ends_well(start_on(driver, generate_command, flags[-1:], driver.folder / "local"))
        assert driver.shards(url) == driver.shards(driver.folder / "local")


def workers_of_beam(text):
    """The processes of Beam's workers whose environment has this text."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_worker = re.search(r"SdkHarness|launch\.worker", (folder / "cmdline").read_text())
            if is_worker and text in (folder / "environ").read_text(errors="replace"):
                yield int(folder.name)
