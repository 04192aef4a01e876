"""Runs pretrain as several processes on this machine, which share each batch.

Use it to try out a job of several nodes, or to divide a machine's GPUs between processes. A single
process already uses all GPUs. The pretrain command comes after --:

  clozemill launch --processes=2 -- pretrain --data_dir=DATA --output_dir=RUN --model=base

Each output line is prefixed with its process number. SIGTERM, SIGUSR1 and Ctrl-C are passed on to
all processes. If a process fails, the others are stopped and `launch` exits with its exit code.
"""

import os
import secrets
import signal
import socket
import sys

from absl import flags

from launch.gpus import VISIBLE_GPUS, divide_gpus, find_gpus
from launch.job import TOKEN_VARIABLE
from launch.pretrain_command import read_command
from launch.processes import Program, run_together

TAKES_COMMAND = True
# The others may wait for the failed one without ever noticing; then they are killed.
_GRACE_SECONDS = 10

_PROCESSES = flags.DEFINE_integer(
    "processes", None, "The number of processes to start.", lower_bound=1, required=True
)


def main(command: list[str]) -> None:
    """Starts the processes and exits with their exit code."""
    arguments, _ = read_command(command)
    gpus = divide_gpus(find_gpus(), _PROCESSES.value)
    ending = run_together(_programs(arguments, gpus), _GRACE_SECONDS)
    if ending.is_failure:
        how = (
            f"failed with exit code {ending.returncode}"
            if ending.returncode > 0
            else f"was killed by {signal.Signals(-ending.returncode).name}"
        )
        print(f"clozemill launch: process {ending.process_id} {how}", file=sys.stderr)
    sys.exit(ending.exit_code)


def _programs(arguments: list[str], gpus: list[list[str]]) -> list[Program]:
    """Returns the program of each process, with that process's GPUs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Python must not import what lies in the current directory instead of our modules.
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        TOKEN_VARIABLE: secrets.token_hex(32),
    }
    return [
        Program(
            [
                *(sys.executable, "-m", "launch", *arguments),
                f"--coordinator_address={address}",
                f"--num_processes={len(gpus)}",
                f"--process_id={process_id}",
            ],
            environment | ({VISIBLE_GPUS: ",".join(own)} if own else {}),
        )
        for process_id, own in enumerate(gpus)
    ]
