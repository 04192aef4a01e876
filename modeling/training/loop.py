"""The training loop: batches in, weight updates, metrics and checkpoints out.

`train` prepares a run, and `_Loop.run` makes its steps.
"""

import dataclasses
import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import logging

from modeling.batches import (
    check_enough_shards,
    evaluation_batches,
    evaluation_shards,
    most_bytes_at_once,
    parts_of_groups,
    readable,
    shards_of_instances,
    training_batches,
)
from modeling.checkpoints.pretrained import Pretrained
from modeling.checkpoints.run_checkpoints import (
    TrainingState,
    digests_of_run,
    list_checkpoints,
    remove_old_checkpoints,
    remove_unfinished_checkpoints,
)
from modeling.config import BertConfig
from modeling.job.termination import exit_code
from modeling.shard_cache import CachedDataSet
from modeling.step.backend import (
    Replicas,
    TrainStep,
    check_divisible,
    check_positions_divisible,
    check_precision,
    device_names,
    eval_step,
)
from modeling.step.devices import describe_devices, describe_group, peak_flops
from modeling.step.learner import Learner, learning_rate_schedule, new_learner
from modeling.training.evaluation import add_up, evaluation_sums
from modeling.training.loss_plot import LOSS_PLOT_NAME, draw_losses
from modeling.training.metrics import METRICS_NAME, MetricsWriter
from modeling.training.resume import Branch, restore_or_begin
from modeling.training.run_directory import check_run, prepare_run, write_environment
from modeling.training.run_writer import RunWriter, writing
from modeling.training.shard_verifier import ShardVerifier
from modeling.training.tracking import TrackerName, describe_run, tracking
from modeling.training.workload import BatchSizes, describe_update, flops_per_instance
from modeling.training_masks import (
    check_masking,
    in_background,
    masked_batches,
    schedule_of,
    training_limits,
)
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError, listed
from pipeline.files import write_whole
from pipeline.manifest import FLAGS_NAME, DataSet
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location

# Numbers that are added up to measure an exchange: few beside a model for which memory is short.
_MEASURED_NUMBERS = 1 << 24


def train(
    data_set: DataSet,
    run_dir: Location,
    config: BertConfig,
    options: TrainingOptions,
    origin: Pretrained | Branch | None = None,
    flags: str = "",
    replicas: Replicas | None = None,
    track: TrackerName | None = None,
) -> None:
    """Trains until `options.num_train_steps`, from the run's newest checkpoint if it has one.

    All processes of a group call it alike; process 0 writes and reports. When a signal has asked
    the group to stop (see `modeling.job.termination`), it saves a checkpoint and exits in all
    processes, with code 143, or 130 after SIGINT.

    Args:
      data_set: the data.
      run_dir: the run.
      config: the model's size.
      options: how to train.
      origin: what a new run starts from, instead of random weights.
      flags: the content of the run's flags.txt.
      replicas: the devices to train on; by default those of this process.
      track: the tracker that process 0 sends the metrics to, if any.

    Raises:
      UserError: `check_can_train` fails, the data set cannot be read or is damaged, the loss is no
        longer finite, a checkpoint cannot be written, or all checkpoints are damaged.
    """
    replicas = replicas or Replicas()
    group = replicas.group
    check_can_train(data_set, run_dir, config, options, replicas)
    learner = new_learner(config, options)
    devices = device_names()
    logging.info(
        "%s parameters, on %s", f"{learner.model.count_params():,}", describe_devices(devices)
    )
    if replicas.num_devices > 1:
        sizes = options.train_batch_size, options.context_parallel
        logging.info("%s", describe_group(group, replicas.num_devices, *sizes))
    if group.is_first:
        remove_unfinished_checkpoints(run_dir)
    state = restore_or_begin(run_dir, learner, options, origin, group)
    described = describe_run(flags, config, data_set.manifest)
    if state.step >= options.num_train_steps:
        logging.info("nothing to do: the run has reached step %d", state.step)
        if group.is_first:
            remove_old_checkpoints(run_dir, options.keep_checkpoints)
            with writing(run_dir, options.keep_checkpoints) as writer:
                _complete(writer.directory, run_dir, config.sentence_pairs)
                with tracking(track, run_dir, described, writer.directory) as tracker:
                    if tracker and state.metrics:
                        tracker.send(state.metrics.bytes)
        return
    if group.is_first:
        prepare_run(run_dir, config, data_set)
        state = dataclasses.replace(state, sha256=digests_of_run(run_dir))
        write_environment(run_dir, devices, group.hosts, replicas.num_devices)
        write_whole(run_dir / FLAGS_NAME, flags)
    manifest = data_set.manifest
    own_run_dir = run_dir if group.is_first else None
    with writing(own_run_dir, options.keep_checkpoints) as writer:
        own_track = track if group.is_first else None
        with tracking(own_track, run_dir, described, writer.directory) as tracker:
            metrics = MetricsWriter(
                own_run_dir,
                state,
                options.num_train_steps,
                BatchSizes(options, replicas.count),
                flops_per_instance(config, manifest, training_limits(manifest, options)),
                (peak_flops(devices[0]) or 0) * replicas.num_devices if devices else None,
                manifest.sentence_pairs,
                tracker,
                writer.directory,
            )
            loop = _Loop(data_set, run_dir, options, learner, state, metrics, replicas, writer)
            with metrics, closing(loop):
                loop.run()
        if group.is_first:
            _draw(writer.directory, run_dir, manifest.sentence_pairs)


