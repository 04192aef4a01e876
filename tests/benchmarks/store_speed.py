"""Compares work on a store with work on a disk, in turns: `clozemill generate`.

The store is a server of S3 on loopback, in a process of its own that takes the other core. It is
written in Python, so what it costs is told as well.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import CORES, MEGABYTE, generate_command, parser_of, pinned, run

TESTS = Path(__file__).parents[1]
LARGEST_TIME, LARGEST_MEMORY = 1.15, 1.1
SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from object_store import object_store
with object_store() as store:
    store.make_bucket("bucket")
    print(*(f"{name}={value}" for name, value in store.environment.items()), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def store():
    """Runs the server; yields the variables that lead to it, and its process."""
    command = pinned([sys.executable, "-c", SERVER, str(TESTS)], CORES[:1])
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield dict(each.split("=", 1) for each in line.split()), process
    finally:
        process.communicate()


def cpu_seconds(process):
    """The processor time that a process has used so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, store() as (environment, server):
        compare_generate(Path(directory), environment, server, arguments)


def compare_generate(directory, environment, server, arguments):
    """`generate` with one worker, five passes: to a disk and to the store."""
    folders = map("s3://bucket/{}".format, itertools.count())

    def generate(output_dir):
        command = generate_command(
            input_file=arguments.input_file,
            vocab_file=arguments.vocab_file,
            output_dir=output_dir,
            dupe_factor=5,
        )
        before = cpu_seconds(server)
        ended = run(pinned(command, CORES[-1:]), directory / "log.txt", **environment)
        return ended.seconds, ended.peaks[:2], cpu_seconds(server) - before

    megabytes = arguments.input_file.stat().st_size / MEGABYTE
    print(f"generate: {megabytes:,.0f} MB of text, five passes, one worker", flush=True)
    for _ in range(arguments.rounds):
        seconds, (parent, worker), _ = generate(directory / "data")
        shutil.rmtree(directory / "data")
        print(f"disk:  {seconds:5.1f} s, worker {worker:4.0f} MB, parent {parent:4.0f} MB")
        on_store, (parent_there, worker_there), cpu = generate(next(folders))
        print(
            f"store: {on_store:5.1f} s, worker {worker_there:4.0f} MB, parent {parent_there:4.0f} "
            f"MB; the server's own {cpu:.1f} s"
        )
        print(
            f"store over disk: {on_store / seconds:.2f} times as long (target: at most "
            f"{LARGEST_TIME}); memory of the worker {worker_there / worker:.2f}, of the parent "
            f"{parent_there / parent:.2f} times (target: at most {LARGEST_MEMORY})",
            flush=True,
        )


if __name__ == "__main__":
    main()
