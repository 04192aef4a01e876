"""The flags that make a BertConfig: a size, a file, and each field of it alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

from modeling.checkpoints.foreign_config import read_config
from modeling.config import PRESETS, BertConfig, GeluForm
from pipeline.storage import Location, location

_MODEL = flags.DEFINE_enum("model", None, list(PRESETS), "The model's size.")
_BERT_CONFIG_FILE = flags.DEFINE_string(
    "bert_config_file",
    None,
    "Instead of --model: an original bert_config.json, or a config.json of Hugging Face.",
)
_FIELDS = [
    flags.DEFINE_integer(
        "vocab_size", None, "Rows of the word embeddings (default: those of the data's vocabulary)."
    ),
    flags.DEFINE_integer("hidden_size", None, "The width of the model."),
    flags.DEFINE_integer("num_hidden_layers", None, "The number of Transformer blocks."),
    flags.DEFINE_integer(
        "num_attention_heads", None, "The number of attention heads; it must divide --hidden_size."
    ),
    flags.DEFINE_integer("intermediate_size", None, "The width of the feed-forward layers."),
    flags.DEFINE_enum("hidden_act", None, ["gelu", "relu"], "The activation function."),
    flags.DEFINE_enum(
        "gelu_form",
        None,
        list(GeluForm),
        "The formula of gelu: the original's tanh approximation, or the exact one (Hugging Face's "
        "gelu).",
    ),
    flags.DEFINE_float("hidden_dropout_prob", None, "Dropout after embeddings and dense layers."),
    flags.DEFINE_float(
        "attention_probs_dropout_prob",
        None,
        "Dropout of the attention probabilities; 0 allows fused attention kernels.",
    ),
    flags.DEFINE_integer(
        "max_position_embeddings", None, "The longest sequence that the model can read."
    ),
    flags.DEFINE_integer("type_vocab_size", None, "The number of segment types."),
    flags.DEFINE_float("initializer_range", None, "The standard deviation of the initial weights."),
]


def config_file() -> Location | None:
    """What --bert_config_file names."""
    return location(_BERT_CONFIG_FILE.value) if _BERT_CONFIG_FILE.value else None


def gelu_form() -> GeluForm | None:
    """What --gelu_form says."""
    value = flags.FLAGS["gelu_form"].value
    return GeluForm(value) if value else None


def bert_config(
    vocab_size: int, default: BertConfig | None, least: Mapping[str, int] | None = None
) -> BertConfig:
    """The config that the flags describe.

    Args:
      vocab_size: entries of the data's vocabulary.
      default: the config without --model and --bert_config_file.
      least: the smallest values of some fields, unless a field's own flag says another.

    Raises:
      flags.Error: no size is given, or two are.
      UserError: the config is impossible.
    """
    if _MODEL.value and _BERT_CONFIG_FILE.value:
        raise flags.Error("give --model or --bert_config_file, not both")
    if _MODEL.value:
        config = BertConfig.preset(_MODEL.value, vocab_size)
    elif _BERT_CONFIG_FILE.value:
        config = read_config(location(_BERT_CONFIG_FILE.value))
    elif default:
        config = default
    else:
        raise flags.Error("give --model, --bert_config_file or --init_checkpoint")
    grown = {name: max(getattr(config, name), value) for name, value in (least or {}).items()}
    given: dict[str, Any] = {flag.name: flag.value for flag in _FIELDS if flag.value is not None}
    return dataclasses.replace(config, **grown | given)
