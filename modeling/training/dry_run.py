"""A dry run, which writes nothing: a run's size and cost, and two of its steps."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

from modeling.batches import readable, training_batches
from modeling.checkpoints.pretrained import Pretrained
from modeling.checkpoints.run_checkpoints import Extension
from modeling.config import BertConfig
from modeling.losses import total_loss
from modeling.step.backend import Replicas, TrainStep, device_names, peak_memory
from modeling.step.devices import describe_devices, describe_group
from modeling.step.learner import Learner, new_learner
from modeling.training.loop import check_can_train
from modeling.training.resume import Branch, extension_of, freeze_old_rows
from modeling.training.workload import BatchSizes, describe_update, flops_per_instance
from modeling.training_masks import masked_batches, schedule_of, training_limits
from modeling.training_options import Precision, ScheduleName, TrainingOptions
from pipeline.manifest import DataSet
from pipeline.storage import Location

_STEPS = 2
_GIB = 2**30


def dry_run(
    data_set: DataSet,
    run_dir: Location,
    config: BertConfig,
    options: TrainingOptions,
    replicas: Replicas | None = None,
    origin: Pretrained | Branch | None = None,
) -> Iterator[str]:
    """Yields lines that report parameters, FLOPs, memory, steps per pass, and two steps.

    The steps are of random weights.

    Args:
      data_set: the data.
      run_dir: the run, which is checked but not changed.
      config: the model's size.
      options: how to train.
      replicas: the devices to train on; by default this process's devices.
      origin: what a new run would start from.

    Raises:
      UserError: `check_can_train` fails, there are no new rows to train alone, or the data set or
        the run cannot be read.
    """
    replicas = replicas or Replicas()
    group, manifest = replicas.group, data_set.manifest
    check_can_train(data_set, run_dir, config, options, replicas)
    learner = new_learner(config, options)
    extension = _extension(learner, options, extension_of(run_dir, origin))
    parameters = learner.model.count_params()
    row = training_limits(manifest, options)
    instance, records = ("sequence", "instances") if row.sequences == 1 else ("row", "rows")
    yield f"device               {describe_devices(device_names())}"
    if replicas.num_devices > 1:
        described = describe_group(
            group, replicas.num_devices, options.train_batch_size, options.context_parallel
        )
        yield f"all devices          {described}"
    yield f"parameters           {parameters:,}"
    yield from (f"{name:<20} {fact}" for name, fact in extension.items())
    flops = flops_per_instance(config, manifest, row)
    yield (
        f"{f'work per {instance}':<20} {flops / 1e9:,.3g} GFLOP, "
        f"forward and backward, {instance} length {row.tokens}"
    )
    part = options.train_batch_size // replicas.count // options.gradient_accumulation_steps
    memory = memory_estimate(config, options, part, parameters, row.tokens, row.predictions)
    yield f"memory               about {memory / _GIB:,.1f} GiB per device"
    shards = manifest.shards_of("train")
    passes = 1 + max((shard.pass_index for shard in shards), default=0)
    instances = sum(shard.instances for shard in shards)
    sizes = BatchSizes(options, replicas.count)
    trained = sizes.total(0, options.num_train_steps)
    yield (
        f"data                 {instances:,} {records} in {passes} passes, "
        f"{instances / passes / options.train_batch_size:,.3g} steps per pass"
    )
    if instances:
        yield f"update               {describe_update(manifest, sizes)}"
        trained_passes = trained * passes / instances
        yield f"whole run            {trained:,} {instance}s, {trained_passes:,.1f} passes"

    if schedule := schedule_of(manifest, options):
        yield (
            f"masks                drawn while training: {schedule.describe()}, at most "
            f"{row.predictions} of {row.tokens}"
        )
    yield (
        f"learning rate        {options.learning_rate:g} after {options.num_warmup_steps:,} steps "
        f"of warm-up, {_decay(options)}"
    )

    step = TrainStep(learner, replicas)
    place = replicas.reader, replicas.num_readers
    data_set = _smallest_part(data_set, _STEPS * options.train_batch_size, replicas.num_readers)
    batches = training_batches(
        data_set,
        options.train_batch_size,
        options.random_seed,
        0,
        *place,
    )
    read = readable(batches, data_set)
    if schedule:
        read = masked_batches(read, data_set, options, 0, 0, *place)
    for number, batch in zip(range(_STEPS), read, strict=False):
        started = time.perf_counter()
        results = {name: float(value) for name, value in step(batch).items()}
        seconds = time.perf_counter() - started
        compiled = ", including compilation" if not number else ""
        loss = total_loss(results)
        yield f"step {number + 1}               loss {loss:.3f}, {seconds:.2f} s{compiled}"
    if peak := peak_memory():
        yield f"peak memory          {peak / _GIB:,.1f} GiB"


def _extension(
    learner: Learner, options: TrainingOptions, extension: Extension | None
) -> dict[str, str]:
    """What a model has beyond the BERT that it starts from, and how that is trained, for people."""
    freeze_old_rows(learner, options, extension)
    facts = extension.describe(learner.model.config) if extension else {}
    if options.freeze_old_steps:
        facts["frozen"] = f"all but the new rows, until step {options.freeze_old_steps:,}"
    return facts


def _smallest_part(data_set: DataSet, num_instances: int, num_shards: int) -> DataSet:
    """The data set with few of its train shards: those from which some steps can be made.

    Args:
      data_set: the data set.
      num_instances: the number of instances that they hold, if there are as many.
      num_shards: the smallest number of them.
    """
    shards = [shard for shard in data_set.manifest.shards_of("train") if shard.instances]
    first_pass = min((shard.pass_index for shard in shards), default=0)
    shards = [shard for shard in shards if shard.pass_index == first_pass]
    ends = itertools.accumulate((shard.instances for shard in shards), initial=0)
    part = [
        shard
        for number, (shard, start) in enumerate(zip(shards, ends, strict=False))
        if number < num_shards or start < num_instances
    ]
    return replace(data_set, manifest=replace(data_set.manifest, shards=part))


def _decay(options: TrainingOptions) -> str:
    """How the learning rate falls, for people."""
    end = f"0 after {options.num_train_steps:,} steps"
    match options.learning_rate_schedule:
        case ScheduleName.WARMUP_STABLE_DECAY:
            stable = f"stable until step {options.last_stable_step:,}"
            return f"{stable}, {end}" if options.num_decay_steps else stable
        case ScheduleName.POLYNOMIAL:
            return f"{end}, by the power {options.decay_power:g}"
    return end


def memory_estimate(
    config: BertConfig,
    options: TrainingOptions,
    instances: int,
    parameters: int,
    num_tokens: int,
    num_predictions: int,
) -> int:
    """Estimates the bytes that a step needs on each device.

    Counts weights, gradients and two moments in float32; the activations that the backward pass
    needs, of all blocks or, if they are recomputed, of one block; and the logits. Of devices that
    divide positions, each has its part, and the scores of one turn of their ring.

    Args:
      config: the model's size.
      options: the training options, of which precision, recomputation and the division of
        positions matter.
      instances: the number of sequences, or packed rows, that a device computes at a time.
      parameters: the number of the model's parameters.
      num_tokens: S or R, the length of an instance.
      num_predictions: P, the number of predictions per instance.
    """
    number_bytes = 4 if options.precision == Precision.FLOAT32 else 2
    num_tokens = num_tokens // options.context_parallel
    hidden = instances * num_tokens * config.hidden_size
    inner = instances * num_tokens * config.intermediate_size
    scores = instances * config.num_attention_heads * num_tokens**2
    block, turn = number_bytes * (10 * hidden + 3 * inner), 4 * 4 * scores
    if options.context_parallel == 1:  # all scores are one turn, which is kept
        block, turn = block + number_bytes * 3 * scores, 0
    if options.recompute_activations:
        blocks = config.num_hidden_layers * number_bytes * hidden + block
    else:
        blocks = config.num_hidden_layers * block
    logits = 2 * 4 * instances * num_predictions * config.vocab_size // options.context_parallel
    return 16 * parameters + blocks + turn + logits
