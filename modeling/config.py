"""The size and shape of a BERT."""

import dataclasses
import json
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

CONFIG_NAME = "bert_config.json"
LAYER_NORM_EPSILON = 1e-12

# In the configs of the original's multilingual and Chinese models; no code of its ever read them.
_ORIGINAL_IGNORED = frozenset(
    "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type".split()
)
# What Hugging Face's config.json says of heads for other tasks, of outputs, of storage and, in older
# versions, of generating text.
_HUGGINGFACE_IGNORED = _ORIGINAL_IGNORED | frozenset(
    "_attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures "
    "attn_implementation bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty "
    "do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id eos_token_ids "
    "experts_implementation exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id gradient_checkpointing id2label label2id language length_penalty "
    "max_length min_length name name_or_path no_repeat_ngram_size num_beam_groups "
    "num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past "
    "output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty "
    "return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype "
    "torchscript transformers_version typical_p use_bfloat16 use_cache xla_device".split()
)
# The only values there of the model that this BERT computes.
_HUGGINGFACE_NEEDED = {
    "model_type": "bert",
    "layer_norm_eps": LAYER_NORM_EPSILON,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
}


class GeluForm(StrEnum):
    """Which formula "gelu" stands for."""

    TANH = "gelu_tanh"
    """The tanh approximation, as in the last version of the original; "gelu_new" elsewhere."""
    ERF = "gelu_erf"
    """The exact form, what Hugging Face calls "gelu"."""


# Hugging Face's `hidden_act`: ours, and the formula.
_HUGGINGFACE_ACTIVATIONS = {
    "gelu": ("gelu", GeluForm.ERF),
    "gelu_new": ("gelu", GeluForm.TANH),
    "gelu_pytorch_tanh": ("gelu", GeluForm.TANH),
    "relu": ("relu", GeluForm.TANH),
}


@dataclass(frozen=True)
class BertConfig:
    """A BERT's size, under the names of the original's bert_config.json.

    Attributes:
      vocab_size: V, rows of the word embeddings.
      hidden_size: H, a multiple of the number of heads.
      num_hidden_layers: L, transformer blocks.
      num_attention_heads: N.
      intermediate_size: F, width of the feed-forward layer.
      hidden_act: "gelu" (in the form that `gelu_form` says) or "relu".
      hidden_dropout_prob: dropout behind embeddings and dense layers.
      attention_probs_dropout_prob: dropout of the attention probabilities.
      max_position_embeddings: the longest sequence the model can read.
      type_vocab_size: segment types.
      initializer_range: standard deviation of the truncated normal that weights are drawn from.
      gelu_form: the formula of "gelu".

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

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r} but must be a whole number of at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.hidden_act not in ("gelu", "relu"):
            raise UserError(f'hidden_act is {self.hidden_act!r} but must be "gelu" or "relu"')
        if self.gelu_form not in tuple(GeluForm):
            raise UserError(
                f"gelu_form is {self.gelu_form!r} but must be one of {', '.join(GeluForm)}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(f"{name} is {value!r} but must be a number, at least 0 and below 1")

    @classmethod
    def preset(cls, name: str, vocab_size: int) -> "BertConfig":
        """One of the published sizes, `PRESETS`."""
        num_hidden_layers, hidden_size = PRESETS[name]
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size,
        )

    @classmethod
    def read(cls, path: Path) -> "BertConfig":
        """The config in a JSON file: the original's bert_config.json or Hugging Face's config.json.

        Names that are known to have no influence on the model are ignored. Unless `gelu_form` stands
        there, "gelu" is the tanh form in the original's file and the exact form in the other.

        Raises:
          UserError: the file cannot be read, has unknown names, or is not that of a BERT that
            `BertForPreTraining` computes.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the model config {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"the model config {path} is not JSON: {error}") from error
        if not isinstance(content, dict) or "vocab_size" not in content:
            raise UserError(f"the model config {path} gives no vocab_size")
        is_huggingface = "model_type" in content or "architectures" in content
        try:
            if is_huggingface:
                return cls(**_from_huggingface(content))
            return cls(**_without(_ORIGINAL_IGNORED, content))
        except UserError as error:
            raise UserError(f"in the model config {path}: {error}") from error

    def to_json(self) -> str:
        """The content of a bert_config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    def flops_per_sequence(self, seq_length: int, num_predictions: int) -> int:
        """Floating-point operations of a sequence's forward and backward pass, padding included.

        Matrix products only, the backward pass counted as two forward ones: blocks, attention over
        `seq_length` positions, the masked-LM head on `num_predictions` positions, pooler and
        next-sentence head.
        """
        s, m, h, f = seq_length, num_predictions, self.hidden_size, self.intermediate_size
        blocks = self.num_hidden_layers * (6 * s * (4 * h * h + 2 * h * f) + 12 * h * s * s)
        masked_lm_head = 6 * m * (h * h + h * self.vocab_size)
        return blocks + masked_lm_head + 6 * (h * h + 2 * h)


def weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each variable of `BertForPreTraining`, under its name in the original's checkpoints.

    Names that begin with `bert/` are the encoder's with its pooler, with `cls/` those of the heads.
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
    shapes |= dense("bert/pooler/dense", h, h)
    shapes |= dense("cls/predictions/transform/dense", h, h)
    shapes |= layer_norm("cls/predictions/transform")
    return shapes | {
        "cls/predictions/output_bias": (config.vocab_size,),
        "cls/seq_relationship/output_weights": (2, h),
        "cls/seq_relationship/output_bias": (2,),
    }


def _from_huggingface(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `BertConfig` in the content of a config.json."""
    for name, needed in _HUGGINGFACE_NEEDED.items():
        if content.get(name, needed) != needed:
            raise UserError(
                f"{name} is {content[name]!r} but must be {needed!r}: this BERT computes nothing else, "
                "so the weights would compute something else than they were trained for"
            )
    name = content.get("hidden_act", "gelu")
    if name not in tuple(_HUGGINGFACE_ACTIVATIONS):
        raise UserError(
            f"hidden_act is {name!r} but must be one of {', '.join(_HUGGINGFACE_ACTIVATIONS)}"
        )
    hidden_act, gelu_form = _HUGGINGFACE_ACTIVATIONS[name]
    known = _without(_HUGGINGFACE_IGNORED | _HUGGINGFACE_NEEDED.keys(), content)
    return {"gelu_form": gelu_form} | known | {"hidden_act": hidden_act}


def _without(ignored: Set[str], content: dict[str, Any]) -> dict[str, Any]:
    """The content of a config but for the ignored names; all others must be a `BertConfig`'s."""
    known = {field.name for field in dataclasses.fields(BertConfig)}
    if unknown := sorted(content.keys() - known - ignored):
        raise UserError(
            f"unknown names: {', '.join(unknown)}; known are {', '.join(sorted(known))}; remove those "
            "that have no influence on the model"
        )
    return {name: value for name, value in content.items() if name in known}


# (layers, hidden size), from "Well-Read Students Learn Better" (Turc et al., 2019) and the original.
PRESETS = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
