"""Beam's runner: the default, the refused ones, and a guard around all."""

import multiprocessing
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)

from pipeline.errors import UserError
from pipeline.failures import EMBEDDED_RUNNER

# The message that gRPC raises, in a separate thread, when a job server ends while Beam waits.
_CLOSED_CHANNEL = "Cannot monitor channel state"
_SECONDS_TO_ANSWER = 10


def choose_runner(beam_options: PipelineOptions) -> None:
    """Makes Beam's embedded runner the default, and refuses runners that are known to lose records.

    Raises:
      UserError: the runner or its mode silently drops records, its job service does not answer, or
        an option says not to wait for the job.
    """
    standard = beam_options.view_as(StandardOptions)
    # `DirectRunner` would first try to download another runner.
    if is_embedded(beam_options):
        standard.runner = EMBEDDED_RUNNER
    if _name(standard.runner) == "daskrunner":
        raise UserError("--runner=DaskRunner silently drops outputs; use another runner")
    direct = beam_options.view_as(DirectOptions)
    multi_threading = direct.direct_running_mode == "multi_threading"
    timed_flush = beam_options.view_as(DebugOptions).lookup_experiment("data_buffer_time_limit_ms")
    if multi_threading or timed_flush:
        refused = (
            "--direct_running_mode=multi_threading"
            if multi_threading
            else "--experiments=data_buffer_time_limit_ms"
        )
        raise UserError(f"{refused} loses records; use --direct_running_mode=multi_processing")
    direct.direct_running_mode = "in_memory"  # Beam's part; the worker processes are ours
    portable = beam_options.view_as(PortableOptions)
    if standard.no_wait_until_finish or portable.output_executable_path:
        refused = (
            "--no_wait_until_finish"
            if standard.no_wait_until_finish
            else "--output_executable_path"
        )
        raise UserError(
            f"remove {refused}: the command must wait for the job, then write the manifest"
        )
    if portable.job_endpoint:
        _check_answers(portable.job_endpoint)


def num_processes(beam_options: PipelineOptions) -> int:
    """The number of worker processes that the embedded runner is to use; 0 for other runners."""
    if not is_embedded(beam_options):
        return 0
    direct = beam_options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return 1
    return direct.direct_num_workers or multiprocessing.cpu_count()


def is_embedded(beam_options: PipelineOptions) -> bool:
    """Whether Beam's embedded runner is to run the job."""
    runner = beam_options.view_as(StandardOptions).runner or EMBEDDED_RUNNER
    return _name(runner) in ("directrunner", "fnapirunner")


def _name(runner: str) -> str:
    return runner.rpartition(".")[2].lower()


def _check_answers(job_endpoint: str) -> None:
    """Checks that something listens at the endpoint; Beam itself would wait for minutes."""
    host, _, port = job_endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no job service answers at --job_endpoint={job_endpoint} ({error}): start the job "
            "service of the runner, or set the option to its HOST:PORT"
        ) from error


@contextmanager
def broken_connections_hidden() -> Iterator[None]:
    """Hides gRPC's errors in threads within the block; a later error of Beam says more."""
    previous_hook = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if not isinstance(error, grpc.RpcError) and _CLOSED_CHANNEL not in str(error):
            previous_hook(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous_hook
