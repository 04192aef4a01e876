"""How fast the trainer reads records and draws their masks, and how long it waits for both.

Makes a data set with `--masking=training`, and draws its masks in one thread on one core, in
batches as training does: unpadded sequences, and packed rows. Reading and parsing are timed on the
same core. Then it trains BERT-mini and reports the share of time spent waiting for a batch.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import CORES, generate_command, parser_of, pinned, run

from pipeline.manifest import DataSet

BATCHES = 100


def parse_arguments():
    parser = parser_of(__doc__)
    parser.add_argument("--max_seq_lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rate", type=float, default=0.15, help="the share of tokens to mask")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train_steps", type=int, default=100, help="of mini; 0: do not train")
    parser.add_argument("--serve", help="measure reading and masks: a data set; used internally")
    return parser.parse_args()


def measure(data_dir, rate, rounds):
    """Prints real tokens per second on this core: reading, and masks."""
    import numpy as np

    from modeling.batches import readable, training_batches
    from modeling.training_masks import TrainingMasks

    data_set = DataSet.read(Path(data_dir))
    masks = TrainingMasks(data_set, 1, rate)
    batch_size = max(1, 32 * 128 // data_set.manifest.row_limits.tokens)
    batches = readable(training_batches(data_set, batch_size, seed=1), data_set)
    next(batches)
    reading, drawing = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        some = list(itertools.islice(batches, BATCHES))
        read = time.perf_counter()
        tokens = sum(int((batch["input_mask"] > 0).sum()) for batch in some)
        counted = time.perf_counter()
        for batch in some:
            masks.draw(batch, np.zeros(batch_size, np.int64), rate)
        reading.append(tokens / (read - started))
        drawing.append(tokens / (time.perf_counter() - counted))
    print(f"  reading and parsing {statistics.median(reading) / 1e6:6.1f} M real tokens/s")
    print(f"  masks               {statistics.median(drawing) / 1e6:6.1f} M real tokens/s")


def generate(arguments, folder, seq_length, packed_row_length):
    data_dir = folder / f"{seq_length}-{packed_row_length}"
    flags = {
        "input_file": arguments.input_file,
        "vocab_file": arguments.vocab_file,
        "max_seq_length": seq_length,
        "packed_row_length": packed_row_length,
        "dupe_factor": 1,
        "masking": "training",
    }
    run(generate_command(output_dir=data_dir, **flags), folder / "log.txt")
    return data_dir


def train(data_dir, folder, steps):
    """Returns the share of time that BERT-mini waits for its batches on all cores."""
    flags = {
        "model": "mini",
        "data_dir": data_dir,
        "output_dir": folder / "run",
        "num_train_steps": steps,
        "log_every_steps": steps // 2,
        "masked_lm_prob": "0.3:0.15",
    }
    command = [generate_command()[0], "pretrain", *(f"--{name}={flags[name]}" for name in flags)]
    run(command, folder / "log.txt")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["input_wait"]


def main():
    arguments = parse_arguments()
    if arguments.serve:
        measure(arguments.serve, arguments.rate, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seq_length in arguments.max_seq_lengths:
            for row_length in (0, seq_length):
                data_dir = generate(arguments, folder, seq_length, row_length)
                print(f"S {seq_length}, {'packed' if row_length else 'padded'}, one core")
                flags = [f"--rate={arguments.rate}", f"--rounds={arguments.rounds}"]
                this = [sys.executable, __file__, f"--serve={data_dir}", *flags]
                output = run(pinned(this, CORES[-1:]), folder / "log.txt").output
                print("\n".join(line for line in output.splitlines() if line.startswith("  ")))
        if arguments.train_steps:
            data_dir = folder / f"{arguments.max_seq_lengths[0]}-0"
            wait = train(data_dir, folder, arguments.train_steps)
            print(f"BERT-mini waits for its batches {wait:.2%} of the time")


if __name__ == "__main__":
    main()
