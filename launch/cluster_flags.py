"""The flags of the verbs that write a job for a cluster, and the writing."""

import re
from pathlib import Path
from typing import Any

from absl import flags

from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.templates import template_environment

# Long enough for a cluster's names, and short enough that Kubernetes can append a node's number.
_JOB_NAME_PATTERN = r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?"

_JOB_NAME = flags.DEFINE_string("job_name", "clozemill", "What the cluster calls the job.")
_NODES = flags.DEFINE_integer(
    "nodes", None, "How many nodes; one process on each.", lower_bound=1, required=True
)
_GPUS_PER_NODE = flags.DEFINE_integer(
    "gpus_per_node",
    None,
    "GPUs of a node, all used by its process; 0 for the processor.",
    lower_bound=0,
    required=True,
)
_CPUS_PER_NODE = flags.DEFINE_integer(
    "cpus_per_node",
    None,
    "Processor cores of a node. By default what the cluster gives, which may be one.",
    lower_bound=1,
)
_SECONDS_TO_SAVE = flags.DEFINE_integer(
    "seconds_to_save",
    300,
    "How long the processes have to save a checkpoint before the cluster kills them.",
    lower_bound=1,
    upper_bound=65535,
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace an --output_file that is another.")


@flags.validator(
    "job_name",
    message="give lower-case letters, digits and -, at most 52, with a letter first and no - last",
)
def _is_job_name(name: str) -> bool:
    return re.fullmatch(_JOB_NAME_PATTERN, name) is not None


def cluster_values() -> dict[str, Any]:
    """The values for a template, under the names of the flags."""
    shared = (_JOB_NAME, _NODES, _GPUS_PER_NODE, _CPUS_PER_NODE, _SECONDS_TO_SAVE)
    return {flag.name: flag.value for flag in shared}


def write_job(
    path: Path, template_name: str, filters: dict[str, Any], values: dict[str, Any]
) -> None:
    """Writes a template of this package that is filled with values.

    Raises:
      UserError: a different file is there and is not to be replaced, or it cannot be written.
    """
    environment = template_environment("launch")
    environment.filters |= filters
    text = environment.get_template(template_name).render(values)
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder of --output_file={path} does not exist")
    if path.exists() and not _OVERWRITE.value and path.read_bytes() != text.encode():
        raise UserError(f"{path} is there already: give another --output_file, or --overwrite")
    write_whole(path, text)
