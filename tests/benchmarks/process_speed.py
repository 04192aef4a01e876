"""Compares the speed of BERT-mini's training with one process and with two, by parts of a step.

Two processes on one machine share its cores, so this shows what the exchange costs, not how
training scales. On a cluster, `pretrain` itself logs the same three parts.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import generate_command, parser_of

BACKENDS = ("tensorflow", "jax")
BATCH_SIZE = 32
STEPS_OF_A_LINE, LINES = 5, 6


def pretrain(backend, num_processes, data_dir, run_dir):
    """Trains and returns the lines of metrics without the first, which includes compilation."""
    clozemill = str(Path(sys.executable).with_name("clozemill"))
    subprocess.run(
        [
            *(clozemill, "launch", f"--processes={num_processes}", "--", "pretrain"),
            *(f"--backend={backend}", "--model=mini", f"--train_batch_size={BATCH_SIZE}"),
            *(f"--data_dir={data_dir}", f"--output_dir={run_dir}", "--num_warmup_steps=0"),
            *(
                f"--num_train_steps={LINES * STEPS_OF_A_LINE}",
                f"--log_every_steps={STEPS_OF_A_LINE}",
            ),
        ],
        stderr=subprocess.DEVNULL,
        check=True,
    )
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines][1:]


def mean(lines, name):
    return sum(line.get(name, 0.0) for line in lines) / len(lines)


def main():
    arguments = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        command = generate_command(
            input_file=arguments.input_file,
            vocab_file=arguments.vocab_file,
            output_dir=data_dir,
            num_shards=2,
        )
        subprocess.run(command, capture_output=True, check=True)
        print(f"BERT-mini, S 128, batch {BATCH_SIZE}, float32; milliseconds per step")
        for backend in BACKENDS:
            for num_processes in (1, 2):
                run_dir = Path(directory) / f"{backend}-{num_processes}"
                lines = pretrain(backend, num_processes, data_dir, run_dir)
                speed = mean(lines, "sequences_per_second")
                step = 1e3 * BATCH_SIZE / speed
                all_reduce = 1e3 * mean(lines, "all_reduce_seconds")
                waiting = step * mean(lines, "input_wait")
                print(
                    f"  {backend:<10} {num_processes} process{'es' if num_processes > 1 else '  '} "
                    f"{speed:6.1f} sequences/s: {step:5.0f} ms, {step - all_reduce - waiting:5.0f} "
                    f"compute, {all_reduce:4.0f} all-reduce, {waiting:3.0f} input"
                )


if __name__ == "__main__":
    main()
