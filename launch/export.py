"""A trained BERT to a directory that another framework opens.

It comes from a run, or, to be converted, from an original TensorFlow checkpoint or a Hugging Face
directory.
"""

from pathlib import Path

from absl import flags

from launch.banners import native_banners_hidden
from modeling.export.formats import Format

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run or one of its checkpoints, an original TensorFlow checkpoint (DIR/bert_model.ckpt or DIR, "
    "with bert_config.json) or a directory of Hugging Face.",
)
_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "Instead of --checkpoint: the run whose newest checkpoint is taken."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the export goes; a new or empty directory.", required=True
)
_FORMAT = flags.DEFINE_enum_class(
    "format",
    Format.HUGGINGFACE,
    Format,
    "huggingface: what transformers' from_pretrained opens, and keras_hub's from_preset. original: a "
    "TensorFlow checkpoint bert_model.ckpt under the original's names. onnx: the encoder as "
    "model.onnx. saved_model: the encoder for TensorFlow Serving. keras: model.keras.",
)
_HEADS = flags.DEFINE_boolean(
    "heads", False, "For onnx and saved_model: the heads of pretraining too, for masked words."
)
_AVERAGE_LAST = flags.DEFINE_integer(
    "average_last",
    1,
    "Of a run, the mean of the weights of so many of its newest checkpoints.",
    lower_bound=1,
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace an earlier export in --output_dir.")
flags.mark_flags_as_mutual_exclusive(["checkpoint", "run_dir"], required=True)


def main() -> None:
    """Exports and says where it went."""
    with native_banners_hidden():
        from modeling.checkpoints.pretrained import read_average, read_pretrained  # noqa: PLC0415
        from modeling.export.export import check_output, export  # noqa: PLC0415 - takes seconds

    output_dir, export_format = Path(_OUTPUT_DIR.value), _FORMAT.value
    check_output(output_dir, export_format, _OVERWRITE.value)
    path = Path(_RUN_DIR.value or _CHECKPOINT.value or "")  # one of them is given
    if _RUN_DIR.value or _AVERAGE_LAST.value > 1:
        pretrained = read_average(path, _AVERAGE_LAST.value)
    else:
        pretrained = read_pretrained(path)
    export(pretrained, output_dir, export_format, _HEADS.value, _OVERWRITE.value)
    print(f"{output_dir}: {pretrained.source}, for {export_format}")
