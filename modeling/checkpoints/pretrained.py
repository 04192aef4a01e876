"""A trained BERT from any source: a run, an original checkpoint or a Hugging Face directory.

`read_pretrained` recognizes and reads what a path holds; `initialize` loads it into a model.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints import huggingface, run_checkpoints
from modeling.checkpoints.foreign_config import read_stated_config
from modeling.checkpoints.foreign_files import check_regular, checked_sha256s
from modeling.checkpoints.huggingface import (
    HUGGINGFACE_CONFIG_NAME,
    files_of_huggingface,
    holds_huggingface,
    read_huggingface,
)
from modeling.checkpoints.run_checkpoints import (
    Extension,
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
from modeling.config import CONFIG_NAME, BertConfig, GeluForm, check_shape, weight_shapes
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.json_files import read_foreign_json
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location, name_within, resolved

_CONFIG_NAMES = (CONFIG_NAME, HUGGINGFACE_CONFIG_NAME)
# Files of weights that are pickles or of other frameworks.
_IN_OTHER_FORM = (
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("tf_model.h5", "tf_model.h5.index.json", "flax_model.msgpack"),
)
# What a BERT without pairs lacks.
_OF_PAIRS = ("bert/pooler/", "cls/seq_relationship/")
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
        embeddings and the encoder are complete; pooler and heads may be missing. If pooler and
        next-sentence head are, the config has neither, too.
      ignored: the names of tensors there that are not part of a `BertForPreTraining`.
      tokenizer: its vocabulary and text normalization; None if it has no vocabulary.
      run: the run that trained it; None if `clozemill pretrain` did not.
      sha256s: the SHA-256 of each file that was read, by its path in `directory`.
      extension: what `extension.extended` has added to it.
    """

    source: str
    directory: Location
    config: BertConfig
    weights: dict[str, np.ndarray]
    ignored: list[str]
    tokenizer: TokenizerSettings | None
    run: Run | None = None
    sha256s: dict[str, str] = dataclasses.field(default_factory=dict)
    extension: Extension | None = None


def read_pretrained(
    path: Location, config_file: Location | None = None, gelu_form: GeluForm | None = None
) -> Pretrained:
    """Reads the trained BERT at a path.

    Args:
      path: a run, whose newest checkpoint is read, or one of its checkpoints; an original
        TensorFlow checkpoint, or one of the Model Garden (its prefix, one of its files or its
        directory); or a directory that `transformers` saved as safetensors.
      config_file: the config, if the BERT is not a run's. By default, it is the bert_config.json or
        config.json beside the weights.
      gelu_form: what "gelu" means, if the config does not say it.

    Raises:
      UserError: it is none of these, it cannot be read, or weights and config disagree.
    """
    if is_run(path):
        pretrained = _read_run(path, [latest_checkpoint(path)])
    elif _is_checkpoint_of_run(path):
        checkpoint = resolved(path)
        pretrained = _read_run(checkpoint.parent.parent, [checkpoint])
    elif holds_huggingface(path):
        return _read_huggingface(path, config_file, gelu_form)
    elif prefix := find_original(path):
        return _read_original(prefix, config_file, gelu_form)
    else:
        raise _is_not_pretrained(path)
    _check_needless(pretrained, config_file, gelu_form)
    return pretrained


def lacks_config(path: Location) -> bool:
    """Whether a path holds weights that are not a run's, but no config beside them."""
    if is_run(path) or _is_checkpoint_of_run(path):
        return False
    prefix = None if holds_huggingface(path) else find_original(path)
    directory = prefix.parent if prefix else path
    return not any((directory / name).exists() for name in _CONFIG_NAMES)


def _is_checkpoint_of_run(path: Location) -> bool:
    return (path / run_checkpoints.WEIGHTS_NAME).exists()


