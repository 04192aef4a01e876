r"""Writes the batch script that runs pretrain, or generate, on several nodes of a Slurm cluster.

The pretrain command comes after --:

  clozemill slurm --nodes=4 --gpus_per_node=8 --time=24:00:00 --submit -- \
      pretrain --data_dir=DATA --output_dir=RUN --model=base

After --, `generate` may stand in the place of pretrain: the nodes are then a cluster of Spark.

With --grid, each point of the grid is a task of an array of jobs: a run of its own, as `clozemill
sweep` makes it. `clozemill sweep --report_only` then makes the table.

The nodes use this Python environment and this directory, so both must be on a file system that the
nodes share. If all directories are URLs of an object store (s3://, gs:// or az://),
each node may instead have its own at the same path. A job that is preempted, loses a node or
reaches its time limit is requeued and resumes, pretrain from its newest checkpoint. A job that
fails ends with the command's exit code.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from absl import flags

from launch import cluster_flags, grid
from launch.generate_command import program_of, read_job_command
from launch.pretrain_command import stores_of
from modeling.job.messages import printable
from pipeline.errors import UserError

TAKES_COMMAND = True
SHARED_FLAGS = (cluster_flags, grid)
_TEMPLATE_NAME = "slurm.sbatch.jinja"
# The forms that sbatch accepts: [days-]hours:minutes:seconds and shorter ones.
_TIME_PATTERN = re.compile(
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"
    r"|((?P<h>\d+):(?=\d+:))?(?P<m>\d+)(:(?P<s>\d+))?",
    re.ASCII,
)

_TIME = flags.DEFINE_string(
    "time",
    None,
    "The time limit, after which the job is requeued: hours:minutes:seconds, minutes, or any other "
    "form that sbatch accepts.",
    required=True,
)
_PARTITION = flags.DEFINE_string("partition", None, "The partition. By default the cluster's.")
_ACCOUNT = flags.DEFINE_string("account", None, "The account to charge.")
_OUTPUT_FILE = flags.DEFINE_string(
    "output_file", None, "The file to write (default: pretrain.sbatch, or generate.sbatch)."
)
_SUBMIT = flags.DEFINE_boolean("submit", False, "Also submit the script, and print the job's ID.")
flags.register_validator(
    "time",
    lambda time: time is None or seconds_of(time) > 0,
    message="give a time such as 24:00:00 or 1-12:00:00",
)
for _name in ("partition", "account"):
    flags.register_validator(
        _name,
        lambda name: name is None or re.fullmatch(r"[\w.,@+-]+", name) is not None,
        message="this is not a valid name",
    )


def main(command: list[str]) -> None:
    """Writes the script and, with --submit, submits it; prints the job's ID or how to submit."""
    if grid.grid_is_given():
        points = grid.read_points(command)
        arguments = points[0].arguments[: -len(points[0].own)]
        commands = [point.flags for point in points]
    else:
        points = []
        arguments, flags_of_command = read_job_command(command)
        commands = [flags_of_command]
    values = cluster_flags.cluster_values(arguments[0], *commands)
    if values["seconds_to_save"] >= seconds_of(_TIME.value):
        raise flags.Error(
            f"--time={_TIME.value} must be longer than "
            f"--seconds_to_save={values['seconds_to_save']}"
        )
    script = Path(_OUTPUT_FILE.value or f"{arguments[0]}.sbatch")
    cluster_flags.write_job(
        script,
        _TEMPLATE_NAME,
        {"quote": shlex.quote},
        {
            **values,
            "time": _TIME.value,
            "partition": _PARTITION.value,
            "account": _ACCOUNT.value,
            "directory": _directory(),
            "program": [sys.executable, *program_of(arguments[0])],
            "arguments": arguments,
            "points": [point.own for point in points],
            "has_own_cache": arguments[0] == "pretrain"
            and bool(stores_of(commands[0]))
            and not commands[0]["cache_dir"].present,
        },
    )
    if _SUBMIT.value:
        print(f"{script}: job {_submit(script)}")
    else:
        print(f"{script}: submit it with sbatch {shlex.quote(str(script))}")


def _directory() -> str:
    """Returns the current directory.

    Raises:
      UserError: its name has a line end, which would end the script's line that names it, or a
        backslash, after which sbatch replaces nothing in the name of the log.
    """
    directory = str(Path.cwd())
    if "\n" in directory or "\\" in directory:
        raise UserError(
            f"the name of the current directory {printable(directory)} has a line end or a "
            "backslash, which sbatch misreads: start from another directory"
        )
    return directory


def seconds_of(time: str) -> int:
    """Returns a time limit in seconds; 0 if sbatch does not accept its form."""
    match = _TIME_PATTERN.fullmatch(time)
    if not match:
        return 0
    part = {name: int(digits or 0) for name, digits in match.groupdict().items()}
    days_and_hours = part["days"] * 24 + part["hours"] + part["h"]
    return (days_and_hours * 60 + part["minutes"] + part["m"]) * 60 + part["seconds"] + part["s"]


def _submit(script: Path) -> str:
    """Submits the script with sbatch and returns the job's ID.

    Raises:
      UserError: sbatch is not installed, or it rejects the script.
    """
    try:
        result = subprocess.run(
            ["sbatch", "--parsable", "--", str(script)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{script} was written but not submitted: sbatch is not installed on this machine"
        ) from error
    if result.returncode != 0:
        reason = " ".join(result.stderr.split())
        raise UserError(f"{script} was written but not submitted: {reason}")
    # In a federation, sbatch prints `ID;CLUSTER`.
    return result.stdout.strip().partition(";")[0]
