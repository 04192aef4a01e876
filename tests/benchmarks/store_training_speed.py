"""Compares training from a store with training from a disk, and reading with StreamingDataset.

The store is a server of S3 on loopback, in a process of its own, written in Python. Each reader has
an empty cache. MosaicML's StreamingDataset is in an environment of its own: it gets the same
records as arrays, in one process, in batches of 32, from the same server.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STREAMING = Path(sys.prefix) / "streaming" / "bin" / "python"
BATCH_SIZE = 32
RECORDS_IN_A_FILE = 50_000
PASSES_TO_READ = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", type=Path, help="a data set; by default of the demo's text")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turns")
    parser.add_argument("--num_train_steps", type=int, default=80)
    parser.add_argument("--streaming", type=Path, default=STREAMING, help="Python of the peer")
    parser.add_argument("--only", choices=("reading", "training"), help="measure only that")
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        {"write": write_streaming, "read": read_streaming}[arguments.peer[0]](*arguments.peer[1:])
        return
    from store_speed import store

    with tempfile.TemporaryDirectory() as directory, store() as (environment, _):
        os.environ |= environment
        compare(Path(directory), arguments)


def compare(directory, arguments):
    from pipeline.manifest import DataSet
    from pipeline.storage import location

    data_dir = arguments.data_dir or generate(directory)
    url = location("s3://bucket/data")
    for file in data_dir.iterdir():
        (url / file.name).upload(file)
    manifest = DataSet.read(data_dir).manifest
    shards = [each for each in manifest.shards_of("train") if each.pass_index < PASSES_TO_READ]
    part = dataclasses.replace(manifest, shards=shards)
    local, remote = DataSet(data_dir, part), DataSet(url, part)
    records = sum(shard.instances for shard in shards)
    megabytes = sum(shard.bytes for shard in shards) / 1e6
    print(f"{records:,} records to read, in {len(shards)} shards, {megabytes:,.0f} MB", flush=True)
    if arguments.only != "training":
        compare_reading(directory, arguments, local, remote, records)
    for _ in range(arguments.rounds if arguments.only != "reading" else 0):
        compare_training(directory, data_dir, url, arguments.num_train_steps)


def compare_reading(directory, arguments, local, remote, records):
    """Two passes of records, from a disk, from the store, and with StreamingDataset."""
    peer = [arguments.streaming, __file__, "--peer"]
    if has_peer := arguments.streaming.exists():
        write_records(local, directory / "arrays")
        subprocess.run([*peer, "write", directory / "arrays", "s3://bucket/mds"], check=True)
    else:
        print(f"without StreamingDataset, because there is no {arguments.streaming}")
    for _ in range(arguments.rounds):
        disk, first_of_disk = read(local, records, directory)
        ours, first = read(remote, records, directory)
        print(
            f"read from the disk:  {disk:9,.0f} records/s, first batch after {first_of_disk:.2f} s"
        )
        print(f"read from the store: {ours:9,.0f} records/s, first batch after {first:.2f} s")
        if has_peer:
            command = [*peer, "read", "s3://bucket/mds", directory / "of streaming"]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            theirs = float(printed.split()[-1])
            print(f"StreamingDataset:    {theirs:9,.0f} records/s")
            print(
                f"the store over StreamingDataset: {ours / theirs:.1f} times (target: at least 8)"
            )


def compare_training(directory, data_dir, url, num_train_steps):
    """`pretrain` of BERT-mini on both, whole commands."""
    speeds = {}
    for name, place in (("disk", data_dir), ("store", url)):
        lines, seconds = pretrain(directory, place, num_train_steps)
        instances = [line["sequences_per_second"] for line in lines[1:]]
        speeds[name] = sum(instances) / len(instances)
        waits = max(line["input_wait"] for line in lines[1:])
        print(
            f"pretrain from the {name}: {speeds[name]:.1f} sequences/s, waits at most {waits:.2%} "
            f"for input, the whole command takes {seconds:.1f} s",
            flush=True,
        )
    ratio = speeds["store"] / speeds["disk"]
    print(f"store over disk: {ratio:.1%} of the sequences/s (target: at least 98 %)")


def generate(directory):
    """A data set of the demo's text, in 70 shards a pass, more than one group of them."""
    from harness import SAMPLES, generate_command, run

    command = generate_command(
        input_file=SAMPLES / "english.txt",
        vocab_file=SAMPLES / "english_vocab.txt",
        output_dir=directory / "data",
        dupe_factor=10,
        num_shards=70,
    )
    run(command, directory / "log.txt")
    return directory / "data"


