"""The training loop: batches in, updates, metrics and checkpoints out; goes on where it stopped."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import logging

from modeling.batches import (
    check_enough_shards,
    evaluation_batches,
    readable,
    shards_of_instances,
    training_batches,
)
from modeling.checkpoints.pretrained import Pretrained
from modeling.checkpoints.run_checkpoints import TrainingState, list_checkpoints, save_checkpoint
from modeling.config import BertConfig
from modeling.job.termination import exit_code, noticing_termination
from modeling.step.backend import (
    Replicas,
    TrainStep,
    check_divisible,
    check_precision,
    device_names,
    eval_step,
)
from modeling.step.devices import describe_devices, describe_group, peak_flops
from modeling.step.learner import Batch, Learner, learning_rate_schedule, new_learner
from modeling.training.evaluation import added_sums, evaluation_sums
from modeling.training.loss_plot import LOSS_PLOT_NAME, draw_losses
from modeling.training.metrics import MetricsWriter
from modeling.training.resume import restore_or_begin
from modeling.training.run_directory import check_run, prepare_run, write_environment
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError, listed
from pipeline.files import write_whole
from pipeline.manifest import FLAGS_NAME, Manifest

# Little beside a model for which memory is short.
_MEASURED_NUMBERS = 1 << 24


def train(
    data_dir: Path,
    manifest: Manifest,
    run_dir: Path,
    config: BertConfig,
    options: TrainingOptions,
    pretrained: Pretrained | None = None,
    flags: str = "",
    replicas: Replicas | None = None,
) -> None:
    """Trains until `options.num_train_steps`, from the run's newest checkpoint if it has one.

    All processes of a group call it alike; process 0 writes and tells. After SIGTERM, SIGUSR1 or SIGINT
    to any of them it saves a checkpoint and exits in all of them, with code 143 or, after SIGINT, 130.

    Args:
      data_dir: the data set.
      manifest: that of the data set.
      run_dir: the run.
      config: of the model.
      options: how to train.
      pretrained: the weights that a new run starts from, in place of random ones.
      flags: the content of the run's flags.txt.
      replicas: what to train on; by default the devices of this process.

    Raises:
      UserError: the model does not go with the data or the run, the data set cannot be read or
        divided, the loss is no longer finite, a checkpoint cannot be written, or all of them are damaged.
    """
    replicas = replicas or Replicas()
    group = replicas.group
    if group.is_first:
        check_run(run_dir, config, data_dir, manifest)
    check_precision(options.precision)
    check_divisible(options, replicas.count)
    check_enough_shards(data_dir, manifest, group.num_processes)
    with noticing_termination(group):
        learner = new_learner(config, options)
        devices = device_names()
        logging.info(
            "%s parameters, on %s", f"{learner.model.count_params():,}", describe_devices(devices)
        )
        if replicas.count > 1:
            logging.info("%s", describe_group(group, replicas.count, options.train_batch_size))
        state = restore_or_begin(run_dir, learner, options, pretrained, group)
        if state.step >= options.num_train_steps:
            logging.info("nothing to do: the run has reached step %d", state.step)
            if group.is_first and not (run_dir / LOSS_PLOT_NAME).exists():
                _draw(run_dir)
            return
        if group.is_first:
            prepare_run(run_dir, config, data_dir, manifest)
            write_environment(run_dir, devices, group.hosts, replicas.count)
            write_whole(run_dir / FLAGS_NAME, flags)
        metrics = MetricsWriter(
            run_dir if group.is_first else None,
            state.step,
            options.num_train_steps,
            options.train_batch_size,
            config.flops_per_sequence(manifest.max_seq_length, manifest.max_predictions_per_seq),
            (peak_flops(devices[0]) or 0) * replicas.count if devices else None,
        )
        with metrics:
            _Loop(data_dir, manifest, run_dir, options, learner, state, metrics, replicas).run()
        if group.is_first:
            _draw(run_dir)


def _draw(run_dir: Path) -> None:
    if plot := draw_losses(run_dir):
        logging.info("drew %s", plot)
    else:
        logging.info("no loss.png, which needs matplotlib: pip install 'clozemill[plot]'")


class _Loop:
    """The steps from `start` to the last one."""

    def __init__(
        self,
        data_dir: Path,
        manifest: Manifest,
        run_dir: Path,
        options: TrainingOptions,
        learner: Learner,
        start: TrainingState,
        metrics: MetricsWriter,
        replicas: Replicas,
    ):
        self._manifest = manifest
        self._run_dir = run_dir
        self._options = options
        self._learner = learner
        self._start = start
        self._metrics = metrics
        self._replicas = replicas
        self._group = group = replicas.group
        self._schedule = learning_rate_schedule(options)
        self._batches = readable(
            training_batches(
                data_dir,
                manifest,
                options.train_batch_size,
                options.random_seed,
                start.instances_seen,
                group.process_id,
                group.num_processes,
            ),
            data_dir,
            manifest,
        )
        self._eval_batches = (
            evaluation_batches(data_dir, manifest, options.eval_batch_size)
            .take(options.max_eval_steps)
            .shard(group.num_processes, group.process_id)
            if options.eval_every_steps
            else None
        )
        self._eval_step = eval_step(learner.model)
        self._data_dir = data_dir
        # Summed up since the last line of metrics, and told by steps but not read yet: reading
        # waits for the step to end.
        self._sums = dict(start.sums)
        self._unread: list[tuple[int, Mapping[str, Any]]] = []

    def run(self) -> None:
        """Trains to the end, or until a signal asks to stop."""
        train_step = TrainStep(self._learner, self._replicas)
        first, last = self._start.step + 1, self._options.num_train_steps
        self._metrics.log("compiling the first step")
        started = time.perf_counter()
        for step in range(first, last + 1):
            if not self._group.may_begin(step):
                self._stop(step - 1)
            with self._metrics.waiting_for_input(train_step.is_idle):
                batch = next(self._batches)
            self._unread.append((step, self._run_step(train_step, batch)))
            if step == first:
                self._read()
                self._metrics.log(
                    f"first step done after {time.perf_counter() - started:.1f} s; attention: "
                    + self._describe_attention(train_step)
                )
                self._metrics.all_reduce_seconds = self._all_reduce_seconds()
                self._metrics.start_timing(step)
            self._tell(step, step == last)

    def _all_reduce_seconds(self) -> float:
        """What it takes to add the gradients up over all devices, measured with some of them."""
        gradients = self._learner.model.count_params()
        measured = min(gradients, _MEASURED_NUMBERS)
        return self._replicas.seconds_to_add(measured) * gradients / measured

    def _run_step(self, step: TrainStep, batch: Batch) -> dict[str, Any]:
        try:
            return step(batch)
        except Exception as error:  # each backend has its own
            if "out of memory" not in str(error).lower():
                raise
            raise UserError(
                "the device has too little memory for this batch: raise --gradient_accumulation_steps, or "
                "give --precision=bfloat16 or --recompute_activations"
            ) from error

    def _stop(self, step: int) -> NoReturn:
        """Ends the run behind a step, as all processes have agreed."""
        stop = self._group.stop
        assert stop
        if step > self._start.step and step % self._options.save_checkpoints_steps:
            self._save(step)
        by = f" to {stop.process}" if self._group.num_processes > 1 else ""
        self._metrics.log(
            f"stopped by {stop.signal}{by} at step {step}: the same command goes on from there"
        )
        raise SystemExit(exit_code(stop.signal))

    def _tell(self, step: int, is_last: bool) -> None:
        """Writes metrics, evaluates and saves, where it is time."""
        options = self._options
        if step % options.log_every_steps == 0 or is_last:
            self._read()
            scale = self._learner.loss_scale
            self._metrics.write(
                step,
                self._sums,
                float(self._schedule(step - 1)),
                float(scale.scale) if scale else None,
            )
            self._sums = {}
        if self._eval_batches and (step % options.eval_every_steps == 0 or is_last):
            self._read()
            with self._metrics.not_timed():
                batches = readable(self._eval_batches, self._data_dir, self._manifest)
                sums = evaluation_sums(self._eval_step, batches)
                sums = added_sums(self._group.gather(sums))
                self._metrics.write_evaluation(step, sums)
        if step % options.save_checkpoints_steps == 0 or is_last:
            self._save(step)

    def _read(self) -> None:
        """Adds up what the steps told, and sees that training has not gone astray."""
        for step, told in self._unread:
            for name, value in told.items():
                number = float(value)
                if not math.isfinite(number):
                    raise self._gone_astray(step)
                self._sums[name] = self._sums.get(name, 0.0) + number
        self._unread = []

    def _gone_astray(self, step: int) -> UserError:
        checkpoints = list_checkpoints(self._run_dir)
        kept = f"is {checkpoints[-1].name}" if checkpoints else "does not exist yet"
        shards = shards_of_instances(
            self._manifest,
            self._options.random_seed,
            self._instances_seen(step - 1),
            self._options.train_batch_size,
        )
        return UserError(
            f"the loss or the gradient is no longer a finite number at step {step}, whose batch is of "
            f"{listed(shards)}; the last good checkpoint of {self._run_dir} {kept}: lower "
            "--learning_rate or raise --num_warmup_steps"
        )

    def _save(self, step: int) -> None:
        self._read()
        with self._metrics.not_timed():
            reached = dataclasses.replace(
                self._start,
                step=step,
                instances_seen=self._instances_seen(step),
                sums=self._sums,
            )
            if self._group.is_first:
                path = save_checkpoint(
                    self._run_dir, self._learner, reached, self._options.keep_checkpoints
                )
                self._metrics.log(f"saved {path}")
            # Not in the middle of the next step, where a backend has its own limits of time.
            self._group.wait_for_all()

    def _instances_seen(self, step: int) -> int:
        steps = step - self._start.step
        return self._start.instances_seen + steps * self._options.train_batch_size

    def _describe_attention(self, train_step: TrainStep) -> str:
        if self._learner.model.config.attention_probs_dropout_prob:
            return "with dropout of its probabilities, compiled by XLA"
        return train_step.attention_kernel
