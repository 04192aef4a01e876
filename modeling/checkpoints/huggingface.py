"""Reading and writing the directories that Hugging Face's `from_pretrained` opens."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes  # noqa: F401 - without it, NumPy does not know bfloat16
import numpy as np

from modeling.config import (
    LAYER_NORM_EPSILON,
    ORIGINAL_IGNORED,
    BertConfig,
    GeluForm,
    check_shape,
    read_config_content,
    weight_shapes,
)
from pipeline.errors import UserError

WEIGHTS_NAME = "model.safetensors"
HUGGINGFACE_CONFIG_NAME = "config.json"

_DTYPES = ("F64", "F32", "F16", "BF16")
# Names in config.json that do not affect this BERT: heads for other tasks, outputs, storage and,
# in older versions, text generation.
_IGNORED = ORIGINAL_IGNORED | frozenset(
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
# The values that config.json must have if the model is to be this BERT.
_NEEDED = {
    "model_type": "bert",
    "layer_norm_eps": LAYER_NORM_EPSILON,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
}
# From `hidden_act` there to our `hidden_act` and `gelu_form`.
_ACTIVATIONS = {
    "gelu": ("gelu", GeluForm.ERF),
    "gelu_new": ("gelu", GeluForm.TANH),
    "gelu_pytorch_tanh": ("gelu", GeluForm.TANH),
    "relu": ("relu", GeluForm.TANH),
}

# Parts of the original's names and their replacements, in the order of replacement.
_RENAMED_PARTS = (
    ("cls/predictions/output_bias", "cls/predictions/bias"),
    ("cls/seq_relationship/output_weights", "cls/seq_relationship/weight"),
    ("cls/seq_relationship/output_bias", "cls/seq_relationship/bias"),
    ("layer_", "layer/"),
    ("_embeddings", "_embeddings/weight"),
    ("kernel", "weight"),
    ("gamma", "weight"),
    ("beta", "bias"),
    ("/", "."),
)
# Other names of tensors there: those of older versions, and those of copies of tied tensors.
_OTHER_NAMES = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)


def write_huggingface(
    directory: Path, config: BertConfig, weights: Mapping[str, np.ndarray]
) -> None:
    """Writes `config.json` and `model.safetensors`.

    Args:
      directory: the directory to write to, which must exist.
      config: the model's config.
      weights: its variables under the names of the original's checkpoints. If heads are missing,
        the config names a class without them, and `transformers` initializes new ones.
    """
    import safetensors.numpy  # noqa: PLC0415 - an extra

    tensors = {
        huggingface_name(name): to_huggingface(name, values) for name, values in weights.items()
    }
    write_config(directory, config, weights)
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (directory / WEIGHTS_NAME).write_bytes(content)


def write_config(directory: Path, config: BertConfig, weights: Mapping[str, np.ndarray]) -> None:
    """Writes `config.json`, which names a class whose variables are all among `weights`."""
    described = {"architectures": [_architecture(config, weights)], **huggingface_config(config)}
    text = json.dumps(described, indent=2) + "\n"
    (directory / HUGGINGFACE_CONFIG_NAME).write_text(text, "utf-8")


def read_huggingface(
    directory: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads a directory's `model.safetensors`, written by any BERT class of `transformers`.

    The file's header is checked first. So a wrong file takes no memory.

    Args:
      directory: a directory that `save_pretrained` wrote.
      shapes: the shapes of the wanted variables by their names in the original's checkpoints.

    Returns:
      The wanted variables that were found, as float32 in the original's layout; and the names of
      all other tensors, which are not read.

    Raises:
      UserError: the file cannot be read, a variable has another shape or is not of floating-point
        numbers, two tensors for one variable differ, or the package safetensors is missing.
    """
    path = directory / WEIGHTS_NAME
    safetensors = _safetensors(f"reading {path}")
    originals = {huggingface_name(name): name for name in shapes}
    arrays: dict[str, np.ndarray] = {}
    others: list[str] = []
    try:
        with safetensors.safe_open(path, "numpy") as file:
            wanted = {}
            for found in file.offset_keys():
                if name := originals.get(_current_name(found)):
                    _check_header(path, found, file.get_slice(found), name, shapes)
                    wanted[found] = name
                else:
                    others.append(found)
            for found, name in wanted.items():
                values = from_huggingface(name, file.get_tensor(found).astype(np.float32))
                if name in arrays and not np.array_equal(arrays[name], values):
                    raise UserError(
                        f"{found} in {path} is not a copy of {huggingface_name(name)}, but in this "
                        "BERT they are the same variable: save only the encoder, as transformers' "
                        "BertModel"
                    )
                arrays[name] = values
    except UserError:
        raise
    except Exception as error:  # OSError, SafetensorError
        raise UserError(f"cannot read {path}: {error}") from error
    return arrays, others


