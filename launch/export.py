"""Writes a trained BERT to a directory, in a format that another framework opens.

The BERT may be a run's, or a TensorFlow checkpoint or Hugging Face directory to convert.
"""

from absl import flags

from launch import checkpoint_flags
from launch.banners import native_banners_hidden
from modeling.export.formats import Format
from pipeline.storage import location

SHARED_FLAGS = (checkpoint_flags,)

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "The directory or URL to write; it must be new or empty, or hold this export already.",
    required=True,
)
_FORMAT = flags.DEFINE_enum_class(
    "format",
    Format.HUGGINGFACE,
    Format,
    "huggingface: a directory for transformers' from_pretrained and keras_hub's from_preset. "
    "original: a TensorFlow checkpoint, bert_model.ckpt, with the original BERT's variable names. "
    "onnx: the encoder as model.onnx, for onnxruntime and Optimum. saved_model: the encoder for "
    "TensorFlow Serving and TF Hub. keras: model.keras.",
)
_HEADS = flags.DEFINE_boolean(
    "heads",
    False,
    "For onnx and saved_model: export the pretraining heads, for example to predict masked words. "
    "An ONNX model then has their outputs in place of the encoder's.",
)
_AVERAGE_LAST = flags.DEFINE_integer(
    "average_last",
    1,
    "Export the mean of the weights of this many of a run's newest checkpoints.",
    lower_bound=1,
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace an earlier export in --output_dir.")


def main() -> None:
    """Exports the BERT and prints where it is."""
    with native_banners_hidden():
        from modeling.export.export import check_output, export  # noqa: PLC0415 - takes seconds

    output_dir, export_format = location(_OUTPUT_DIR.value), _FORMAT.value
    check_output(output_dir, export_format, _OVERWRITE.value)
    pretrained = checkpoint_flags.read_given(_AVERAGE_LAST.value)
    what = f"{pretrained.source}, for {export_format}"
    if export(pretrained, output_dir, export_format, _HEADS.value, _OVERWRITE.value):
        print(f"{output_dir}: {what}")
    else:
        print(f"{output_dir}: already holds {what}, undamaged")
