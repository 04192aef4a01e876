"""The stages as jobs of a Spark cluster, through PySpark: every item is a task.

Spark runs a task again whose executor or machine is lost, and the next attempt finds what is
finished. Two attempts at once do no harm, because both write the same bytes, whole, under the final
name. Of Spark itself, only these tasks and their small results are used: no shuffle, no data frame.
"""

import importlib.metadata
import importlib.util
import logging as python_logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from pipeline.corpus import RowGroup
from pipeline.duplicate_stages import stages_of_duplicates
from pipeline.errors import UserError
from pipeline.failures import StepError, as_user_error, step_errors_marked
from pipeline.files import kept_on_error
from pipeline.mixture_stages import MeasureDocuments, PlanMixing
from pipeline.stages import (
    BucketKey,
    BuildShard,
    Stage,
    TokenizePortion,
    Work,
    key_of,
    loaded,
)
from pipeline.storage import Location

if TYPE_CHECKING:
    from pyspark import Accumulator, AccumulatorParam, SparkContext

_ERROR = re.compile(r"(?:Exception|Error|Reason): (?=\S)")
_CRASHED = (
    "a worker process died, perhaps because memory ran out: run the same command again to resume, "
    "with more --spark_conf=spark.executor.memoryOverhead"
)
_PYTHON = (
    "--spark_conf=spark.pyspark.python, or PYSPARK_PYTHON, must name a Python that all workers have"
)
# What a user can do about a message of Spark that contains these words.
_ADVICE = {
    "No module named": "install this version of Clozemill on all workers, or ship it with "
    "--spark_conf=spark.archives",
    "PYTHON_VERSION_MISMATCH": "--spark_conf=spark.pyspark.python, or PYSPARK_PYTHON, names the "
    "workers' Python, which must be of the version that runs this command",
    "Cannot run program": _PYTHON,
    "reading the port number from pyspark.daemon": _PYTHON,
    "NoSuchFileException": "there is no such file: check --spark_conf",
    "ExecutorLostFailure": _CRASHED,
    "Python worker exited unexpectedly": _CRASHED,
    "InvalidClassException": "the cluster has another version of Spark than PySpark here: install "
    "the pyspark of its version",
    "UnsupportedClassVersionError": "Spark 3.5 needs Java 8, 11 or 17, and Spark 4 Java 17 or 21",
    "Could not create the Java Virtual Machine": "check --spark_conf=spark.driver.memory and "
    "spark.driver.extraJavaOptions",
    "All masters are unresponsive": "what answers at --spark_master is no Spark master",
}
# What tells PySpark to join a driver that runs already, or to start another one.
_FOR_OTHER_DRIVERS = ("PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "SPARK_REMOTE")
# Of a worker's Python, beside the memory of its Java.
_PYTHON_MEGABYTES_PER_CORE = 1024
# Java has next to nothing to do here, so it takes the compiler and the collector that start fast.
_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_DEFAULTS = {
    "spark.executor.defaultJavaOptions": _JAVA_OPTIONS,
    "spark.executor.memory": "512m",  # of Java
    # The C library keeps what a task of Python frees for the next one.
    "spark.executorEnv.MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "spark.executorEnv.MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "spark.executorEnv.PYTHONSAFEPATH": "1",
    # All workers reach the same directories, so any is as near to the data as another.
    "spark.locality.wait": "0s",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_SECONDS_TO_ANSWER = 10
_SECONDS_BETWEEN_LOOKS = 0.5
# How long a cluster may take to start the first executor, and to replace all when they are lost.
_SECONDS_TO_START = 600
_SECONDS_TO_REPLACE = 120
_SECONDS_BETWEEN_LINES = 60


@dataclass(frozen=True)
class SparkOptions:
    """A Spark cluster.

    Attributes:
      master: its address, as of `spark-submit --master`: `spark://HOST:7077`, `yarn`, `k8s://…`, or
        `local[N]` for N processes of this machine.
      conf: Spark's properties, by name.

    Raises:
      UserError: the address or a name is none.
    """

    master: str
    conf: Mapping[str, str]

    def __post_init__(self) -> None:
        local = r"local(\[([1-9]\d*|\*)(,\d+)?\])?"
        if not re.fullmatch(rf"spark://\S+:\d+|yarn|k8s://\S+|{local}", self.master):
            raise UserError(
                f"--spark_master={self.master} must be spark://HOST:PORT, yarn, k8s://HOST:PORT or "
                "local[N]"
            )
        for name in self.conf:
            if name == "spark.master":
                raise UserError("--spark_conf=spark.master=…: give --spark_master instead")
            if not re.fullmatch(r"spark\.\S+", name):
                raise UserError(f"--spark_conf={name}… must be spark.NAME=VALUE")

    @property
    def cores(self) -> int:
        """The cores of an executor, on clusters that limit its memory; Spark's default is 1."""
        cores = self.conf.get("spark.executor.cores", "")
        return int(cores) if cores.isdecimal() else 1


@dataclass(frozen=True)
class _Log:
    """The messages of Spark's driver: a file on this machine, and where users find it."""

    file: Path
    kept: Location


def check_spark(options: SparkOptions) -> None:
    """Checks what takes no time, before any work.

    Raises:
      UserError: PySpark or Java is not installed, an environment variable is for another Spark, or
        nothing answers at the master's address.
    """
    if not importlib.util.find_spec("pyspark"):
        raise UserError("--spark_master needs PySpark: pip install 'clozemill[spark]'")
    for name in _FOR_OTHER_DRIVERS:
        if name in os.environ:
            raise UserError(
                f"unset {name}, which is for another driver; --spark_conf takes options"
            )
    version, home = importlib.metadata.version("pyspark"), os.environ.get("SPARK_HOME")
    if home and not any(Path(home).glob(f"jars/spark-core_*-{version}.jar")):
        raise UserError(
            f"SPARK_HOME={home} is no Spark {version}, the version of PySpark here: unset it, or "
            "install the pyspark of its version"
        )
    java_home = os.environ.get("JAVA_HOME")
    java = f"{java_home}/bin/java" if java_home else "java"
    if not shutil.which(java):
        raise UserError(f"Spark needs Java 17, and there is no {java}: install it or set JAVA_HOME")
    if not options.master.startswith("spark://"):
        return
    refusals = []
    for address in options.master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
        except (OSError, ValueError) as error:
            refusals.append(str(error))
        else:
            return
    raise UserError(
        f"no Spark master answers at --spark_master={options.master} ({'; '.join(refusals)}): "
        "start it, or give its address as spark://HOST:PORT"
    )


def run_on_spark(work: Work, options: SparkOptions) -> None:
    """Does all work on a Spark cluster.

    Raises:
      UserError: a worker cannot read the text, or the cluster fails.
      OSError: a worker cannot write a file.
    """
    kept = work.directories.in_progress / "spark.log"
    with kept_on_error(kept) as file, _connected(options, log := _Log(file, kept)) as context:
        cluster = _Cluster(context, options.master, log)
        row_groups: dict[BucketKey, list[RowGroup]] = defaultdict(list)
        for bucket, row_group in cluster.run(TokenizePortion(work), enumerate(work.portions)):
            row_groups[bucket].append(row_group)
        for stage, items in stages_of_duplicates(work):
            cluster.run(stage, items)
        if work.options.mixture:
            buckets = [bucket for bucket in work.buckets.buckets() if bucket.split == "train"]
            members = [(bucket, row_groups[key_of(bucket)]) for bucket in buckets]
            cluster.run(MeasureDocuments(work), members)
            cluster.run(PlanMixing(work), [0])
        # Bucket by bucket, because a worker keeps the one that it read last.
        plans = sorted(work.shard_plans, key=lambda plan: key_of(plan.bucket))
        shards = [(plan, row_groups[key_of(plan.bucket)]) for plan in plans]
        cluster.run(BuildShard(work), shards)


@contextmanager
def _connected(options: SparkOptions, log: _Log) -> Iterator["SparkContext"]:
    """Starts Spark's driver, a Java process, whose messages go to a file; ends it after the block.

    Raises:
      UserError: it does not start.
    """
    import pyspark  # noqa: PLC0415 - an extra
    from pyspark.java_gateway import launch_gateway  # noqa: PLC0415

    python_logging.getLogger("py4j").setLevel(python_logging.CRITICAL)  # pages about connections
    python = options.conf.get("spark.pyspark.python")
    os.environ["PYSPARK_PYTHON"] = python or os.environ.get("PYSPARK_PYTHON") or sys.executable
    conf = pyspark.SparkConf().setMaster(options.master).setAppName("clozemill generate")
    conf.set("spark.executor.memoryOverhead", f"{_PYTHON_MEGABYTES_PER_CORE * options.cores}m")
    gateway = context = None
    # Java leaves its temporary files behind when it is killed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        conf.set("spark.local.dir", folder)
        java_options = f'{_JAVA_OPTIONS} "-Djava.io.tmpdir={folder}"'
        conf.set("spark.driver.defaultJavaOptions", java_options)
        conf.setAll([*_DEFAULTS.items(), *options.conf.items()])
        try:
            with log.file.open("wb") as file:
                gateway = launch_gateway(conf, {"stdout": file, "stderr": file})
            at_interrupt = signal.getsignal(signal.SIGINT)
            context = pyspark.SparkContext(conf=conf, gateway=gateway)
            signal.signal(signal.SIGINT, at_interrupt)  # PySpark has put its own in the place
            # It would print a traceback when Java ends first, as it does at a signal.
            vars(context._accumulatorServer)["handle_error"] = lambda *_: None
        except Exception as error:
            reason = _as_user_error(error, log)  # Java, which tells it, still runs
            _end(gateway, context)
            raise reason from error
        try:
            yield context
        finally:
            _end(gateway, context)


def _end(gateway: Any, context: "SparkContext | None") -> None:
    """Ends Spark's driver, if there is one, even if it does not answer any more."""
    import pyspark  # noqa: PLC0415 - an extra

    with suppress(Exception):
        if context:
            context.stop()
    # It would serve the next context of this process, too, with the options of this one.
    pyspark.SparkContext._gateway = pyspark.SparkContext._jvm = None
    if gateway:
        with suppress(Exception):
            gateway.shutdown()
        gateway.proc.kill()
        gateway.proc.stdin.close()
        gateway.proc.wait()


class _Cluster:
    """Runs stages on a cluster, and ends a job that cannot end well.

    Args:
      context: the connection to it.
      master: its address.
      log: the messages of Spark's driver.
    """

    def __init__(self, context: "SparkContext", master: str, log: _Log):
        self._context = context
        self._master = master
        self._log = log
        self._errors: Accumulator[list[str]] = context.accumulator([], _joined())
        self._seen_executor = False
        self._without_since = time.monotonic()
        self._next_line = self._without_since + _SECONDS_BETWEEN_LINES

    def run(self, stage: Stage, items: Iterable[Any]) -> list[Any]:
        """Does a stage's work on all items, and returns what comes of it, in the items' order."""
        items = list(items)
        if not items:
            return []
        work = partial(_process, stage, self._errors)
        tasks = self._context.parallelize(items, len(items)).mapPartitions(work)
        with ThreadPoolExecutor(1) as thread:
            job = thread.submit(tasks.collect)
            try:
                while not wait([job], _SECONDS_BETWEEN_LOOKS).done:
                    self._check()
                self._check()
            except BaseException:
                with suppress(Exception):
                    self._context.cancelAllJobs()
                raise
        try:
            return job.result()
        except Exception as error:
            raise _as_user_error(error, self._log) from error

    def _check(self) -> None:
        """Checks that no task has met an error of the user, and that there are executors.

        Raises:
          UserError: one has, or there are none for too long.
        """
        if errors := self._errors.value:
            raise UserError(errors[0])
        now = time.monotonic()
        if self._master.startswith("local") or self._num_executors():
            self._seen_executor = True
            self._without_since, self._next_line = now, now + _SECONDS_BETWEEN_LINES
            return
        allowed = _SECONDS_TO_REPLACE if self._seen_executor else _SECONDS_TO_START
        what = "all executors were lost" if self._seen_executor else "no executor has started"
        if now - self._without_since > allowed:
            raise UserError(
                f"{what}, and {self._master} has given none for {allowed} seconds: check that "
                "workers are up and have the memory and the cores that --spark_conf asks, then run "
                "the same command again to resume"
            )
        if now >= self._next_line:
            logging.info("%s: waiting for %s to give one", what, self._master)
            self._next_line = now + _SECONDS_BETWEEN_LINES

    def _num_executors(self) -> int:
        with suppress(Exception):  # the job tells why Spark does not answer
            return self._context._jsc.sc().getExecutorMemoryStatus().size() - 1  # the driver
        return 0


def _joined() -> "AccumulatorParam[list[str]]":
    """How the lists of an accumulator become one."""
    from pyspark import AccumulatorParam  # noqa: PLC0415 - an extra

    class Joined(AccumulatorParam[list[str]]):
        def zero(self, value: list[str]) -> list[str]:
            return []

        def addInPlace(self, value1: list[str], value2: list[str]) -> list[str]:  # noqa: N802
            return value1 + value2

    return Joined()


def _process(stage: Stage, errors: "Accumulator[list[str]]", items: Iterator[Any]) -> Iterator[Any]:
    """Does the work of a task, in a worker.

    An error of the user is no failure of the task, because Spark would try it three times more.
    """
    try:
        with step_errors_marked():
            for item in items:
                yield from loaded(stage).process(item)
    except UserError as error:
        errors.add([str(error)])


def _as_user_error(error: Exception, log: _Log) -> Exception:
    """The error to show to a user who can fix its cause; otherwise the exception itself."""
    if isinstance(error, OSError) or type(error).__name__ == "Py4JNetworkError":
        return UserError(
            f"Spark's driver, a Java process, died ({error}): run the same command again to "
            f"resume; see {log.kept}"
        )
    text = re.split(r"\n\s*at ", str(error))[0]  # what follows is Java's
    text = re.sub(r" SQLSTATE: \w+", "", text)
    if StepError.__name__ in text:
        return as_user_error(RuntimeError(text), "Spark")
    for lines in (text.splitlines(), log.file.read_text("utf-8", "replace").splitlines()):
        for part, advice in _ADVICE.items():
            if found := [line for line in lines if part in line]:
                return UserError(f"Spark failed: {_message(found[-1])}; {advice}")
    errors = [line for line in (*lines, *text.splitlines()) if _ERROR.search(line)]
    causes = [line for line in errors if line.startswith("Caused by: ")]
    reason = _message((causes[-1:] or errors or [text])[0])
    return UserError(f"Spark failed: {reason}; see {log.kept}")


def _message(line: str) -> str:
    """What a line says after the names of exceptions."""
    return _ERROR.split(line)[-1].strip()
