"""A process of a job that runs `generate` on Spark, on a node of Slurm's or Kubernetes's.

It is started as `python -P -m launch.spark_process generate --flag=value …` on each node. Together
the processes are a cluster of Spark: process 0 runs its master and `generate`, and each process a
worker. Spark's parts know each other by the job's token, and what they say is encrypted.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import flags

from launch.generate_command import read_generate_command
from launch.job import coordinator_timeout, job_place
from launch.messages import print_error
from modeling.job.place import JobPlace
from pipeline.errors import UserError
from pipeline.files import scratch_directory
from pipeline.manifest import MANIFEST_NAME
from pipeline.spark import SparkOptions, check_spark
from pipeline.storage import location

_CONF = """spark.authenticate true
spark.authenticate.secret {token}
spark.network.crypto.enabled true
spark.master.rest.enabled false
"""
_LOGGING = """rootLogger.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.name = stderr
appender.stderr.type = Console
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} Spark: %m%n
"""
_SECONDS_TO_ANSWER = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0
# How long process 0 may take to come back, on another node.
_SECONDS_TO_RETURN = 300.0
# A signal ends `generate` within ten seconds.
_SECONDS_TO_END = 15.0


def main(command: list[str]) -> int:
    """Does the process's part and returns its exit code.

    Args:
      command: `generate` and its flags.

    Raises:
      flags.Error: `generate` does not accept the flags.
      UserError: the place or the token is invalid, PySpark or Java is missing, or the other
        processes are.
    """
    place = job_place()
    if place.num_processes == 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            place = JobPlace(f"127.0.0.1:{free.getsockname()[1]}")
    check_spark(SparkOptions("local", {}))
    with scratch_directory() as scratch:
        environment = _environment(scratch, place.token or secrets.token_hex())
        if place.process_id == 0:
            return _generate(command, place, environment)
        return _work(command, place, environment)


def _generate(command: list[str], place: JobPlace, environment: dict[str, str]) -> int:
    """Runs the master, a worker, and `generate`, whose exit code it returns."""
    host, port = place.host_and_port
    generate = [
        *(sys.executable, "-P", "-m", "launch", *command),
        f"--spark_master=spark://{place.coordinator_address}",
        f"--spark_conf=spark.driver.host={host}",
    ]
    with _running(_spark("master.Master", "--host", host, "--port", str(port)), environment):
        _wait_for_master(place)
        with _running(_worker(place), environment), _running(generate, environment) as process:
            return process.wait()


def _work(command: list[str], place: JobPlace, environment: dict[str, str]) -> int:
    """Runs a worker until the data set is finished.

    Raises:
      UserError: the worker has ended, or process 0 is lost.
    """
    _, values = read_generate_command(command)
    manifest = location(str(values["output_dir"].value)) / MANIFEST_NAME
    _wait_for_master(place)
    with _running(_worker(place), environment) as worker:
        last_answer = time.monotonic()
        while worker.poll() is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            if _answers(place):
                last_answer = time.monotonic()
            elif manifest.exists():
                return 0
            elif time.monotonic() - last_answer > _SECONDS_TO_RETURN:
                raise UserError(f"process 0, at {place.coordinator_address}, is lost")
    raise UserError(f"Spark's worker on {socket.gethostname()} has ended")


def _environment(scratch: Path, token: str) -> dict[str, str]:
    """The variables of this process, and those that name Spark's options and directories."""
    import pyspark  # noqa: PLC0415 - an extra

    (scratch / "spark-defaults.conf").write_text(_CONF.format(token=token), "utf-8")
    (scratch / "log4j2.properties").write_text(_LOGGING, "utf-8")
    return {
        **os.environ,
        "SPARK_CONF_DIR": str(scratch),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_LOCAL_DIRS": str(scratch / "local"),
        "SPARK_WORKER_DIR": str(scratch / "work"),
    }


def _spark(part: str, *arguments: str) -> list[str]:
    """The command that runs a part of Spark; the port of its web page is any free one."""
    import pyspark  # noqa: PLC0415 - an extra

    program = Path(pyspark.__file__).parent / "bin" / "spark-class"
    return [str(program), f"org.apache.spark.deploy.{part}", "--webui-port", "0", *arguments]


def _worker(place: JobPlace) -> list[str]:
    """The command of a worker, whose address is the one from which it reaches the master."""
    with socket.create_connection(place.host_and_port, _SECONDS_TO_ANSWER) as connection:
        host = connection.getsockname()[0]
    return _spark("worker.Worker", "--host", host, f"spark://{place.coordinator_address}")


def _wait_for_master(place: JobPlace) -> None:
    """Waits until the master answers.

    Raises:
      UserError: it does not within --coordinator_timeout.
    """
    deadline = time.monotonic() + coordinator_timeout()
    while not _answers(place):
        if time.monotonic() > deadline:
            raise UserError(
                f"Spark's master does not answer at {place.coordinator_address}: see the log of "
                "process 0, or increase --coordinator_timeout"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _answers(place: JobPlace) -> bool:
    """Whether the master does."""
    with suppress(OSError):
        socket.create_connection(place.host_and_port, _SECONDS_TO_ANSWER).close()
        return True
    return False


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command beside the block, and ends it after that."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end(number: int, _frame: object) -> None:
    """Ends this process, and before that what it runs."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(143)


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, _end)
    flags.FLAGS(sys.argv[:1])
    try:
        sys.exit(main(sys.argv[1:]))
    except flags.Error as error:
        print_error("clozemill generate", str(error))
        sys.exit(2)
    except (UserError, OSError) as error:
        print_error("clozemill generate", str(error))
        sys.exit(1)
