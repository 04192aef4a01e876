"""The size and shape of a BERT."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.errors import UserError, listed
from pipeline.json_files import read_foreign_json
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location

CONFIG_NAME = "bert_config.json"
LAYER_NORM_EPSILON = 1e-12

# The largest sizes, about ten times those of the largest BERTs. So no damaged or malicious config
# makes a machine run out of memory before anything else shows that the size is wrong.
_MOST = {
    "vocab_size": 10_000_000,
    "hidden_size": 32_768,
    "num_hidden_layers": 512,
    "num_attention_heads": 512,
    "intermediate_size": 131_072,
    "max_position_embeddings": 1_048_576,
    "type_vocab_size": 1_024,
}
TABLES_OF_WORDS = ("bert/embeddings/word_embeddings", "cls/predictions/output_bias")
"""The variables with a row for each token."""
TABLE_OF_POSITIONS = "bert/embeddings/position_embeddings"
_SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


class GeluForm(StrEnum):
    """The formula that "gelu" stands for."""

    TANH = "gelu_tanh"
    """The tanh approximation, as in the last version of the original; "gelu_new" elsewhere."""
    ERF = "gelu_erf"
    """The exact form, which Hugging Face calls "gelu"."""


_KNOWN = {
    "hidden_act": ("gelu", "relu"),
    "gelu_form": tuple(GeluForm),
    "sentence_pairs": tuple(SentencePairs),
}


@dataclass(frozen=True)
class BertConfig:
    """A BERT's size, under the names of the original's bert_config.json.

    Attributes:
      vocab_size: V, the number of rows of the word embeddings.
      hidden_size: H, a multiple of the number of heads.
      num_hidden_layers: L, the number of transformer blocks.
      num_attention_heads: N, the number of attention heads.
      intermediate_size: F, the width of the feed-forward layer.
      hidden_act: the activation, "gelu" (in the form that `gelu_form` says) or "relu".
      hidden_dropout_prob: the dropout rate after embeddings and dense layers.
      attention_probs_dropout_prob: the dropout rate of the attention probabilities.
      max_position_embeddings: the length of the longest sequence the model can read.
      type_vocab_size: the number of segment types.
      initializer_range: the standard deviation of the truncated normal distribution from which
        initial weights are drawn.
      gelu_form: the formula that "gelu" stands for.
      sentence_pairs: what the instances hold that the BERT is trained on, which decides the heads.

    Raises:
      UserError: a value is impossible.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    gelu_form: GeluForm = GeluForm.TANH
    sentence_pairs: SentencePairs = SentencePairs.NEXT

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:  # a bool is an int, too
                raise _impossible(name, value, f"a whole number from 1 to {most}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        for name, known in _KNOWN.items():
            if (value := getattr(self, name)) not in known:
                raise _impossible(name, value, " or ".join(known))
        for name in _SHARES:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise _impossible(name, value, "a number, at least 0 and below 1")

    @classmethod
    def preset(cls, name: str, vocab_size: int) -> "BertConfig":
        """The config of a published size, one of `PRESETS`."""
        num_hidden_layers, hidden_size = PRESETS[name]
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size,
        )

    @property
    def has_pooler(self) -> bool:
        """Whether there are a pooler and a next-sentence head."""
        return self.sentence_pairs != SentencePairs.NONE

    @classmethod
    def read(cls, path: Location) -> "BertConfig":
        """The config in a file that `to_json` made.

        Raises:
          UserError: the file cannot be read, has unknown names, or has an impossible value.
        """
        content = read_config_content(path)
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            if unknown := sorted(content.keys() - known):
                names = [repr(name)[1:-1][:99] for name in unknown]  # without line breaks
                raise UserError(
                    f"unknown names: {listed(names)} (known: {', '.join(sorted(known))})"
                )
            return cls(**content)
        except UserError as error:
            raise UserError(f"in the model config {path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; the sentence pairs only where they are not the original's."""
        fields = dataclasses.asdict(self)
        if self.sentence_pairs == SentencePairs.NEXT:
            del fields["sentence_pairs"]
        return fields

    def to_json(self) -> str:
        """The content of a bert_config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def flops_per_instance(
        self,
        num_tokens: int,
        num_predictions: int,
        num_sequences: float = 1,
        attended_pairs: float | None = None,
    ) -> float:
        """The FLOPs of the forward and the backward pass of a sequence or a row of sequences.

        Counts only matrix products: the blocks, the masked-LM head, pooler and next-sentence head.
        The backward pass counts as two forward passes.

        Args:
          num_tokens: S or R, including padding.
          num_predictions: P, including unused ones.
          num_sequences: the sequences of a packed row.
          attended_pairs: the pairs of tokens that attend to each other, which are those of the same
            sequence. By default all pairs, including padding.
        """
        h = self.hidden_size
        pairs = num_tokens**2 if attended_pairs is None else attended_pairs
        dense = 6 * num_tokens * (4 * h * h + 2 * h * self.intermediate_size)
        attention = 12 * h * pairs
        masked_lm_head = 6 * num_predictions * (h * h + h * self.vocab_size)
        next_sentence_head = 6 * num_sequences * (h * h + 2 * h) if self.has_pooler else 0
        blocks = self.num_hidden_layers * (dense + attention)
        return blocks + masked_lm_head + next_sentence_head


def _impossible(name: str, value: object, wanted: str) -> UserError:
    return UserError(f"{name} is {value!r:.99} but must be {wanted}")


def read_config_content(path: Location) -> dict[str, Any]:
    """The content of a model config's JSON file.

    Raises:
      UserError: the file cannot be read or is not a model config.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"the model config {path} is not a regular file")
        content = read_foreign_json(path, dict[str, Any])
    except OSError as error:
        raise UserError(f"cannot read the model config {path}: {error.strerror}") from error
    if "vocab_size" not in content:
        raise UserError(f"the model config {path} has no vocab_size")
    return content


def weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each variable of `BertForPreTraining`, by its name in original checkpoints.

    Variables of the encoder and its pooler begin with `bert/`, those of the heads with `cls/`.
    """
    h, f = config.hidden_size, config.intermediate_size

    def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}

    def layer_norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}/LayerNorm/gamma": (h,), f"{name}/LayerNorm/beta": (h,)}

    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (config.vocab_size, h),
        "bert/embeddings/token_type_embeddings": (config.type_vocab_size, h),
        "bert/embeddings/position_embeddings": (config.max_position_embeddings, h),
    }
    shapes |= layer_norm("bert/embeddings")
    for i in range(config.num_hidden_layers):
        block = f"bert/encoder/layer_{i}"
        for projection in ("self/query", "self/key", "self/value", "output/dense"):
            shapes |= dense(f"{block}/attention/{projection}", h, h)
        shapes |= layer_norm(f"{block}/attention/output")
        shapes |= dense(f"{block}/intermediate/dense", h, f)
        shapes |= dense(f"{block}/output/dense", f, h) | layer_norm(f"{block}/output")
    if config.has_pooler:
        shapes |= dense("bert/pooler/dense", h, h)
    shapes |= dense("cls/predictions/transform/dense", h, h)
    shapes |= layer_norm("cls/predictions/transform")
    shapes["cls/predictions/output_bias"] = (config.vocab_size,)
    if config.has_pooler:
        shapes["cls/seq_relationship/output_weights"] = (2, h)
        shapes["cls/seq_relationship/output_bias"] = (2,)
    return shapes


def check_shape(
    source: str, name: str, found: Sequence[int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks the shape of a variable of trained weights.

    Args:
      source: where the weights come from, in words.
      name: the variable's name.
      found: its shape there.
      shapes: the `weight_shapes` of the config.

    Raises:
      UserError: the config requires another shape.
    """
    wanted, found = shapes[name], tuple(found)
    if found == wanted:
        return
    has_other_rows_only = found[1:] == wanted[1:]
    hint = _HINTS_FOR_ROWS.get(name, "") if has_other_rows_only else ""
    raise UserError(
        f"{name} has the shape {found} in {source}, but the config requires {wanted}{hint}"
    )


_HINTS_FOR_ROWS = {
    "bert/embeddings/word_embeddings": (
        ": set vocab_size to the weights' number of rows, and use the vocabulary they belong to"
    ),
    "bert/embeddings/position_embeddings": (
        ": set max_position_embeddings to the weights' number of rows"
    ),
}

# (layers, hidden size), from the original and Turc et al., 2019, "Well-Read Students Learn Better".
PRESETS = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
