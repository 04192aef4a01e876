import threading
from multiprocessing import cpu_count

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline.errors import UserError
from pipeline.runner import (
    broken_connections_hidden,
    choose_runner,
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


@pytest.mark.parametrize("endpoint", ["localhost:1", "localhost", "no-such-host.invalid:8099"])
def test_a_job_service_that_does_not_answer_is_reported_at_once(endpoint):
    beam_options = PipelineOptions(["--runner=PortableRunner", f"--job_endpoint={endpoint}"])
    with pytest.raises(UserError, match=f"no job service answers at --job_endpoint={endpoint}"):
        choose_runner(beam_options)


@pytest.mark.parametrize("flag", ["--no_wait_until_finish", "--output_executable_path=job.jar"])
def test_options_not_to_wait_for_the_job_are_refused(flag):
    with pytest.raises(UserError, match=flag.partition("=")[0]):
        choose_runner(PipelineOptions(["--runner=FlinkRunner", flag]))


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


def test_broken_connections_are_not_shown(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def monitor():
        raise ValueError("Cannot monitor channel state: Channel closed!")

    with broken_connections_hidden():
        thread = threading.Thread(target=monitor)
        thread.start()
        thread.join()
    assert seen == []
