"""Trains a BERT on a data set. When you run it again with the same flags, it resumes.

The sequence length, the number of predictions and the vocabulary come from the data set.
"""

import dataclasses
import hashlib
import json
import sys
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from launch import backend, cache_flags, config_flags, job
from launch.flag_files import flag_values, flags_as_text, flags_of
from modeling.config import CONFIG_NAME, BertConfig
from modeling.job.group import ProcessGroup
from modeling.job.termination import Termination, noticing_termination
from modeling.shard_cache import in_cache
from modeling.training.tracking import TrackerName, check_tracker
from modeling.training_options import (
    NewEmbeddings,
    OptimizerName,
    Precision,
    ScheduleName,
    TrainingOptions,
)
from pipeline.errors import UserError
from pipeline.files import locked_directory, scratch_directory
from pipeline.manifest import DataSet, Manifest
from pipeline.storage import is_within, location

if TYPE_CHECKING:
    from modeling.checkpoints.pretrained import Pretrained
    from modeling.checkpoints.run_checkpoints import Extension
    from modeling.training.resume import Branch

SHARED_FLAGS = (backend, config_flags, cache_flags, job)
_DEFAULTS = TrainingOptions()
_LONG_TEXT = 100

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The data set: the --output_dir of `generate` or `adopt`, or its URL on a store.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "The run: the directory for checkpoints, metrics and the config, or its URL on a store.",
    required=True,
)
_INIT_CHECKPOINT = flags.DEFINE_string(
    "init_checkpoint",
    None,
    "Start from these weights: a run, one of its checkpoints, a TensorFlow checkpoint of the "
    "original or the Model Garden, or a Hugging Face directory. Without --model and "
    "--bert_config_file, the model's config also comes from there.",
)
_NEW_EMBEDDINGS = flags.DEFINE_enum_class(
    "new_embeddings",
    NewEmbeddings.MEAN,
    NewEmbeddings,
    "How the rows of words begin that the data's vocabulary has and that of --init_checkpoint has "
    "not (they take the place of [unused…] tokens, or follow the old ones). mean: the mean of the "
    "pieces that the old vocabulary has for the word. random: as in a new model.",
)
_INIT_POSITIONS = flags.DEFINE_enum(
    "init_positions",
    None,
    ["repeat"],
    "If the data or --max_position_embeddings ask for more positions than --init_checkpoint has, "
    "repeat its table: 512 positions are also those from 512 to 1,023. Without this, it is an "
    "error.",
)
_BRANCH_FROM = flags.DEFINE_string(
    "branch_from",
    None,
    "Go on from this checkpoint of another run (RUN/checkpoints/step-…) in a run of its own: with "
    "its weights, moments, step and position in the data, but with the schedule and "
    "--num_train_steps that are given here. The model's config also comes from there.",
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Only report what the run would be: parameters, FLOPs, memory, passes over the data, and the "
    "time of two steps. Writes nothing.",
)
_TRACK = flags.DEFINE_enum_class(
    "track",
    None,
    TrackerName,
    "Also send the metrics to Weights & Biases or MLflow, at each checkpoint. Without a login "
    "(WANDB_API_KEY, netrc, MLFLOW_TRACKING_URI), they stay in the run.",
)
# One flag for each field of TrainingOptions.
flags.DEFINE_integer(
    "train_batch_size",
    _DEFAULTS.train_batch_size,
    "The number of sequences, or packed rows, per update, over all devices of all processes.",
)
flags.DEFINE_integer(
    "batch_size_warmup_steps",
    _DEFAULTS.batch_size_warmup_steps,
    "Over the first so many updates, batches grow from a sixth of --train_batch_size to all of it, "
    "in six equal stretches. 0: all batches are whole.",
)
flags.DEFINE_integer(
    "gradient_accumulation_steps",
    _DEFAULTS.gradient_accumulation_steps,
    "Compute each batch in this many parts, one after another, to save memory. The result is the "
    "same as for the whole batch.",
)
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "The peak learning rate.")
flags.DEFINE_integer(
    "num_train_steps",
    _DEFAULTS.num_train_steps,
    "The total number of updates, at whose end the learning rate has fallen to 0.",
)
flags.DEFINE_integer(
    "num_warmup_steps",
    None,
    "The number of updates until the learning rate reaches its peak (default: a tenth of "
    "--num_train_steps, rounded down, but at most 10,000).",
)
flags.DEFINE_enum_class(
    "learning_rate_schedule",
    _DEFAULTS.learning_rate_schedule,
    ScheduleName,
    "How the learning rate falls after its warm-up. linear: to 0, as in the original BERT. "
    "warmup_stable_decay: it stays at its peak, and falls to 0 over the last --num_decay_steps. "
    "polynomial: to 0 by a power, as NVIDIA trains BERT with LAMB.",
)
flags.DEFINE_integer(
    "num_decay_steps",
    None,
    "With --learning_rate_schedule=warmup_stable_decay: the number of last updates over which the "
    "learning rate falls to 0 (default: a tenth of --num_train_steps, rounded down). 0: it never "
    "falls.",
)
flags.DEFINE_float(
    "decay_power",
    None,
    "With --learning_rate_schedule=polynomial: the power by which the learning rate falls, 0.5 for "
    "a square root (default: 1).",
)
flags.DEFINE_enum_class(
    "optimizer",
    _DEFAULTS.optimizer,
    OptimizerName,
    "adamw: the original BERT's optimizer. lamb: for batches of many thousands of sequences.",
)
flags.DEFINE_integer(
    "freeze_old_steps",
    _DEFAULTS.freeze_old_steps,
    "Over the first so many updates, train the rows of new words alone (see --new_embeddings). All "
    "other weights and moments stay as they are.",
)
flags.DEFINE_float(
    "weight_decay_rate",
    _DEFAULTS.weight_decay_rate,
    "The weight decay, for all weights except biases and layer normalizations.",
)
flags.DEFINE_boolean(
    "adam_bias_correction",
    _DEFAULTS.adam_bias_correction,
    "Correct Adam's moments for starting at 0, which makes the first steps more stable. The "
    "original BERT does not do this.",
)
flags.DEFINE_enum_class(
    "precision",
    _DEFAULTS.precision,
    Precision,
    "The precision in which the model computes. Weights, moments, softmax and losses are always "
    "float32. bfloat16 is fast on recent GPUs; float16, with a dynamic loss scale, on older ones.",
)
flags.DEFINE_boolean(
    "recompute_activations",
    _DEFAULTS.recompute_activations,
    "Recompute activations in the backward pass instead of storing them. This saves memory and "
    "costs about a third more work.",
)
flags.DEFINE_integer(
    "context_parallel",
    _DEFAULTS.context_parallel,
    "With --backend=jax: divide the positions of each sequence among this many devices, for "
    "sequences whose activations are too much for one. It must divide the number of devices and "
    "the sequence length. The result is the same, except for rounding.",
)
flags.DEFINE_string(
    "masked_lm_prob",
    None,
    "The share of tokens to mask, for data of `generate --masking=training`: 0.3, or one that "
    "changes: 0.3:0.15 falls linearly over the run, 0.3,0.15@50000 is 0.3, and 0.15 after step "
    "50,000. By default, the data's --masked_lm_prob.",
)
flags.DEFINE_integer(
    "save_checkpoints_steps",
    _DEFAULTS.save_checkpoints_steps,
    "The number of updates between checkpoints.",
)
flags.DEFINE_integer(
    "keep_checkpoints", _DEFAULTS.keep_checkpoints, "The number of newest checkpoints to keep."
)
flags.DEFINE_integer(
    "keep_every_steps",
    _DEFAULTS.keep_every_steps,
    "Also save a checkpoint at each multiple of this number of updates, and keep it for good, so "
    "that --branch_from can name it. 0: none.",
)
flags.DEFINE_integer(
    "log_every_steps",
    _DEFAULTS.log_every_steps,
    "The number of updates between lines of metrics.",
)
flags.DEFINE_integer(
    "eval_every_steps",
    _DEFAULTS.eval_every_steps,
    "The number of updates between evaluations on the eval shards, always on the same batches. 0: "
    "never evaluate.",
)
flags.DEFINE_integer(
    "eval_batch_size",
    _DEFAULTS.eval_batch_size,
    "The number of sequences, or packed rows, per evaluation batch.",
)
flags.DEFINE_integer(
    "max_eval_steps", _DEFAULTS.max_eval_steps, "The maximum number of batches per evaluation."
)
flags.DEFINE_integer(
    "random_seed",
    _DEFAULTS.random_seed,
    "Seeds the initial weights, dropout, the order of the data, and masks drawn while training.",
)
flags.DEFINE_boolean(
    "verify_data",
    _DEFAULTS.verify_data,
    "Compare the SHA-256 of each shard with the manifest when the shard is first opened, while "
    "training goes on. A checkpoint is saved after all shards that were opened are verified.",
)