def check_can_train(
    data_set: DataSet,
    run_dir: Location,
    config: BertConfig,
    options: TrainingOptions,
    replicas: Replicas,
) -> None:
    """Checks that a model can be trained with these options, on these data and devices.

    Raises:
      UserError: the model or the options do not fit the data or the run, the devices cannot compute
        in the precision, or the batch or the data set cannot be divided among devices and
        processes.
    """
    if replicas.group.is_first:
        check_run(run_dir, config, data_set)
    check_masking(data_set, options)
    check_precision(options.precision)
    check_divisible(options, replicas.count)
    check_positions_divisible(options.context_parallel, data_set.manifest.row_limits.tokens)
    check_enough_shards(data_set, replicas.num_readers)
    if isinstance(data_set, CachedDataSet):
        _check_cache(data_set, options, replicas)


def _check_cache(data_set: CachedDataSet, options: TrainingOptions, replicas: Replicas) -> None:
    """Checks that what the processes of this host read side by side has room in the cache."""
    hosts, own = replicas.group.hosts, replicas.group.process_id
    train = most_bytes_at_once(
        data_set.manifest,
        options.random_seed,
        BatchSizes(options, replicas.count).total(0, options.num_train_steps),
        sorted({replicas.reader_of(i) for i, host in enumerate(hosts) if host == hosts[own]}),
        replicas.num_readers,
    )
    evaluated = (
        evaluation_shards(data_set.manifest, options.max_eval_steps * options.eval_batch_size)
        if options.eval_every_steps
        else []
    )
    kept = sum(shard.bytes for shard in evaluated)
    data_set.cache.require(train + kept, 2 * train + kept, evaluated)


def _complete(directory: Path, run_dir: Location, sentence_pairs: SentencePairs) -> None:
    """Draws the losses if a run was killed after its last step, before it could."""
    picture, metrics = directory / LOSS_PLOT_NAME, directory / METRICS_NAME
    if not picture.exists() or (
        metrics.exists() and picture.stat().st_mtime_ns < metrics.stat().st_mtime_ns
    ):
        _draw(directory, run_dir, sentence_pairs)


def _draw(directory: Path, run_dir: Location, sentence_pairs: SentencePairs) -> None:
    if plot := draw_losses(directory, sentence_pairs):
        logging.info("drew %s", run_dir / plot.name)
    else:
        logging.info("no loss.png, because matplotlib is missing: pip install 'clozemill[plot]'")


