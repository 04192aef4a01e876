"""A worker that a runner starts as a process, between services as of a runner."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)


class Runner(
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,
    beam_fn_api_pb2_grpc.BeamFnLoggingServicer,
    beam_fn_api_pb2_grpc.BeamFnControlServicer,
):
    """A runner that has no work. It knows the worker `a`, and notes who asks for what."""

    def __init__(self, address):
        self._endpoint = endpoints_pb2.ApiServiceDescriptor(url=address)
        self.ids = {}

    def _note(self, service, context):
        self.ids[service] = dict(context.invocation_metadata()).get("worker_id")

    def GetProvisionInfo(self, _request, context):  # noqa: N802 - gRPC's names
        self._note("provision", context)
        if self.ids["provision"] != "a":
            context.abort(grpc.StatusCode.UNKNOWN, "worker_id is not registered")
        return beam_provision_api_pb2.GetProvisionInfoResponse(
            info=beam_provision_api_pb2.ProvisionInfo(
                logging_endpoint=self._endpoint, control_endpoint=self._endpoint
            )
        )

    def Logging(self, entries, context):  # noqa: N802
        self._note("logging", context)
        for _ in entries:
            pass
        return iter([])

    def Control(self, _responses, context):  # noqa: N802
        self._note("control", context)
        return iter([])


@pytest.fixture
def runner():
    """The runner and its address."""
    server = grpc.server(ThreadPoolExecutor())
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    servicer = Runner(address)
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(servicer, server)
    beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(servicer, server)
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(servicer, server)
    server.start()
    yield servicer, address
    server.stop(None)


def work(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.worker", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_worker_has_its_id_without_quotes_everywhere(runner):
    servicer, address = runner
    # As Prism passes it: no shell is there to remove the quotes.
    result = work("--id='a'", f"--provision_endpoint={address}", "--logging_endpoint=unused")
    assert result.returncode == 0, result.stderr
    assert servicer.ids == {"provision": "a", "logging": "a", "control": "a"}


def test_a_worker_that_the_runner_does_not_know_ends_in_one_line(runner):
    _, address = runner
    result = work("--id=b", f"--provision_endpoint={address}")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"worker b: no settings from the runner at --provision_endpoint={address} "
        "(worker_id is not registered)"
    )
