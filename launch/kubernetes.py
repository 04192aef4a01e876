r"""A training on the nodes of a Kubernetes cluster: writes the manifests, which kubectl takes.

The command comes behind --:

  clozemill kubernetes --nodes=4 --gpus_per_node=8 --image=IMAGE -- \
      pretrain --data_dir=/data/DATA --output_dir=/runs/RUN --model=base
  kubectl apply --filename=pretrain.yaml

launch/Dockerfile makes the image. Two existing persistent volume claims hold the data sets and the
runs; the pods see them as /data and /runs. A job that loses a pod goes on from its newest checkpoint.
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from absl import flags

from launch import cluster_flags
from launch.pretrain_command import read_command

TAKES_COMMAND = True
SHARED_FLAGS = (cluster_flags,)
_TEMPLATE_NAME = "kubernetes.yaml.jinja"
# Where the pods see the claims, and which flags of pretrain have to point there.
_VOLUMES = {"data_dir": ("/data", "/runs"), "output_dir": ("/runs",)}
_COORDINATOR_PORT = 8476

_IMAGE = flags.DEFINE_string(
    "image", None, "The container image, as the nodes can pull it.", required=True
)
_NAMESPACE = flags.DEFINE_string("namespace", None, "By default that of kubectl's context.")
_DATA_CLAIM = flags.DEFINE_string(
    "data_claim", "data", "The persistent volume claim that the pods see as /data, read only."
)
_RUNS_CLAIM = flags.DEFINE_string(
    "runs_claim",
    "runs",
    "The claim that they see as /runs; of several nodes, its access mode has to be ReadWriteMany. It may "
    "be the same.",
)
_SHARED_MEMORY = flags.DEFINE_string(
    "shared_memory",
    "16Gi",
    "The most memory that /dev/shm can take, through which the GPUs of a node exchange data.",
)
_OUTPUT_FILE = flags.DEFINE_string("output_file", "pretrain.yaml", "Where the manifests go.")
flags.register_validator(
    "image",
    lambda image: image is None or re.fullmatch(r"[\w./:@-]+", image, re.ASCII) is not None,
    message="this cannot be the name of an image",
)
flags.register_validator(
    "shared_memory",
    lambda size: re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]i?", size, re.ASCII) is not None,
    message="give a size such as 16Gi",
)
for _name in ("namespace", "data_claim", "runs_claim"):
    flags.register_validator(
        _name,
        lambda name: (
            name is None or re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) is not None
        ),
        message="give lower-case letters, digits and -",
    )


def main(command: list[str]) -> None:
    """Writes the manifests and says where they are."""
    arguments, values = read_command(command)
    for name, places in _VOLUMES.items():
        _check_place(name, values[name].value, places)
    path = Path(_OUTPUT_FILE.value)
    cluster_flags.write_job(
        path,
        _TEMPLATE_NAME,
        {"string": _string, "argument": lambda word: _string(word.replace("$", "$$"))},
        {
            **cluster_flags.cluster_values(),
            "image": _IMAGE.value,
            "namespace": _NAMESPACE.value,
            "data_claim": _DATA_CLAIM.value,
            "runs_claim": _RUNS_CLAIM.value,
            "shared_memory": _SHARED_MEMORY.value,
            "port": _COORDINATOR_PORT,
            "arguments": arguments,
        },
    )
    print(f"{path}: start it with kubectl apply --filename={path}")


def _check_place(name: str, value: Any, places: tuple[str, ...]) -> None:
    """Checks that a directory will be on a volume: one inside the container is lost with it."""
    path = PurePosixPath(value)
    if ".." in path.parts or not any(path.is_relative_to(place) for place in places):
        wanted = " or ".join(places)
        raise flags.Error(
            f"behind --: --{name}={value} is on no volume of the pods; begin with {wanted}"
        )


def _string(text: str) -> str:
    """A string of JSON, which YAML reads as it is."""
    return json.dumps(text, ensure_ascii=False)
