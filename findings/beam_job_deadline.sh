#!/bin/sh
# Apache Beam 2.77.0: its help says that --job_server_timeout, 300 seconds by default, is the timeout
# of requests to a job service. But where the service knows a job by the same number before and after
# it starts, as Beam's own service for tests and Prism do, it is also the deadline of the whole job:
# the streams of its state and messages are opened with that timeout, and `wait_until_finish` reads
# them. So a job of a healthy runner fails after five minutes with DEADLINE_EXCEEDED. The runner goes
# on with it, and nobody learns how it ended.
#
# Seen: "a job of 10 s: no error after 11 s with 60 s, DEADLINE_EXCEEDED after 4 s with 4 s".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet apache-beam==2.77.0
cat > "$folder/main.py" <<'PYTHON'
import socket
import subprocess
import sys
import time

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions

SECONDS = 10
SERVICE = "apache_beam.runners.portability.local_job_service_main"


def result(port, timeout):
    options = PipelineOptions(
        runner="PortableRunner",
        job_endpoint=f"localhost:{port}",
        environment_type="LOOPBACK",
        job_server_timeout=timeout,
    )
    started = time.perf_counter()
    try:
        with beam.Pipeline(options=options) as root:
            root | beam.Create([SECONDS]) | beam.Map(time.sleep)
        status = "no error"
    except grpc.RpcError as error:
        status = error.code().name
    return f"{status} after {time.perf_counter() - started:.0f} s with {timeout} s"


def until_it_answers(port):
    for _ in range(100):
        try:
            return socket.create_connection(("localhost", port)).close()
        except OSError:
            time.sleep(0.2)


with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
with subprocess.Popen([sys.executable, "-m", SERVICE, f"--port={port}"]) as server:
    until_it_answers(port)
    long, short = result(port, 60), result(port, 4)
    server.kill()
print(f"a job of {SECONDS} s: {long}, {short}")
if not (long.startswith("no error") and short.startswith("DEADLINE_EXCEEDED")):
    print("the behaviour has changed")
    sys.exit(1)
PYTHON
"$folder/venv/bin/python" "$folder/main.py" 2>/dev/null
