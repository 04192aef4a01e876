"""The training loop: batches in, updates, metrics and checkpoints out; goes on where it stopped."""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from modeling.checkpoints import TrainingState, list_checkpoints, load_checkpoint, save_checkpoint
from modeling.config import BertConfig
from modeling.input import readable, training_batches
from modeling.metrics import MetricsWriter
from modeling.optimization import AdamW, LinearWarmupAndDecay
from modeling.pretraining import BertForPreTraining
from modeling.tensorflow_step import Batch, describe_devices, train_step
from pipeline.errors import UserError
from pipeline.manifest import Manifest

CLIP_NORM = 1.0


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, under the names of the original's run_pretraining.py.

    Attributes:
      train_batch_size: B, sequences of an update.
      learning_rate: the peak.
      num_train_steps: updates in all.
      num_warmup_steps: updates until the peak.
      weight_decay_rate: of all variables but biases and layer normalizations.
      save_checkpoints_steps: updates between checkpoints.
      keep_checkpoints: how many of the newest checkpoints are kept.
      log_every_steps: updates between lines of metrics.
      adam_bias_correction: whether Adam's moments are corrected for starting at 0; the original does
        not.
      random_seed: of the initial weights, of dropout and of the order of the data.

    Raises:
      UserError: an option is out of range.
    """

    train_batch_size: int = 32
    learning_rate: float = 1e-4
    num_train_steps: int = 100_000
    num_warmup_steps: int = 10_000
    weight_decay_rate: float = 0.01
    save_checkpoints_steps: int = 1_000
    keep_checkpoints: int = 5
    log_every_steps: int = 50
    adam_bias_correction: bool = True
    random_seed: int = 12345

    def __post_init__(self) -> None:
        for name in (
            "train_batch_size",
            "num_train_steps",
            "save_checkpoints_steps",
            "keep_checkpoints",
            "log_every_steps",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "weight_decay_rate", "random_seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.num_warmup_steps <= self.num_train_steps:
            raise UserError(
                f"--num_warmup_steps={self.num_warmup_steps} must lie between 0 and "
                f"--num_train_steps={self.num_train_steps}"
            )


def train(
    data_dir: Path,
    manifest: Manifest,
    run_dir: Path,
    config: BertConfig,
    options: TrainingOptions,
) -> None:
    """Trains until `options.num_train_steps`, from the run's newest checkpoint if it has one.

    Args:
      data_dir: the data set.
      manifest: that of the data set.
      run_dir: the run, made by `run.prepare_run`.
      config: of the model.
      options: how to train.

    Raises:
      UserError: the data set has no training instance, or the newest checkpoint is damaged.
    """
    model = BertForPreTraining(config, options.random_seed)
    schedule = LinearWarmupAndDecay(
        options.learning_rate, options.num_train_steps, options.num_warmup_steps
    )
    optimizer = AdamW(
        schedule, options.weight_decay_rate, bias_correction=options.adam_bias_correction
    )
    optimizer.build(model.trainable_variables)
    logging.info("%s parameters, on %s", f"{model.count_params():,}", describe_devices())

    state = TrainingState(random_seed=options.random_seed)
    if checkpoints := list_checkpoints(run_dir):
        state = load_checkpoint(checkpoints[-1], model, optimizer)
        logging.info("going on from %s", checkpoints[-1])
        if state.random_seed != options.random_seed:
            raise UserError(
                f"{run_dir} was begun with --random_seed={state.random_seed}, which decides the order "
                "of the data: go on with that, or give another --output_dir"
            )
    if state.step >= options.num_train_steps:
        logging.info("nothing to do: the run has reached step %d", state.step)
        return

    metrics = MetricsWriter(
        run_dir,
        state.step,
        options.num_train_steps,
        config.flops_per_sequence(manifest.max_seq_length, manifest.max_predictions_per_seq),
    )
    batches = training_batches(
        data_dir, manifest, options.train_batch_size, options.random_seed, state.instances_seen
    )
    _run_steps(state, model, optimizer, schedule, readable(batches), metrics, run_dir, options)


def _run_steps(
    state: TrainingState,
    model: BertForPreTraining,
    optimizer: AdamW,
    schedule: LinearWarmupAndDecay,
    batches: Iterable[Batch],
    metrics: MetricsWriter,
    run_dir: Path,
    options: TrainingOptions,
) -> None:
    step_function = train_step(model, optimizer, CLIP_NORM)
    sums = dict(state.sums)
    started = time.perf_counter()
    logging.info("compiling the first step")
    steps = range(state.step + 1, options.num_train_steps + 1)
    for step, batch in zip(steps, batches, strict=False):
        # Summed where they are computed: reading them would wait for the step to end.
        for name, value in step_function(batch).items():
            sums[name] = sums.get(name, 0.0) + value
        if step == steps[0]:
            float(sums["sequences"])
            logging.info("first step done after %.1f s", time.perf_counter() - started)
            metrics.start_timing(step)
        is_last = step == steps[-1]
        writes_metrics = step % options.log_every_steps == 0 or is_last
        saves_checkpoint = step % options.save_checkpoints_steps == 0 or is_last
        if writes_metrics or saves_checkpoint:
            _check_finite(step, sums, run_dir)
        if writes_metrics:
            metrics.write(
                step, _as_floats(sums), float(schedule(step - 1)), options.train_batch_size
            )
            sums = {}
        if saves_checkpoint:
            instances_seen = state.instances_seen + (step - state.step) * options.train_batch_size
            reached = dataclasses.replace(
                state, step=step, instances_seen=instances_seen, sums=_as_floats(sums)
            )
            path = save_checkpoint(run_dir, model, optimizer, reached, options.keep_checkpoints)
            metrics.log(f"saved {path}")


def _check_finite(step: int, sums: Mapping[str, Any], run_dir: Path) -> None:
    """Sees that training has not gone astray before it is told of or saved."""
    if not all(math.isfinite(value) for value in _as_floats(sums).values()):
        kept = [path.name for path in list_checkpoints(run_dir)]
        raise UserError(
            f"the loss or the gradient is no longer a finite number at step {step}; the last good "
            f"checkpoint of {run_dir} is {kept[-1] if kept else 'none'}: lower --learning_rate or "
            "raise --num_warmup_steps"
        )


def _as_floats(sums: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in sums.items()}
