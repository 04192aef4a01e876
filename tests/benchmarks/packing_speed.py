"""Compares training on packed rows with training on the same text padded, in real tokens a second.

Makes both data sets, and trains on each in a separate process; the two take turns. Batches have the
same number of positions. Reading is timed, compilation and the first step are not. Memory is the
largest resident size of the process up to its end.
"""

import os
import statistics
import tempfile
from pathlib import Path

from harness import SAMPLES, Server, generate_command, parser_of, run, serve

from pipeline.manifest import DataSet

PACKED, PADDED = "packed", "padded"


def parse_arguments():
    parser = parser_of(__doc__)
    parser.set_defaults(
        input_file=SAMPLES / "chinese.txt", vocab_file=SAMPLES / "chinese_vocab.txt"
    )
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    parser.add_argument("--models", nargs="+", default=["mini"])
    parser.add_argument("--max_seq_length", type=int, default=512, help="S, and R of the rows")
    parser.add_argument("--positions", type=int, default=8192, help="of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each data set")
    parser.add_argument("--serve", nargs=2, help="train: a data set and a model; used internally")
    return parser.parse_args()


def steps_on(data_dir, model, positions):
    """Returns a function that makes a training step on a data set."""
    from modeling.batches import readable, training_batches
    from modeling.config import BertConfig
    from modeling.step.backend import TrainStep
    from modeling.step.learner import new_learner
    from modeling.training_options import TrainingOptions

    data_set = DataSet.read(Path(data_dir))
    batch_size = batch_size_of(data_set.manifest, positions)
    config = BertConfig.preset(model, data_set.manifest.vocab_size)
    step = TrainStep(new_learner(config, TrainingOptions(train_batch_size=batch_size)))
    batches = readable(training_batches(data_set, batch_size, seed=0), data_set)
    return lambda: float(step(next(batches))["tokens"])


def batch_size_of(manifest, positions):
    return max(1, positions // manifest.row_limits.tokens)


def real_tokens_of_batch(data_dir, positions):
    """Returns the mean over the data set, because a few batches may have more tokens or fewer."""
    manifest = DataSet.read(data_dir).manifest
    shards = manifest.shards_of("train")
    instances = sum(shard.instances for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    return batch_size_of(manifest, positions) * tokens / instances


def compare(data_dirs, backend, model, arguments):
    this = (__file__, f"--positions={arguments.positions}", "--serve")
    servers = {
        name: Server(*this, data_dir, model, KERAS_BACKEND=backend)
        for name, data_dir in data_dirs.items()
    }
    seconds = {name: [] for name in servers}
    for _ in range(arguments.rounds):
        for name, server in servers.items():
            seconds[name].append(server.answer())
    memory = {name: server.peak_megabytes() for name, server in servers.items()}
    for server in servers.values():
        server.end()
    speeds = {
        name: real_tokens_of_batch(data_dir, arguments.positions) / statistics.median(seconds[name])
        for name, data_dir in data_dirs.items()
    }
    print(f"{model}, {backend}, S {arguments.max_seq_length}")
    for name, speed in speeds.items():
        print(f"  {name}  {speed:10,.0f} real tokens/s  {memory[name]:8,.0f} MB at most")
    print(f"  packed rows: {speeds[PACKED] / speeds[PADDED]:.2f} times as many", flush=True)


def main():
    arguments = parse_arguments()
    if arguments.serve:
        serve(steps_on(*arguments.serve, arguments.positions))
        os._exit(0)  # TensorFlow's reader may delay the end
    with tempfile.TemporaryDirectory() as folder:
        data_dirs = {name: Path(folder, name) for name in (PADDED, PACKED)}
        for name, data_dir in data_dirs.items():
            command = generate_command(
                input_file=arguments.input_file,
                vocab_file=arguments.vocab_file,
                output_dir=data_dir,
                tokenized_dir=Path(folder, "tokenized"),
                max_seq_length=arguments.max_seq_length,
                dupe_factor=1,
                packed_row_length=arguments.max_seq_length if name == PACKED else 0,
            )
            print(name, run(command, Path(folder, "log")).output.splitlines()[-1])
        for model in arguments.models:
            for backend in arguments.backends:
                compare(data_dirs, backend, model, arguments)


if __name__ == "__main__":
    main()
