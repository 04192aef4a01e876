"""A Beam worker for `--environment_type=PROCESS`.

It is started as `python -P -m launch.worker --id=… --provision_endpoint=…`. Beam's own program for
this, `boot`, exists only in its container images. Unlike `boot`, this one installs nothing: it uses
the installed package.
"""

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from google.protobuf.json_format import MessageToJson

_SECONDS_TO_ANSWER = 60


def main() -> None:
    """Asks the runner for the worker's settings, then works until the runner stops it."""
    parser = argparse.ArgumentParser(prog="python -m launch.worker", allow_abbrev=False)
    # Prism passes the id in quotes, which no shell removes.
    parser.add_argument("--id", required=True, type=lambda given: given.strip("'\""))
    parser.add_argument("--provision_endpoint", required=True)
    arguments, _ = parser.parse_known_args()  # older runners also pass settings
    info = _ask_for_settings(arguments.provision_endpoint, arguments.id)
    os.environ.pop("PIPELINE_OPTIONS_FILE", None)  # would count more than what follows
    os.environ |= {
        "WORKER_ID": arguments.id,
        "PIPELINE_OPTIONS": MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "LOGGING_API_SERVICE_DESCRIPTOR": str(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": str(info.control_endpoint),
    }
    if info.HasField("status_endpoint"):
        os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = str(info.status_endpoint)
    # Imported late, because it reads WORKER_ID when it is imported.
    from apache_beam.runners.worker import sdk_worker_main  # noqa: PLC0415

    sdk_worker_main.main([])


def _ask_for_settings(endpoint: str, worker_id: str) -> beam_provision_api_pb2.ProvisionInfo:
    """What the runner at the endpoint has for this worker; without an answer, the process ends."""
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        try:
            return service.GetProvisionInfo(
                beam_provision_api_pb2.GetProvisionInfoRequest(),
                timeout=_SECONDS_TO_ANSWER,
                metadata=[("worker_id", worker_id)],
                wait_for_ready=True,
            ).info
        except grpc.RpcError as error:
            sys.exit(
                f"worker {worker_id}: no settings from the runner at "
                f"--provision_endpoint={endpoint} ({error.details()})"
            )


if __name__ == "__main__":
    main()
