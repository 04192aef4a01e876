"""A data set to a trained BERT. Run again with the same flags, it goes on where it stopped.

Sequence length, predictions and vocabulary come from the data set's manifest.
"""

import sys
from pathlib import Path

from absl import flags

from launch import backend, config_flags
from launch.flag_files import save_flags
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
_TRAIN_BATCH_SIZE = flags.DEFINE_integer(
    "train_batch_size", _DEFAULTS.train_batch_size, "Sequences of an update."
)
_GRADIENT_ACCUMULATION_STEPS = flags.DEFINE_integer(
    "gradient_accumulation_steps",
    _DEFAULTS.gradient_accumulation_steps,
    "Compute a batch in so many parts, one after the other, which needs less memory. The result is "
    "that of the whole batch.",
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", _DEFAULTS.learning_rate, "The peak of the learning rate."
)
_NUM_TRAIN_STEPS = flags.DEFINE_integer(
    "num_train_steps", _DEFAULTS.num_train_steps, "Updates in all; the rate falls to 0 by then."
)
_NUM_WARMUP_STEPS = flags.DEFINE_integer(
    "num_warmup_steps", _DEFAULTS.num_warmup_steps, "Updates until the learning rate's peak."
)
_OPTIMIZER = flags.DEFINE_enum_class(
    "optimizer",
    _DEFAULTS.optimizer,
    OptimizerName,
    "adamw: the original's. lamb: for batches of many thousands.",
)
_WEIGHT_DECAY_RATE = flags.DEFINE_float(
    "weight_decay_rate",
    _DEFAULTS.weight_decay_rate,
    "Decay of all weights but biases and layer normalizations.",
)
_ADAM_BIAS_CORRECTION = flags.DEFINE_boolean(
    "adam_bias_correction",
    _DEFAULTS.adam_bias_correction,
    "Correct Adam's moments for starting at 0, which is steadier in the first steps. The original "
    "BERT does not.",
)
_PRECISION = flags.DEFINE_enum_class(
    "precision",
    _DEFAULTS.precision,
    Precision,
    "What the model computes in; weights, moments, softmax and losses are float32 in any case. "
    "bfloat16 is the fast one on recent GPUs; float16, with a dynamic loss scale, on older ones.",
)
_RECOMPUTE_ACTIVATIONS = flags.DEFINE_boolean(
    "recompute_activations",
    _DEFAULTS.recompute_activations,
    "Compute activations again in the backward pass instead of keeping them: less memory, about a "
    "third more work.",
)
_SAVE_CHECKPOINTS_STEPS = flags.DEFINE_integer(
    "save_checkpoints_steps", _DEFAULTS.save_checkpoints_steps, "Updates between checkpoints."
)
_KEEP_CHECKPOINTS = flags.DEFINE_integer(
    "keep_checkpoints", _DEFAULTS.keep_checkpoints, "How many of the newest checkpoints are kept."
)
_LOG_EVERY_STEPS = flags.DEFINE_integer(
    "log_every_steps", _DEFAULTS.log_every_steps, "Updates between lines of metrics."
)
_EVAL_EVERY_STEPS = flags.DEFINE_integer(
    "eval_every_steps",
    _DEFAULTS.eval_every_steps,
    "Updates between evaluations on the eval shards, on the same batches each time; 0 for none.",
)
_EVAL_BATCH_SIZE = flags.DEFINE_integer(
    "eval_batch_size", _DEFAULTS.eval_batch_size, "Sequences of a batch of evaluation."
)
_MAX_EVAL_STEPS = flags.DEFINE_integer(
    "max_eval_steps", _DEFAULTS.max_eval_steps, "Batches of an evaluation at most."
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed",
    _DEFAULTS.random_seed,
    "Seeds the initial weights, dropout and the order of the data.",
)


def main() -> None:
    """Trains, or tells what training would be."""
    options = TrainingOptions(
        train_batch_size=_TRAIN_BATCH_SIZE.value,
        gradient_accumulation_steps=_GRADIENT_ACCUMULATION_STEPS.value,
        learning_rate=_LEARNING_RATE.value,
        num_train_steps=_NUM_TRAIN_STEPS.value,
        num_warmup_steps=_NUM_WARMUP_STEPS.value,
        optimizer=_OPTIMIZER.value,
        weight_decay_rate=_WEIGHT_DECAY_RATE.value,
        adam_bias_correction=_ADAM_BIAS_CORRECTION.value,
        precision=_PRECISION.value,
        recompute_activations=_RECOMPUTE_ACTIVATIONS.value,
        save_checkpoints_steps=_SAVE_CHECKPOINTS_STEPS.value,
        keep_checkpoints=_KEEP_CHECKPOINTS.value,
        log_every_steps=_LOG_EVERY_STEPS.value,
        eval_every_steps=_EVAL_EVERY_STEPS.value,
        eval_batch_size=_EVAL_BATCH_SIZE.value,
        max_eval_steps=_MAX_EVAL_STEPS.value,
        random_seed=_RANDOM_SEED.value,
    )
    data_dir, run_dir = Path(_DATA_DIR.value), Path(_OUTPUT_DIR.value)
    manifest = Manifest.read(data_dir)
    with backend.backend():
        from modeling.dry_run import dry_run  # noqa: PLC0415 - after the backend is chosen
        from modeling.pretrained import (  # noqa: PLC0415
            check_config,
            check_vocabulary,
            read_pretrained,
        )
        from modeling.run import check_run, prepare_run  # noqa: PLC0415
        from modeling.training import train  # noqa: PLC0415

    pretrained = None
    if _INIT_CHECKPOINT.value:
        pretrained = read_pretrained(Path(_INIT_CHECKPOINT.value))
        check_vocabulary(pretrained, data_dir / VOCABULARY_NAME)
    default = pretrained.config if pretrained else None
    config = config_flags.bert_config(manifest.vocab_size, default)
    if pretrained:
        check_config(pretrained, config)
    if _DRY_RUN.value:
        check_run(run_dir, config, data_dir, manifest)
        for line in dry_run(data_dir, manifest, config, options):
            print(line, flush=True)
        return
    with locked_directory(run_dir):
        prepare_run(run_dir, config, data_dir, manifest)
        save_flags(sys.modules[__name__], run_dir)
        train(data_dir, manifest, run_dir, config, options, pretrained)
