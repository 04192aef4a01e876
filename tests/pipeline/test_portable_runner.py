import itertools
import socket
import threading
import time

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.portable_runner import JobServiceHandle

import pipeline.portable_runner
from pipeline.errors import UserError
from pipeline.portable_runner import (
    check_services,
    no_deadline_of_jobs,
    show_life,
    workers_watched,
)

PROCESS = ["--runner=PortableRunner", "--environment_type=PROCESS"]
EXTERNAL = ["--environment_type=EXTERNAL", "--environment_config=localhost:1"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--job_endpoint=localhost:1"], "no job service answers at --job_endpoint=localhost:1"),
        (["--job_endpoint=localhost"], "no job service answers at --job_endpoint=localhost"),
        (["--job_endpoint=no-such-host.invalid:8099"], "no job service answers"),
        (["--prism_location=/no/such"], "--prism_location=/no/such is no file"),
        (["--prism_location=/"], "--prism_location=/ is no file"),
        (["--flink_job_server_jar=/no/such.jar"], "--flink_job_server_jar=/no/such.jar is no file"),
        (["--spark_job_server_jar=/"], "--spark_job_server_jar=/ is no file"),
        (["--runner=PrismRunner", *EXTERNAL], "no worker pool answers at --environment_config="),
        ([*PROCESS, "--environment_config=/PATH/worker"], "must be JSON"),
        ([*PROCESS, "--environment_config={}"], "must be JSON"),
        ([*PROCESS, "--environment_config=[1]"], "must be JSON"),
        ([*PROCESS, '--environment_config={"command": 3}'], "must be JSON"),
        ([*PROCESS, '--environment_config={"command": ""}'], "must be JSON"),
        ([*PROCESS, '--environment_config={"command": "x", "env": [1]}'], "must be JSON"),
        (["--environment_type=EXTERNAL", "--environment_config={}"], "must be JSON"),
    ],
)
def test_what_cannot_work_is_reported_at_once(flags, says):
    with pytest.raises(UserError, match=says.replace("{", "\\{")):
        check_services(PipelineOptions(flags))


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--prism_location=https://example.com/prism.zip"],
        ["--runner=FlinkRunner", *EXTERNAL],  # an address that the cluster's machines may reach
        [*PROCESS, '--environment_config={"command": "/PATH/worker", "env": {"A": "b"}}'],
        ["--environment_type=EXTERNAL", '--environment_config={"url": "localhost:1"}'],
    ],
)
def test_what_may_work_is_left_to_beam(flags):
    check_services(PipelineOptions(flags))


def test_services_that_answer_are_used():
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        prism = ["--runner=PrismRunner", "--environment_type=EXTERNAL"]
        check_services(PipelineOptions([*prism, f"--environment_config={address}"]))
        check_services(PipelineOptions([f"--job_endpoint={address}"]))


class Job:
    """A job that runs until it is cancelled, or for some seconds."""

    def __init__(self, obeys=True):
        self.is_cancelled = threading.Event()
        self._obeys = obeys

    def cancel(self):
        self.is_cancelled.set()
        assert self._obeys, "the job service is gone"

    def wait_until_finish(self, seconds):
        if self.is_cancelled.wait(seconds) and self._obeys:
            raise RuntimeError("Pipeline job-1 failed in state CANCELLED: unknown error")
        time.sleep(0 if self._obeys else seconds)


@pytest.fixture
def await_worker(monkeypatch, tmp_path):
    """A function that waits so many seconds for a job; a worker must come in 0.3 seconds."""
    monkeypatch.setattr(pipeline.portable_runner, "_SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(pipeline.portable_runner, "_SECONDS_TO_COME", 0.3)
    monkeypatch.setattr(pipeline.portable_runner, "_SECONDS_TO_COME_TO_CLUSTERS", 60.0)
    monkeypatch.setattr(pipeline.portable_runner, "_SECONDS_TO_CANCEL", 0.1)

    def wait(job, seconds, *flags, runner="PortableRunner"):
        options = PipelineOptions(flags)
        with workers_watched(job, runner, options, tmp_path / "worker"):
            job.wait_until_finish(seconds)

    return wait


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--environment_type=LOOPBACK"], "the runner must be on this machine"),
        (EXTERNAL, "check that a pool runs at --environment_config=localhost:1"),
        (
            [*PROCESS, '--environment_config={"command": "/PATH/worker"}'],
            'run the command of --environment_config={"command": "/PATH/worker"}',
        ),
    ],
)
def test_a_job_without_a_worker_is_cancelled_and_says_what_to_check(flags, says, await_worker):
    job = Job()
    with pytest.raises(UserError) as raised:
        await_worker(job, 60, *flags)
    assert job.is_cancelled.is_set()
    assert str(raised.value).startswith("PortableRunner failed: no worker has come for 0 seconds; ")
    assert says in str(raised.value)


