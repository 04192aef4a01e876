"""The run directory: the model's config, what the data set said, checkpoints and metrics."""

import shutil
from pathlib import Path

from modeling.config import CONFIG_NAME, BertConfig
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest


def prepare_run(run_dir: Path, config: BertConfig, data_dir: Path, manifest: Manifest) -> None:
    """Makes the directory, or sees that the run in it is of the same model and vocabulary.

    Raises:
      UserError: the directory is of another model or vocabulary, or cannot be written.
    """
    if config.vocab_size < manifest.vocab_size:
        raise UserError(
            f"the model's vocab_size {config.vocab_size} is smaller than the {manifest.vocab_size} "
            f"entries of {data_dir / VOCABULARY_NAME}: set vocab_size in --bert_config_file"
        )
    check_length(config, data_dir, manifest)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if (run_dir / CONFIG_NAME).exists():
            _check_same_run(run_dir, config, data_dir, manifest)
        shutil.copyfile(data_dir / VOCABULARY_NAME, run_dir / VOCABULARY_NAME)
        shutil.copyfile(data_dir / MANIFEST_NAME, run_dir / MANIFEST_NAME)
        (run_dir / CONFIG_NAME).write_text(config.to_json(), "utf-8")
    except OSError as error:
        raise UserError(f"cannot write the run {run_dir}: {error}") from error


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


def _check_same_run(run_dir: Path, config: BertConfig, data_dir: Path, manifest: Manifest) -> None:
    saved, trained_on = read_run(run_dir)
    if saved != config:
        changed = [
            f"{name} was {getattr(saved, name)!r}, is {value!r}"
            for name, value in vars(config).items()
            if getattr(saved, name) != value
        ]
        raise UserError(
            f"{run_dir} holds a run of another model ({'; '.join(changed)}): give another --output_dir"
        )
    check_same_vocabulary(run_dir, trained_on, data_dir, manifest)
