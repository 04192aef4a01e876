"""A training of several processes on this machine, which work as one on each batch.

For trying a job of several nodes, and for dividing a machine's GPUs between processes; one process
uses all GPUs by itself. The command comes behind --:

  clozemill launch --processes=2 -- pretrain --data_dir=DATA --output_dir=RUN --model=base

Lines of output stand behind the rank of their process. SIGTERM, SIGUSR1 and Ctrl-C are passed on;
when a process fails, all are ended, and the exit code is its own.
"""

import os
import signal
import socket
import sys

from absl import flags

from launch.gpus import VISIBLE_GPUS, divide_gpus, find_gpus
from launch.pretrain_command import read_command
from launch.processes import Program, run_together

TAKES_COMMAND = True
# The others may wait for the one that failed, and then hear nothing until they are killed.
_GRACE_SECONDS = 10

_PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many processes there are.", lower_bound=1, required=True
)


def main(command: list[str]) -> None:
    """Starts the processes, and exits as they do."""
    arguments, _ = read_command(command)
    gpus = divide_gpus(find_gpus(), _PROCESSES.value)
    ending = run_together(_programs(arguments, gpus), _GRACE_SECONDS)
    if ending.is_failure:
        how = (
            f"failed with exit code {ending.returncode}"
            if ending.returncode > 0
            else f"was killed by {signal.Signals(-ending.returncode).name}"
        )
        print(f"clozemill launch: process {ending.rank} {how}", file=sys.stderr)
    sys.exit(ending.exit_code)


def _programs(arguments: list[str], gpus: list[list[str]]) -> list[Program]:
    """The processes by rank, each with the GPUs that are its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        Program(
            [
                *(sys.executable, "-m", "launch", *arguments),
                f"--coordinator_address={address}",
                f"--num_processes={len(gpus)}",
                f"--process_id={rank}",
            ],
            os.environ | ({VISIBLE_GPUS: ",".join(own)} if own else {}),
        )
        for rank, own in enumerate(gpus)
    ]
