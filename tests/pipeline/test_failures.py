import pickle

import pytest

from pipeline.errors import UserError
from pipeline.failures import EMBEDDED_RUNNER, StepError, as_user_error, step_errors_marked

OF_JOB = "Pipeline job-1 failed in state FAILED: Error running pipeline.\n"
IN_BEAM = """Traceback (most recent call last):
  File "site-packages/apache_beam/runners/worker/sdk_worker.py", line 312, in _execute
    response = task()
               ^^^^^^
"""
IN_OUR_STEP = f"""{IN_BEAM}pipeline.failures.StepError: """
NO_ANSWER = """grpc._channel._InactiveRpcError: <_InactiveRpcError of RPC that terminated with:
\tstatus = StatusCode.UNAVAILABLE
\tdetails = "failed to connect to all addresses; ipv4:127.0.0.1:1: Connection refused"
>
"""
ENDED = """<_MultiThreadedRendezvous of RPC that terminated with:
\tstatus = StatusCode.UNAVAILABLE
\tdetails = "Stream removed (Socket closed)"
>"""


@pytest.mark.parametrize("runner", [EMBEDDED_RUNNER, "FlinkRunner"])
@pytest.mark.parametrize(
    "text",
    [
        "a.txt is UTF-16; convert it [while running 'Tokenize-ptransform-5']",
        f"{OF_JOB}{IN_BEAM}pipeline.errors.UserError: a.txt is UTF-16; convert it\n\n",
    ],
)
def test_a_workers_message_to_the_user_is_shown(text, runner):
    error = (UserError if text.startswith("a.txt") else RuntimeError)(text)
    found = as_user_error(error, runner)
    assert isinstance(found, UserError)
    assert str(found) == "a.txt is UTF-16; convert it"


@pytest.mark.parametrize("runner", [EMBEDDED_RUNNER, "FlinkRunner"])
def test_a_file_that_a_worker_cannot_write_is_named(runner):
    text = f"{OF_JOB}{IN_OUR_STEP}[Errno 13] Permission denied: '/data/x'"
    found = as_user_error(RuntimeError(text), runner)
    assert isinstance(found, OSError)
    assert "[Errno 13] Permission denied: '/data/x'" in str(found)
    assert "run the same command again to resume" in str(found)
    assert ("all workers must reach" in str(found)) == (runner == "FlinkRunner")


def test_a_full_disk_is_no_question_of_what_workers_reach():
    text = f"{OF_JOB}{IN_OUR_STEP}[Errno 28] No space left on device: '/data/x'"
    assert "must reach" not in str(as_user_error(RuntimeError(text), "FlinkRunner"))


@pytest.mark.parametrize("runner", [EMBEDDED_RUNNER, "FlinkRunner"])
@pytest.mark.parametrize(
    "message",
    [
        "cannot read the vocabulary /out/in_progress/vocab.txt: No such file or directory",
        "cannot read /in/a.txt: [Errno 13] Permission denied: '/in/a.txt'",
        "cannot read /in/a.txt: [Errno 116] Stale file handle: '/in/a.txt'",
    ],
)
def test_what_a_worker_elsewhere_does_not_reach_is_to_be_reached_by_all(message, runner):
    found = as_user_error(RuntimeError(f"{OF_JOB}{IN_BEAM}UserError: {message}\n"), runner)
    advice = "; all workers must reach this directory, under the same path"
    assert str(found) == message + (advice if runner == "FlinkRunner" else "")


def test_the_stack_of_a_runner_is_cut_off():
    error = RuntimeError("panic in a bundle: send on closed channel " + "goroutine 86 " * 1000)
    found = str(as_user_error(error, "PrismRunner"))
    assert found.startswith("PrismRunner failed: RuntimeError: panic in a bundle: send on closed")
    assert len(found) < 600


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError(f"{OF_JOB}{IN_BEAM}KeyError: 'beam:env:process:v1'\n"),
            "KeyError: 'beam:env:process:v1'; this job service starts no processes",
        ),
        (
            RuntimeError(f"{OF_JOB}{IN_BEAM}{NO_ANSWER}"),
            "failed to connect to all addresses; ipv4:127.0.0.1:1: Connection refused; check that",
        ),
        (
            RuntimeError(f"{IN_BEAM}ModuleNotFoundError: No module named 'pipeline'"),
            "install this version of Clozemill on the workers",
        ),
        (RuntimeError(f"{IN_BEAM}RuntimeError: Channel closed prematurely."), "a worker died"),
        (
            RuntimeError("stage-002 failed:SDK worker disconnected: w1"),
            "w1; a worker died",
        ),
        (RuntimeError(ENDED), "failed: Stream removed (Socket closed); the job service ended"),
        (RuntimeError('details = "Stream removed (recvmsg:Connection reset)"'), "service ended"),
        (RuntimeError("Option external_service_address is required"), "as --environment_config"),
        (FileNotFoundError(2, "No such file or directory", "java"), "install Java"),
        (RuntimeError("Unable to fetch remote job server jar at x"), "--flink_job_server_jar"),
        (ValueError("Pipeline has errors:\nMissing option: project.\n"), "errors: Missing option"),
        (RuntimeError("java.net.ConnectException: refused"), "java.net.ConnectException: refused"),
        (ImportError("please install apache_beam[gcp]"), "please install apache_beam[gcp]"),
    ],
)
def test_what_a_runner_cannot_do_is_one_line(error, says):
    found = as_user_error(error, "FlinkRunner")
    assert isinstance(found, UserError)
    assert str(found).startswith("FlinkRunner failed: ")
    assert says in str(found)
    assert "\n" not in str(found)
    assert "apache_beam/runners" not in str(found)


@pytest.mark.parametrize(
    ("error", "runner"),
    [
        (RuntimeError(f"{OF_JOB}{IN_OUR_STEP}ValueError('a bug')"), "FlinkRunner"),
        (TypeError("cannot pickle '_thread.lock' object"), "FlinkRunner"),
        (pickle.PicklingError("cannot pickle a lambda"), "FlinkRunner"),
        (RuntimeError("a bug"), EMBEDDED_RUNNER),
    ],
)
def test_bugs_are_left_as_they_are(error, runner):
    assert as_user_error(error, runner) is error


def test_an_error_of_a_step_is_marked_and_keeps_its_cause():
    with pytest.raises(StepError, match=r"ValueError\('a bug'\)") as raised, step_errors_marked():
        raise ValueError("a bug")
    assert isinstance(raised.value.__cause__, ValueError)
    assert as_user_error(raised.value, "FlinkRunner") is raised.value
    assert as_user_error(raised.value, EMBEDDED_RUNNER) is raised.value


def test_a_step_passes_the_users_errors_on():
    with pytest.raises(UserError, match="a wrong option"), step_errors_marked():
        raise UserError("a wrong option")


def test_a_full_disk_in_a_step_stays_an_error_of_the_system():
    with pytest.raises(StepError) as raised, step_errors_marked():
        raise OSError(28, "No space left on device", "/data/x")
    found = as_user_error(raised.value, EMBEDDED_RUNNER)
    assert isinstance(found, OSError)
    assert "[Errno 28] No space left on device: '/data/x'" in str(found)