def _check_header(
    path: Path, found: str, header: Any, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks dtype and shape of a tensor that is to become the variable `name`."""
    dtype, shape = header.get_dtype(), header.get_shape()
    if dtype not in _DTYPES:
        raise UserError(
            f"{found} in {path} has the dtype {dtype}, not one of {', '.join(_DTYPES)}: save it "
            "as F32"
        )
    check_shape(str(path), name, shape[::-1] if _is_kernel(name) else shape, shapes)


def huggingface_name(name: str) -> str:
    """The Hugging Face name of a variable, from its name in the original's checkpoints."""
    for original, huggingface in _RENAMED_PARTS:
        name = name.replace(original, huggingface)
    return name


def to_huggingface(name: str, values: np.ndarray) -> np.ndarray:
    """A variable's values in Hugging Face's layout: kernels are transposed to [out, in]."""
    return np.ascontiguousarray(values.T if _is_kernel(name) else values)


def from_huggingface(name: str, values: np.ndarray) -> np.ndarray:
    """The inverse of `to_huggingface`."""
    return to_huggingface(name, values)  # transposing is its own inverse


def _is_kernel(name: str) -> bool:
    return name.endswith("/kernel")


def read_config(path: Path) -> BertConfig:
    """The config in a Hugging Face config.json or an original bert_config.json.

    "gelu" means the exact form in the former, the tanh form in the latter.

    Raises:
      UserError: the file cannot be read, has unknown names, or describes a BERT that
        `BertForPreTraining` does not compute.
    """
    content = read_config_content(path)
    if not {"model_type", "architectures"} & content.keys():
        return BertConfig.read(path)
    for name, needed in _NEEDED.items():
        if content.get(name, needed) != needed:
            raise UserError(
                f"in the model config {path}: {name} is {content[name]!r:.99} but must be "
                f"{needed!r}, because this BERT supports nothing else"
            )
    name = content.get("hidden_act", "gelu")
    if name not in tuple(_ACTIVATIONS):
        raise UserError(
            f"in the model config {path}: hidden_act is {name!r:.99} but must be one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    hidden_act, gelu_form = _ACTIVATIONS[name]
    content = {"gelu_form": gelu_form, **content, "hidden_act": hidden_act}
    return BertConfig.from_content(content, path, _IGNORED | _NEEDED.keys())


def huggingface_config(config: BertConfig) -> dict[str, Any]:
    """The content of config.json, where "gelu" is the exact form and "gelu_new" the tanh form."""
    is_tanh_gelu = config.hidden_act == "gelu" and config.gelu_form == GeluForm.TANH
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "gelu_new" if is_tanh_gelu else config.hidden_act,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def _architecture(config: BertConfig, weights: Mapping[str, np.ndarray]) -> str:
    """The class of `transformers` whose variables are all present."""
    missing = weight_shapes(config).keys() - weights.keys()
    if not missing:
        return "BertForPreTraining"
    if not any(name.startswith("cls/predictions/") for name in missing):
        return "BertForMaskedLM"
    return "BertModel"


def _current_name(name: str) -> str:
    """The name in today's BertForPreTraining of a tensor that another class or version named."""
    for other, current in _OTHER_NAMES:
        name = name.replace(other, current)
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _safetensors(purpose: str) -> ModuleType:
    try:
        import safetensors  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package safetensors: pip install 'clozemill[export]'"
        ) from error
    return safetensors