def write_records(data_set, folder):
    """Writes the train records as arrays, some files of them."""
    import numpy as np

    from modeling.batches import batches_in_order, readable

    folder.mkdir()
    shards = data_set.manifest.shards_of("train")
    read = readable(batches_in_order(data_set, shards, RECORDS_IN_A_FILE), data_set)
    for number, batch in enumerate(read):
        np.savez(folder / f"{number}.npz", **batch)


def read(data_set, records, directory):
    """The records a second of one epoch, and the seconds to the first batch, with a cold cache."""
    from modeling.batches import most_bytes_at_once, readable, training_batches
    from modeling.shard_cache import ShardCache, in_cache

    with tempfile.TemporaryDirectory(dir=directory) as cache_dir:
        cache = ShardCache(Path(cache_dir))
        most = most_bytes_at_once(data_set.manifest, 1, records, [0], 1)
        cache.require(most, 2 * most)
        data_set = in_cache(data_set, cache)
        started = time.perf_counter()
        found = readable(training_batches(data_set, BATCH_SIZE, seed=1), data_set)
        with contextlib.closing(cache), contextlib.closing(found) as batches:
            next(batches)
            first = time.perf_counter() - started
            count = records // BATCH_SIZE - 1
            assert sum(1 for _ in itertools.islice(batches, count)) == count
            return records / (time.perf_counter() - started), first


def pretrain(directory, data_dir, num_train_steps):
    """The lines of metrics of a run of BERT-mini, and the seconds of the command."""
    from harness import run

    run_dir, cache_dir = directory / "run", directory / "cache"
    command = [
        str(Path(sys.executable).with_name("clozemill")),
        "pretrain",
        *("--model=mini", f"--train_batch_size={BATCH_SIZE}", f"--cache_dir={cache_dir}"),
        *(f"--data_dir={data_dir}", f"--output_dir={run_dir}", "--log_every_steps=20"),
        *(f"--num_train_steps={num_train_steps}", "--save_checkpoints_steps=100000"),
    ]
    ended = run(command, directory / "log.txt")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run_dir)
    shutil.rmtree(cache_dir, ignore_errors=True)
    return lines, ended.seconds


def write_streaming(arrays, url):
    """Writes the arrays as shards of StreamingDataset."""
    import numpy as np
    from streaming import MDSWriter

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    files = sorted(Path(arrays).iterdir(), key=lambda path: int(path.stem))
    with np.load(files[0]) as first:
        columns = {
            name: f"ndarray:{first[name].dtype}:{','.join(map(str, first[name].shape[1:]))}"
            for name in first
        }
    with MDSWriter(out=url, columns=columns) as writer:
        for file in files:
            with np.load(file) as loaded:
                batch = {name: loaded[name] for name in loaded}
            for number in range(len(batch["input_ids"])):
                writer.write({name: values[number] for name, values in batch.items()})


def read_streaming(url, cache_dir):
    """Prints the records a second of one epoch."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    shutil.rmtree(cache_dir, ignore_errors=True)
    started = time.perf_counter()
    data_set = StreamingDataset(
        remote=url, local=cache_dir, batch_size=BATCH_SIZE, shuffle=True, shuffle_seed=1
    )
    count = sum(len(batch["input_ids"]) for batch in DataLoader(data_set, batch_size=BATCH_SIZE))
    print(count / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
