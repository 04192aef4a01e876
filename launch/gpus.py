"""Finds this machine's NVIDIA GPUs and divides them between processes."""

import os
import shutil
import subprocess

from absl import logging

from pipeline.errors import UserError

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def find_gpus() -> list[str]:
    """Returns the names of the usable NVIDIA GPUs, in the form CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get(VISIBLE_GPUS)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # As in CUDA, an empty name or -1 also hides all names that follow.
        hidden = [index for index, name in enumerate(names) if name in ("", "-1")]
        return names[: hidden[0]] if hidden else names
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in lines))]


def divide_gpus(gpus: list[str], num_processes: int, flag: str = "--processes") -> list[list[str]]:
    """Returns the GPUs of each process; all processes get the same number.

    Args:
      gpus: the names of all GPUs.
      num_processes: the number of processes.
      flag: the flag that says this number.

    Raises:
      UserError: there are GPUs, but fewer than processes.
    """
    if 0 < len(gpus) < num_processes:
        raise UserError(
            f"{flag}={num_processes} exceeds the number of GPUs ({len(gpus)}): start fewer "
            f"processes, or set {VISIBLE_GPUS} to an empty value to train on the CPU"
        )
    share, left = divmod(len(gpus), num_processes)
    if left:
        logging.info(
            "%d of %d GPUs are not used, so that each process has %d", left, len(gpus), share
        )
    return [gpus[i * share : (i + 1) * share] for i in range(num_processes)]
