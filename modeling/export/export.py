"""A trained BERT to a directory in the format of another framework."""

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
# All that an export may hold, whatever its format.
_EXPORTED_FILES = frozenset(
    f"""
    README.md bert_config.json config.json fingerprint.pb model.keras model.onnx model.safetensors
    saved_model.pb tokenizer.json tokenizer_config.json variables/variables.index
    variables/variables.data-00000-of-00001 vocab.txt {ORIGINAL_NAME}.index
    {ORIGINAL_NAME}.data-00000-of-00001
    """.split()
)
# With what the name of a directory begins that is written inside an output directory.
_UNFINISHED = "export"


def check_output(output_dir: Path, export_format: Format, overwrite: bool) -> None:
    """Sees that a format can be written, and written there, before anything is read.

    Raises:
      UserError: a package is missing, or the directory holds something that is not to be replaced.
    """
    for package in _NEEDED_PACKAGES.get(export_format, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format={export_format} needs the package {package}: pip install 'clozemill[export]'"
            )
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file: give another --output_dir")
    found = _files_in(output_dir)
    if foreign := next((name for name in found if name not in _EXPORTED_FILES), None):
        raise UserError(
            f"{output_dir} holds {foreign}, which is no part of an export: give another --output_dir"
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
    """Writes a trained BERT to a directory, which appears when it is whole.

    Args:
      pretrained: the BERT, with its vocabulary.
      output_dir: where it goes.
      export_format: of what is written.
      heads: whether ONNX models and SavedModels also have the heads of pretraining, which the other
        formats have in any case.
      overwrite: whether an earlier export there is replaced.

    Raises:
      UserError: the format needs something that is missing, or the directory cannot be written.
    """
    check_output(output_dir, export_format, overwrite)
    source, target = pretrained.directory.resolve(), output_dir.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source / CHECKPOINTS_NAME):
        raise UserError(
            f"{output_dir} would damage {source}, which is exported: give another --output_dir"
        )
    if heads and export_format not in (Format.ONNX, Format.SAVED_MODEL):
        raise UserError(f"--heads is of no use: --format={export_format} has them in any case")
    tokenizer = pretrained.tokenizer
    if tokenizer is None:
        raise UserError(f"{pretrained.source} has no vocabulary: copy its vocab.txt beside it")
    if len(tokenizer.tokens) > pretrained.config.vocab_size:
        raise UserError(
            f"{tokenizer.vocabulary} has {len(tokenizer.tokens)} tokens, but {pretrained.source} knows "
            f"{pretrained.config.vocab_size}: it is the vocabulary of another model"
        )
    _check_complete(pretrained, export_format, heads)
    with _whole_directory(output_dir) as directory:
        _write(directory, pretrained, tokenizer, export_format, heads)


def _files_in(directory: Path) -> Iterator[str]:
    """The files in a directory and below, but for those of exports that were killed."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory)
        is_left = name.parts[0].startswith(f"{_UNFINISHED}.") and name.parts[0].endswith(".tmp")
        if not is_left and (path.is_symlink() or not path.is_dir()):
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
                logging.warning("the original's code computes gelu by tanh, this BERT does not")
            step = pretrained.run.state.step if pretrained.run else None
            write_original(directory / ORIGINAL_NAME, weights, step)
        case Format.ONNX:
            import onnx  # noqa: PLC0415 - an extra

            from modeling.export.onnx_graph import onnx_model  # noqa: PLC0415 - needs it

            onnx.save(onnx_model(config, weights, heads), directory / ONNX_NAME)
        case Format.SAVED_MODEL:
            write_saved_model(directory, _keras_model(pretrained), heads)
        case Format.KERAS:
            _keras_model(pretrained).save(directory / KERAS_NAME)


def _check_complete(pretrained: Pretrained, export_format: Format, heads: bool) -> None:
    """Sees that the variables are there which the format cannot do without, and tells what is left out."""
    missing = [name for name in weight_shapes(pretrained.config) if name not in pretrained.weights]
    holds_what_is_there = export_format in (Format.HUGGINGFACE, Format.ORIGINAL)
    needs_heads = heads or export_format == Format.KERAS
    for name in missing:
        if not holds_what_is_there and (needs_heads or name.startswith("bert/")):
            raise UserError(
                f"{pretrained.source} has no variable {name}, which --format={export_format} needs"
            )
    if missing and holds_what_is_there:
        logging.warning(
            "%s does not have, nor will the export: %s", pretrained.source, ", ".join(missing)
        )
    if pretrained.ignored:
        logging.warning("left out, as no part of a BERT: %s", ", ".join(pretrained.ignored))


def _keras_model(pretrained: Pretrained) -> BertForPreTraining:
    model = BertForPreTraining(pretrained.config)
    initialize(model, pretrained)
    return model


@contextmanager
def _whole_directory(output_dir: Path) -> Iterator[Path]:
    """A new directory, which becomes `output_dir` at the end or, if there is one, gives it its content."""
    output_dir = output_dir.resolve()
    is_new = not output_dir.exists()
    # A directory that is there stays, for it may be a mount point, or the place of somebody's shell.
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
