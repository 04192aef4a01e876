"""`clozemill generate --spark_master`: on processes of this machine, and on real clusters.

They need Java. A cluster is a master and two workers on loopback, of the installed PySpark and, for
`make test-slow`, of another version, whose folder the Makefile makes.
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

import pyspark
import pytest

from pipeline.directories import IN_PROGRESS_NAME
from pipeline.manifest import Manifest

pytestmark = pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
INSTALLED = Path(pyspark.__file__).parents[1]
OTHER = Path(sys.prefix) / "spark3"
ON_LOOPBACK = [
    "--spark_conf=spark.driver.host=127.0.0.1",
    "--spark_conf=spark.driver.bindAddress=127.0.0.1",
]
FLAGS = [
    "--max_seq_length=64",
    "--max_predictions_per_seq=10",
    "--dupe_factor=2",
    "--num_shards=10",
    "--eval_fraction=0",
    "--drop_near_duplicates=0.8",
]
SAMPLES = Path(__file__).parents[2] / "data_samples"
SECONDS = 150


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Cluster:
    """A master and two workers of one core each.

    Args:
      package: the folder that holds a version of PySpark.
      folder: for logs and work.
    """

    def __init__(self, package, folder):
        self.package = package
        self._home = package / "pyspark"
        self._folder = folder
        self._started = []
        port, self._web_port = free_port(), free_port()
        self.address = f"spark://127.0.0.1:{port}"
        self._start("master.Master", f"--port={port}", f"--webui-port={self._web_port}")
        until(lambda: self.state() is not None)
        self.start_workers()

    def _start(self, name, *arguments):
        words = [word for argument in arguments for word in argument.split("=")]
        with (self._folder / f"{len(self._started)}.log").open("w") as log:
            self._started.append(
                subprocess.Popen(
                    [
                        *(self._home / "bin" / "spark-class", f"org.apache.spark.deploy.{name}"),
                        *("--host", "127.0.0.1", *words),
                    ],
                    env=os.environ | {"SPARK_HOME": str(self._home)},
                    stdout=log,
                    stderr=log,
                )
            )

    def start_workers(self):
        """Adds workers until there are two."""
        while len(self._started) < 3:
            folder = self._folder / f"worker{len(self._started)}"
            web_port = f"--webui-port={free_port()}"
            memory = ("--cores=1", "--memory=700m")
            self._start("worker.Worker", *memory, f"--work-dir={folder}", web_port, self.address)
        until(lambda: len(self.in_state("workers", "ALIVE")) >= 2)

    def state(self):
        """What the master says of itself; None if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._web_port}/json/") as answer:
                return json.load(answer)
        except OSError:
            return None

    def in_state(self, kind, state):
        return [each for each in self.state()[kind] if each["state"] == state]

    def kill_worker(self):
        """Kills the newest worker, with its executor and that one's Python, as a power cut does."""
        worker = self._started.pop()
        for pid in [worker.pid, *descendants(worker.pid)]:
            os.kill(pid, signal.SIGKILL)
        worker.wait()

    def stop(self):
        while self._started:
            self.kill_worker()


def descendants(pid):
    children = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    return [each for child in children for each in (child, *descendants(child))]


def until(condition, process=None):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _skip_without(package):
    if not package.exists():
        pytest.skip(f"needs {package} (make test-slow)")