def main() -> None:
    """Trains, or with --dry_run reports what training would be."""
    options = TrainingOptions(**flag_values(TrainingOptions))
    place = job.job_place()
    if place.process_id:
        # Process 0 logs; the others log only errors.
        logging.set_verbosity(logging.ERROR)
    with noticing_termination() as termination:
        group = ProcessGroup(place, job.coordinator_timeout())
        # A single process, or a dry run, ends as other verbs do until it trains.
        if group.num_processes > 1 and not _DRY_RUN.value:
            termination.ask(group)
        try:
            with group:
                _pretrain(options, group, termination)
        except (UserError, OSError) as error:
            if group.is_first:
                raise
            raise UserError(f"{group.name}: {error}") from error


def _pretrain(options: TrainingOptions, group: ProcessGroup, termination: Termination) -> None:
    # The data's path may differ between processes, but not the data.
    may_differ = (*job.PLACE_FLAGS, *cache_flags.CACHE_FLAGS, "data_dir")
    given = [flag for flag in flags_of(sys.modules[__name__]) if flag.name not in may_differ]
    group.check_same({f"--{flag.name}": str(flag.value) for flag in given})
    if _TRACK.value and group.is_first:
        check_tracker(_TRACK.value)
    data_set, run_dir = DataSet.read(location(_DATA_DIR.value)), location(_OUTPUT_DIR.value)
    group.check_same(_facts(data_set.manifest))
    for line in data_set.manifest.health:
        logging.warning("%s: %s", data_set.directory, line)
    with backend.backend():
        from modeling.step.backend import Replicas  # noqa: PLC0415
        from modeling.training.dry_run import dry_run  # noqa: PLC0415 - after the backend is chosen
        from modeling.training.loop import train  # noqa: PLC0415

        replicas = Replicas(group, options.context_parallel)
    if group.num_processes > 1 and not _DRY_RUN.value:
        termination.ask(group)  # again, because TensorFlow has a handler of its own now
    # Only process 0 writes to the run's directory.
    is_writing = group.is_first and not _DRY_RUN.value
    with (
        replicas,
        locked_directory(run_dir) if is_writing else nullcontext(),
        scratch_directory() if _DRY_RUN.value else nullcontext() as scratch,
    ):
        cache = cache_flags.shard_cache(scratch)
        data_set = in_cache(data_set, cache)
        config, origin = _model(data_set, options, group)
        if _DRY_RUN.value:
            with closing(cache):
                for line in dry_run(data_set, run_dir, config, options, replicas, origin):
                    if group.is_first:
                        print(line, flush=True)
            return
        flag_lines = flags_as_text(sys.modules[__name__], without=job.PLACE_FLAGS)
        termination.ask(group)
        train(data_set, run_dir, config, options, origin, flag_lines, replicas, _TRACK.value)