def _is_not_pretrained(path: Location) -> UserError:
    for name in _IN_OTHER_FORM:
        if (path / name).exists():
            return UserError(
                f"{path} holds its weights as {name}, which Clozemill does not read: convert them "
                f"with transformers, `{_class_of(path)}.from_pretrained({str(path)!r})"
                ".save_pretrained('OUT', safe_serialization=True)`, and copy its "
                f"{VOCABULARY_NAME} to OUT"
            )
    return UserError(
        f"{path} is not a trained BERT: give the --output_dir of `clozemill pretrain` or one of "
        "its checkpoints, a TensorFlow checkpoint (DIR/bert_model.ckpt), or a Hugging Face "
        f"directory ({HUGGINGFACE_CONFIG_NAME} and {huggingface.WEIGHTS_NAME})"
    )


def _class_of(directory: Location) -> str:
    """The class of `transformers` that loads all weights of a directory and adds none."""
    path = directory / HUGGINGFACE_CONFIG_NAME
    try:
        check_regular(path)
        content = read_foreign_json(path, dict[str, Any])
    except (OSError, UserError):
        content = {}
    names = re.findall(r"'(Bert\w+)'", str(content.get("architectures")))
    return names[0][:99] if names else "BertForPreTraining"


def read_average(
    run_dir: Location,
    number: int,
    config_file: Location | None = None,
    gelu_form: GeluForm | None = None,
) -> Pretrained:
    """The mean of a run's newest checkpoints, without those that --keep_every_steps kept.

    Args:
      run_dir: the run.
      number: the number of checkpoints.
      config_file: must be None, because a run has its own config.
      gelu_form: the run's own, or None.

    Raises:
      UserError: the directory is not a run, it has fewer checkpoints, or one is damaged.
    """
    if not is_run(run_dir):
        raise UserError(f"{run_dir} is not a run: give the --output_dir of `clozemill pretrain`")
    latest_checkpoint(run_dir)  # its error says that there is no checkpoint at all
    found = list_checkpoints(run_dir)
    keep = read_state(found[-1]).options.get("keep_checkpoints", number)
    newest = found[-keep:]  # those before them are kept for good, far from the end
    if len(newest) < number:
        beside = " beside those that it keeps for good" if len(newest) < len(found) else ""
        raise UserError(
            f"{run_dir} holds {len(newest)} checkpoints{beside}, not {number}: --keep_checkpoints "
            "sets how many a run keeps"
        )
    pretrained = _read_run(run_dir, newest[-number:])
    _check_needless(pretrained, config_file, gelu_form)
    return pretrained


def initialize(model: BertForPreTraining, pretrained: Pretrained) -> list[str]:
    """Sets the model's variables to the values of a trained BERT, as far as the model has them.

    Returns:
      The names of the pooler's and heads' variables that the trained BERT lacks. They keep their
      values.

    Raises:
      UserError: the model differs from the one that was trained; its variables are unchanged.
    """
    check_config(pretrained, model.config)
    variables = model.named_weights()
    for name in variables.keys() & pretrained.weights.keys():
        variables[name].assign(pretrained.weights[name])
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


def check_vocabulary(pretrained: Pretrained, vocabulary: Location) -> None:
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
    for number, token, trained in differing_ids(pretrained.tokenizer, vocabulary):
        raise different_token(pretrained.tokenizer, vocabulary, number, token, trained)


def differing_ids(
    trained: TokenizerSettings, vocabulary: Location
) -> Iterator[tuple[int, str | None, str | None]]:
    """The ids that stand for different tokens in a vocabulary and in a BERT's, with both tokens.

    A token that is missing is None.

    Raises:
      UserError: the vocabulary cannot be read.
    """
    pairs = zip_longest(read_tokens(vocabulary), trained.tokens)
    return ((number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])


