"""Writes a trained BERT to a directory, in a format that another framework opens.

The BERT may be a run's, or an original TensorFlow checkpoint or Hugging Face directory to convert.
"""

from pathlib import Path

from absl import flags

from launch.banners import native_banners_hidden
from modeling.export.formats import Format

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "What to export: a run, one of its checkpoints, an original TensorFlow checkpoint "
    "(DIR/bert_model.ckpt or DIR, with bert_config.json), or a Hugging Face directory.",
)
_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "Instead of --checkpoint: a run, whose newest checkpoint is exported."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "The directory to write; it must be new or empty, or hold this export already.",
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
flags.mark_flags_as_mutual_exclusive(["checkpoint", "run_dir"], required=True)


def main() -> None:
    """Exports the BERT and prints where it is."""
    with native_banners_hidden():
        # These imports take seconds.
        from modeling.checkpoints.pretrained import read_average, read_pretrained  # noqa: PLC0415
        from modeling.export.export import check_output, export  # noqa: PLC0415

    output_dir, export_format = Path(_OUTPUT_DIR.value), _FORMAT.value
    check_output(output_dir, export_format, _OVERWRITE.value)
    path = Path(_RUN_DIR.value or _CHECKPOINT.value or "")  # one of the two is given
    if _RUN_DIR.value or _AVERAGE_LAST.value > 1:
        pretrained = read_average(path, _AVERAGE_LAST.value)
    else:
        pretrained = read_pretrained(path)
    what = f"{pretrained.source}, for {export_format}"
    if export(pretrained, output_dir, export_format, _HEADS.value, _OVERWRITE.value):
        print(f"{output_dir}: {what}")
    else:
        print(f"{output_dir}: already holds {what}, undamaged")