def _model(
    data_set: DataSet, options: TrainingOptions, group: ProcessGroup
) -> "tuple[BertConfig, Pretrained | Branch | None]":
    """The model's config, and what a new run starts from, instead of random weights."""
    from modeling.checkpoints.extension import extended  # noqa: PLC0415 - after the backend is chosen
    from modeling.checkpoints.pretrained import Pretrained  # noqa: PLC0415
    from modeling.checkpoints.run_checkpoints import list_checkpoints  # noqa: PLC0415
    from modeling.training.resume import (  # noqa: PLC0415
        Branch,
        check_branch,
        extension_of,
        read_branch,
    )

    run_dir = location(_OUTPUT_DIR.value)
    given = [flag for flag in (_INIT_CHECKPOINT, _BRANCH_FROM) if flag.value]
    if len(given) > 1:
        raise flags.Error("give --init_checkpoint or --branch_from, not both")
    if _INIT_POSITIONS.value and not _INIT_CHECKPOINT.value:
        raise flags.Error("--init_positions needs --init_checkpoint")
    if _BRANCH_FROM.value and is_within(location(_BRANCH_FROM.value).parent, run_dir):
        raise UserError(
            f"--branch_from={_BRANCH_FROM.value} is a checkpoint of --output_dir={run_dir}: give "
            "the new run another --output_dir"
        )
    started: list[dict[str, Any]] | None = None
    if group.is_first and list_checkpoints(run_dir):
        run_config = BertConfig.read(run_dir / CONFIG_NAME)
        started = [run_config.to_dict(), _grown(run_config, extension_of(run_dir, None))]
    origin: Pretrained | Branch | None = None
    default, grown, new_words = None, dict[str, int](), list[int]()
    # What process 0 finds counts, because others may see the directory a little later.
    if started := group.gather(started)[0]:
        default, grown = BertConfig(**started[0]), started[1]
        for flag in given:
            logging.info("--%s is ignored: %s already has checkpoints", flag.name, run_dir)
    elif _BRANCH_FROM.value:
        origin = read_branch(location(_BRANCH_FROM.value))
        default, grown = origin.config, _grown(origin.config, origin.state.extension)
    elif _INIT_CHECKPOINT.value:
        origin, new_words, grown = _read_init_checkpoint(data_set)
        default = origin.config
    config = config_flags.bert_config(data_set.manifest.vocab_size, default, grown)
    config = dataclasses.replace(config, sentence_pairs=data_set.manifest.sentence_pairs)
    if isinstance(origin, Pretrained):
        how = _NEW_EMBEDDINGS.value, _INIT_POSITIONS.value is not None, options.random_seed
        origin = extended(origin, data_set, new_words, config, *how)
    elif isinstance(origin, Branch):
        check_branch(origin, config, data_set, options)
    return config, origin


