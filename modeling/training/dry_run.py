"""A run without writing anything: its size, its cost, and two of its steps."""

import time
from collections.abc import Iterator
from pathlib import Path

from modeling.batches import readable, training_batches
from modeling.config import BertConfig
from modeling.losses import total_loss
from modeling.step.backend import Replicas, TrainStep, device_names, peak_memory
from modeling.step.devices import describe_devices, describe_group
from modeling.step.learner import new_learner
from modeling.training.loop import check_can_train
from modeling.training_options import Precision, TrainingOptions
from pipeline.manifest import DataSet

_STEPS = 2
_GIB = 2**30


def dry_run(
    data_set: DataSet,
    run_dir: Path,
    config: BertConfig,
    options: TrainingOptions,
    replicas: Replicas | None = None,
) -> Iterator[str]:
    """Lines about a run: parameters, FLOPs, memory, steps per pass, and two steps.

    Args:
      data_set: the data.
      run_dir: the run, which is looked at but not changed.
      config: the model's size.
      options: how to train.
      replicas: the devices to train on; by default those of this process.

    Raises:
      UserError: `check_can_train` fails, or the data set cannot be read.
    """
    replicas = replicas or Replicas()
    group, manifest = replicas.group, data_set.manifest
    check_can_train(data_set, run_dir, config, options, replicas)
    learner = new_learner(config, options)
    parameters = learner.model.count_params()
    seq_length, predictions = manifest.max_seq_length, manifest.max_predictions_per_seq
    flops = config.flops_per_sequence(seq_length, predictions)
    yield f"device               {describe_devices(device_names())}"
    if replicas.count > 1:
        yield f"all devices          {describe_group(group, replicas.count, options.train_batch_size)}"
    yield f"parameters           {parameters:,}"
    yield f"work of a sequence   {flops / 1e9:,.3g} GFLOP, S {seq_length}, forward and backward"
    part = options.train_batch_size // replicas.count // options.gradient_accumulation_steps
    memory = memory_estimate(config, options, part, parameters, seq_length, predictions)
    yield f"memory               about {memory / _GIB:,.1f} GiB a device"
    shards = manifest.shards_of("train")
    passes = 1 + max((shard.pass_index for shard in shards), default=0)
    instances = sum(shard.instances for shard in shards)
    trained = options.num_train_steps * options.train_batch_size
    yield (
        f"data                 {instances:,} instances in {passes} passes, "
        f"{instances / passes / options.train_batch_size:,.3g} steps a pass"
    )
    if instances:
        yield f"the whole run        {trained:,} sequences, {trained * passes / instances:,.1f} passes"

    step = TrainStep(learner, replicas)
    batches = training_batches(
        data_set,
        options.train_batch_size,
        options.random_seed,
        process_id=group.process_id,
        num_processes=group.num_processes,
    )
    for number, batch in zip(range(_STEPS), readable(batches, data_set), strict=False):
        started = time.perf_counter()
        results = {name: float(value) for name, value in step(batch).items()}
        seconds = time.perf_counter() - started
        compiled = ", compiling included" if not number else ""
        yield f"step {number + 1}               loss {total_loss(results):.3f}, {seconds:.2f} s{compiled}"
    if peak := peak_memory():
        yield f"memory in use        {peak / _GIB:,.1f} GiB at most"


def memory_estimate(
    config: BertConfig,
    options: TrainingOptions,
    sequences: int,
    parameters: int,
    seq_length: int,
    num_predictions: int,
) -> int:
    """Bytes that a step needs on its device, roughly.

    Weights, gradients and two moments in float32; what the backward pass needs of each block, or of
    one block where activations are computed again; the logits.

    Args:
      config: of the model.
      options: precision, recomputation.
      sequences: that a device computes at a time.
      parameters: of the model.
      seq_length: S.
      num_predictions: P.
    """
    number_bytes = 4 if options.precision == Precision.FLOAT32 else 2
    hidden = sequences * seq_length * config.hidden_size
    inner = sequences * seq_length * config.intermediate_size
    probabilities = sequences * config.num_attention_heads * seq_length**2
    block = number_bytes * (10 * hidden + 3 * inner + 3 * probabilities)
    if options.recompute_activations:
        blocks = config.num_hidden_layers * number_bytes * hidden + block
    else:
        blocks = config.num_hidden_layers * block
    logits = 2 * 4 * sequences * num_predictions * config.vocab_size
    return 16 * parameters + blocks + logits
