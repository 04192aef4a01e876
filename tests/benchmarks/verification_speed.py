"""Compares training that verifies its shards with training that does not, in turns.

The first group of shards, which is hashed as soon as training begins, has `--megabytes`.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import MEGABYTE, generate_command, parser_of

from pipeline.manifest import DataSet

BACKENDS = ("tensorflow", "jax")
FLAGS = ("--verify_data", "--noverify_data")
NUM_SHARDS = 64


def repeat_shard(data_set, directory, megabytes):
    """Writes a data set of `NUM_SHARDS` equal shards: the first one of another, repeated."""
    shard = data_set.manifest.shards_of("train")[0]
    times = int(megabytes * MEGABYTE / NUM_SHARDS / shard.bytes)
    content = data_set.path_of(shard).read_bytes() * times
    described = dataclasses.replace(
        shard,
        **{name: times * getattr(shard, name) for name in ("instances", "tokens", "bytes")},
        sha256=hashlib.sha256(content).hexdigest(),
    )
    names = [f"train-{i:05d}-of-{NUM_SHARDS:05d}.tfrecord" for i in range(NUM_SHARDS)]
    directory.mkdir()
    for name in names:
        (directory / name).write_bytes(content)
    (directory / "vocab.txt").write_bytes(data_set.vocabulary.read_bytes())
    shards = [dataclasses.replace(described, name=name) for name in names]
    # Statistics must agree with the shards; training needs none.
    dataclasses.replace(data_set.manifest, shards=shards, statistics={}).write(directory)


def pretrain(backend, data_dir, run_dir, steps, flag):
    """The seconds that a whole run takes, start-up included, and those of its cores."""
    clozemill = str(Path(sys.executable).with_name("clozemill"))
    started, before = time.perf_counter(), os.times()
    subprocess.run(
        [
            *(clozemill, "pretrain", f"--backend={backend}", "--model=mini", flag),
            *(f"--data_dir={data_dir}", f"--output_dir={run_dir}", "--num_warmup_steps=0"),
            *(f"--num_train_steps={steps}", "--save_checkpoints_steps=1000"),
        ],
        capture_output=True,
        check=True,
    )
    after = os.times()
    cores = after.children_user + after.children_system
    return time.perf_counter() - started, cores - before.children_user - before.children_system


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120, help="of a run; about a minute")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        small, data_dir = Path(directory) / "small", Path(directory) / "data"
        command = generate_command(
            input_file=arguments.input_file,
            vocab_file=arguments.vocab_file,
            output_dir=small,
            num_shards=1,
        )
        subprocess.run(command, capture_output=True, check=True)
        repeat_shard(DataSet.read(small), data_dir, arguments.megabytes)
        print(
            f"BERT-mini, S 128, batch 32, float32; {arguments.steps} steps, {arguments.megabytes} "
            f"MB in {NUM_SHARDS} shards; seconds of a whole run, and of its cores"
        )
        for backend in arguments.backend or BACKENDS:
            totals = dict.fromkeys(FLAGS, (0.0, 0.0))
            for turn in range(arguments.turns):
                for flag in FLAGS if turn % 2 else reversed(FLAGS):
                    run_dir = Path(directory) / f"{backend}{turn}{flag}"
                    wall, cores = pretrain(backend, data_dir, run_dir, arguments.steps, flag)
                    print(f"  {backend:<10} {flag:<15} {wall:6.1f} {cores:6.1f}", flush=True)
                    totals[flag] = totals[flag][0] + wall, totals[flag][1] + cores
            (wall, cores), (other_wall, other_cores) = totals.values()
            print(
                f"  {backend:<10} {'ratio':<15} {wall / other_wall:6.3f} {cores / other_cores:6.3f}"
            )


if __name__ == "__main__":
    main()
