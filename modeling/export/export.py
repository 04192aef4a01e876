"""Exports a trained BERT to a directory in another framework's format."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import tensorflow as tf
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.foreign_files import EXPORT_NAME, Description
from modeling.checkpoints.huggingface import write_config, write_huggingface
from modeling.checkpoints.pretrained import Pretrained, initialize
from modeling.checkpoints.run_checkpoints import CHECKPOINTS_NAME
from modeling.checkpoints.tensorflow1 import write_original
from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    write_tokenizer,
    write_vocabulary,
)
from modeling.config import CONFIG_NAME, GeluForm, weight_shapes
from modeling.export.formats import KERAS_NAME, ONNX_NAME, ORIGINAL_NAME, Format
from modeling.export.model_card import model_card
from modeling.export.output_directory import (
    check_directory,
    holds,
    remove_leftovers_of,
    sha256s_of,
    write_directory,
)
from modeling.export.saved_model import write_saved_model
from modeling.training.evaluation import RESULTS_NAME
from pipeline.errors import UserError, listed
from pipeline.files import sha256_of
from pipeline.json_files import write_json
from pipeline.manifest import VOCABULARY_NAME
from pipeline.storage import Location, is_within, resolved

MODEL_CARD_NAME = "README.md"

_NEEDED_PACKAGES = {
    Format.HUGGINGFACE: ("safetensors", "tokenizers"),
    Format.ONNX: ("onnx", "tokenizers"),
}


def check_output(output_dir: Location, export_format: Format, overwrite: bool) -> None:
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
    check_directory(output_dir, overwrite)


def export(
    pretrained: Pretrained,
    output_dir: Location,
    export_format: Format,
    heads: bool = False,
    overwrite: bool = False,
) -> bool:
    """Writes a trained BERT to a directory, which appears once it is complete.

    It also removes what killed exports to that directory have left beside it.

    Args:
      pretrained: the BERT, with its vocabulary.
      output_dir: the directory to write.
      export_format: the format to write.
      heads: whether ONNX models and SavedModels include the pretraining heads. The other formats
        always include them.
      overwrite: whether to replace an earlier export in the directory.

    Returns:
      Whether it was written; False if the directory holds exactly this export already.

    Raises:
      UserError: something that the format needs is missing, or the directory cannot be written.
    """
    check_output(output_dir, export_format, overwrite)
    source, target = resolved(pretrained.directory), resolved(output_dir)
    if is_within(source, target) or is_within(target, source / CHECKPOINTS_NAME):
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
    _check_pre_tokenizer(tokenizer, export_format)
    _check_complete(pretrained, export_format, heads)
    description = _describe(pretrained, export_format, heads)
    write = partial(_write, pretrained, tokenizer, description)
    try:
        remove_leftovers_of(target)
        if not overwrite and holds(target, description):
            return False
        write_directory(target, write)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"cannot write {output_dir}: {error}") from error
    return True


def _describe(pretrained: Pretrained, export_format: Format, heads: bool) -> Description:
    """The description of an export that has no files yet."""
    sources = dict(pretrained.sha256s)
    results = pretrained.directory / RESULTS_NAME
    # The model card reports the results, or else what metrics.jsonl says about the step. That never
    # changes.
    if export_format == Format.HUGGINGFACE and pretrained.run and results.is_file():
        sources[RESULTS_NAME] = sha256_of(results)
    averaged = pretrained.run.averaged if pretrained.run else 1
    return Description(sources, averaged, export_format, heads, files={})


def _write(
    pretrained: Pretrained, tokenizer: TokenizerSettings, description: Description, directory: Path
) -> None:
    """Writes an export and its description."""
    _write_format(directory, pretrained, tokenizer, Format(description.format), description.heads)
    description = dataclasses.replace(description, files=sha256s_of(directory))
    write_json(directory / EXPORT_NAME, vars(description))


def _write_format(
    directory: Path,
    pretrained: Pretrained,
    tokenizer: TokenizerSettings,
    export_format: Format,
    heads: bool,
) -> None:
    config, weights = pretrained.config, pretrained.weights
    pad_id = {token: i for i, token in enumerate(tokenizer.tokens)}.get("[PAD]", 0)
    if export_format in (Format.HUGGINGFACE, Format.ONNX):
        write_tokenizer(directory, tokenizer, config.max_position_embeddings)
    else:
        write_vocabulary(directory, tokenizer)
        (directory / CONFIG_NAME).write_text(config.to_json(), "utf-8")
    match export_format:
        case Format.HUGGINGFACE:
            write_huggingface(directory, config, weights, pad_id)
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

            parts = ("bert/", "cls/") if heads else ("bert/",)
            weights = {name: weights[name] for name in weights if name.startswith(parts)}
            write_config(directory, config, weights, pad_id)
            onnx.save(onnx_model(config, weights), directory / ONNX_NAME)
        case Format.SAVED_MODEL:
            vocabulary, lower = directory / VOCABULARY_NAME, tokenizer.do_lower_case
            write_saved_model(directory, _keras_model(pretrained), vocabulary, lower, heads)
        case Format.KERAS:
            _keras_model(pretrained).save(directory / KERAS_NAME)


def _check_pre_tokenizer(tokenizer: TokenizerSettings, export_format: Format) -> None:
    """Checks that who opens the export learns how the words were found, or else warns of it."""
    if tokenizer.pre_tokenizer is None or export_format in (Format.HUGGINGFACE, Format.ONNX):
        return
    if export_format == Format.SAVED_MODEL:
        raise UserError(
            "a SavedModel tells its readers the vocabulary and do_lower_case alone, and so they do "
            f"not find the words of --pre_tokenizer={tokenizer.pre_tokenizer}: give "
            f"--format={Format.HUGGINGFACE} or --format={Format.ONNX}"
        )
    logging.warning(
        "nothing in --format=%s says that the words were found with --pre_tokenizer=%s, and other "
        "tokenizers give other ids: find them so before WordPiece, as transformers' "
        "BertJapaneseTokenizer does",
        export_format,
        tokenizer.pre_tokenizer,
    )


def _check_complete(pretrained: Pretrained, export_format: Format, heads: bool) -> None:
    """Checks that the variables that the format needs are there, and logs what is left out."""
    missing = [name for name in weight_shapes(pretrained.config) if name not in pretrained.weights]
    needed: tuple[str, ...] = ()
    match export_format:
        case Format.ONNX:
            needed = ("bert/embeddings/", "bert/encoder/")
            needed += ("cls/predictions/",) if heads else ()
        case Format.SAVED_MODEL:
            needed = ("bert/", "cls/") if heads else ("bert/",)
        case Format.KERAS:
            needed = ("bert/", "cls/")
    for name in missing:
        if name.startswith(needed):
            raise UserError(
                f"{pretrained.source} has no variable {name}, which --format={export_format} needs"
            )
    if not heads and export_format in (Format.ONNX, Format.SAVED_MODEL):
        missing = [name for name in missing if name.startswith("bert/")]
    if missing:
        logging.warning(
            "%s lacks these variables, and so will the export: %s",
            pretrained.source,
            ", ".join(missing),
        )
    if pretrained.ignored:
        logging.warning(
            "left out, because they are not part of a pretraining BERT: %s",
            listed(pretrained.ignored),
        )


def _keras_model(pretrained: Pretrained) -> BertForPreTraining:
    model = BertForPreTraining(pretrained.config)
    initialize(model, pretrained)
    return model
