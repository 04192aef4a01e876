r"""Writes the manifests that run pretrain, or generate, on several nodes of a Kubernetes cluster.

The pretrain command comes after --:

  clozemill kubernetes --nodes=4 --gpus_per_node=8 --image=IMAGE -- \
      pretrain --data_dir=/data/DATA --output_dir=/runs/RUN --model=base

It prints the commands that make the Secrets and start the job. By one of them, the pods know each
other. launch/Dockerfile builds the image. Two existing persistent volume claims hold the data sets
and the runs; the pods mount them at /data and /runs. A job that loses a pod resumes from its newest
checkpoint.

Directories may also be URLs of an object store, s3://, gs:// or az://. Then a Secret holds the
store's credentials, and no volume is needed.

After --, `generate` may stand in the place of pretrain: the pods are then a cluster of Spark.
"""

import json
import re
import shlex
from pathlib import Path, PurePosixPath

from absl import flags

from launch import cluster_flags
from launch.generate_command import program_of, read_job_command
from launch.pretrain_command import places_of, stores_of, texts_of
from pipeline.storage import Location, StoredPath, location

TAKES_COMMAND = True
SHARED_FLAGS = (cluster_flags,)
_TEMPLATE_NAME = "kubernetes.yaml.jinja"
# The flags that must point to a volume or a store, and where pods mount the volumes.
_VOLUMES: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {"data_dir": ("/data", "/runs"), "output_dir": ("/runs",)},
    "generate": dict.fromkeys(
        ("input_file", "mixture", "vocab_file", "output_dir", "tokenized_dir"), ("/data", "/runs")
    ),
}
_SCRATCH = "/scratch"
_COORDINATOR_PORT = 8476
# For each kind of store, what makes a Secret with the variables by which pods reach it.
_SECRET_OF_STORE = {
    "s3": "env | grep -E '^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|(DEFAULT_)?REGION|"
    "ENDPOINT_URL)=' | kubectl create secret generic {secret} --from-env-file=/dev/stdin",
    "gs": "kubectl create secret generic {secret} "
    '--from-file=GOOGLE_SERVICE_ACCOUNT_KEY="$GOOGLE_APPLICATION_CREDENTIALS"',
    "az": "env | grep '^AZURE_' | kubectl create secret generic {secret} "
    "--from-env-file=/dev/stdin",
}

_IMAGE = flags.DEFINE_string(
    "image", None, "The container image; the nodes must be able to pull it.", required=True
)
_NAMESPACE = flags.DEFINE_string(
    "namespace", None, "The namespace. By default that of kubectl's context."
)
_DATA_CLAIM = flags.DEFINE_string(
    "data_claim", "data", "The persistent volume claim that the pods mount at /data, read-only."
)
_RUNS_CLAIM = flags.DEFINE_string(
    "runs_claim",
    "runs",
    "The persistent volume claim that the pods mount at /runs. With several nodes, its access mode "
    "must be ReadWriteMany. It may be the same claim as --data_claim.",
)
_SHARED_MEMORY = flags.DEFINE_string(
    "shared_memory",
    "16Gi",
    "The size limit of /dev/shm, through which the GPUs of a node exchange data.",
)
_OUTPUT_FILE = flags.DEFINE_string(
    "output_file", None, "The file to write (default: pretrain.yaml, or generate.yaml)."
)
flags.register_validator(
    "image",
    lambda image: image is None or re.fullmatch(r"[\w./:@-]+", image, re.ASCII) is not None,
    message="this is not a valid image name",
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
        message="use lower-case letters, digits and -",
    )


def main(command: list[str]) -> None:
    """Writes the manifests and prints how to start the job."""
    arguments, values = read_job_command(command)
    verb = arguments[0]
    for name, mounts in _VOLUMES[verb].items():
        for place in texts_of(values, name):
            _check_place(name, place, mounts)
    places, stores = places_of(values), stores_of(values)
    if verb == "pretrain" and stores and not values["cache_dir"].present:
        arguments = [*arguments, f"--cache_dir={_SCRATCH}/cache"]
    path = Path(_OUTPUT_FILE.value or f"{verb}.yaml")
    values_of_job = cluster_flags.cluster_values(verb, values)
    job_name = values_of_job["job_name"]
    cluster_flags.write_job(
        path,
        _TEMPLATE_NAME,
        {"string": _string, "argument": lambda word: _string(word.replace("$", "$$"))},
        {
            **values_of_job,
            "image": _IMAGE.value,
            "namespace": _NAMESPACE.value,
            "data_claim": _DATA_CLAIM.value if _is_used("/data", places) else None,
            "runs_claim": _RUNS_CLAIM.value if _is_used("/runs", places) else None,
            "stores": stores,
            "scratch": _SCRATCH,
            "shared_memory": _SHARED_MEMORY.value,
            "port": _COORDINATOR_PORT,
            "verb": verb,
            "program": ["python", *program_of(verb)] if verb == "generate" else ["clozemill"],
            "arguments": arguments,
        },
    )
    where = f" --namespace={_NAMESPACE.value}" if _NAMESPACE.value else ""
    print(
        f"{path}: before it starts for the first time, make the token of its pods with\n"
        f"  openssl rand -hex 32 | kubectl create secret generic {job_name}-token{where} "
        "--from-file=token=/dev/stdin"
    )
    for store in stores:
        secret = _SECRET_OF_STORE[store].format(secret=f"{job_name}-{store}{where}")
        print(f"and the Secret by which they reach {store}:// with\n  {secret}")
    print(f"then start it with kubectl apply --filename={shlex.quote(str(path))}")


def _check_place(name: str, value: str, mounts: tuple[str, ...]) -> None:
    """Checks that a place is on a volume or a store; else it is lost with the container."""
    if isinstance(location(value), StoredPath):
        return
    path = PurePosixPath(value.removeprefix("@"))
    if ".." in path.parts or not any(path.is_relative_to(mount) for mount in mounts):
        wanted = " or ".join(mounts)
        raise flags.Error(
            f"after --: --{name}={value} is not on a volume of the pods; begin it with {wanted}, "
            "or give a URL"
        )


def _is_used(mount: str, places: list[Location]) -> bool:
    """Whether any of the places is on the volume that pods mount there."""
    return any(isinstance(place, Path) and place.is_relative_to(mount) for place in places)


def _string(text: str) -> str:
    """Returns a JSON string with YAML's escapes for more characters, but not for halves of one."""
    return re.sub(
        r"[^\ud800-\udfff]",
        lambda match: match[0] if match[0].isprintable() else f"\\U{ord(match[0]):08x}",
        json.dumps(text, ensure_ascii=False),
    )
