"""Compares training on packed rows with training on the same text padded, in real tokens a second.

Makes both data sets, and trains on each in a separate process; the two take turns. Batches have the
same number of positions. Compilation and the first step are not timed. Memory is the largest
resident size of the process up to its end.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import SAMPLES, generate_command, parser_of, run
from train_step import BERT_VOCABULARY  # noqa: F401 - puts the repository on the path

PACKED, PADDED = "packed", "padded"
MEGABYTE = 1_000_000


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


def serve(data_dir, model, positions):
    """Makes a step for each line on stdin; prints real tokens a second, and the memory so far."""
    from modeling.batches import readable, training_batches
    from modeling.config import BertConfig
    from modeling.step.backend import TrainStep
    from modeling.step.learner import new_learner
    from modeling.training_options import TrainingOptions
    from pipeline.manifest import DataSet

    data_set = DataSet.read(Path(data_dir))
    manifest = data_set.manifest
    batch_size = max(1, positions // manifest.row_limits.tokens)
    config = BertConfig.preset(model, manifest.vocab_size)
    step = TrainStep(new_learner(config, TrainingOptions(train_batch_size=batch_size)))
    batches = readable(training_batches(data_set, batch_size, seed=0), data_set)
    # The mean of all, because a few batches may have more tokens or fewer.
    shards = manifest.shards_of("train")
    tokens = sum(each.tokens for each in shards) / sum(each.instances for each in shards)
    float(step(next(batches))["tokens"])
    print("ready", flush=True)
    for _ in sys.stdin:
        batch = next(batches)
        started = time.perf_counter()
        float(step(batch)["tokens"])
        speed = batch_size * tokens / (time.perf_counter() - started)
        print(speed, peak_of_this_process(), flush=True)
    os._exit(0)  # TensorFlow's reader may delay the end


def peak_of_this_process():
    """Returns the largest resident size so far, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if "VmHWM" in line) / MEGABYTE


def start(data_dir, backend, model, positions):
    process = subprocess.Popen(
        [sys.executable, __file__, f"--positions={positions}", "--serve", str(data_dir), model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if process.stdout.readline() != "ready\n":
        sys.exit(f"training failed:\n{process.communicate()[1]}")
    return process


def step_of(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return tuple(map(float, process.stdout.readline().split()))


def compare(data_dirs, backend, model, arguments):
    processes = {
        name: start(data_dir, backend, model, arguments.positions)
        for name, data_dir in data_dirs.items()
    }
    steps = {name: [] for name in processes}
    for _ in range(arguments.rounds):
        for name, process in processes.items():
            steps[name].append(step_of(process))
    for process in processes.values():
        process.communicate()
    speeds = {name: statistics.median(speed for speed, _ in each) for name, each in steps.items()}
    print(f"{model}, {backend}, S {arguments.max_seq_length}")
    for name, speed in speeds.items():
        memory = max(peak for _, peak in steps[name])
        print(f"  {name}  {speed:10,.0f} real tokens/s  {memory:8,.0f} MB at most")
    print(f"  packed rows: {speeds[PACKED] / speeds[PADDED]:.2f} times as many", flush=True)


def main():
    arguments = parse_arguments()
    if arguments.serve:
        serve(*arguments.serve, arguments.positions)
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
