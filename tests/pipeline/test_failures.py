import pickle

import pytest

from pipeline.errors import UserError
from pipeline.failures import as_a_user_can_mend_it
from pipeline.runner import EMBEDDED_RUNNER

OF_JOB = "Pipeline job-1 failed in state FAILED: Error running pipeline.\n"
IN_BEAM = """Traceback (most recent call last):
  File "site-packages/apache_beam/runners/worker/sdk_worker.py", line 312, in _execute
    response = task()
               ^^^^^^
"""
IN_OUR_STEP = f"""{IN_BEAM}  File "site-packages/pipeline/graph.py", line 167, in process
    receipt = read_receipt(path)
"""
NO_ANSWER = """grpc._channel._InactiveRpcError: <_InactiveRpcError of RPC that terminated with:
\tstatus = StatusCode.UNAVAILABLE
\tdetails = "failed to connect to all addresses; ipv4:127.0.0.1:1: Connection refused"
>
"""


@pytest.mark.parametrize("runner", [EMBEDDED_RUNNER, "FlinkRunner"])
@pytest.mark.parametrize(
    "text",
    [
        "a.txt is UTF-16; convert it [while running 'Tokenize-ptransform-5']",
        f"{OF_JOB}{IN_OUR_STEP}pipeline.errors.UserError: a.txt is UTF-16; convert it\n\n",
    ],
)
def test_what_a_worker_told_the_user_is_told_again(text, runner):
    error = (UserError if text.startswith("a.txt") else RuntimeError)(text)
    found = as_a_user_can_mend_it(error, runner)
    assert isinstance(found, UserError)
    assert str(found) == "a.txt is UTF-16; convert it"


@pytest.mark.parametrize("runner", [EMBEDDED_RUNNER, "FlinkRunner"])
def test_a_file_that_a_worker_cannot_write_is_told(runner):
    text = f"{OF_JOB}{IN_OUR_STEP}PermissionError: [Errno 13] Permission denied: '/data/x'"
    found = as_a_user_can_mend_it(RuntimeError(text), runner)
    assert isinstance(found, OSError)
    assert "[Errno 13] Permission denied: '/data/x'" in str(found)
    assert "the same command goes on" in str(found)
    assert ("all workers must reach" in str(found)) == (runner == "FlinkRunner")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError(f"{OF_JOB}{IN_BEAM}KeyError: 'beam:env:process:v1'\n"),
            "KeyError: 'beam:env:process:v1'; this job service starts no processes",
        ),
        (
            RuntimeError(f"{OF_JOB}{IN_BEAM}{NO_ANSWER}"),
            "failed to connect to all addresses; ipv4:127.0.0.1:1: Connection refused; see that",
        ),
        (
            RuntimeError(f"{IN_BEAM}ModuleNotFoundError: No module named 'pipeline'"),
            "the workers must have this version of Clozemill",
        ),
        (RuntimeError(f"{IN_BEAM}RuntimeError: Channel closed prematurely."), "a worker died"),
        (FileNotFoundError(2, "No such file or directory", "java"), "install Java"),
        (RuntimeError("Unable to fetch remote job server jar at x"), "--flink_job_server_jar"),
        (ValueError("Pipeline has errors:\nMissing option: project.\n"), "errors: Missing option"),
        (RuntimeError("java.net.ConnectException: refused"), "java.net.ConnectException: refused"),
        (ImportError("please install apache_beam[gcp]"), "please install apache_beam[gcp]"),
    ],
)
def test_what_a_runner_cannot_do_is_one_line(error, says):
    found = as_a_user_can_mend_it(error, "FlinkRunner")
    assert isinstance(found, UserError)
    assert str(found).startswith("FlinkRunner failed: ")
    assert says in str(found)
    assert "\n" not in str(found)
    assert "apache_beam/runners" not in str(found)


@pytest.mark.parametrize(
    ("error", "runner"),
    [
        (RuntimeError(f"{OF_JOB}{IN_OUR_STEP}ValueError: a bug"), "FlinkRunner"),
        (TypeError("cannot pickle '_thread.lock' object"), "FlinkRunner"),
        (pickle.PicklingError("cannot pickle a lambda"), "FlinkRunner"),
        (RuntimeError("a bug"), EMBEDDED_RUNNER),
    ],
)
def test_bugs_are_left_as_they_are(error, runner):
    assert as_a_user_can_mend_it(error, runner) is error
