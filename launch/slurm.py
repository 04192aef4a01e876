r"""A training on the nodes of a Slurm cluster: writes the batch script, which sbatch takes.

The command comes behind --:

  clozemill slurm --nodes=4 --gpus_per_node=8 --time=24:00:00 --submit -- \
      pretrain --data_dir=DATA --output_dir=RUN --model=base

The nodes use this environment of Python and this directory, so both must be on a file system that
they share. A job that is preempted, loses a node or reaches its time limit goes back into the queue
and goes on from its newest checkpoint; one that fails ends with the exit code of pretrain.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from absl import flags

from launch import cluster_flags
from launch.pretrain_command import read_command
from pipeline.errors import UserError

TAKES_COMMAND = True
SHARED_FLAGS = (cluster_flags,)
_TEMPLATE_NAME = "slurm.sbatch.jinja"
# [days-]hours:minutes:seconds and its shorter forms, as sbatch reads them.
_TIME_PATTERN = re.compile(
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"
    r"|((?P<h>\d+):(?=\d+:))?(?P<m>\d+)(:(?P<s>\d+))?"
)

_TIME = flags.DEFINE_string(
    "time",
    None,
    "The time limit of a run of the job, after which it goes back into the queue: hours:minutes:seconds, "
    "minutes, or any other form that sbatch knows.",
    required=True,
)
_PARTITION = flags.DEFINE_string("partition", None, "The partition, by default the cluster's own.")
_ACCOUNT = flags.DEFINE_string("account", None, "The account that pays.")
_OUTPUT_FILE = flags.DEFINE_string("output_file", "pretrain.sbatch", "Where the script goes.")
_SUBMIT = flags.DEFINE_boolean("submit", False, "Submit it as well, and print the job's number.")
flags.register_validator(
    "time",
    lambda time: time is None or seconds_of(time) > 0,
    message="give a time such as 24:00:00 or 1-12:00:00",
)
for _name in ("partition", "account"):
    flags.register_validator(
        _name,
        lambda name: name is None or re.fullmatch(r"[\w.,@+-]+", name) is not None,
        message="this cannot be a name",
    )


def main(command: list[str]) -> None:
    """Writes the script, submits it if asked to, and says what it did."""
    arguments, _ = read_command(command)
    values = cluster_flags.cluster_values()
    if values["seconds_to_save"] >= seconds_of(_TIME.value):
        raise flags.Error(
            f"--time={_TIME.value} leaves nothing but the --seconds_to_save={values['seconds_to_save']} "
            "at its end"
        )
    script = Path(_OUTPUT_FILE.value)
    cluster_flags.write_job(
        script,
        _TEMPLATE_NAME,
        {"quote": shlex.quote},
        {
            **values,
            "time": _TIME.value,
            "partition": _PARTITION.value,
            "account": _ACCOUNT.value,
            "directory": str(Path.cwd()),
            "python": sys.executable,
            "arguments": arguments,
        },
    )
    if _SUBMIT.value:
        print(f"{script}: job {_submit(script)}")
    else:
        print(f"{script}: submit it with sbatch {shlex.quote(str(script))}")


def seconds_of(time: str) -> int:
    """The seconds of a time limit; 0 for one that sbatch would not take."""
    match = _TIME_PATTERN.fullmatch(time)
    if not match:
        return 0
    part = {name: int(digits or 0) for name, digits in match.groupdict().items()}
    days_and_hours = part["days"] * 24 + part["hours"] + part["h"]
    return (days_and_hours * 60 + part["minutes"] + part["m"]) * 60 + part["seconds"] + part["s"]


def _submit(script: Path) -> str:
    """Gives the script to sbatch and returns the number of the job.

    Raises:
      UserError: there is no sbatch, or it refuses.
    """
    try:
        result = subprocess.run(
            ["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{script} is written but not submitted: there is no sbatch on this machine"
        ) from error
    if result.returncode != 0:
        reason = " ".join(result.stderr.split())
        raise UserError(f"{script} is written but not submitted: {reason}")
    # In a federation, the cluster's name stands behind the number.
    return result.stdout.strip().partition(";")[0]