def test_a_worker_that_lives_may_take_its_time(await_worker, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.portable_runner, "_SECONDS_BETWEEN_SIGNS", 0.05)
    job = Job()
    threading.Timer(0.1, show_life, [tmp_path / "worker"]).start()
    await_worker(job, 0.8, *EXTERNAL)
    assert not job.is_cancelled.is_set()


def test_a_job_whose_workers_are_all_lost_is_cancelled(await_worker, tmp_path):
    """Some runners do not notice it."""
    job = Job()
    threading.Timer(0.1, (tmp_path / "worker").touch).start()
    with pytest.raises(UserError, match="no worker has shown life for 0 seconds; check that a p"):
        await_worker(job, 60, *EXTERNAL)
    assert job.is_cancelled.is_set()


def test_a_sign_of_life_that_is_removed_stays_removed(tmp_path, monkeypatch):
    """Its directory could not be removed otherwise."""
    monkeypatch.setattr(pipeline.portable_runner, "_SECONDS_BETWEEN_SIGNS", 0.01)
    sign = tmp_path / "worker"

    def threads_of_sign():
        return [thread for thread in threading.enumerate() if thread.name == str(sign)]

    show_life(sign)
    show_life(sign)
    (thread,) = threads_of_sign()
    sign.unlink()
    thread.join(10)
    assert not threads_of_sign()
    assert not sign.exists()


@pytest.mark.parametrize(
    ("runner", "flags"),
    [
        ("FlinkRunner", EXTERNAL),
        ("apache_beam.runners.portability.flink_runner.FlinkRunner", EXTERNAL),
        ("PortableRunner", ["--sdk_container_image=large"]),
        ("DataflowRunner", []),
    ],
)
def test_clusters_and_images_have_more_time(runner, flags, await_worker):
    job = Job()
    await_worker(job, 0.8, *flags, runner=runner)
    assert not job.is_cancelled.is_set()


def test_a_job_that_fails_before_keeps_its_own_error(await_worker):
    job = Job()
    job.cancel()
    with pytest.raises(RuntimeError, match="CANCELLED"):
        await_worker(job, 60, *EXTERNAL)


def test_a_service_that_cannot_cancel_does_not_hold_the_process_up(await_worker, monkeypatch):
    messages = []
    monkeypatch.setattr(pipeline.portable_runner, "end_process", messages.append)
    await_worker(Job(obeys=False), 0.4, *EXTERNAL)
    assert len(messages) == 1
    assert messages[0].startswith("PortableRunner failed: no worker has come for 0 seconds; check")


def test_a_job_may_last_longer_than_a_request():
    timeouts = {}

    class Service:
        """A job service that knows a job before it runs, as Prism does."""

        def __getattr__(self, name):
            def call(_, timeout=None):
                timeouts[name] = timeout
                return itertools.repeat(beam_job_api_pb2.RunJobResponse(job_id="job-1"))

            return call

        def Run(self, _):  # noqa: N802 - gRPC's name
            return beam_job_api_pb2.RunJobResponse(job_id="job-1")

    before = JobServiceHandle.run
    with no_deadline_of_jobs():
        handle = JobServiceHandle(Service(), PipelineOptions())
        assert handle.timeout
        job_id, _, _ = handle.run("job-1")
    assert job_id == "job-1"
    assert timeouts == {"GetStateStream": None, "GetMessageStream": None}
    assert JobServiceHandle.run is before
