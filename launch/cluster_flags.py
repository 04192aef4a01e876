"""The flags of the verbs that write a job for a cluster, and the function that writes it."""

import re
from pathlib import Path
from typing import Any

from absl import flags

from modeling.job.messages import printable
from modeling.step.devices import check_context_parallel
from pipeline.errors import UserError
from pipeline.files import remove_leftovers, write_whole
from pipeline.templates import template_environment

# Short enough that Kubernetes can append the number of a node.
_JOB_NAME_PATTERN = r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?"

_JOB_NAME = flags.DEFINE_string("job_name", "clozemill", "The job's name on the cluster.")
_NODES = flags.DEFINE_integer(
    "nodes", None, "The number of nodes; each runs one process.", lower_bound=1, required=True
)
_GPUS_PER_NODE = flags.DEFINE_integer(
    "gpus_per_node",
    None,
    "The number of GPUs per node; the node's process uses all of them. 0: train on the CPU.",
    lower_bound=0,
    required=True,
)
_CPUS_PER_NODE = flags.DEFINE_integer(
    "cpus_per_node",
    None,
    "The number of CPU cores per node. By default the cluster decides, which may give only one.",
    lower_bound=1,
)
_SECONDS_TO_SAVE = flags.DEFINE_integer(
    "seconds_to_save",
    300,
    "The seconds that the processes have to save a checkpoint before the cluster kills them.",
    lower_bound=1,
    upper_bound=65535,
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Replace --output_file if it exists with other contents."
)


@flags.validator(
    "job_name",
    message="use at most 52 lower-case letters, digits and -, with a letter first and no - last",
)
def _is_job_name(name: str) -> bool:
    return re.fullmatch(_JOB_NAME_PATTERN, name) is not None


def cluster_values(verb: str, *commands: flags.FlagValues) -> dict[str, Any]:
    """Returns the flags' values by name, for a template.

    Args:
      verb: the verb that the job runs.
      commands: the values of the verb's flags, of a grid those of each point.

    Raises:
      flags.Error: the verb has no use for GPUs.
      UserError: --context_parallel does not divide the GPUs.
    """
    nodes, gpus = _NODES.value, _GPUS_PER_NODE.value
    if verb == "generate" and gpus:
        raise flags.Error(f"--gpus_per_node={gpus}: generate needs no GPU; give --gpus_per_node=0")
    for command in commands if gpus else ():
        size = int(str(command["context_parallel"].value))
        check_context_parallel(size, nodes * gpus, gpus)
    shared = (_JOB_NAME, _NODES, _GPUS_PER_NODE, _CPUS_PER_NODE, _SECONDS_TO_SAVE)
    return {flag.name: flag.value for flag in shared}


def write_job(
    path: Path, template_name: str, filters: dict[str, Any], values: dict[str, Any]
) -> None:
    """Fills in a template of this package and writes the result.

    Raises:
      UserError: a different file exists and --overwrite is not set, or the file cannot be written.
        Or a value is no UTF-8, so that the cluster would not read what the user has written.
    """
    if not str(path).isprintable():
        raise UserError(
            f"--output_file={printable(str(path))} has characters that do not print: give another"
        )
    environment = template_environment("launch")
    environment.filters |= filters
    text = environment.get_template(template_name).render(values)
    if unreadable := re.search(r"[^\n]*[\ud800-\udfff][^\n]*", text):
        raise UserError(f"{printable(unreadable[0].strip())} is no UTF-8: give another name")
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder of --output_file={path} does not exist")
    remove_leftovers(path.parent, path.name)
    if path.exists() and not _OVERWRITE.value and path.read_bytes() != text.encode():
        raise UserError(f"{path} already exists: give another --output_file, or --overwrite")
    write_whole(path, text)