@pytest.fixture(scope="module", params=[INSTALLED, OTHER], ids=["installed", "other version"])
def cluster(request, tmp_path_factory):
    _skip_without(request.param)
    cluster = Cluster(request.param, tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def start(cluster):
    """A function that starts `generate` on the cluster."""

    def run(output_dir, *flags, program=("-m", "launch")):
        return subprocess.Popen(
            [
                *(sys.executable, *program, "generate"),
                f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
                f"--output_dir={output_dir}",
                f"--spark_master={cluster.address}",
                *(*ON_LOOPBACK, *FLAGS),
                *flags,
            ],
            cwd=output_dir.parent,
            env=os.environ | {"PYTHONPATH": str(cluster.package), "PYTHONSAFEPATH": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Flags for 20 MB of text: some portions, and 20 shards."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text((SAMPLES / "english.txt").read_text() * 160)
    return [f"--input_file={path}"]


@pytest.fixture(scope="module")
def shards_of_corpus(corpus, run_generate, tmp_path_factory):
    directory = tmp_path_factory.mktemp("expected") / "data"
    result = run_generate(directory, *corpus, *FLAGS)
    assert result.returncode == 0, result.stderr
    return shards_in(directory)


def shards_in(directory):
    return {shard.name: shard.sha256 for shard in Manifest.read(directory).shards}


def finished(directory, pattern):
    return len(list((directory / IN_PROGRESS_NAME).glob(f"{pattern}.json")))


def ends_well(process, directory):
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    assert not [line for line in stderr.splitlines() if " WARN " in line or "Traceback" in line]
    assert not list(directory.rglob("*.tmp"))
    return shards_in(directory)


@pytest.fixture
def fails(assert_one_line):
    """A function that waits for a process that must fail with one line that contains `says`."""

    def check(process, *says):
        _, stderr = process.communicate(timeout=SECONDS)
        assert_one_line(process.returncode, stderr, *says)

    return check


def test_processes_of_this_machine_make_the_same_shards(run_generate, embedded, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    result = run_generate(tmp_path / "data", "--spark_master=local[2]", TMPDIR=str(temporary))
    assert result.returncode == 0, result.stderr
    assert shards_in(tmp_path / "data") == embedded
    assert not list(temporary.iterdir())


MIXTURE = f"""
temperature = [0.7, 0.3]

[[corpus]]
name = "english"
input_file = "{SAMPLES}/english.txt"

[[corpus]]
name = "chinese"
input_file = "{SAMPLES}/chinese.txt"
"""


@pytest.mark.slow
def test_a_mixture_has_the_same_shards_on_spark(generate_mixture, tmp_path):
    on_beam = generate_mixture(tmp_path / "beam")
    assert generate_mixture(tmp_path / "spark", "--spark_master=local[2]") == on_beam


@pytest.fixture
def generate_mixture(tmp_path):
    """A function that runs `generate` with a mixture, and returns the shards."""
    (tmp_path / "mixture.toml").write_text(MIXTURE)

    def run(output_dir, *flags):
        command = [
            *(sys.executable, "-m", "launch", "generate", f"--output_dir={output_dir}"),
            f"--mixture={tmp_path / 'mixture.toml'}",
            f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
            *("--dupe_factor=2", "--num_shards=3", "--eval_fraction=0.1", "--drop_duplicates"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(SAMPLES.parent)}
        subprocess.run([*command, *flags], env=environment, check=True, timeout=SECONDS)
        return shards_in(output_dir)

    return run


@pytest.mark.slow
class TestCluster:
    """On a real cluster."""

    @pytest.mark.parametrize("speculation", [False, True])
    def test_it_makes_the_same_shards(self, speculation, start, corpus, shards_of_corpus, tmp_path):
        """With speculation, two attempts of one shard may run at once."""
        eager = {
            "spark.speculation": "true",
            "spark.speculation.interval": "10ms",
            "spark.speculation.quantile": "0.1",
            "spark.speculation.multiplier": "1.01",
            "spark.speculation.minTaskRuntime": "1ms",
        }
        conf = [f"--spark_conf={name}={eager[name]}" for name in eager] if speculation else []
        process = start(tmp_path / "data", *corpus, *conf)
        assert ends_well(process, tmp_path / "data") == shards_of_corpus

    def test_it_makes_the_same_shards_of_chinese_words(self, start, run_generate, tmp_path):
        flags = [
            f"--input_file={SAMPLES / 'chinese.txt'}",
            f"--vocab_file={SAMPLES / 'chinese_vocab.txt'}",
            "--word_segmenter=jieba",
            f"--tokenized_dir={tmp_path / 'tokenized'}",
        ]
        process = start(tmp_path / "data", *flags)
        shards = ends_well(process, tmp_path / "data")
        assert not list((tmp_path / "tokenized").glob("*.tmp"))
        shutil.rmtree(tmp_path / "tokenized")
        result = run_generate(tmp_path / "expected", *flags, *FLAGS)
        assert result.returncode == 0, result.stderr
        assert shards == shards_in(tmp_path / "expected")

    @pytest.mark.parametrize("files", ["tokenized/split-*", "receipts/*.tfrecord"])
    def test_it_loses_a_worker_and_no_work(
        self, files, start, corpus, shards_of_corpus, cluster, tmp_path
    ):
        process = start(tmp_path / "data", *corpus)
        until(lambda: finished(tmp_path / "data", files), process)
        cluster.kill_worker()
        assert ends_well(process, tmp_path / "data") == shards_of_corpus
        cluster.start_workers()

    def test_it_loses_all_workers(self, fails, start, corpus, shards_of_corpus, cluster, tmp_path):
        soon = "import pipeline.spark, launch.__main__ as l; pipeline.spark._SECONDS_TO_REPLACE = 5"
        process = start(tmp_path / "data", *corpus, program=("-c", f"{soon}; l.main()"))
        until(lambda: finished(tmp_path / "data", "receipts/*.tfrecord"), process)
        cluster.kill_worker()
        cluster.kill_worker()
        fails(process, "all executors were lost", "the same command again")
        num_finished = finished(tmp_path / "data", "receipts/*.tfrecord")
        assert 0 < num_finished < len(shards_of_corpus)
        cluster.start_workers()
        assert ends_well(start(tmp_path / "data", *corpus), tmp_path / "data") == shards_of_corpus

    def test_text_that_cannot_be_read_ends_the_job_at_its_first_attempt(
        self, fails, start, tmp_path
    ):
        path = tmp_path / "corpus.jsonl"
        path.write_text('{"text": "One two three. Four five six."}\n' * 60_000 + "no JSON\n")
        conf = {"enabled": "true", "compress": "false", "dir": tmp_path}
        log = [f"--spark_conf=spark.eventLog.{name}={conf[name]}" for name in conf]
        process = start(tmp_path / "data", f"--input_file={path}", *log)
        fails(process, f"{path}, line 60001: ", "--on_bad_record=skip")
        events = [
            json.loads(line)
            for file in tmp_path.rglob("*app-*")
            if file.name.startswith(("events", "app-"))
            for line in file.read_text().splitlines()
        ]
        ends = [event for event in events if event["Event"] == "SparkListenerTaskEnd"]
        assert len(ends) == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_cancels_the_job(self, number, start, corpus, cluster, tmp_path):
        process = start(tmp_path / "data", *corpus)
        until(lambda: finished(tmp_path / "data", "receipts/*.tfrecord"), process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + number
        assert "Traceback" not in stderr
        assert stderr.splitlines()[-1].startswith("clozemill generate: ")
        until(lambda: not cluster.state()["activeapps"])

    def test_a_killed_driver_leaves_no_job(
        self, start, corpus, cluster, shards_of_corpus, tmp_path
    ):
        process = start(tmp_path / "data", *corpus)
        until(lambda: finished(tmp_path / "data", "receipts/*.tfrecord"), process)
        process.kill()
        process.communicate(timeout=SECONDS)
        until(lambda: not cluster.state()["activeapps"])
        assert ends_well(start(tmp_path / "data", *corpus), tmp_path / "data") == shards_of_corpus

    def test_a_python_without_clozemill_is_reported(self, fails, start, corpus, tmp_path):
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True
        )
        python = f"--spark_conf=spark.pyspark.python={tmp_path / 'env' / 'bin' / 'python'}"
        fails(start(tmp_path / "data", *corpus, python), "install this version of Clozemill")

    def test_a_missing_python_is_reported(self, fails, start, corpus, tmp_path):
        python = "--spark_conf=spark.pyspark.python=/no/python"
        fails(start(tmp_path / "data", *corpus, python), "/no/python", "that all workers have")

    def test_another_version_of_spark_is_reported(self, fails, start, corpus, cluster, tmp_path):
        others = {INSTALLED: OTHER, OTHER: INSTALLED}
        _skip_without(others[cluster.package])
        cluster.package = others[package := cluster.package]
        process = start(tmp_path / "data", *corpus)
        cluster.package = package
        fails(process, "another version of Spark")