def different_token(
    trained: TokenizerSettings,
    vocabulary: Location,
    number: int,
    token: str | None,
    trained_token: str | None,
) -> UserError:
    """The error that an id of a vocabulary stands for another token in a BERT's."""
    return UserError(
        f"id {number} is {_quoted(token)} in {vocabulary}, but {_quoted(trained_token)} in "
        f"{trained.vocabulary}: the ids stand for different tokens; generate the data with "
        f"--vocab_file={_vocabulary_with_added_tokens(trained)}"
    )


def _vocabulary_with_added_tokens(tokenizer: TokenizerSettings) -> Location:
    """The vocabulary or, if tokens were added beside it, the directory of both."""
    has_added = tokenizer.num_word_pieces is not None
    return tokenizer.vocabulary.parent if has_added else tokenizer.vocabulary


def check_normalization(pretrained: Pretrained, manifest: Manifest) -> None:
    """Checks that the text of a data set was normalized as that which a BERT was trained on.

    Logs a warning if the BERT does not say how, so that it is only guessed from its vocabulary.

    Raises:
      UserError: it was normalized in another way.
    """
    trained = pretrained.tokenizer
    if trained is None:
        return
    _check_pre_tokenizer(pretrained.source, trained, manifest.pre_tokenizer)
    lower = manifest.do_lower_case
    strips_accents = lower if manifest.strip_accents is None else manifest.strip_accents
    for what, flag, in_data, in_bert in (
        ("lower-cased", "do_lower_case", lower, trained.do_lower_case),
        ("stripped of accents", "strip_accents", strips_accents, trained.strips_accents),
        ("split at ideographs", None, not manifest.pre_tokenizer, trained.tokenize_chinese_chars),
    ):
        if in_data == in_bert:
            continue
        problem = (
            f"the text of the data is {'' if in_data else 'not '}{what}, but that of "
            f"{pretrained.source} {'is' if in_bert else 'is not'}"
        )
        if flag is None:
            logging.warning("%s: where the words are Chinese, it has learnt other tokens", problem)
            continue
        advice = f"generate the data with --{'' if in_bert else 'no'}{flag}"
        if not trained.are_guessed:
            raise UserError(f"{problem}: {advice}")
        logging.warning("%s, to judge by its vocabulary; %s if so", problem, advice)
        return


def _check_pre_tokenizer(
    source: str, trained: TokenizerSettings, of_data: PreTokenizer | None
) -> None:
    """Checks that the same pre-tokenizer found the words of the data and those of a BERT."""
    if of_data == trained.pre_tokenizer:
        return
    how = f"with --pre_tokenizer={of_data}" if of_data else "without --pre_tokenizer"
    problem = f"the words of the data were found {how}, but those of {source}"
    if trained.are_guessed:
        logging.warning("%s perhaps not: it does not say how", problem)
        return
    how = f"with {trained.pre_tokenizer}" if trained.pre_tokenizer else "without one"
    flag = (
        f"with --pre_tokenizer={trained.pre_tokenizer}" if trained.pre_tokenizer else "without it"
    )
    raise UserError(f"{problem} {how}: generate the data {flag}")


def _read_run(run_dir: Location, used: Sequence[Location]) -> Pretrained:
    """One checkpoint of a run, or the mean of several."""
    config, manifest = read_run(run_dir)
    arrays = read_mean_weights(used, config)
    names = used[0].name if len(used) == 1 else f"the mean of {used[0].name} to {used[-1].name}"
    files = [run_dir / name for name in (CONFIG_NAME, MANIFEST_NAME, VOCABULARY_NAME)]
    files += used[-1].glob("*.json")
    sha256s = {name_within(path, run_dir): sha256_of(path) for path in files if path.exists()}
    for checkpoint in used:
        path = checkpoint / run_checkpoints.WEIGHTS_NAME
        # It has just been compared with this one, so it need not be read again.
        sha256 = read_state(checkpoint).sha256.get(path.name) or sha256_of(path)
        sha256s[name_within(path, run_dir)] = sha256
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
            sha256s=sha256s,
        )
    )


