import threading
import time
from multiprocessing import cpu_count

import grpc
import pytest
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline.errors import UserError
from pipeline.runner import (
    broken_connections_hidden,
    choose_runner,
    is_dry_run,
    num_processes,
)


@pytest.mark.parametrize("flags", [[], ["--runner=DirectRunner"], ["--runner=directrunner"]])
def test_the_embedded_runner_is_the_default(flags):
    beam_options = PipelineOptions(flags)
    choose_runner(beam_options)
    runner = beam_options.view_as(StandardOptions).runner
    assert runner == "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        ([], 1),
        (["--direct_num_workers=3"], 1),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=3"], 3),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=0"], cpu_count()),
        (["--runner=FlinkRunner", "--direct_running_mode=multi_processing"], 0),
    ],
)
def test_number_of_worker_processes(flags, number):
    assert num_processes(PipelineOptions(flags)) == number


def test_other_runners_are_left_to_beam():
    beam_options = PipelineOptions(["--runner=FlinkRunner"])
    choose_runner(beam_options)
    assert beam_options.view_as(StandardOptions).runner == "FlinkRunner"


def test_services_are_checked():
    beam_options = PipelineOptions(["--runner=PortableRunner", "--job_endpoint=localhost:1"])
    with pytest.raises(UserError, match="no job service answers at --job_endpoint=localhost:1"):
        choose_runner(beam_options)


@pytest.mark.parametrize("flag", ["--no_wait_until_finish", "--output_executable_path=job.jar"])
def test_options_not_to_wait_for_the_job_are_refused(flag):
    with pytest.raises(UserError, match=flag.partition("=")[0]):
        choose_runner(PipelineOptions(["--runner=FlinkRunner", flag]))


DATAFLOW = ["--runner=DataflowRunner", "--temp_location=gs://bucket/temp"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dry_run=True"], "only --runner=DataflowRunner knows --dry_run"),
        (["--runner=FlinkRunner", "--dry_run=yes"], "only --runner=DataflowRunner knows --dry_run"),
        (["--runner=DataflowRunner", "--dry_run=True"], "a dry run needs --temp_location=gs://"),
        ([*DATAFLOW, "--dry_run=True", "--temp_location=/tmp/x"], "needs --temp_location=gs://"),
    ],
)
def test_a_dry_run_is_for_dataflow_and_its_store(flags, says):
    with pytest.raises(UserError, match=says):
        choose_runner(PipelineOptions(flags))


@pytest.mark.parametrize(
    ("word", "is_dry"), [("True", True), ("1", True), ("False", False), ("0", False)]
)
def test_a_dry_run_is_what_its_word_says(word, is_dry):
    beam_options = PipelineOptions([*DATAFLOW, f"--dry_run={word}"])
    choose_runner(beam_options)
    assert beam_options.view_as(pipeline_options.TestOptions).dry_run is is_dry
    assert is_dry_run(beam_options) is is_dry


def test_other_errors_in_threads_are_still_shown(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_value))
    hook = threading.excepthook
    with broken_connections_hidden():
        assert threading.excepthook is not hook
        thread = threading.Thread(target=lambda: {}["missing"])
        thread.start()
        thread.join()
    assert isinstance(seen[0], KeyError)
    assert threading.excepthook is hook


class BrokenConnectionError(grpc.RpcError):
    """What the threads of Beam raise when a job service ends."""


@pytest.mark.parametrize(
    "error", [ValueError("Cannot monitor channel state: Channel closed!"), BrokenConnectionError()]
)
def test_broken_connections_are_not_shown(error, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def monitor():
        raise error

    with broken_connections_hidden():
        thread = threading.Thread(target=monitor)
        thread.start()
        thread.join()
    assert seen == []


def test_a_connection_that_breaks_a_moment_after_the_job_is_not_shown_either(monkeypatch):
    seen, has_failed = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def read_messages():
        has_failed.wait()
        time.sleep(0.1)
        raise BrokenConnectionError

    thread = threading.Thread(target=read_messages)

    def run_job():
        with broken_connections_hidden():
            thread.start()
            has_failed.set()
            raise RuntimeError("the job failed")

    with pytest.raises(RuntimeError, match="the job failed"):
        run_job()
    thread.join()
    assert seen == []


def test_what_a_signal_has_hidden_stays_hidden(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def hide(_):
        """As `launch.stopping` does."""

    def receive_signal():
        with broken_connections_hidden():
            threading.excepthook = hide
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        receive_signal()
    assert threading.excepthook is hide
