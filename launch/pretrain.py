"""A data set to a trained BERT. Run again with the same flags, it goes on where it stopped.

Sequence length, predictions and vocabulary come from the data set's manifest.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags, logging

from launch import backend, config_flags
from launch.flag_files import flags_as_text
from modeling.config import CONFIG_NAME, BertConfig
from modeling.training_options import OptimizerName, Precision, TrainingOptions
from pipeline.files import locked_directory
from pipeline.manifest import VOCABULARY_NAME, Manifest

SHARED_FLAGS = (backend, config_flags)
_DEFAULTS = TrainingOptions()

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `clozemill generate`.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "The run: checkpoints, metrics and config go there.", required=True
)
_INIT_CHECKPOINT = flags.DEFINE_string(
    "init_checkpoint",
    None,
    "Start from these weights: a run, one of its checkpoints, an original TensorFlow checkpoint, or a "
    "directory of Hugging Face. Without --model and --bert_config_file, the model is theirs too.",
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Only tell what the run would be: parameters, work, memory, passes over the data, and two steps. "
    "Writes nothing.",
)
# One for each of the TrainingOptions.
flags.DEFINE_integer("train_batch_size", _DEFAULTS.train_batch_size, "Sequences of an update.")
flags.DEFINE_integer(
    "gradient_accumulation_steps",
    _DEFAULTS.gradient_accumulation_steps,
    "Compute a batch in so many parts, one after the other, which needs less memory. The result is "
    "that of the whole batch.",
)
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "The peak of the learning rate.")
flags.DEFINE_integer(
    "num_train_steps", _DEFAULTS.num_train_steps, "Updates in all; the rate falls to 0 by then."
)
flags.DEFINE_integer(
    "num_warmup_steps", _DEFAULTS.num_warmup_steps, "Updates until the learning rate's peak."
)
flags.DEFINE_enum_class(
    "optimizer",
    _DEFAULTS.optimizer,
    OptimizerName,
    "adamw: the original's. lamb: for batches of many thousands.",
)
flags.DEFINE_float(
    "weight_decay_rate",
    _DEFAULTS.weight_decay_rate,
    "Decay of all weights but biases and layer normalizations.",
)
flags.DEFINE_boolean(
    "adam_bias_correction",
    _DEFAULTS.adam_bias_correction,
    "Correct Adam's moments for starting at 0, which is steadier in the first steps. The original "
    "BERT does not.",
)
flags.DEFINE_enum_class(
    "precision",
    _DEFAULTS.precision,
    Precision,
    "What the model computes in; weights, moments, softmax and losses are float32 in any case. "
    "bfloat16 is the fast one on recent GPUs; float16, with a dynamic loss scale, on older ones.",
)
flags.DEFINE_boolean(
    "recompute_activations",
    _DEFAULTS.recompute_activations,
    "Compute activations again in the backward pass instead of keeping them: less memory, about a "
    "third more work.",
)
flags.DEFINE_integer(
    "save_checkpoints_steps", _DEFAULTS.save_checkpoints_steps, "Updates between checkpoints."
)
flags.DEFINE_integer(
    "keep_checkpoints", _DEFAULTS.keep_checkpoints, "How many of the newest checkpoints are kept."
)
flags.DEFINE_integer(
    "log_every_steps", _DEFAULTS.log_every_steps, "Updates between lines of metrics."
)
flags.DEFINE_integer(
    "eval_every_steps",
    _DEFAULTS.eval_every_steps,
    "Updates between evaluations on the eval shards, on the same batches each time; 0 for none.",
)
flags.DEFINE_integer(
    "eval_batch_size", _DEFAULTS.eval_batch_size, "Sequences of a batch of evaluation."
)
flags.DEFINE_integer(
    "max_eval_steps", _DEFAULTS.max_eval_steps, "Batches of an evaluation at most."
)
flags.DEFINE_integer(
    "random_seed",
    _DEFAULTS.random_seed,
    "Seeds the initial weights, dropout and the order of the data.",
)


def main() -> None:
    """Trains, or tells what training would be."""
    names = [field.name for field in dataclasses.fields(TrainingOptions)]
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    options = TrainingOptions(**given)
    data_dir, run_dir = Path(_DATA_DIR.value), Path(_OUTPUT_DIR.value)
    manifest = Manifest.read(data_dir)
    with backend.backend():
        from modeling.checkpoints import list_checkpoints  # noqa: PLC0415 - after the backend is chosen
        from modeling.dry_run import dry_run  # noqa: PLC0415
        from modeling.pretrained import check_vocabulary, read_pretrained  # noqa: PLC0415
        from modeling.run import check_run  # noqa: PLC0415
        from modeling.training import train  # noqa: PLC0415

    pretrained, default = None, None
    if list_checkpoints(run_dir):
        default = BertConfig.read(run_dir / CONFIG_NAME)
        if _INIT_CHECKPOINT.value:
            logging.info("--init_checkpoint is not read: %s has checkpoints", run_dir)
    elif _INIT_CHECKPOINT.value:
        pretrained = read_pretrained(Path(_INIT_CHECKPOINT.value))
        check_vocabulary(pretrained, data_dir / VOCABULARY_NAME)
        default = pretrained.config
    config = config_flags.bert_config(manifest.vocab_size, default)
    if _DRY_RUN.value:
        check_run(run_dir, config, data_dir, manifest)
        for line in dry_run(data_dir, manifest, config, options):
            print(line, flush=True)
        return
    with locked_directory(run_dir):
        flag_lines = flags_as_text(sys.modules[__name__])
        train(data_dir, manifest, run_dir, config, options, pretrained, flag_lines)
