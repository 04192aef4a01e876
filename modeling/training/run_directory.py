"""The run directory: the model's config, what the data set said, checkpoints and metrics."""

import os
import platform
from importlib import metadata
from pathlib import Path

import keras

from modeling.checkpoints.run_checkpoints import list_checkpoints
from modeling.config import CONFIG_NAME, BertConfig
from pipeline.errors import UserError
from pipeline.files import sha256_of, write_json, write_whole
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest

ENVIRONMENT_NAME = "environment.json"
_PACKAGES = ("clozemill", "keras", "tensorflow", "jax", "jaxlib", "numpy")


def check_run(run_dir: Path, config: BertConfig, data_dir: Path, manifest: Manifest) -> None:
    """Sees that the model can be trained on the data there, without writing anything.

    Raises:
      UserError: the model does not go with the data, or the directory holds something else than a
        run of this model on these data.
    """
    if config.vocab_size < manifest.vocab_size:
        raise UserError(
            f"the model's vocab_size {config.vocab_size} is smaller than the {manifest.vocab_size} "
            f"entries of {data_dir / VOCABULARY_NAME}: give another vocab_size"
        )
    check_length(config, data_dir, manifest)
    if list_checkpoints(run_dir):
        _check_same_model(run_dir, config)
        _check_same_data(run_dir, data_dir, manifest)
    elif run_dir.exists() and not _is_run_or_empty(run_dir):
        raise UserError(
            f"{run_dir} is a file or holds files that are no run: give an empty --output_dir"
        )


def prepare_run(run_dir: Path, config: BertConfig, data_dir: Path, manifest: Manifest) -> None:
    """Makes the directory, or sees that the run in it is of the same model and data set.

    Raises:
      UserError: as `check_run`, or the directory cannot be written.
    """
    check_run(run_dir, config, data_dir, manifest)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # What was begun with another model or data set but never saved anything is begun anew.
        if not list_checkpoints(run_dir):
            write_whole(run_dir / CONFIG_NAME, config.to_json())
            vocabulary = (data_dir / VOCABULARY_NAME).read_text("utf-8")
            write_whole(run_dir / VOCABULARY_NAME, vocabulary)
            manifest.write(run_dir)
    except OSError as error:
        raise UserError(f"cannot write the run {run_dir}: {error}") from error


def write_environment(
    run_dir: Path, devices: list[str], hosts: list[str], num_devices: int
) -> None:
    """Writes what this start of the run computes with, so that its figures can be understood later.

    Args:
      run_dir: the run.
      devices: names of process 0's GPUs.
      hosts: of its processes, by process.
      num_devices: of all processes.
    """
    environment = {
        "backend": keras.config.backend(),
        "devices": devices,
        "num_devices": num_devices,
        "hosts": hosts,
        "processor": platform.machine(),
        "processor_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "manifest_sha256": sha256_of(run_dir / MANIFEST_NAME),
    }
    write_json(run_dir / ENVIRONMENT_NAME, environment)


def read_run(run_dir: Path) -> tuple[BertConfig, Manifest]:
    """The model's config, and the manifest of the data it was trained on.

    Raises:
      UserError: the directory is not that of a run.
    """
    if not (run_dir / CONFIG_NAME).exists():
        raise UserError(
            f"{run_dir} is not a run: it has no {CONFIG_NAME}; give the --output_dir of "
            "`clozemill pretrain`"
        )
    return BertConfig.read(run_dir / CONFIG_NAME), Manifest.read(run_dir)


def check_length(config: BertConfig, data_dir: Path, data: Manifest) -> None:
    """Sees that a model can read the instances of a data set.

    Raises:
      UserError: they are longer than its position embeddings reach.
    """
    if config.max_position_embeddings < data.max_seq_length:
        raise UserError(
            f"the model reads at most max_position_embeddings {config.max_position_embeddings} tokens, "
            f"but the instances of {data_dir} have {data.max_seq_length}"
        )


def check_same_vocabulary(run_dir: Path, run: Manifest, data_dir: Path, data: Manifest) -> None:
    """Sees that a run and a data set agree on what the ids mean.

    Raises:
      UserError: they were made with different vocabularies.
    """
    if run.vocab_sha256 != data.vocab_sha256:
        raise UserError(
            f"the run {run_dir} and the data set {data_dir} were made with different vocabularies; "
            "generate the data with the run's vocab.txt"
        )


def _is_run_or_empty(run_dir: Path) -> bool:
    if not run_dir.is_dir():
        return False
    # A run that was killed may have left the beginnings of a file.
    files = [path for path in run_dir.iterdir() if path.suffix != ".tmp"]
    return not files or (run_dir / CONFIG_NAME).exists()


def _check_same_model(run_dir: Path, config: BertConfig) -> None:
    saved = BertConfig.read(run_dir / CONFIG_NAME)
    changed = [
        f"{name} was {getattr(saved, name)!r}, is {value!r}"
        for name, value in vars(config).items()
        if getattr(saved, name) != value
    ]
    if changed:
        raise UserError(
            f"{run_dir} holds a run of another model ({'; '.join(changed)}): give another --output_dir"
        )


def _check_same_data(run_dir: Path, data_dir: Path, manifest: Manifest) -> None:
    """The place in the data where a run goes on means nothing in another data set."""
    trained_on = Manifest.read(run_dir)
    check_same_vocabulary(run_dir, trained_on, data_dir, manifest)
    if trained_on != manifest:
        raise UserError(
            f"{run_dir} holds a run on another data set than {data_dir} "
            f"({_difference(trained_on, manifest)}): give another --output_dir"
        )


def _difference(trained_on: Manifest, manifest: Manifest) -> str:
    old, new = (
        {**vars(each), **each.options, "options": None, "shards": None, "statistics": None}
        for each in (trained_on, manifest)
    )
    changed = [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]
    return "; ".join(changed) or "made with the same options from other text"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
