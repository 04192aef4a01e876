"""The formats of an export, apart from `export` because the command line needs them at once."""

from enum import StrEnum

ORIGINAL_NAME = "bert_model.ckpt"
ONNX_NAME = "model.onnx"
KERAS_NAME = "model.keras"


class Format(StrEnum):
    """The software that an export is for."""

    HUGGINGFACE = "huggingface"
    """A directory that transformers' `from_pretrained` and keras_hub's `from_preset` open."""
    ORIGINAL = "original"
    """The TensorFlow checkpoint bert_model.ckpt, with the original's variable names."""
    ONNX = "onnx"
    """The encoder as model.onnx."""
    SAVED_MODEL = "saved_model"
    """The encoder for TensorFlow Serving."""
    KERAS = "keras"
    """The whole model as model.keras."""