def _read_init_checkpoint(data_set: DataSet) -> "tuple[Pretrained, list[int], dict[str, int]]":
    """What --init_checkpoint names, and what the data ask for beyond it.

    Returns:
      The BERT, the ids of the data's tokens that it does not have, and the sizes of the tables that
      must grow, by the names of the config.

    Raises:
      UserError: it cannot be read, or it was trained with other tokens or another normalization.
    """
    from modeling.checkpoints.extension import find_new_words  # noqa: PLC0415 - after the backend is chosen
    from modeling.checkpoints.pretrained import (  # noqa: PLC0415
        check_normalization,
        lacks_config,
        read_pretrained,
    )

    path = location(_INIT_CHECKPOINT.value or "")
    # Beside weights with a config of their own, --bert_config_file is compared with that.
    config_file = config_flags.config_file() if lacks_config(path) else None
    pretrained = read_pretrained(path, config_file, config_flags.gelu_form())
    new_words = find_new_words(pretrained, data_set)
    check_normalization(pretrained, data_set.manifest)
    grown = {}
    if new_words:
        grown["vocab_size"] = max(pretrained.config.vocab_size, data_set.manifest.vocab_size)
    if _INIT_POSITIONS.value:
        grown["max_position_embeddings"] = data_set.manifest.max_seq_length
    return pretrained, new_words, grown


def _grown(config: BertConfig, extension: "Extension | None") -> dict[str, int]:
    """The sizes of a run's tables, if they are larger than --model and --bert_config_file say."""
    names = ("vocab_size", "max_position_embeddings")
    return {name: getattr(config, name) for name in names} if extension else {}


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
