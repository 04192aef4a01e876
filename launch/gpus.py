"""The NVIDIA GPUs of this machine, divided between processes."""

import os
import shutil
import subprocess

from absl import logging

from pipeline.errors import UserError

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def find_gpus() -> list[str]:
    """The NVIDIA GPUs that can be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get(VISIBLE_GPUS)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # As CUDA does: an empty name or -1 hides itself and all that follow.
        hidden = [index for index, name in enumerate(names) if name in ("", "-1")]
        return names[: hidden[0]] if hidden else names
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in lines))]


def divide_gpus(gpus: list[str], num_processes: int) -> list[list[str]]:
    """The GPUs of each process, the same number for all.

    Raises:
      UserError: there are some, but not one for each process.
    """
    if 0 < len(gpus) < num_processes:
        raise UserError(
            f"--processes={num_processes} are more than the GPUs, which are {len(gpus)}: give fewer, "
            f"or set {VISIBLE_GPUS}= to nothing to compute on the processor"
        )
    share, left = divmod(len(gpus), num_processes)
    if left:
        logging.info(
            "%d of %d GPUs are not used, so that each process has %d", left, len(gpus), share
        )
    return [gpus[rank * share : (rank + 1) * share] for rank in range(num_processes)]
