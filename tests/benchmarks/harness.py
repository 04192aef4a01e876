"""Shared code of the benchmarks: reads text, runs and measures processes. Linux only."""

import argparse
import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "data_samples"
PEERS = Path(sys.prefix) / "peers"
CORES = sorted(os.sched_getaffinity(0))
MEGABYTE = 1_000_000
LONGEST_COMPLAINT = 2000
SECONDS_BETWEEN_POLLS = 0.2
TWO_WORKERS = {"direct_running_mode": "multi_processing", "direct_num_workers": 2}


def parser_of(docstring):
    """Returns a parser with the two flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=docstring.partition("\n")[0])
    parser.add_argument(
        "--input_file",
        type=Path,
        default=SAMPLES / "english.txt",
        help="one sentence per line, a blank line between documents",
    )
    parser.add_argument("--vocab_file", type=Path, default=SAMPLES / "english_vocab.txt")
    return parser


def read_documents(path):
    """Returns the documents of a file, each with one sentence per line."""
    return re.split(r"\n\s*\n", path.read_text("utf-8").strip())


def write_documents(path, documents, megabytes):
    """Writes the documents, repeatedly if necessary, until the file has this many megabytes."""
    with path.open("wb") as file:
        for document in itertools.cycle(documents):
            if file.tell() >= megabytes * MEGABYTE:
                return
            file.write(f"{document}\n\n".encode())


def generate_command(**flags):
    """Returns the command `clozemill generate` with these flags."""
    return [str(Path(sys.executable).with_name("clozemill")), "generate", *_arguments(flags)]


def model_garden_command(**flags):
    """Returns the command of the Model Garden's script; it needs PYTHONPATH to be `PEERS`."""
    script = "official.nlp.data.create_pretraining_data"
    return [sys.executable, "-m", script, "--verbosity=0", *_arguments(flags)]


def _arguments(flags):
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]


def pinned(command, cores):
    """Returns the command, restricted to these cores with all its threads and processes."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]


@dataclass(frozen=True)
class Run:
    """A finished process.

    Attributes:
      seconds: its wall time, start-up included.
      peaks: the peak resident memory in megabytes, first of the process itself, then of each of its
        descendants, largest first.
      output: the text that it printed.
    """

    seconds: float
    peaks: list[float]
    output: str


def run(command, log, **environment):
    """Runs a command to its end. If it fails, ends the benchmark with the end of its output."""
    peaks = {}
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {name: str(value) for name, value in environment.items()},
        )
        while process.returncode is None:
            # Keep the last value, not the largest: before its exec, a child has its parent's peak.
            peaks |= peaks_of_tree(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_BETWEEN_POLLS)
        seconds = time.perf_counter() - start
    output = log.read_text("utf-8", "replace")
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{output[-LONGEST_COMPLAINT:]}")
    own_peak = peaks.pop(process.pid)
    return Run(seconds, [own_peak, *sorted(peaks.values(), reverse=True)], output)


class Server:
    """A script that answers each line on its stdin; several of them can take turns.

    Args:
      arguments: the script and its arguments.
      environment: more environment variables.
    """

    def __init__(self, *arguments, **environment):
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        )
        if self._process.stdout.readline() != "ready\n":
            sys.exit(f"{arguments} failed:\n{self._process.communicate()[1]}")

    def answer(self):
        """Returns the number that the script answers."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def peak_megabytes(self):
        """Returns the peak resident memory so far."""
        return peaks_of_tree(self._process.pid)[self._process.pid]

    def end(self):
        self._process.communicate()


def serve(work):
    """Answers each line on stdin by the seconds that the work took, after one time untimed."""
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        print(time.perf_counter() - started, flush=True)


def peaks_of_tree(pid):
    """Returns the peak memory so far of a process and its descendants in megabytes, by process ID.

    `ru_maxrss` would not do: it is never less than the memory of the parent process.
    """
    peaks = {}
    pending = [pid]
    while pending:
        process = Path("/proc", str(pending.pop()))
        try:
            status = (process / "status").read_text()
            for children in process.glob("task/*/children"):
                pending.extend(map(int, children.read_text().split()))
        except OSError:
            continue  # the process has just ended
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
            peaks[int(process.name)] = int(peak[1]) * 1024 / MEGABYTE
    return peaks
