#!/bin/sh
# Apache Beam 2.77.0: at the end of each bundle, a Python worker waits for the thread that samples where
# time goes. That thread sleeps longer and longer, up to 0.2 seconds, and nothing wakes it. So on the
# embedded runner, each bundle of more than a second takes 0.1 seconds more on average, in which nothing
# is done. No option sets the time; it is the default of an argument.
#
# Seen: "after the last bundle: 0.11 s; with a sampler of 5 ms: 0.01 s" (means of ten runs).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet apache-beam==2.77.0
cat > "$folder/main.py" <<'PYTHON'
import sys
import time

import apache_beam as beam
from apache_beam.runners.worker.statesampler import StateSampler

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


class Sleep(beam.DoFn):
    def process(self, seconds):
        time.sleep(seconds)

    def finish_bundle(self):
        sys.end_of_work = time.perf_counter()  # not a global, of which Beam makes a copy


def seconds_after_the_work(sleep):
    with beam.Pipeline(RUNNER) as root:
        root | beam.Create([sleep]) | beam.ParDo(Sleep())
    return time.perf_counter() - sys.end_of_work


def mean():
    return sum(seconds_after_the_work(1.2 + 0.02 * n) for n in range(10)) / 10


seconds_after_the_work(0)
slow = mean()
StateSampler.__init__.__defaults__ = (5,)  # milliseconds
fast = mean()
print(f"after the last bundle: {slow:.2f} s; with a sampler of 5 ms: {fast:.2f} s")
if slow < fast + 0.03:
    print("the behaviour has changed")
    sys.exit(1)
PYTHON
"$folder/venv/bin/python" "$folder/main.py" 2>/dev/null
