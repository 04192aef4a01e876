"""Checks and guards for runners whose workers others start: a pool, a job service, a cluster."""

import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

from absl import logging
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    SparkRunnerOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.files import signs_of_life, version_of
from pipeline.storage import Location

_SECONDS_TO_ANSWER = 10
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_COME = 120.0
# Images are downloaded, and a cluster that is full has its own bounds, such as Flink's 300 seconds.
_SECONDS_TO_COME_TO_CLUSTERS = 600.0
_SECONDS_TO_CANCEL = 10.0
_SECONDS_BETWEEN_SIGNS = 5.0
_WHAT_TO_CHECK = {
    "LOOPBACK": "with --environment_type=LOOPBACK, the runner must be on this machine",
    "EXTERNAL": "check that a pool runs at --environment_config={config}, as the runner's machines "
    "see it, that its `python` has this version of Clozemill, and that it reaches the runner's "
    "ports",
    "PROCESS": "run the command of --environment_config={config} on each of the runner's machines: "
    "it must ask for --id; the runner's own log says how it ended",
    "DOCKER": "check that docker on the runner's machines can run --sdk_container_image={image}, "
    "or give another --environment_type",
}


@dataclass(frozen=True)
class _Process:
    """The value of --environment_config for PROCESS."""

    command: Annotated[str, Field(min_length=1)]
    os: str = ""
    arch: str = ""
    env: dict[str, str] | None = None


@dataclass(frozen=True)
class _External:
    """The value of --environment_config for EXTERNAL, if it is JSON."""

    url: Annotated[str, Field(min_length=1)]
    params: dict[str, str] | None = None


def short_name(runner: str | None) -> str:
    """The name of a runner in lower case, without its module; empty if none is given."""
    return (runner or "").rpartition(".")[2].lower()


def check_services(beam_options: PipelineOptions) -> None:
    """Checks what can be checked of the services that are to run the job, before they are used.

    Raises:
      UserError: one does not answer, is no file, or an option has the wrong form.
    """
    portable = beam_options.view_as(PortableOptions)
    for kind, option in (
        (PrismRunnerOptions, "prism_location"),
        (FlinkRunnerOptions, "flink_job_server_jar"),
        (SparkRunnerOptions, "spark_job_server_jar"),
    ):
        path = getattr(beam_options.view_as(kind), option)
        if path and "://" not in path and not Path(path).is_file():
            raise UserError(f"--{option}={path} is no file")
    runner = short_name(beam_options.view_as(StandardOptions).runner)
    config = portable.environment_config or ""
    match portable.environment_type:
        case "PROCESS" if config:
            _check_json(config, _Process, '{"command": "/PATH/worker"}')
        case "EXTERNAL" if config.startswith("{"):
            _check_json(config, _External, '{"url": "HOST:PORT"}')
        case "EXTERNAL" if config and runner == "prismrunner":
            if not portable.job_endpoint:  # Beam starts Prism here, and without a pool Prism ends
                _check_answers("worker pool", "environment_config", config)
    if portable.job_endpoint:
        _check_answers("job service", "job_endpoint", portable.job_endpoint)


def _check_json(config: str, kind: type, example: str) -> None:
    try:
        TypeAdapter(kind).validate_json(config)
    except ValidationError as error:
        raise UserError(f"--environment_config={config} must be JSON such as {example}") from error


def _check_answers(what: str, option: str, address: str) -> None:
    """Checks that something listens at the address; Beam itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no {what} answers at --{option}={address} ({error}): start it, or set the option to "
            "its HOST:PORT"
        ) from error


@contextmanager
def no_deadline_of_jobs() -> Iterator[None]:
    """Lets a job take as long as it needs; Beam's timeout is only meant for single requests.

    Beam also sets it for the wait for a job whose service knows it by its number before it runs, as
    Prism does.
    """
    run = JobServiceHandle.run

    def run_without_timeout(handle: JobServiceHandle, preparation_id: str) -> Any:
        handle.timeout = None
        return run(handle, preparation_id)

    JobServiceHandle.run = run_without_timeout  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        JobServiceHandle.run = run  # type: ignore[method-assign]


@cache
def show_life(sign: Location) -> None:
    """Makes a worker change a file from now on, until that is removed; once in a process."""
    signs = signs_of_life(sign)
    with suppress(OSError):  # the vocabulary, in the same directory, tells what is wrong
        next(signs)

    def beat() -> None:
        with suppress(OSError):
            for _ in signs:
                time.sleep(_SECONDS_BETWEEN_SIGNS)

    threading.Thread(target=beat, name=str(sign), daemon=True).start()


@contextmanager
def workers_watched(
    job: PipelineResult, runner: str, beam_options: PipelineOptions, sign: Location
) -> Iterator[None]:
    """Around the wait for a job: cancels it if no worker comes, or none lives any more.

    A worker that lives may take as long as it needs.

    Args:
      job: the job.
      runner: the value of --runner.
      beam_options: how Beam runs it.
      sign: the file that a worker changes as long as it lives.

    Raises:
      UserError: no worker came, or all are lost and the runner has not noticed it.
    """
    over = threading.Event()
    allowed, check = _seconds_to_come(runner, beam_options), _what_to_check(beam_options)
    missed: list[str] = []

    def watch() -> None:
        last_sign, since, is_warned = None, time.monotonic(), False
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            now = time.monotonic()
            if (found := version_of(sign)) != last_sign:
                last_sign, since, is_warned = found, now, False
            what = "no worker has shown life" if last_sign else "no worker has come"
            if now - since > allowed:
                break
            if now - since > allowed / 4 and not is_warned:
                logging.warning("%s; %s", what, check)
                is_warned = True
        else:
            return
        missed.append(f"{runner} failed: {what} for {allowed:.0f} seconds; {check}")
        with suppress(Exception):
            job.cancel()
        if not over.wait(_SECONDS_TO_CANCEL):
            end_process(missed[0])

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except Exception as error:
        if missed:
            raise UserError(missed[0]) from error
        raise
    finally:
        over.set()


def _seconds_to_come(runner: str, beam_options: PipelineOptions) -> float:
    if short_name(runner) == "dataflowrunner":
        return math.inf  # a job may be queued there for hours, and Dataflow has its own bounds
    is_cluster = short_name(runner) in ("flinkrunner", "sparkrunner")
    environment = beam_options.view_as(PortableOptions).environment_type
    is_quick = environment in ("LOOPBACK", "EXTERNAL", "PROCESS") and not is_cluster
    return _SECONDS_TO_COME if is_quick else _SECONDS_TO_COME_TO_CLUSTERS


def _what_to_check(beam_options: PipelineOptions) -> str:
    portable = beam_options.view_as(PortableOptions)
    return _WHAT_TO_CHECK.get(portable.environment_type or "DOCKER", "see the runner's log").format(
        config=portable.environment_config,
        image=beam_options.view_as(WorkerOptions).sdk_container_image,
    )


def end_process(message: str) -> NoReturn:
    """Ends this process with exit code 1, whatever its threads wait for."""
    logging.error("%s", message)
    logging.flush()
    os._exit(1)