class _Loop:
    """The steps from the one after `start` to the last one."""

    def __init__(
        self,
        data_set: DataSet,
        run_dir: Location,
        options: TrainingOptions,
        learner: Learner,
        start: TrainingState,
        metrics: MetricsWriter,
        replicas: Replicas,
        writer: RunWriter,
    ):
        self._data_set = data_set
        self._run_dir = run_dir
        self._options = options
        self._learner = learner
        self._start = start
        self._metrics = metrics
        self._replicas = replicas
        self._writer = writer
        self._group = replicas.group
        self._results = _Results(start.sums)
        self._schedule = learning_rate_schedule(options)
        self._batch_sizes = BatchSizes(options, replicas.count)
        self._masking = schedule_of(data_set.manifest, options)
        self._eval_step = eval_step(learner.model, replicas)
        self._verifier = ShardVerifier(data_set, skip=not options.verify_data)
        # Before the first step, so that a data set without eval instances is an error at once.
        self._eval_batches = (
            evaluation_batches(
                data_set, options.eval_batch_size, self._verifier.open, options.max_eval_steps
            ).shard(replicas.num_readers, replicas.reader)
            if options.eval_every_steps
            else None
        )
        self._batches = self._open_batches()

    def run(self) -> None:
        """Trains to the last step, or until a signal asks to stop."""
        options, metrics, last = self._options, self._metrics, self._options.num_train_steps
        train_step = TrainStep(self._learner, self._replicas)
        self._open_first_shards()
        batches = self._batches
        manifest = self._data_set.manifest
        metrics.log(f"an update: {describe_update(manifest, self._batch_sizes)}")
        metrics.log("compiling the first step")
        started = time.perf_counter()
        for step in range(self._start.step + 1, last + 1):

            def due(every_steps: int, step: int = step) -> bool:
                return every_steps > 0 and (step % every_steps == 0 or step == last)

            if not self._group.may_begin(step):
                self._stop_after(step - 1)
            is_first, size = step == self._start.step + 1, self._batch_sizes.of(step)
            is_of_new_size = not is_first and size != self._batch_sizes.of(step - 1)
            if is_of_new_size:
                metrics.log(f"compiling the step for batches of {size:,}")
            with metrics.waiting_for_input(train_step.is_idle):
                batch = next(batches)
            self._verifier.check()
            self._writer.check()
            with _memory_errors_explained():
                self._results.add(step, train_step(batch))
            if is_of_new_size:
                self._read_results()
                metrics.start_timing(step)
            elif is_first:
                self._read_results()
                seconds, attention = time.perf_counter() - started, train_step.attention_kernel
                metrics.log(f"first step done after {seconds:.1f} s; attention: {attention}")
                metrics.all_reduce_seconds = self._all_reduce_seconds()
                metrics.start_timing(step)
            if due(options.log_every_steps):
                self._log(step)
            if due(options.eval_every_steps):
                self._evaluate(step)
            if options.is_saved(step):
                self._save(step)
        self._writer.wait()

    def close(self) -> None:
        """Ends the reading."""
        self._batches.close()

    def _open_first_shards(self) -> None:
        """Waits until the first shards have come, or a signal asks to stop.

        TensorFlow would not notice a signal while it waits for them.
        """
        place = self._start.instances_seen, self._replicas.reader, self._replicas.num_readers
        parts = parts_of_groups(self._data_set.manifest, self._options.random_seed, *place)

        def open_shards() -> None:
            with suppress(UserError):  # which `readable` raises
                self._data_set.open(next(parts).shards, [])

        opening = threading.Thread(target=open_shards, daemon=True)
        opening.start()
        while opening.is_alive() and not self._group.stop:
            opening.join(0.1)
            self._group.may_begin(self._start.step)  # notices a signal

    def _open_batches(self) -> Generator[dict[str, np.ndarray]]:
        """The parts of the batches that this process has, from the first step on."""
        place = self._start.instances_seen, self._replicas.reader, self._replicas.num_readers
        batches = training_batches(
            self._data_set,
            self._options.train_batch_size,
            self._options.random_seed,
            *place,
            self._verifier.open,
            self._batch_sizes.each(self._start.step, self._options.num_train_steps),
        )
        read = readable(batches, self._data_set)
        if self._masking:
            step = self._start.step
            read = in_background(masked_batches(read, self._data_set, self._options, step, *place))
        return read

    def _log(self, step: int) -> None:
        sums = self._read_results()
        scale = self._learner.loss_scale
        learning_rate = float(self._schedule(step - 1))
        steps = self._options.num_train_steps
        rate = self._masking.at(step, steps) if self._masking else None
        self._metrics.write(step, sums, learning_rate, float(scale.scale) if scale else None, rate)
        self._results = _Results({})

    def _evaluate(self, step: int) -> None:
        self._read_results()
        with self._metrics.not_timed():
            batches = readable(self._eval_batches, self._data_set)
            sums = evaluation_sums(self._eval_step, batches)
            self._verifier.wait()
            # The processes of a replica have the same sums.
            each = self._group.num_processes // self._replicas.num_readers
            self._metrics.write_evaluation(step, add_up(self._group.gather(sums)[::each]))

    def _save(self, step: int) -> None:
        sums = self._read_results()
        with self._metrics.not_timed():
            # No checkpoint holds what was learnt from a damaged shard, of any process.
            self._verifier.wait()
            self._group.wait_for_all()
            if self._group.is_first:
                lines = self._metrics.flushed()
                state = dataclasses.replace(
                    self._start,
                    step=step,
                    instances_seen=self._instances_seen(step),
                    sums=sums,
                    is_kept=self._options.is_kept(step),
                    metrics=lines,
                )

                def tell(checkpoint: Location) -> None:
                    self._metrics.saved(lines)
                    self._metrics.log(f"saved {checkpoint}")

                self._writer.save(self._learner, state, tell)
            # The others wait here, because the next step has the time limits of its backend.
            self._group.wait_for_all()

    def _stop_after(self, step: int) -> NoReturn:
        """Ends the run after a step, as all processes have agreed."""
        stop = self._group.stop
        assert stop
        if step > self._start.step and not self._options.is_saved(step):
            self._save(step)
        self._writer.wait()
        by = f" to {stop.process}" if self._group.num_processes > 1 else ""
        self._metrics.log(
            f"stopped by {stop.signal}{by} at step {step}: the same command resumes from there"
        )
        raise SystemExit(exit_code(stop.signal))

    def _read_results(self) -> dict[str, float]:
        """The sums of the steps since the last line of metrics.

        Raises:
          UserError: a step's loss or gradient is not finite.
        """
        try:
            return self._results.read()
        except _NotFiniteError as error:
            raise self._diverged(error.step) from None

    def _diverged(self, step: int) -> UserError:
        self._writer.wait()
        checkpoints = list_checkpoints(self._run_dir)
        kept = f"is {checkpoints[-1].name}" if checkpoints else "does not exist yet"
        shards = shards_of_instances(
            self._data_set.manifest,
            self._options.random_seed,
            self._instances_seen(step - 1),
            self._batch_sizes.of(step),
        )
        return UserError(
            f"the loss or the gradient is no longer finite at step {step}, whose batch is from "
            f"{listed(shards)}; the last good checkpoint of {self._run_dir} {kept}: lower "
            "--learning_rate or raise --num_warmup_steps"
        )

    def _instances_seen(self, step: int) -> int:
        return self._start.instances_seen + self._batch_sizes.total(self._start.step, step)

    def _all_reduce_seconds(self) -> float:
        """The seconds to add the gradients up over all devices, measured with some of them."""
        gradients = self._learner.model.count_params()
        measured = min(gradients, _MEASURED_NUMBERS)
        return self._replicas.seconds_to_add(measured) * gradients / measured


