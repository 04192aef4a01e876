"""A data set to a trained BERT. Run again with the same flags, it goes on where it stopped.

Sequence length, predictions and vocabulary come from the data set's manifest.
"""

import sys
from pathlib import Path

from absl import flags

from launch.flag_files import save_flags
from modeling.config import PRESETS, BertConfig
from modeling.run import prepare_run
from modeling.training import TrainingOptions, train
from pipeline.manifest import Manifest

_DEFAULTS = TrainingOptions()

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `clozemill generate`.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "The run: checkpoints, metrics and config go there.", required=True
)
_MODEL = flags.DEFINE_enum("model", None, list(PRESETS), "The model's size.")
_BERT_CONFIG_FILE = flags.DEFINE_string(
    "bert_config_file", None, "A bert_config.json, in place of --model."
)
_TRAIN_BATCH_SIZE = flags.DEFINE_integer(
    "train_batch_size", _DEFAULTS.train_batch_size, "Sequences of an update."
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
_SAVE_CHECKPOINTS_STEPS = flags.DEFINE_integer(
    "save_checkpoints_steps", _DEFAULTS.save_checkpoints_steps, "Updates between checkpoints."
)
_KEEP_CHECKPOINTS = flags.DEFINE_integer(
    "keep_checkpoints", _DEFAULTS.keep_checkpoints, "How many of the newest checkpoints are kept."
)
_LOG_EVERY_STEPS = flags.DEFINE_integer(
    "log_every_steps", _DEFAULTS.log_every_steps, "Updates between lines of metrics."
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed",
    _DEFAULTS.random_seed,
    "Seeds the initial weights, dropout and the order of the data.",
)


def main() -> None:
    """Trains."""
    options = TrainingOptions(
        train_batch_size=_TRAIN_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        num_train_steps=_NUM_TRAIN_STEPS.value,
        num_warmup_steps=_NUM_WARMUP_STEPS.value,
        weight_decay_rate=_WEIGHT_DECAY_RATE.value,
        adam_bias_correction=_ADAM_BIAS_CORRECTION.value,
        save_checkpoints_steps=_SAVE_CHECKPOINTS_STEPS.value,
        keep_checkpoints=_KEEP_CHECKPOINTS.value,
        log_every_steps=_LOG_EVERY_STEPS.value,
        random_seed=_RANDOM_SEED.value,
    )
    data_dir, run_dir = Path(_DATA_DIR.value), Path(_OUTPUT_DIR.value)
    manifest = Manifest.read(data_dir)
    if _MODEL.value and not _BERT_CONFIG_FILE.value:
        config = BertConfig.preset(_MODEL.value, manifest.vocab_size)
    elif _BERT_CONFIG_FILE.value and not _MODEL.value:
        config = BertConfig.read(Path(_BERT_CONFIG_FILE.value))
    else:
        raise flags.Error("give either --model or --bert_config_file")
    prepare_run(run_dir, config, data_dir, manifest)
    save_flags(sys.modules[__name__], run_dir)
    train(data_dir, manifest, run_dir, config, options)
