"""The run directory: the model's config, the data set's manifest, checkpoints and metrics."""

import os
import platform
from importlib import metadata

import keras

from modeling.checkpoints.run_checkpoints import is_run, list_checkpoints, read_run
from modeling.config import CONFIG_NAME, BertConfig
from pipeline.errors import UserError
from pipeline.files import sha256_of, whole_file, write_whole
from pipeline.json_files import write_json
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, DataSet, Manifest
from pipeline.storage import Location

ENVIRONMENT_NAME = "environment.json"
_PACKAGES = ("clozemill", "keras", "tensorflow", "jax", "jaxlib", "numpy")


def check_run(run_dir: Location, config: BertConfig, data_set: DataSet) -> None:
    """Checks that this directory can hold a run of the model on the data; writes nothing.

    Raises:
      UserError: the model does not fit the data, or the directory holds something other than a run
        of this model on this data.
    """
    check_tables(config, data_set)
    if config.sentence_pairs != data_set.manifest.sentence_pairs:
        raise UserError(
            f"the model has the heads for sentence_pairs {config.sentence_pairs}, but "
            f"{data_set.directory} was made with --sentence_pairs="
            f"{data_set.manifest.sentence_pairs}"
        )
    if list_checkpoints(run_dir):
        saved, trained_on = read_run(run_dir)
        check_same_data(run_dir, trained_on, data_set)
        check_same_model(run_dir, saved, config)
    elif run_dir.exists() and not _may_hold_run(run_dir):
        raise UserError(
            f"{run_dir} is a file, or holds files that are not a run: give an empty --output_dir"
        )


def prepare_run(run_dir: Location, config: BertConfig, data_set: DataSet) -> None:
    """Creates the directory of a run that `check_run` has accepted.

    Raises:
      UserError: the directory cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # A run that never saved a checkpoint starts over, even with another model or data set.
        if not list_checkpoints(run_dir):
            write_whole(run_dir / CONFIG_NAME, config.to_json())
            with whole_file(run_dir / VOCABULARY_NAME) as temporary:
                temporary.write_bytes(data_set.vocabulary.read_bytes())
            data_set.manifest.write(run_dir)
    except OSError as error:
        raise UserError(f"cannot write the run {run_dir}: {error}") from error


def write_environment(
    run_dir: Location, devices: list[str], hosts: list[str], num_devices: int
) -> None:
    """Writes which hardware and packages the run uses from now on, which explains its speed.

    Args:
      run_dir: the run.
      devices: the names of process 0's GPUs.
      hosts: the names of the processes' hosts, by process.
      num_devices: the number of devices over all processes.
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


def check_tables(config: BertConfig, data_set: DataSet) -> None:
    """Checks that each id of a data set has a row in the model's table of embeddings.

    No id reaches the limit of its feature: whoever reads a batch checks that.

    Raises:
      UserError: there are more ids of tokens or segments, or more positions, than rows.
    """
    vocab_size, max_seq_length = data_set.manifest.vocab_size, data_set.manifest.max_seq_length
    if config.vocab_size < vocab_size:
        raise UserError(
            f"the model's vocab_size {config.vocab_size} is smaller than the {vocab_size} entries "
            f"of {data_set.vocabulary}: set a larger vocab_size"
        )
    if config.type_vocab_size < data_set.manifest.features_of("train")["segment_ids"].limit:
        raise UserError(
            f"the model's type_vocab_size is {config.type_vocab_size}, but the instances of "
            f"{data_set.directory} are pairs with the segment ids 0 and 1: set type_vocab_size to 2"
        )
    if config.max_position_embeddings < max_seq_length:
        raise UserError(
            "the model reads at most max_position_embeddings "
            f"{config.max_position_embeddings} tokens, but the instances of {data_set.directory} "
            f"have {max_seq_length}"
        )


def check_same_vocabulary(run_dir: Location, trained_on: Manifest, data_set: DataSet) -> None:
    """Checks that a run and a data set use the same vocabulary.

    Raises:
      UserError: they were made with different vocabularies.
    """
    if trained_on.vocab_sha256 != data_set.manifest.vocab_sha256:
        raise UserError(
            f"the run {run_dir} and the data set {data_set.directory} were made with different "
            "vocabularies: generate the data with the run's vocab.txt"
        )


def check_same_model(
    run_dir: Location, saved: BertConfig, config: BertConfig, flag: str = "output_dir"
) -> None:
    """Checks that a run is of a model.

    Args:
      run_dir: the run.
      saved: the run's config.
      config: the model's.
      flag: the flag that names the run.

    Raises:
      UserError: they differ.
    """
    changed = [
        f"{name} was {getattr(saved, name)}, is {value}"
        for name, value in vars(config).items()
        if getattr(saved, name) != value
    ]
    if changed:
        raise UserError(
            f"{run_dir} holds a run of another model ({'; '.join(changed)}): give another --{flag}"
        )


def check_same_data(
    run_dir: Location, trained_on: Manifest, data_set: DataSet, flag: str = "output_dir"
) -> None:
    """Checks the data set, because a run resumes at a position that is only valid in its own.

    Args:
      run_dir: the run.
      trained_on: the manifest of the run's data.
      data_set: the data set.
      flag: the flag that names the run.

    Raises:
      UserError: the run is on another data set.
    """
    check_same_vocabulary(run_dir, trained_on, data_set)
    if trained_on != data_set.manifest:
        raise UserError(
            f"{run_dir} holds a run on a data set that differs from {data_set.directory} "
            f"({_difference(trained_on, data_set.manifest)}): give another --{flag}"
        )


def _may_hold_run(run_dir: Location) -> bool:
    """Whether the directory is a run, is empty, or was left by a run killed as it started."""
    if not run_dir.is_dir():
        return False
    files = {path.name for path in run_dir.iterdir() if path.suffix != ".tmp"}
    return is_run(run_dir) or files <= {CONFIG_NAME, VOCABULARY_NAME}


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
    return "; ".join(changed) or "made with the same options from different text"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
