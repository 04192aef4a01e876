"""Compares the speed of `clozemill generate` with that of the TensorFlow Model Garden's script.

Measures whole jobs in separate processes, start-up included, with the same flags on both sides:
first on one core each, then with two worker processes on two cores. The targets are for tens of
megabytes of text; with less text, start-up dominates.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import (
    CORES,
    MEGABYTE,
    PEERS,
    TWO_WORKERS,
    generate_command,
    model_garden_command,
    parser_of,
    pinned,
    read_documents,
    run,
    write_documents,
)

SMALLEST_MEGABYTES = 4
FLAGS = {
    "masked_lm_prob": 0.15,
    "short_seq_prob": 0.1,
    "dupe_factor": 5,
    "do_whole_word_mask": True,
    "do_lower_case": True,
}
S128 = {"max_seq_length": 128, "max_predictions_per_seq": 20}
S512 = {"max_seq_length": 512, "max_predictions_per_seq": 76}


@dataclass(frozen=True)
class Job:
    """A finished job.

    Attributes:
      megabytes: the size of the text that it read.
      seconds: its wall time, start-up included.
      instances: the number of instances that it made.
      peak_megabytes: the peak memory of its largest process.
    """

    megabytes: float
    seconds: float
    instances: int
    peak_megabytes: float

    @property
    def speed(self):
        return self.instances / self.seconds


def main():
    parser = parser_of(__doc__)
    parser.add_argument(
        "--peer_megabytes",
        type=float,
        help="megabytes of text for the Model Garden's script (default: all); it needs minutes for "
        "40, but with less text its start-up weighs more, which favours ours",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of runs of ours, whose median is shown"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        compare(Path(directory), arguments)


def compare(directory, arguments):
    text, peer_text = directory / "text.txt", directory / "peer_text.txt"
    documents = read_documents(arguments.input_file)
    megabytes = max(arguments.input_file.stat().st_size / MEGABYTE, SMALLEST_MEGABYTES)
    write_documents(text, documents, megabytes)
    write_documents(peer_text, documents, min(arguments.peer_megabytes or megabytes, megabytes))
    flags = FLAGS | {"vocab_file": arguments.vocab_file}

    def ours(cores, **more_flags):
        jobs = [
            generate(text, directory, cores, flags | more_flags) for _ in range(arguments.rounds)
        ]
        return sorted(jobs, key=lambda job: job.seconds)[len(jobs) // 2]

    print(f"{'':<19} {'text':>8} {'wall':>8} {'instances':>10} {'/s':>9} {'largest process':>16}")
    peer = model_garden(peer_text, directory, flags | S128)
    show("S 128 Model Garden", peer)
    one = ours(CORES[-1:], **S128)
    show("S 128 one worker", one, f"{one.speed / peer.speed:.1f} times the peer (target: 20)")
    two = ours(CORES[-2:], **S128, **TWO_WORKERS)
    show("S 128 two workers", two, f"{two.speed / one.speed:.2f} times one worker (target: 1.7)")
    peer = model_garden(peer_text, directory, flags | S512)
    show("S 512 Model Garden", peer)
    one = ours(CORES[-1:], **S512)
    show("S 512 one worker", one, f"{one.speed / peer.speed:.1f} times the peer")


def show(name, job, comparison=""):
    print(
        f"{name:<19} {job.megabytes:5.1f} MB {job.seconds:6.1f} s {job.instances:10,} "
        f"{job.speed:9,.0f} {job.peak_megabytes:13,.0f} MB  {comparison}".rstrip(),
        flush=True,
    )


def generate(text, directory, cores, flags):
    output_dir = directory / "data"
    command = generate_command(input_file=text, output_dir=output_dir, **flags)
    finished = run(pinned(command, cores), directory / "log.txt")
    manifest = json.loads((output_dir / "manifest.json").read_text("utf-8"))
    shutil.rmtree(output_dir)
    return job_of(text, finished, sum(shard["instances"] for shard in manifest["shards"]))


def model_garden(text, directory, flags):
    output_file = directory / "peer.tfrecord"
    command = model_garden_command(input_file=text, output_file=output_file, **flags)
    finished = run(pinned(command, CORES[-1:]), directory / "log.txt", PYTHONPATH=PEERS)
    output_file.unlink()
    return job_of(text, finished, int(re.search(r"Wrote (\d+) total", finished.output)[1]))


def job_of(text, finished, instances):
    megabytes = text.stat().st_size / MEGABYTE
    return Job(megabytes, finished.seconds, instances, max(finished.peaks))


if __name__ == "__main__":
    main()
