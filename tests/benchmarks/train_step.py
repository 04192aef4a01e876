"""Measures the training step on this device: sequences/s, TFLOP/s, and MFU if the peak is known.

With --synthetic batches and --backend=jax, it needs only Keras, JAX and a copy of the repository,
not Beam or TensorFlow.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from modeling.config import PRESETS, BertConfig
from modeling.training_options import OptimizerName, Precision, TrainingOptions

BERT_VOCABULARY = 30_522
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    parser.add_argument("--model", choices=PRESETS, default="mini")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--synthetic", action="store_true", help="train on random batches (default)")
    data.add_argument("--data_dir", type=Path, help="train on a data set, reading included")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_predictions_per_seq", type=int, help="by default, 15 %% of S")
    parser.add_argument("--vocab_size", type=int, default=BERT_VOCABULARY)
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--precision", choices=list(Precision), default=Precision.FLOAT32)
    parser.add_argument("--optimizer", choices=list(OptimizerName), default=OptimizerName.ADAMW)
    parser.add_argument("--recompute_activations", action="store_true")
    for name in DROPOUTS:
        parser.add_argument(f"--{name}", type=float, default=0.1)
    parser.add_argument("--warmup_steps", type=int, default=3, help="number of untimed steps")
    parser.add_argument("--steps", type=int, default=20, help="number of timed steps")
    parser.add_argument("--repeats", type=int, default=3, help="number of timings")
    return parser.parse_args()


def synthetic_batch(batch_size, seq_length, num_predictions, vocab_size, seed=0):
    """Returns a batch of random tokens without padding, in the trainer's form."""
    import numpy as np

    rng = np.random.default_rng(seed)
    sequences, predictions = (batch_size, seq_length), (batch_size, num_predictions)
    positions = rng.permuted(np.tile(np.arange(1, seq_length), (batch_size, 1)), axis=1)
    return {
        "input_ids": rng.integers(5, vocab_size, sequences, np.int32),
        "input_mask": np.ones(sequences, np.int32),
        "segment_ids": np.tile(np.arange(seq_length) > seq_length // 2, (batch_size, 1)).astype(
            np.int32
        ),
        "masked_lm_positions": np.sort(positions[:, :num_predictions]).astype(np.int32),
        "masked_lm_ids": rng.integers(5, vocab_size, predictions, np.int32),
        "masked_lm_weights": np.ones(predictions, np.float32),
        "next_sentence_labels": rng.integers(0, 2, (batch_size, 1), np.int32),
    }


def batches_of(arguments):
    """Returns endless batches, their S and P, and the vocabulary's size."""
    if arguments.data_dir:
        from modeling.batches import readable, training_batches
        from pipeline.manifest import DataSet

        data_set = DataSet.read(arguments.data_dir)
        batches = training_batches(data_set, arguments.train_batch_size, seed=0)
        manifest = data_set.manifest
        sizes = manifest.max_seq_length, manifest.max_predictions_per_seq, manifest.vocab_size
        return readable(batches, data_set), *sizes
    seq_length = arguments.max_seq_length
    predictions = arguments.max_predictions_per_seq or round(0.15 * seq_length) + 1
    sizes = seq_length, predictions, arguments.vocab_size
    batch = synthetic_batch(arguments.train_batch_size, *sizes)
    return iter(lambda: batch, None), *sizes


def options_of(arguments):
    names = {field.name for field in dataclasses.fields(TrainingOptions)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given["precision"] = Precision(arguments.precision)
    given["optimizer"] = OptimizerName(arguments.optimizer)
    return TrainingOptions(**given)


def main():
    arguments = parse_arguments()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from modeling.step.backend import TrainStep, device_names, peak_memory
    from modeling.step.devices import describe_devices, peak_flops
    from modeling.step.learner import new_learner

    batches, seq_length, predictions, vocab_size = batches_of(arguments)
    config = dataclasses.replace(
        BertConfig.preset(arguments.model, vocab_size),
        max_position_embeddings=max(512, seq_length),
        **{name: getattr(arguments, name) for name in DROPOUTS},
    )
    learner = new_learner(config, options_of(arguments))
    devices = device_names()
    print(
        f"{arguments.model} on {describe_devices(devices)}, {arguments.backend}, "
        f"{arguments.precision}: B {arguments.train_batch_size}, S {seq_length}, P {predictions}"
    )
    step = TrainStep(learner)
    started = time.perf_counter()
    float(step(next(batches))["sequences"])
    print(f"first step {time.perf_counter() - started:.1f} s; attention: {step.attention_kernel}")

    def seconds_of(steps):
        started = time.perf_counter()
        for _ in range(steps):
            metrics = step(next(batches))
        # Steps run one after another, so reading the last one's result waits for all.
        float(metrics["sequences"])
        return time.perf_counter() - started

    seconds_of(arguments.warmup_steps)
    speeds = [
        arguments.steps * arguments.train_batch_size / seconds_of(arguments.steps)
        for _ in range(arguments.repeats)
    ]
    speed = statistics.median(speeds)
    flops = speed * config.flops_per_instance(seq_length, predictions)
    print(f"sequences/s {speed:,.1f} ({min(speeds):,.1f} to {max(speeds):,.1f})")
    print(f"TFLOP/s     {flops / 1e12:,.3f}")
    if peak := devices and peak_flops(devices[0]):
        print(f"MFU         {flops / peak / len(devices):.1%}")
    if memory := peak_memory():
        print(f"memory      {memory / 2**30:,.1f} GiB at most")


if __name__ == "__main__":
    main()
