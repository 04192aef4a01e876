"""What can be checked of Spark without Java; tests/end_to_end/test_spark.py has the rest."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.spark
from pipeline.errors import UserError
from pipeline.spark import SparkOptions, _as_user_error, _Cluster, _Log, _process, check_spark
from pipeline.stages import Stage

FAILED = (
    "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
    ": org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 "
    "failed 4 times, most recent failure: Lost task 0.3 in stage 0.0 (TID 3) (host executor 0): "
)
IN_PYTHON = f"""{FAILED}org.apache.spark.PythonException: Traceback (most recent call last):
  File "pyspark/python/lib/pyspark.zip/pyspark/worker.py", line 1, in main
"""
IN_JAVA = """
\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handle(PythonRunner.scala:1)
Caused by: java.io.EOFException: not the reason
"""
STARTED = """Using Spark's default log4j profile: org/apache/spark/log4j2-defaults.properties
26/11/29 09:44:17 WARN NativeCodeLoader: Unable to load native-hadoop library for your platform
"""
GATEWAY = "[JAVA_GATEWAY_EXITED] Java gateway process exited before sending its port number."
REFUSED = "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n: x.Y"


def log_in(folder):
    return _Log(folder / "spark.log", folder / "spark.log")


@pytest.fixture
def java(monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("shutil.which", lambda program: program)


@pytest.fixture
def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.usefixtures("java")
@pytest.mark.parametrize("master", ["local[2]", "yarn", "k8s://https://127.0.0.1:1"])
def test_only_a_masters_own_port_is_tried(master):
    check_spark(SparkOptions(master, {}))


@pytest.mark.parametrize(
    "master",
    [
        *("spark://host", "spark://", "host:7077", "local[two]", "local[0]", "local[,]", "local[]"),
        *("Yarn", "k8s://", "a\nb", ""),
    ],
)
def test_what_is_no_address_is_refused(master):
    with pytest.raises(UserError, match="must be spark://HOST:PORT, yarn, k8s://HOST:PORT or loc"):
        SparkOptions(master, {})


@pytest.mark.parametrize("name", ["", "spark", "spark.", "memory", "spark.a b"])
def test_what_is_no_property_is_refused(name):
    with pytest.raises(UserError, match=rf"--spark_conf={name}… must be spark.NAME=VALUE"):
        SparkOptions("yarn", {name: "1"})


def test_a_second_address_is_refused():
    with pytest.raises(UserError, match="give --spark_master instead"):
        SparkOptions("yarn", {"spark.master": "local"})


@pytest.mark.usefixtures("java")
@pytest.mark.parametrize("name", ["PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "SPARK_REMOTE"])
def test_a_variable_for_another_driver_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=f"unset {name}"):
        check_spark(SparkOptions("local[2]", {}))


@pytest.mark.usefixtures("java")
@pytest.mark.parametrize("version", [None, "3.4.1"])
def test_another_spark_is_refused(version, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.5.9")
    (tmp_path / "jars").mkdir()
    if version:
        (tmp_path / "jars" / f"spark-core_2.12-{version}.jar").touch()
    with pytest.raises(UserError, match=rf"SPARK_HOME={tmp_path} is no Spark 3.5.9"):
        check_spark(SparkOptions("local[2]", {}))
    (tmp_path / "jars" / "spark-core_2.12-3.5.9.jar").touch()
    check_spark(SparkOptions("local[2]", {}))


@pytest.mark.usefixtures("java")
@pytest.mark.parametrize(
    ("master", "reason"),
    [
        ("spark://localhost:1", "refused"),
        ("spark://localhost:1,localhost:2", "refused; .*refused"),
    ],
)
def test_a_master_that_does_not_answer_is_reported(master, reason):
    with pytest.raises(UserError, match=f"--spark_master={master} .*{reason}"):
        check_spark(SparkOptions(master, {}))


@pytest.mark.usefixtures("java")
def test_one_of_several_masters_is_enough(unused_port):
    check_spark(SparkOptions(f"spark://localhost:1,127.0.0.1:{unused_port}", {}))


@pytest.mark.parametrize("java_home", [None, "/no/java"])
def test_missing_java_is_reported(java_home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    if java_home:
        monkeypatch.setenv("JAVA_HOME", java_home)
    with pytest.raises(UserError, match=f"no {java_home or ''}.*java: install it"):
        check_spark(SparkOptions("local[2]", {}))


def test_missing_pyspark_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'clozemill\[spark\]'"):
        check_spark(SparkOptions("local[2]", {}))


@pytest.mark.parametrize(
    ("text", "log", "message"),
    [
        (
            f"{IN_PYTHON}ModuleNotFoundError: No module named 'pipeline' SQLSTATE: 1\n{IN_JAVA}",
            "",
            "Spark failed: No module named 'pipeline'; install this version of Clozemill on all "
            "workers, or ship it with --spark_conf=spark.archives",
        ),
        (
            f'{FAILED}java.io.IOException: Cannot run program "/no/python": error=2{IN_JAVA}',
            "",
            'Spark failed: Cannot run program "/no/python": error=2; '
            "--spark_conf=spark.pyspark.python, or PYSPARK_PYTHON, must name a Python that all "
            "workers have",
        ),
        (
            f"{FAILED}org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)"
            f"{IN_JAVA}",
            "",
            "Spark failed: Python worker exited unexpectedly (crashed); a worker process died, "
            "perhaps because memory ran out: run the same command again to resume, with more "
            "--spark_conf=spark.executor.memoryOverhead",
        ),
        (
            GATEWAY,
            f'{STARTED}Exception in thread "main" org.apache.spark.SparkException: Master must '
            "either be yarn or start with spark, k8s, or local\n\tat org.apache.spark.x\n",
            "Spark failed: Master must either be yarn or start with spark, k8s, or local; see LOG",
        ),
        (GATEWAY, "", f"Spark failed: {GATEWAY}; see LOG"),
        (
            REFUSED,
            f"{STARTED}io.fabric8.KubernetesClientException: An error has occurred.\n\tat io.x\n"
            "Caused by: java.io.IOException: Failed to connect\n\tat okhttp3.x\n"
            "Caused by: java.net.ConnectException: Connection refused\n\t... 16 more\n",
            "Spark failed: Connection refused; see LOG",
        ),
        (
            "An error occurred\n: org.apache.spark.SparkException: Task not serializable",
            f"{STARTED}ERROR StandaloneSchedulerBackend: Application has been killed. Reason: All "
            "masters are unresponsive! Giving up.\njava.lang.NullPointerException: null\n",
            "Spark failed: All masters are unresponsive! Giving up.; what answers at "
            "--spark_master is no Spark master",
        ),
    ],
    ids=["no package", "no Python", "crash", "address", "unknown", "Kubernetes", "no master"],
)
def test_a_failure_is_one_line_with_its_reason(text, log, message, tmp_path):
    path = tmp_path / "spark.log"
    path.write_text(log)
    error = _as_user_error(RuntimeError(text), _Log(path, path))
    assert isinstance(error, UserError)
    assert str(error) == message.replace("LOG", str(path))


class Py4JNetworkError(Exception):
    """As of py4j."""


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(111, "refused"), Py4JNetworkError("Answer is empty")]
)
def test_the_death_of_the_driver_is_reported(error, tmp_path):
    found = _as_user_error(error, log_in(tmp_path))
    assert isinstance(found, UserError)
    assert "a Java process, died (" in str(found)
    assert "the same command again" in str(found)


def test_a_disk_that_is_full_is_reported(tmp_path):
    text = f"{IN_PYTHON}pipeline.failures.StepError: [Errno 28] No space left: '/data/x'\n{IN_JAVA}"
    error = _as_user_error(RuntimeError(text), log_in(tmp_path))
    assert isinstance(error, OSError)
    assert str(error).startswith("[Errno 28] No space left: '/data/x'; run the same command")


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path):
    text = f"{IN_PYTHON}pipeline.failures.StepError: KeyError('x')\n{IN_JAVA}"
    error = _as_user_error(RuntimeError(text), log_in(tmp_path))
    assert type(error) is RuntimeError
    assert "worker.py" in str(error)


class Doubled(Stage):
    def process(self, item):
        if item < 0:
            raise UserError(f"{item} is negative")
        yield 2 * item


def test_an_error_of_the_user_is_no_failure_of_its_task():
    """Spark would try it again three times."""
    errors = []
    accumulator = SimpleNamespace(add=errors.extend)
    assert list(_process(Doubled(), accumulator, iter([1, -1, 2]))) == [2]
    assert errors == ["-1 is negative"]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose executors, errors and clock the test sets."""
    executors = SimpleNamespace(number=0)
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr("time.monotonic", lambda: now.seconds)
    monkeypatch.setattr(_Cluster, "_num_executors", lambda _: executors.number)
    monkeypatch.setattr(pipeline.spark, "_joined", lambda: None)
    context = SimpleNamespace(accumulator=lambda *_: SimpleNamespace(value=[]))
    return _Cluster(context, "spark://host:7077", log_in(Path())), executors, now


def test_a_cluster_that_starts_no_executor_is_reported(cluster):
    cluster, _, now = cluster
    cluster._check()
    now.seconds += 599
    cluster._check()
    now.seconds += 2
    with pytest.raises(UserError, match=r"no executor has started, and spark://host:7077 .* 600 s"):
        cluster._check()


def test_the_loss_of_all_executors_is_reported_if_it_lasts(cluster):
    cluster, executors, now = cluster
    executors.number = 2
    cluster._check()
    executors.number = 0
    now.seconds += 100
    cluster._check()
    executors.number = 1
    now.seconds += 100
    cluster._check()
    executors.number = 0
    now.seconds += 119
    cluster._check()
    now.seconds += 2
    with pytest.raises(UserError, match=r"all executors were lost.*same command again"):
        cluster._check()


def test_the_first_error_of_the_user_ends_the_job(cluster):
    cluster, _, _ = cluster
    cluster._errors.value = ["a.txt is UTF-16", "b.txt is UTF-16"]
    with pytest.raises(UserError, match=r"^a.txt is UTF-16$"):
        cluster._check()
