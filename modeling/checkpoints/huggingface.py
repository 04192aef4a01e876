"""Reading and writing the directories that Hugging Face's `from_pretrained` opens."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes  # noqa: F401 - without it, NumPy does not know bfloat16
import numpy as np

from modeling.checkpoints.foreign_files import check_regular
from modeling.config import (
    LAYER_NORM_EPSILON,
    BertConfig,
    GeluForm,
    check_shape,
    weight_shapes,
)
from pipeline.errors import UserError, listed
from pipeline.files import local_copy
from pipeline.json_files import DamagedFileError, read_foreign_json
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
HUGGINGFACE_CONFIG_NAME = "config.json"

_SHARD = re.compile(r"[\w.+-]+\.safetensors")  # of the same directory
_DTYPES = ("F64", "F32", "F16", "BF16")

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


@dataclass(frozen=True)
class _Index:
    """What is read of the index of weights in several files, the shards."""

    weight_map: dict[str, str]


def write_huggingface(
    directory: Path, config: BertConfig, weights: Mapping[str, np.ndarray], pad_id: int = 0
) -> None:
    """Writes `config.json` and `model.safetensors`.

    Args:
      directory: the directory to write to, which must exist.
      config: the model's config.
      weights: its variables under the names of the original's checkpoints. If heads are missing,
        the config names a class without them, and `transformers` initializes new ones.
      pad_id: the id of `[PAD]`.
    """
    import safetensors.numpy  # noqa: PLC0415 - an extra

    tensors = {
        huggingface_name(name): to_huggingface(name, values) for name, values in weights.items()
    }
    write_config(directory, config, weights, pad_id)
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (directory / WEIGHTS_NAME).write_bytes(content)


def write_config(
    directory: Path, config: BertConfig, weights: Mapping[str, np.ndarray], pad_id: int = 0
) -> None:
    """Writes `config.json`, which names a class whose variables are all among `weights`."""
    described = {
        "architectures": [_architecture(config, weights)],
        **huggingface_config(config, pad_id),
    }
    text = json.dumps(described, indent=2) + "\n"
    (directory / HUGGINGFACE_CONFIG_NAME).write_text(text, "utf-8")


def holds_huggingface(directory: Location) -> bool:
    """Whether a directory holds weights as safetensors."""
    return any((directory / name).exists() for name in (WEIGHTS_NAME, INDEX_NAME))


def files_of_huggingface(directory: Location) -> list[str]:
    """The names of the files with a directory's weights: one, or an index and its shards.

    Raises:
      UserError: the index is damaged, or names files of other directories.
    """
    if _is_sharded(directory):
        return [INDEX_NAME, *sorted(set(_read_index(directory).values()))]
    return [WEIGHTS_NAME]


def read_huggingface(
    directory: Location, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads a directory's `model.safetensors`, or its shards, of any BERT class of `transformers`.

    A file's header is checked first. So a wrong file takes no memory.

    Args:
      directory: a directory that `save_pretrained` wrote.
      shapes: the shapes of the wanted variables by their names in the original's checkpoints.

    Returns:
      The wanted variables that were found, as float32 in the original's layout; and the names of
      all other tensors, which are not read.

    Raises:
      UserError: a file cannot be read, a variable has another shape or is not of floating-point
        numbers, two tensors for one variable differ, a shard is missing or does not hold what the
        index says, or the package safetensors is missing.
    """
    arrays: dict[str, np.ndarray] = {}
    others: list[str] = []
    if not _is_sharded(directory):
        _read_file(directory / WEIGHTS_NAME, shapes, arrays, others)
        return arrays, others
    names_by_shard: dict[str, set[str]] = {}
    for name, shard in _read_index(directory).items():
        names_by_shard.setdefault(shard, set()).add(name)
    for shard, names in sorted(names_by_shard.items()):
        path = directory / shard
        if not path.exists():
            raise UserError(f"{path} is missing, though {INDEX_NAME} lists it: copy it there")
        found = _read_file(path, shapes, arrays, others)
        if differing := sorted(found ^ names):
            raise UserError(
                f"{path} does not hold what {INDEX_NAME} says ({listed(differing)}): copy all "
                "files of the model again"
            )
    return arrays, others


def _is_sharded(directory: Location) -> bool:
    return (directory / INDEX_NAME).exists() and not (directory / WEIGHTS_NAME).exists()


def _read_index(directory: Location) -> dict[str, str]:
    """The name of the shard of each tensor.

    Raises:
      UserError: the index cannot be read, or names files of other directories.
    """
    path = directory / INDEX_NAME
    check_regular(path)
    try:
        shards = read_foreign_json(path, _Index).weight_map
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for shard in shards.values():
        if not _SHARD.fullmatch(shard):
            raise DamagedFileError(f"{path} is damaged: {shard!r:.99} is not the name of a shard")
    return shards


def _read_file(
    path: Location,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: dict[str, np.ndarray],
    others: list[str],
) -> set[str]:
    """Adds the variables of a file to `arrays`, and the names of all other tensors to `others`.

    Returns:
      The names of all tensors of the file.
    """
    safetensors = _safetensors(f"reading {path}")
    originals = {huggingface_name(name): name for name in shapes}
    try:
        with local_copy(path) as copy, safetensors.safe_open(copy, "numpy") as file:
            names = list(file.offset_keys())
            wanted = {}
            for found in names:
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
    return set(names)


def _check_header(
    path: Location, found: str, header: Any, name: str, shapes: Mapping[str, tuple[int, ...]]
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


def huggingface_config(config: BertConfig, pad_id: int = 0) -> dict[str, Any]:
    """The content of config.json, where "gelu" is the exact form and "gelu_new" the tanh form."""
    is_tanh_gelu = config.hidden_act == "gelu" and config.gelu_form == GeluForm.TANH
    # Only Clozemill reads it. Whether there are pairs at all, the weights tell.
    is_order = config.sentence_pairs == SentencePairs.ORDER
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
        "pad_token_id": pad_id,
        "torch_dtype": "float32",
        **({"sentence_pairs": config.sentence_pairs} if is_order else {}),
    }


def _architecture(config: BertConfig, weights: Mapping[str, np.ndarray]) -> str:
    """The class of `transformers` whose variables are all present."""
    missing = weight_shapes(config).keys() - weights.keys()
    if not missing and config.has_pooler:
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
