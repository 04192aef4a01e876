"""A data set to a trained BERT. Run again with the same flags, it goes on where it stopped.

Sequence length, predictions and vocabulary come from the data set's manifest.
"""

import dataclasses
import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from launch import backend, config_flags, job
from launch.flag_files import flags_as_text, flags_of
from modeling.config import CONFIG_NAME, BertConfig
from modeling.job.group import ProcessGroup
from modeling.job.termination import Termination, noticing_termination
from modeling.training_options import OptimizerName, Precision, TrainingOptions
from pipeline.errors import UserError
from pipeline.files import locked_directory
from pipeline.manifest import DataSet, Manifest

if TYPE_CHECKING:
    from modeling.checkpoints.pretrained import Pretrained

SHARED_FLAGS = (backend, config_flags, job)
_DEFAULTS = TrainingOptions()
_LONG_TEXT = 100

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
flags.DEFINE_integer(
    "train_batch_size",
    _DEFAULTS.train_batch_size,
    "Sequences of an update, of all devices of all processes together.",
)
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
    """Trains, or reports what training would be."""
    names = [field.name for field in dataclasses.fields(TrainingOptions)]
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    options = TrainingOptions(**given)
    place = job.job_place()
    if place.process_id:
        # Process 0 reports; the others speak only when something is wrong.
        logging.set_verbosity(logging.ERROR)
    with noticing_termination() as termination:
        group = ProcessGroup(place, job.coordinator_timeout())
        # A process alone ends at once, until it trains.
        if group.num_processes > 1 and not _DRY_RUN.value:
            termination.group = group
        try:
            with group:
                _pretrain(options, group, termination)
        except (UserError, OSError) as error:
            if group.is_first:
                raise
            raise UserError(f"{group.name}: {error}") from error


def _pretrain(options: TrainingOptions, group: ProcessGroup, termination: Termination) -> None:
    # The place of the data may differ between processes, if the data are the same.
    own = (*job.PLACE_FLAGS, "data_dir")
    given = [flag for flag in flags_of(sys.modules[__name__]) if flag.name not in own]
    group.check_same({f"--{flag.name}": str(flag.value) for flag in given})
    data_set, run_dir = DataSet.read(Path(_DATA_DIR.value)), Path(_OUTPUT_DIR.value)
    group.check_same(_facts(data_set.manifest))
    with backend.backend():
        from modeling.step.backend import Replicas  # noqa: PLC0415
        from modeling.training.dry_run import dry_run  # noqa: PLC0415 - after the backend is chosen
        from modeling.training.loop import train  # noqa: PLC0415

        replicas = Replicas(group)
    # Only process 0 works in the run's directory.
    is_writing = group.is_first and not _DRY_RUN.value
    with replicas, locked_directory(run_dir) if is_writing else nullcontext():
        config, pretrained = _model(data_set, group)
        if _DRY_RUN.value:
            for line in dry_run(data_set, run_dir, config, options, replicas):
                if group.is_first:
                    print(line, flush=True)
            return
        flag_lines = flags_as_text(sys.modules[__name__], without=job.PLACE_FLAGS)
        termination.group = group
        train(data_set, run_dir, config, options, pretrained, flag_lines, replicas)


def _model(data_set: DataSet, group: ProcessGroup) -> "tuple[BertConfig, Pretrained | None]":
    """The model's config, and the pretrained weights that a new run starts from."""
    from modeling.checkpoints.pretrained import check_vocabulary, read_pretrained  # noqa: PLC0415
    from modeling.checkpoints.run_checkpoints import list_checkpoints  # noqa: PLC0415 - after the backend is chosen

    run_dir = Path(_OUTPUT_DIR.value)
    begun = None
    if group.is_first and list_checkpoints(run_dir):
        begun = dataclasses.asdict(BertConfig.read(run_dir / CONFIG_NAME))
    pretrained, default = None, None
    # What process 0 finds counts, because others may see the directory a little later.
    if begun := group.gather(begun)[0]:
        default = BertConfig(**begun)
        if _INIT_CHECKPOINT.value:
            logging.info("--init_checkpoint is not read: %s has checkpoints", run_dir)
    elif _INIT_CHECKPOINT.value:
        pretrained = read_pretrained(Path(_INIT_CHECKPOINT.value))
        check_vocabulary(pretrained, data_set.vocabulary)
        default = pretrained.config
    return config_flags.bert_config(data_set.manifest.vocab_size, default), pretrained


def _facts(manifest: Manifest) -> dict[str, str]:
    """The facts of the data set that must be equal in all processes of a job."""
    data = dataclasses.asdict(manifest)
    # Facts that follow from the others come last.
    last = {name: data.pop(name) for name in ("statistics", "shards")}
    facts = {}
    for name, value in {**data.pop("options"), **data, **last}.items():
        text = json.dumps(value)
        is_long = len(text) > _LONG_TEXT
        facts[f"{name} of the data set"] = _sha256(text) if is_long else text
    return facts


def _sha256(text: str) -> str:
    return f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"
