"""Measures the training step on this device: real tokens/s, TFLOP/s, and MFU if the peak is known.

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
MOST_SEQUENCES = 6
TOTALS = ("sequences", "tokens")
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
    parser.add_argument("--packed", action="store_true", help="random batches are packed rows")
    parser.add_argument("--max_seq_length", type=int, default=128, help="S, or R of packed rows")
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


def synthetic_rows(batch_size, row_length, num_predictions, vocab_size, seed=0):
    """Returns a batch of packed rows of one to six sequences of random tokens, 98.5 % full."""
    import numpy as np

    batch = synthetic_batch(batch_size, row_length, num_predictions, vocab_size, seed)
    rng = np.random.default_rng(seed)
    ends = rng.integers(1, row_length, (batch_size, MOST_SEQUENCES - 1))
    is_end = rng.random(ends.shape) < np.arange(batch_size)[:, None] % MOST_SEQUENCES / 5
    ends = np.sort(np.where(is_end, ends, row_length), axis=1)
    number = 1 + (np.arange(row_length) >= ends[:, :, None]).sum(axis=1)
    # Two equal ends leave a number out; numbers without gaps are what `generate` makes.
    number = np.stack([np.unique(row, return_inverse=True)[1] + 1 for row in number])
    used = row_length - rng.integers(0, max(1, row_length // 32), (batch_size, 1))
    batch["input_mask"] = np.where(np.arange(row_length) < used, number, 0).astype(np.int32)
    batch["next_sentence_labels"] = np.zeros((batch_size, MOST_SEQUENCES), np.int32)
    return batch


def huggingface_inputs(batch):
    """Returns a batch of sequences as `transformers.BertForPreTraining` takes it."""
    import numpy as np
    import torch

    labels = np.full_like(batch["input_ids"], -100)
    np.put_along_axis(labels, batch["masked_lm_positions"], batch["masked_lm_ids"], axis=1)
    named = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["input_mask"],
        "token_type_ids": batch["segment_ids"],
        "labels": labels,
        "next_sentence_label": batch["next_sentence_labels"][:, 0],
    }
    return {name: torch.tensor(values).long() for name, values in named.items()}


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
    make = synthetic_rows if arguments.packed else synthetic_batch
    batch = make(arguments.train_batch_size, *sizes)
    return iter(lambda: batch, None), *sizes


def options_of(arguments):
    names = {field.name for field in dataclasses.fields(TrainingOptions)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given["precision"] = Precision(arguments.precision)
    given["optimizer"] = OptimizerName(arguments.optimizer)
    return TrainingOptions(**given)


def flops_of(config, batch, num_predictions):
    """Returns the FLOPs of a step on a batch; attention counts within sequences only."""
    import numpy as np

    rows, most = batch["input_mask"], batch["next_sentence_labels"].shape[-1]
    lengths = np.stack([(rows == number).sum(axis=1) for number in range(1, most + 1)], axis=1)
    pairs = None if most == 1 else np.square(lengths).sum() / len(rows)
    sequences = (lengths > 0).sum() / len(rows)
    return len(rows) * config.flops_per_instance(rows.shape[1], num_predictions, sequences, pairs)


def main():
    arguments = parse_arguments()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

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
    devices, first = device_names(), next(batches)
    version = sys.modules[arguments.backend].__version__
    print(
        f"{arguments.model} on {describe_devices(devices)}, {arguments.backend} {version}, "
        f"Keras {keras.__version__}, {arguments.precision}: B {arguments.train_batch_size}, "
        f"S {seq_length}, P {predictions}, K {first['next_sentence_labels'].shape[-1]}"
    )
    step = TrainStep(learner)
    started = time.perf_counter()
    float(step(first)["sequences"])
    print(f"first step {time.perf_counter() - started:.1f} s; attention: {step.attention_kernel}")

    def seconds_and_tokens(steps):
        started = time.perf_counter()
        results = [step(next(batches)) for _ in range(steps)]
        # Steps run one after another, so reading the last one's result waits for all.
        float(results[-1]["sequences"])
        seconds = time.perf_counter() - started
        return seconds, *(sum(float(each[name]) for each in results) for name in TOTALS)

    seconds_and_tokens(arguments.warmup_steps)
    timings = [seconds_and_tokens(arguments.steps) for _ in range(arguments.repeats)]
    for name, totals in zip(TOTALS, range(1, 1 + len(TOTALS)), strict=True):
        speeds = [timing[totals] / timing[0] for timing in timings]
        print(f"{name}/s".ljust(11), end=" ")
        print(f"{statistics.median(speeds):,.1f} ({min(speeds):,.1f} to {max(speeds):,.1f})")
    steps_per_second = arguments.steps / statistics.median(timing[0] for timing in timings)
    flops = steps_per_second * flops_of(config, first, predictions)
    print(f"TFLOP/s     {flops / 1e12:,.3f}")
    if peak := devices and peak_flops(devices[0]):
        print(f"MFU         {flops / peak / len(devices):.1%}")
    if memory := peak_memory():
        print(f"memory      {memory / 2**30:,.1f} GiB at most")


if __name__ == "__main__":
    main()
