"""Measures steps of JAX whose sequences are divided over devices, in turns with steps without.

All devices are of this process, on a processor its cores. Without division, each device computes
whole sequences; the batch and the cores are the same. Batches are random, without padding.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

from train_step import BERT_VOCABULARY, synthetic_batch

from modeling.config import PRESETS, BertConfig
from modeling.training_options import TrainingOptions


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=list(PRESETS), default="mini")
    parser.add_argument("--max_seq_length", type=int, default=2048)
    parser.add_argument("--train_batch_size", type=int, default=2)
    parser.add_argument("--num_devices", type=int, default=2, help="the parts of a processor")
    parser.add_argument("--steps", type=int, default=5, help="number of timed steps of each")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    devices = f"--xla_force_host_platform_device_count={arguments.num_devices}"
    os.environ |= {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"{os.getenv('XLA_FLAGS', '')} {devices}"}
    from modeling.step.backend import Replicas, TrainStep
    from modeling.step.learner import new_learner

    length, rows = arguments.max_seq_length, arguments.train_batch_size
    batch = synthetic_batch(rows, length, round(0.15 * length), BERT_VOCABULARY)
    config = BertConfig.preset(arguments.model, BERT_VOCABULARY)
    config = replace(config, max_position_embeddings=length)
    sizes = [n for n in range(1, arguments.num_devices + 1) if arguments.num_devices % n == 0]
    steps, seconds = {}, {size: [] for size in sizes}
    for size in sizes:
        options = TrainingOptions(train_batch_size=rows, context_parallel=size)
        replicas = Replicas(context_parallel=size)
        steps[size] = TrainStep(new_learner(config, options), replicas)
        float(steps[size](batch)["sequences"])
    for _ in range(1 + arguments.steps):
        for size, step in steps.items():
            started = time.perf_counter()
            float(step(batch)["sequences"])
            seconds[size].append(time.perf_counter() - started)
    print(f"BERT-{arguments.model}, S {length}, batch {rows}, devices {arguments.num_devices}")
    whole = statistics.median(seconds[1][1:])
    for size, (_, *timed) in seconds.items():
        median = statistics.median(timed)
        spread = f"{min(timed):.2f} to {max(timed):.2f}"
        print(f"  N {size}: {median:6.2f} s a step ({spread}), {median / whole:.2f} times N 1")


if __name__ == "__main__":
    main()
