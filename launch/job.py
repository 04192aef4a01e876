"""Finds a process's place in its job: from flags, Slurm, TF_CONFIG or Kubernetes."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from modeling.job.messages import printable
from modeling.job.place import JobPlace
from pipeline.errors import UserError

COORDINATOR_VARIABLE = "CLOZEMILL_COORDINATOR_ADDRESS"
NUM_PROCESSES_VARIABLE = "CLOZEMILL_NUM_PROCESSES"
TOKEN_VARIABLE = "CLOZEMILL_JOB_TOKEN"
_TOKEN_LENGTHS = range(32, 1025)
# Above the ports that systems assign automatically, which are 32768 to 60999 on Linux.
_FIRST_PORT, _NUM_PORTS = 61000, 4000

_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT on process 0's host, where the processes of a job meet. `clozemill launch`, Slurm, "
    "TF_CONFIG and Kubernetes provide this flag and the next two; set them only without these.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "The number of processes in the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")
_COORDINATOR_TIMEOUT = flags.DEFINE_float(
    "coordinator_timeout",
    300.0,
    "The seconds that the processes wait for each other at the start.",
    lower_bound=0.0,
)
_JOB_TOKEN_FILE = flags.DEFINE_string(
    "job_token_file",
    None,
    "A file with the job's token: 32 or more random characters, the same in all processes and "
    f"known to nobody else. By default, the environment variable {TOKEN_VARIABLE}, which "
    "`clozemill launch`, `slurm` and `kubernetes` provide. Processes of one host, which meet at a "
    "loopback address, can do without.",
)
_NUMBERS_OF_PLACE = ("coordinator_address", "num_processes", "process_id")
PLACE_FLAGS = (*_NUMBERS_OF_PLACE, "job_token_file")


def coordinator_timeout() -> float:
    """Returns the seconds that the processes wait for each other at the start."""
    return _COORDINATOR_TIMEOUT.value


def job_place(environment: Mapping[str, str] = os.environ) -> JobPlace:
    """Returns this process's place: from its flags, else from Slurm, TF_CONFIG or Kubernetes.

    Raises:
      flags.Error: some of the place's flags are given, but not all.
      UserError: the place or the job's token is invalid, or there is no token.
    """
    token = _job_token(environment)
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in _NUMBERS_OF_PLACE}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not missing:
        return JobPlace(**given, found_in="its flags", token=token)
    if len(missing) < len(given):
        raise flags.Error(f"a process of a job also needs {' and '.join(missing)}")
    for find in (_slurm_place, _tf_config_place, _kubernetes_place):
        if place := find(environment, token):
            return place
    return JobPlace()


def _job_token(environment: Mapping[str, str]) -> str:
    """Returns the token from its file, else from its variable, else none."""
    if not (path := _JOB_TOKEN_FILE.value):
        source, content = TOKEN_VARIABLE, environment.get(TOKEN_VARIABLE, "").encode()
    else:
        source = f"--job_token_file={path}"
        try:
            with Path(path).open("rb") as file:
                content = file.read(_TOKEN_LENGTHS.stop + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{printable(source)} cannot be read: {reason}") from error
    token = content.decode("ascii", "replace").strip()
    is_valid = len(token) in _TOKEN_LENGTHS and re.fullmatch("[!-~]+", token)
    if not is_valid and (token or path):
        raise UserError(
            f"{printable(source)} must hold one word of {_TOKEN_LENGTHS.start} to "
            f"{_TOKEN_LENGTHS.stop - 1} letters, digits or signs, such as `openssl rand -hex 32` "
            "makes: give all processes the same"
        )
    return token


def _slurm_place(environment: Mapping[str, str], token: str) -> JobPlace | None:
    """Returns the place of a task that srun started, or None, as for sbatch's own shell."""
    num_tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks == 1:
        return None
    # In `rack[1-2]node[01-16,20],login1`, the first host is rack1node01.
    nodes = environment["SLURM_STEP_NODELIST"]
    first = re.match(r"(\[[^\]]*\]|[^,])+", nodes)
    host = re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group() if first else nodes)
    port = _FIRST_PORT + int(environment["SLURM_JOB_ID"]) % _NUM_PORTS
    return JobPlace(f"{host}:{port}", num_tasks, int(environment["SLURM_PROCID"]), "Slurm", token)


def _tf_config_place(environment: Mapping[str, str], token: str) -> JobPlace | None:
    """Returns the place in a multi-worker job of TensorFlow; the chief comes before the workers."""
    if not (text := environment.get("TF_CONFIG")):
        return None
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        addresses = [*cluster.get("chief", ()), *cluster.get("worker", ())]
        if len(addresses) < 2:
            return None
        process_id = int(task["index"])
        if task["type"] == "worker":
            process_id += len(cluster.get("chief", ()))
        elif task["type"] != "chief":
            raise ValueError(f"a task of type {task['type']} does not train")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"TF_CONFIG is invalid ({error!r}): it needs cluster.worker and the task's type and "
            "index; unset it to train with a single process"
        ) from error
    return JobPlace(str(addresses[0]), len(addresses), process_id, "TF_CONFIG", token)


def _kubernetes_place(environment: Mapping[str, str], token: str) -> JobPlace | None:
    """Returns the place of an Indexed Job's pod; its manifest sets all but the pod's index."""
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or COORDINATOR_VARIABLE not in environment:
        return None
    return JobPlace(
        environment[COORDINATOR_VARIABLE],
        int(environment.get(NUM_PROCESSES_VARIABLE, "1")),
        int(index),
        "the Kubernetes Job",
        token,
    )
