"""A trained BERT from any source: a run, an original checkpoint or a Hugging Face directory.

`read_pretrained` recognizes and reads what a path holds; `initialize` loads it into a model.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints import huggingface, run_checkpoints
from modeling.checkpoints.foreign_files import checked_sha256s
from modeling.checkpoints.huggingface import HUGGINGFACE_CONFIG_NAME, read_config, read_huggingface
from modeling.checkpoints.run_checkpoints import (
    TrainingState,
    is_run,
    latest_checkpoint,
    list_checkpoints,
    read_mean_weights,
    read_run,
    read_state,
)
from modeling.checkpoints.tensorflow1 import files_of_original, find_original, read_original
from modeling.checkpoints.tokenizer_settings import (
    TOKENIZER_FILES,
    TokenizerSettings,
    read_tokenizer_settings,
    read_tokens,
)
from modeling.config import CONFIG_NAME, BertConfig, check_shape, weight_shapes
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest

_IN_OTHER_FORM = {
    "pytorch_model.bin": "as a pickle",
    "model.safetensors.index.json": "in several files",
}
# Not a variable, though older versions of transformers store it as one.
_POSITION_IDS = frozenset({"bert.embeddings.position_ids"})


@dataclass(frozen=True)
class Run:
    """The run that trained a BERT.

    Attributes:
      state: the training state at its newest checkpoint.
      averaged: the number of checkpoints whose mean the weights are.
      manifest: the manifest of the data.
    """

    state: TrainingState
    averaged: int
    manifest: Manifest


@dataclass(frozen=True)
class Pretrained:
    """A trained BERT.

    Attributes:
      source: where it comes from, in words.
      directory: the directory of the run, or of the files that were read.
      config: its size.
      weights: its variables as float32, under the names of the original's checkpoints. The
        embeddings and the encoder are complete; pooler and heads may be missing.
      ignored: the names of tensors there that are not part of a `BertForPreTraining`.
      tokenizer: its vocabulary and text normalization; None if it has no vocabulary.
      run: the run that trained it; None if `clozemill pretrain` did not.
      sha256s: the SHA-256 of each file that was read, by its path in `directory`.
    """

    source: str
    directory: Path
    config: BertConfig
    weights: dict[str, np.ndarray]
    ignored: list[str]
    tokenizer: TokenizerSettings | None
    run: Run | None = None
    sha256s: dict[str, str] = dataclasses.field(default_factory=dict)


def read_pretrained(path: Path) -> Pretrained:
    """Reads the trained BERT at a path.

    Args:
      path: a run, whose newest checkpoint is read, or one of its checkpoints; an original
        TensorFlow checkpoint (its prefix, one of its files or its directory) with its
        bert_config.json beside it; or a directory that `transformers` saved as safetensors.

    Raises:
      UserError: it is none of these, it cannot be read, or weights and config disagree.
    """
    if is_run(path):
        return _read_run(path, [latest_checkpoint(path)])
    if (path / run_checkpoints.WEIGHTS_NAME).exists():
        checkpoint = path.resolve()
        return _read_run(checkpoint.parent.parent, [checkpoint])
    if (path / huggingface.WEIGHTS_NAME).exists():
        return _read_huggingface(path)
    if prefix := find_original(path):
        return _read_original(prefix)
    for name, form in _IN_OTHER_FORM.items():
        if (path / name).exists():
            raise UserError(
                f"{path} holds its weights {form} ({name}), which Clozemill cannot read: open it "
                "with transformers' from_pretrained, save it to another directory as one "
                f"{huggingface.WEIGHTS_NAME} with save_pretrained, and copy its {VOCABULARY_NAME} "
                "there"
            )
    raise UserError(
        f"{path} is not a trained BERT: give the --output_dir of `clozemill pretrain` or one of "
        f"its checkpoints, an original checkpoint (DIR/bert_model.ckpt with {CONFIG_NAME} beside "
        f"it), or a Hugging Face directory ({HUGGINGFACE_CONFIG_NAME} and "
        f"{huggingface.WEIGHTS_NAME})"
    )


def read_average(run_dir: Path, number: int) -> Pretrained:
    """The mean of a run's newest checkpoints.

    Args:
      run_dir: the run.
      number: the number of checkpoints.

    Raises:
      UserError: the directory is not a run, it has fewer checkpoints, or one is damaged.
    """
    if not is_run(run_dir):
        raise UserError(f"{run_dir} is not a run: give the --output_dir of `clozemill pretrain`")
    latest_checkpoint(run_dir)  # its error says that there is no checkpoint at all
    found = list_checkpoints(run_dir)
    if len(found) < number:
        raise UserError(
            f"{run_dir} holds {len(found)} checkpoints, not {number}: --keep_checkpoints sets how "
            "many a run keeps"
        )
    return _read_run(run_dir, found[-number:])


def initialize(model: BertForPreTraining, pretrained: Pretrained) -> list[str]:
    """Sets the model's variables to the values of a trained BERT.

    Returns:
      The names of the pooler's and heads' variables that the trained BERT lacks. They keep their
      values.

    Raises:
      UserError: the model differs from the one that was trained; its variables are unchanged.
    """
    check_config(pretrained, model.config)
    variables = model.named_weights()
    for name, values in pretrained.weights.items():
        variables[name].assign(values)
    return [name for name in variables if name not in pretrained.weights]


def check_config(pretrained: Pretrained, config: BertConfig) -> None:
    """Checks that a model of this config computes what the BERT was trained to compute.

    Dropout and the initial weights may differ.

    Raises:
      UserError: it computes something else, a variable has another shape, or a variable of the
        embeddings or the encoder is missing.
    """
    _check_same_formulas(pretrained, config)
    shapes = weight_shapes(config)
    for name in shapes:
        if name in pretrained.weights:
            check_shape(pretrained.source, name, pretrained.weights[name].shape, shapes)
        elif name.startswith(("bert/embeddings/", "bert/encoder/")):
            raise UserError(
                f"{pretrained.source} has no variable {name}: do its config (num_hidden_layers "
                f"{config.num_hidden_layers}) and its weights belong to the same BERT?"
            )


def check_vocabulary(pretrained: Pretrained, vocabulary: Path) -> None:
    """Checks that a vocabulary gives every token the id under which the BERT has learnt it.

    Logs a warning if the BERT has no vocabulary.

    Raises:
      UserError: the vocabularies differ, or one cannot be read.
    """
    if pretrained.tokenizer is None:
        logging.warning(
            "%s has no vocabulary: make sure that it was trained with the tokens of %s",
            pretrained.source,
            vocabulary,
        )
        return
    pairs = zip_longest(read_tokens(vocabulary), pretrained.tokenizer.tokens)
    for number, (token, trained) in enumerate(pairs):
        if token != trained:
            raise UserError(
                f"id {number} is {_quoted(token)} in {vocabulary}, but {_quoted(trained)} in "
                f"{pretrained.tokenizer.vocabulary}: the ids stand for different tokens; generate "
                f"the data with {pretrained.tokenizer.vocabulary}"
            )


def _read_run(run_dir: Path, used: Sequence[Path]) -> Pretrained:
    """One checkpoint of a run, or the mean of several."""
    config, manifest = read_run(run_dir)
    arrays = read_mean_weights(used, config)
    names = used[0].name if len(used) == 1 else f"the mean of {used[0].name} to {used[-1].name}"
    files = [run_dir / name for name in (CONFIG_NAME, MANIFEST_NAME, VOCABULARY_NAME)]
    files += [checkpoint / run_checkpoints.WEIGHTS_NAME for checkpoint in used]
    files += used[-1].glob("*.json")
    known = weight_shapes(config)
    return _checked(
        Pretrained(
            source=f"{names} of {run_dir}",
            directory=run_dir,
            config=config,
            weights={name: arrays[name].astype(np.float32) for name in known if name in arrays},
            ignored=_printable(arrays.keys() - known.keys()),
            tokenizer=read_tokenizer_settings(run_dir, manifest),
            run=Run(read_state(used[-1]), len(used), manifest),
            sha256s={
                str(path.relative_to(run_dir)): sha256_of(path) for path in files if path.exists()
            },
        )
    )


def _read_original(prefix: Path) -> Pretrained:
    directory = prefix.parent
    sha256s = checked_sha256s(
        directory, [CONFIG_NAME, *files_of_original(prefix), *TOKENIZER_FILES]
    )
    config = read_config(directory / CONFIG_NAME)
    weights, others = read_original(prefix, weight_shapes(config))
    return _checked(
        Pretrained(
            source=f"the original checkpoint {prefix}",
            directory=directory,
            config=config,
            weights=weights,
            ignored=_printable(others),
            tokenizer=read_tokenizer_settings(directory),
            sha256s=sha256s,
        )
    )


def _read_huggingface(directory: Path) -> Pretrained:
    sha256s = checked_sha256s(
        directory, [HUGGINGFACE_CONFIG_NAME, huggingface.WEIGHTS_NAME, *TOKENIZER_FILES]
    )
    config = read_config(directory / HUGGINGFACE_CONFIG_NAME)
    weights, others = read_huggingface(directory, weight_shapes(config))
    return _checked(
        Pretrained(
            source=f"the Hugging Face directory {directory}",
            directory=directory,
            config=config,
            weights=weights,
            ignored=_printable(set(others) - _POSITION_IDS),
            tokenizer=read_tokenizer_settings(directory),
            sha256s=sha256s,
        )
    )


def _printable(names: Iterable[str]) -> list[str]:
    """The names in order, not too long, with line breaks and the like as escapes."""
    return sorted(repr(name)[1:-1][:199] for name in names)


def _checked(pretrained: Pretrained) -> Pretrained:
    """The BERT, after its weights were compared with its config."""
    check_config(pretrained, pretrained.config)
    for name in pretrained.ignored:
        if name.startswith(("bert/encoder/", "bert.encoder.")):
            raise UserError(
                f"{pretrained.source} has a variable {name}, which its config does not describe: "
                "do weights and config belong to the same BERT?"
            )
    return pretrained


def _check_same_formulas(pretrained: Pretrained, config: BertConfig) -> None:
    """Checks the settings that shapes do not show."""
    names = ["num_hidden_layers", "num_attention_heads", "hidden_act"]
    if config.hidden_act == "gelu":
        names.append("gelu_form")
    for name in names:
        trained, wanted = getattr(pretrained.config, name), getattr(config, name)
        if trained != wanted:
            raise UserError(
                f"{name} is {trained} in {pretrained.source}, but {wanted} in the model: "
                "leave out --model and --bert_config_file to use the config of the weights"
            )


def _quoted(token: str | None) -> str:
    return "missing" if token is None else repr(token)
