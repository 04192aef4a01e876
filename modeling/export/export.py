"""Exports a trained BERT to a directory in another framework's format."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.huggingface import write_huggingface
from modeling.checkpoints.pretrained import Pretrained, initialize
from modeling.checkpoints.run_checkpoints import CHECKPOINTS_NAME
from modeling.checkpoints.tensorflow1 import write_original
from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    write_tokenizer,
    write_vocabulary,
)
from modeling.config import CONFIG_NAME, GeluForm, weight_shapes
from modeling.export.formats import Format
from modeling.export.model_card import model_card
from modeling.export.saved_model import write_saved_model
from pipeline.errors import UserError
from pipeline.files import temporary_name

ORIGINAL_NAME = "bert_model.ckpt"
ONNX_NAME = "model.onnx"
KERAS_NAME = "model.keras"
MODEL_CARD_NAME = "README.md"

_NEEDED_PACKAGES = {Format.HUGGINGFACE: ("safetensors", "tokenizers"), Format.ONNX: ("onnx",)}
# All files that an export of any format may hold.
_EXPORTED_FILES = frozenset(
    f"""
    README.md bert_config.json config.json fingerprint.pb model.keras model.onnx model.safetensors
    saved_model.pb tokenizer.json tokenizer_config.json variables/variables.index
    variables/variables.data-00000-of-00001 vocab.txt {ORIGINAL_NAME}.index
    {ORIGINAL_NAME}.data-00000-of-00001
    """.split()
)
# The prefix of temporary directories inside an output directory.
_UNFINISHED = "export"


def check_output(output_dir: Path, export_format: Format, overwrite: bool) -> None:
    """Checks, before anything is read, that a format can be written to a directory.

    Raises:
      UserError: a package is missing, or the directory holds something that must not be replaced.
    """
    for package in _NEEDED_PACKAGES.get(export_format, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format={export_format} needs the package {package}: "
                "pip install 'clozemill[export]'"
            )
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file: give another --output_dir")
    found = _files_in(output_dir)
    if foreign := next((name for name in found if name not in _EXPORTED_FILES), None):
        raise UserError(
            f"{output_dir} holds {foreign}, which is not part of an export: give another "
            "--output_dir"
        )
    if not overwrite and any(_files_in(output_dir)):
        raise UserError(
            f"{output_dir} is not empty: give another --output_dir, or --overwrite to replace it"
        )


def export(
    pretrained: Pretrained,
    output_dir: Path,
    export_format: Format,
    heads: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a trained BERT to a directory, which appears once it is complete.

    Args:
      pretrained: the BERT, with its vocabulary.
      output_dir: the directory to write.
      export_format: the format to write.
      heads: whether ONNX models and SavedModels include the pretraining heads. The other formats
        always include them.
      overwrite: whether to replace an earlier export in the directory.

    Raises:
      UserError: something that the format needs is missing, or the directory cannot be written.
    """
    check_output(output_dir, export_format, overwrite)
    source, target = pretrained.directory.resolve(), output_dir.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source / CHECKPOINTS_NAME):
        raise UserError(
            f"writing {output_dir} would damage {source}, which is being exported: give another "
            "--output_dir"
        )
    if heads and export_format not in (Format.ONNX, Format.SAVED_MODEL):
        raise UserError(f"leave out --heads: --format={export_format} always includes the heads")
    tokenizer = pretrained.tokenizer
    if tokenizer is None:
        raise UserError(f"{pretrained.source} has no vocabulary: copy its vocab.txt next to it")
    if len(tokenizer.tokens) > pretrained.config.vocab_size:
        raise UserError(
            f"{tokenizer.vocabulary} has {len(tokenizer.tokens)} tokens, but {pretrained.source} "
            f"has embeddings for {pretrained.config.vocab_size}: it belongs to another model"
        )
    _check_complete(pretrained, export_format, heads)
    with _whole_directory(output_dir) as directory:
        _write(directory, pretrained, tokenizer, export_format, heads)


def _files_in(directory: Path) -> Iterator[str]:
    """All files below a directory, except those that killed exports have left."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory)
        is_leftover = name.parts[0].startswith(f"{_UNFINISHED}.") and name.parts[0].endswith(".tmp")
        if not is_leftover and (path.is_symlink() or not path.is_dir()):
            yield str(name)


def _write(
    directory: Path,
    pretrained: Pretrained,
    tokenizer: TokenizerSettings,
    export_format: Format,
    heads: bool,
) -> None:
    config, weights = pretrained.config, pretrained.weights
    if export_format != Format.HUGGINGFACE:
        write_vocabulary(directory, tokenizer)
        (directory / CONFIG_NAME).write_text(config.to_json(), "utf-8")
    match export_format:
        case Format.HUGGINGFACE:
            write_huggingface(directory, config, weights)
            write_tokenizer(directory, tokenizer, config.max_position_embeddings)
            card = model_card(pretrained, tokenizer)
            (directory / MODEL_CARD_NAME).write_text(card, "utf-8")
        case Format.ORIGINAL:
            if config.hidden_act == "gelu" and config.gelu_form != GeluForm.TANH:
                logging.warning(
                    "this BERT uses the exact gelu, but the original's code computes the tanh "
                    "approximation"
                )
            step = pretrained.run.state.step if pretrained.run else None
            write_original(directory / ORIGINAL_NAME, weights, step)
        case Format.ONNX:
            import onnx  # noqa: PLC0415 - an extra

            from modeling.export.onnx_graph import onnx_model  # noqa: PLC0415 - needs onnx

            onnx.save(onnx_model(config, weights, heads), directory / ONNX_NAME)
        case Format.SAVED_MODEL:
            write_saved_model(directory, _keras_model(pretrained), heads)
        case Format.KERAS:
            _keras_model(pretrained).save(directory / KERAS_NAME)


def _check_complete(pretrained: Pretrained, export_format: Format, heads: bool) -> None:
    """Checks that the variables that the format needs are there, and logs what is left out."""
    missing = [name for name in weight_shapes(pretrained.config) if name not in pretrained.weights]
    may_be_incomplete = export_format in (Format.HUGGINGFACE, Format.ORIGINAL)
    needs_heads = heads or export_format == Format.KERAS
    for name in missing:
        if not may_be_incomplete and (needs_heads or name.startswith("bert/")):
            raise UserError(
                f"{pretrained.source} has no variable {name}, which --format={export_format} needs"
            )
    if missing and may_be_incomplete:
        logging.warning(
            "%s lacks these variables, and so will the export: %s",
            pretrained.source,
            ", ".join(missing),
        )
    if pretrained.ignored:
        logging.warning(
            "left out, because they are not part of a pretraining BERT: %s",
            ", ".join(pretrained.ignored),
        )


def _keras_model(pretrained: Pretrained) -> BertForPreTraining:
    model = BertForPreTraining(pretrained.config)
    initialize(model, pretrained)
    return model


@contextmanager
def _whole_directory(output_dir: Path) -> Iterator[Path]:
    """A temporary directory. At the end it becomes `output_dir`, or replaces its content."""
    output_dir = output_dir.resolve()
    is_new = not output_dir.exists()
    # An existing directory is kept, because it may be a mount point or a shell's working directory.
    temporary = temporary_name(output_dir if is_new else output_dir / _UNFINISHED)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if is_new:
            temporary.rename(output_dir)
            return
        for path in set(output_dir.iterdir()) - {temporary}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in temporary.iterdir():
            path.rename(output_dir / path.name)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"cannot write {output_dir}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
