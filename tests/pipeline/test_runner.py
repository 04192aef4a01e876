import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline.errors import UserError
from pipeline.runner import (
    choose_runner,
    dead_worker_ends_process,
    environment_of_workers,
)


@pytest.mark.parametrize("flags", [[], ["--runner=DirectRunner"], ["--runner=directrunner"]])
def test_the_embedded_runner_is_the_default(flags):
    beam_options = PipelineOptions(flags)
    choose_runner(beam_options)
    runner = beam_options.view_as(StandardOptions).runner
    assert runner == "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


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


def test_the_death_of_a_worker_ends_the_process_with_a_message():
    code = """
import threading
from pathlib import Path
from pipeline.runner import dead_worker_ends_process

def worker():
    raise RuntimeError("Worker subprocess exited with return code 137")

with dead_worker_ends_process():
    threading.Thread(target=worker).start()
    threading.Event().wait()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "a worker process died" in result.stderr
    assert "return code 137" in result.stderr


def test_other_errors_in_threads_are_still_shown(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_value))
    hook = threading.excepthook
    with dead_worker_ends_process():
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

    with dead_worker_ends_process():
        thread = threading.Thread(target=monitor)
        thread.start()
        thread.join()
    assert seen == []


@pytest.mark.parametrize("before", [None, "", "0"])
def test_worker_processes_inherit_log_levels_and_a_safe_path(before, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    options = PipelineOptions(["--default_sdk_harness_log_level=ERROR"])
    with environment_of_workers(options):
        found = json.loads(Path(os.environ["PIPELINE_OPTIONS_FILE"]).read_text())
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert found["default_sdk_harness_log_level"] == "ERROR"
    assert "PIPELINE_OPTIONS_FILE" not in os.environ
    assert os.environ.get("PYTHONSAFEPATH") == before