def _read_original(
    prefix: Location, config_file: Location | None, gelu_form: GeluForm | None
) -> Pretrained:
    source, files = f"the original checkpoint {prefix}", files_of_original(prefix)
    read = _read_foreign(source, prefix.parent, _CONFIG_NAMES, files, config_file, gelu_form)
    config = read.config
    weights, others = read_original(prefix, weight_shapes(config), config.num_attention_heads)
    return _checked(_with_weights(read, weights, others))


def _read_huggingface(
    directory: Location, config_file: Location | None, gelu_form: GeluForm | None
) -> Pretrained:
    source, files = f"the Hugging Face directory {directory}", files_of_huggingface(directory)
    names = _CONFIG_NAMES[::-1]
    read = _read_foreign(source, directory, names, files, config_file, gelu_form)
    weights, others = read_huggingface(directory, weight_shapes(read.config))
    return _checked(_with_weights(read, weights, set(others) - _POSITION_IDS))


def _with_weights(
    read: Pretrained, weights: dict[str, np.ndarray], others: Iterable[str]
) -> Pretrained:
    """A BERT of others with its weights, which tell whether it has a pooler and a head for it."""
    config = read.config
    if not any(name.startswith(_OF_PAIRS) for name in weights):
        config = dataclasses.replace(config, sentence_pairs=SentencePairs.NONE)
    return dataclasses.replace(read, config=config, weights=weights, ignored=_printable(others))


def _read_foreign(
    source: str,
    directory: Location,
    config_names: Sequence[str],
    files: Sequence[str],
    config_file: Location | None,
    gelu_form: GeluForm | None,
) -> Pretrained:
    """All but the weights of a BERT that no run of ours has trained.

    Args:
      source: where it comes from, in words.
      directory: the directory of its files.
      config_names: the names that its config may have there, the usual one first.
      files: the names of the files that hold its weights.
      config_file: as in `read_pretrained`.
      gelu_form: as in `read_pretrained`.

    Raises:
      UserError: it has no config, the config says another form of gelu, or a file was changed or
        is a link out of the directory.
    """
    found = [name for name in config_names if (directory / name).exists()]
    beside = [] if config_file else [*found, config_names[0]][:1]
    sha256s = checked_sha256s(directory, [*beside, *files, *TOKENIZER_FILES])
    if not (found or config_file):
        raise UserError(
            f"{source} has no config: copy it to {directory / config_names[0]}, or give it as "
            "--bert_config_file"
        )
    path = config_file or directory / beside[0]
    config, says_form = read_stated_config(path)
    if config_file:
        sha256s[str(config_file)] = sha256_of(config_file)
    if says_form:
        _check_gelu_form(f"the model config {path}", config, gelu_form)
    elif gelu_form:
        config = dataclasses.replace(config, gelu_form=gelu_form)
    else:
        logging.info(
            "%s does not say which gelu it means: read as the tanh approximation, as in the last "
            "version of the original; for its checkpoints of October 2018, which were trained with "
            "the exact form, give --gelu_form=gelu_erf",
            path,
        )
    tokenizer = read_tokenizer_settings(directory)
    return Pretrained(source, directory, config, {}, [], tokenizer, sha256s=sha256s)


def _check_needless(
    run: Pretrained, config_file: Location | None, gelu_form: GeluForm | None
) -> None:
    """Checks that nothing else is given about a run than what its own config says."""
    if config_file:
        raise UserError(f"leave out --bert_config_file={config_file}: {run.source} has its own")
    _check_gelu_form(run.source, run.config, gelu_form)


def _check_gelu_form(source: str, config: BertConfig, gelu_form: GeluForm | None) -> None:
    """Checks that a config that says what its activation is says what was asked for."""
    says = config.gelu_form if config.hidden_act == "gelu" else config.hidden_act
    if gelu_form and says != gelu_form:
        raise UserError(f"leave out --gelu_form={gelu_form}: {source} says {says}")


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
