"""Beam's runner: the default, the refused ones, and a guard around all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
)

from pipeline.errors import UserError
from pipeline.failures import EMBEDDED_RUNNER
from pipeline.portable_runner import check_services, short_name
from pipeline.worker_processes import number_of_processes

# The message that gRPC raises, in a separate thread, when a job server ends while Beam waits.
_CLOSED_CHANNEL = "Cannot monitor channel state"


def choose_runner(beam_options: PipelineOptions) -> None:
    """Makes Beam's embedded runner the default, and refuses runners that are known to lose records.

    Raises:
      UserError: the runner or its mode silently drops records, its job service does not answer, an
        option says not to wait for the job, or it is a dry run of a runner that knows none.
    """
    standard = beam_options.view_as(StandardOptions)
    # `DirectRunner` would first try to download another runner.
    if is_embedded(beam_options):
        standard.runner = EMBEDDED_RUNNER
    if short_name(standard.runner) == "daskrunner":
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
    if is_dry_run(beam_options):
        if short_name(standard.runner) != "dataflowrunner":
            raise UserError("only --runner=DataflowRunner knows --dry_run; remove it")
        # Without it, Beam would look for one in the cloud.
        if not (beam_options.view_as(GoogleCloudOptions).temp_location or "").startswith("gs://"):
            raise UserError("a dry run needs --temp_location=gs://BUCKET/DIRECTORY")
    check_services(beam_options)


def is_dry_run(beam_options: PipelineOptions) -> bool:
    """Whether the job is only to be translated, and makes the option what it means to Beam."""
    test = beam_options.view_as(TestOptions)
    # Beam would take any word for true.
    test.dry_run = str(test.dry_run).lower() not in ("false", "0", "no", "")
    return test.dry_run


def num_processes(beam_options: PipelineOptions) -> int:
    """The number of worker processes that the embedded runner is to use; 0 for other runners."""
    if not is_embedded(beam_options):
        return 0
    direct = beam_options.view_as(DirectOptions)
    return number_of_processes(direct.direct_running_mode, direct.direct_num_workers)


def is_embedded(beam_options: PipelineOptions) -> bool:
    """Whether Beam's embedded runner is to run the job."""
    runner = beam_options.view_as(StandardOptions).runner or EMBEDDED_RUNNER
    return short_name(runner) in ("directrunner", "fnapirunner")


@contextmanager
def broken_connections_hidden() -> Iterator[None]:
    """Hides gRPC's errors in threads within the block; a later error of Beam says more."""
    previous_hook = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if not isinstance(error, grpc.RpcError) and _CLOSED_CHANNEL not in str(error):
            previous_hook(arguments)

    threading.excepthook = hook
    yield  # after an error, more threads may fail until the command ends: they stay hidden
    if threading.excepthook is hook:  # a signal's handler may have hidden all that fails now
        threading.excepthook = previous_hook
