"""Beam's runner: the default, the refused ones, and guards for the embedded one."""

import json
import os
import tempfile
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
    WorkerOptions,
)

from pipeline.errors import UserError
from pipeline.failures import EMBEDDED_RUNNER
from pipeline.portable_runner import check_services, end_process, short_name

# The message that Beam raises, in a separate thread, when a worker of `multi_processing` dies.
BEAMS_MESSAGE = "Worker subprocess exited"
# The message that gRPC raises, in a separate thread, when a job server ends while Beam waits.
_CLOSED_CHANNEL = "Cannot monitor channel state"
# Beam's thread that reads a job's messages. It fails a moment later than the wait for the job.
_READER_OF_MESSAGES = "wait_until_finish_read"
_SECONDS_TO_READ = 2.0
_OPTIONS_FILE_VARIABLE = "PIPELINE_OPTIONS_FILE"


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
    multi_threading = beam_options.view_as(DirectOptions).direct_running_mode == "multi_threading"
    timed_flush = beam_options.view_as(DebugOptions).lookup_experiment("data_buffer_time_limit_ms")
    if multi_threading or timed_flush:
        refused = (
            "--direct_running_mode=multi_threading"
            if multi_threading
            else "--experiments=data_buffer_time_limit_ms"
        )
        raise UserError(f"{refused} loses records; use --direct_running_mode=multi_processing")
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


def is_embedded(beam_options: PipelineOptions) -> bool:
    """Whether Beam's embedded runner is to run the job."""
    runner = beam_options.view_as(StandardOptions).runner or EMBEDDED_RUNNER
    return short_name(runner) in ("directrunner", "fnapirunner")


@contextmanager
def environment_of_workers(beam_options: PipelineOptions) -> Iterator[None]:
    """Sets what the worker processes of `multi_processing` inherit: the log levels and a safe path.

    Beam starts these processes without options, at level INFO. But they read a file of options that
    an environment variable names. With a safe path, they do not import what lies in the current
    directory instead of our modules.
    """
    workers = beam_options.view_as(WorkerOptions)
    names = ("default_sdk_harness_log_level", "sdk_harness_log_level_overrides")
    levels = {name: getattr(workers, name) for name in names if getattr(workers, name)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(levels, file)
        file.flush()
        before = dict(os.environ)
        os.environ |= {_OPTIONS_FILE_VARIABLE: file.name, "PYTHONSAFEPATH": "1"}
        try:
            yield
        finally:
            for name in (_OPTIONS_FILE_VARIABLE, "PYTHONSAFEPATH"):
                del os.environ[name]
            os.environ |= before


@contextmanager
def dead_worker_ends_process() -> Iterator[None]:
    """Ends this process with a message and exit code 1 if a worker process dies within the block.

    Beam itself would wait forever. An exception would not help, because Beam's threads would still
    wait for the worker's answer.
    """
    previous_hook = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if isinstance(error, grpc.RpcError) or _CLOSED_CHANNEL in str(error):
            return  # a broken connection; a later error says more
        if BEAMS_MESSAGE not in str(error):
            previous_hook(arguments)
            return
        end_process(
            f"a worker process died ({error}), perhaps because memory ran out: run the same "
            "command again to resume; fewer --direct_num_workers need less memory"
        )

    threading.excepthook = hook
    try:
        yield
    except Exception:
        for thread in threading.enumerate():
            if thread.name == _READER_OF_MESSAGES:
                thread.join(_SECONDS_TO_READ)
        raise
    finally:
        if threading.excepthook is hook:  # a signal's handler may have hidden all that fails now
            threading.excepthook = previous_hook
