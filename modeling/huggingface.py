"""The directory that Hugging Face's `from_pretrained` opens: writing it, and reading such directories."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes  # noqa: F401 - without it, NumPy does not know bfloat16
import numpy as np

from modeling.checkpoints import latest_checkpoint, load_weights
from modeling.config import LAYER_NORM_EPSILON, BertConfig, GeluForm
from modeling.pretraining import BertForPreTraining
from modeling.run import read_run
from pipeline.errors import UserError
from pipeline.files import temporary_name
from pipeline.manifest import VOCABULARY_NAME

WEIGHTS_NAME = "model.safetensors"
HUGGINGFACE_CONFIG_NAME = "config.json"

# The original's names, part by part, in the order in which they are replaced.
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
# Other names that tensors have there: of older versions, and of copies of tied ones.
_OTHER_NAMES = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)


def export_huggingface(run_dir: Path, output_dir: Path) -> Path:
    """Writes the run's newest checkpoint for `transformers`.

    The directory holds `config.json`, `model.safetensors`, `vocab.txt` and `tokenizer_config.json`.

    Returns:
      The checkpoint that was exported.

    Raises:
      UserError: the run has no checkpoint, `output_dir` is not empty, or safetensors is missing.
    """
    safetensors = _safetensors("--format=huggingface")
    config, manifest = read_run(run_dir)
    checkpoint = latest_checkpoint(run_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} is a file or not empty: give another --output_dir")
    model = BertForPreTraining(config)
    load_weights(checkpoint, model)
    weights = {
        huggingface_name(name): to_huggingface(name, variable.numpy())
        for name, variable in model.named_weights().items()
    }
    tokenizer_config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": manifest.do_lower_case,
        "strip_accents": manifest.strip_accents,
        "model_max_length": config.max_position_embeddings,
    }

    # Beside, and renamed when whole.
    output_dir = output_dir.absolute()
    temporary = temporary_name(output_dir)
    try:
        temporary.mkdir(parents=True)
        shutil.copyfile(run_dir / VOCABULARY_NAME, temporary / "vocab.txt")
        _write_json(temporary / HUGGINGFACE_CONFIG_NAME, huggingface_config(config))
        _write_json(temporary / "tokenizer_config.json", tokenizer_config)
        safetensors.save_file(weights, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        if output_dir.exists():
            output_dir.rmdir()
        temporary.rename(output_dir)
    except OSError as error:
        raise UserError(f"cannot export {run_dir} to {output_dir}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checkpoint


def read_huggingface(directory: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The tensors of a directory's `model.safetensors`, whichever BERT of `transformers` wrote it.

    Args:
      directory: what `save_pretrained` wrote.
      names: of the variables that are looked for, as in the original's checkpoints.

    Returns:
      Those of `names` that are there, in the original's layout, and all other tensors under their
      own names.

    Raises:
      UserError: the file cannot be read, two tensors for one variable differ, or safetensors is
        missing.
    """
    safetensors = _safetensors(f"reading {directory / WEIGHTS_NAME}")
    try:
        tensors = safetensors.load_file(directory / WEIGHTS_NAME)
    except Exception as error:  # SafetensorError, OSError, TypeError for a type that NumPy lacks
        raise UserError(f"cannot read {directory / WEIGHTS_NAME}: {error}") from error
    originals = {huggingface_name(name): name for name in names}
    arrays: dict[str, np.ndarray] = {}
    for found, tensor in tensors.items():
        name = originals.get(_current_name(found), found)
        values = from_huggingface(name, tensor)
        if name in arrays and not np.array_equal(arrays[name], values):
            raise UserError(
                f"{found} in {directory / WEIGHTS_NAME} is no copy of {huggingface_name(name)}, but in "
                "this BERT they are one: save the encoder alone, as transformers' BertModel"
            )
        arrays[name] = values
    return arrays


def huggingface_name(name: str) -> str:
    """A variable's name there, from its name in the original's checkpoints."""
    for original, huggingface in _RENAMED_PARTS:
        name = name.replace(original, huggingface)
    return name


def to_huggingface(name: str, values: np.ndarray) -> np.ndarray:
    """A variable's values there: kernels are transposed, [out, in]."""
    return np.ascontiguousarray(values.T if name.endswith("/kernel") else values)


def from_huggingface(name: str, values: np.ndarray) -> np.ndarray:
    """The inverse of `to_huggingface`."""
    return to_huggingface(name, values)  # to transpose again


def huggingface_config(config: BertConfig) -> dict[str, Any]:
    """The content of config.json; "gelu" there is the exact form, "gelu_new" the tanh form."""
    is_tanh_gelu = config.hidden_act == "gelu" and config.gelu_form == GeluForm.TANH
    return {
        "architectures": ["BertForPreTraining"],
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


def _current_name(name: str) -> str:
    """The name that today's BertForPreTraining gives a tensor which another class or version named."""
    for other, current in _OTHER_NAMES:
        name = name.replace(other, current)
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _safetensors(purpose: str) -> ModuleType:
    try:
        import safetensors.numpy  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package safetensors: pip install 'clozemill[export]'"
        ) from error
    return safetensors.numpy


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
