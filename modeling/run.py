"""The run directory: the model's config, what the data set said, checkpoints and metrics."""

from pathlib import Path

from modeling.config import CONFIG_NAME, BertConfig
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest


def prepare_run(run_dir: Path, config: BertConfig, data_dir: Path, manifest: Manifest) -> None:
    """Makes the directory, or sees that the run in it is of the same model and data set.

    Raises:
      UserError: the model cannot be trained on the data, or the directory holds something else.
    """
    if config.vocab_size < manifest.vocab_size:
        raise UserError(
            f"the model's vocab_size {config.vocab_size} is smaller than the {manifest.vocab_size} "
            f"entries of {data_dir / VOCABULARY_NAME}: set vocab_size in --bert_config_file"
        )
    check_length(config, data_dir, manifest)
    is_run = (run_dir / CONFIG_NAME).exists()
    if not is_run and run_dir.is_dir() and any(run_dir.iterdir()):
        raise UserError(f"{run_dir} holds files that are no run: give an empty --output_dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if is_run:
            _check_same_model(run_dir, config)
        else:
            write_whole(run_dir / CONFIG_NAME, config.to_json())
        if (run_dir / MANIFEST_NAME).exists():
            _check_same_data(run_dir, data_dir, manifest)
        else:
            vocabulary = (data_dir / VOCABULARY_NAME).read_text("utf-8")
            write_whole(run_dir / VOCABULARY_NAME, vocabulary)
            manifest.write(run_dir)
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
            f"{run_dir} holds a run on another data set than {data_dir}: give another --output_dir"
        )
