"""A Beam worker for `--environment_type=PROCESS`.

It is started as `python -P -m launch.worker --id=… --provision_endpoint=…`. Beam's own program for
this, `boot`, exists only in its container images. Unlike `boot`, this one installs nothing: it uses
the installed package.
"""

import argparse
import os

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf.json_format import MessageToJson

_SECONDS_TO_ANSWER = 60


def main() -> None:
    """Asks the runner for the worker's settings, then works until the runner stops it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    arguments, _ = parser.parse_known_args()  # older runners also pass settings
    with grpc.insecure_channel(arguments.provision_endpoint) as channel:
        info = (
            beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
            .GetProvisionInfo(
                beam_provision_api_pb2.GetProvisionInfoRequest(),
                timeout=_SECONDS_TO_ANSWER,
                metadata=[("worker_id", arguments.id)],
                wait_for_ready=True,
            )
            .info
        )
    os.environ.pop("PIPELINE_OPTIONS_FILE", None)  # belongs to a driver on the same machine
    os.environ |= {
        "WORKER_ID": arguments.id,
        "PIPELINE_OPTIONS": MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "LOGGING_API_SERVICE_DESCRIPTOR": str(info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": str(info.control_endpoint),
    }
    if info.HasField("status_endpoint"):
        os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = str(info.status_endpoint)
    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