class _NotFiniteError(Exception):
    """A step's loss or gradient is not finite.

    Attributes:
      step: the first such step.
    """

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class _Results:
    """What steps returned, added up.

    To read a number, a process must wait for its step to end. So results are kept unread until
    `read` is called, and steps follow each other without a pause.
    """

    def __init__(self, sums: Mapping[str, float]):
        self._sums = dict(sums)
        self._unread: list[tuple[int, Mapping[str, Any]]] = []

    def add(self, step: int, results: Mapping[str, Any]) -> None:
        """Adds the results of a step, without waiting for them."""
        self._unread.append((step, results))

    def read(self) -> dict[str, float]:
        """The sums of all results, by name.

        Raises:
          _NotFiniteError: a number is not finite.
        """
        for step, results in self._unread:
            for name, value in results.items():
                number = float(value)
                if not math.isfinite(number):
                    raise _NotFiniteError(step)
                self._sums[name] = self._sums.get(name, 0.0) + number
        self._unread = []
        return self._sums


@contextmanager
def _memory_errors_explained() -> Iterator[None]:
    """Around a step: turns a device's lack of memory into an error that says what helps."""
    try:
        yield
    except Exception as error:  # each backend has its own
        if "out of memory" not in str(error).lower():
            raise
        raise UserError(
            "the device has too little memory for this batch: raise --gradient_accumulation_steps, "
            "or give --precision=bfloat16, --recompute_activations or, for long sequences on "
            "several devices of JAX, --context_parallel"
        ) from error
