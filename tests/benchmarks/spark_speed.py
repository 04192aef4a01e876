"""Compares `clozemill generate` on a Spark cluster of two workers with two worker processes.

Measures whole jobs, start-up included, on the text eight times, and the peak memory of the Python
processes that do the work. Then it measures what a shard costs where there are ten times as many.
The cluster is on this machine, so its Java takes from the same two cores.
"""

import contextlib
import hashlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import pyspark
from harness import (
    CORES,
    MEGABYTE,
    TWO_WORKERS,
    generate_command,
    parser_of,
    peaks_of_tree,
    pinned,
    run,
)

SPARK = Path(pyspark.__file__).parent
COPIES = 8
LARGEST_RATIO = 1.25
BUCKETS = 100
PASSES = (1, 5, 10)
ON_LOOPBACK = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, spark_cluster(Path(directory)) as cluster:
        compare(Path(directory), cluster, arguments)


@contextlib.contextmanager
def spark_cluster(directory):
    """Yields the address of a master with two workers of one core, and the workers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"spark://127.0.0.1:{port}"
    processes = [start(directory, "master.Master", "--port", str(port))]
    time.sleep(5)
    for number in range(2):
        folder = str(directory / f"worker{number}")
        memory = ["--cores", "1", "--memory", "700m", "--work-dir", folder]
        processes.append(start(directory, "worker.Worker", *memory, address))
    try:
        yield address, processes[1:]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def start(directory, name, *arguments):
    program = [SPARK / "bin" / "spark-class", f"org.apache.spark.deploy.{name}"]
    command = pinned([*program, "--host", "127.0.0.1", "--webui-port", "0", *arguments], CORES[-2:])
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def compare(directory, cluster, arguments):
    text = arguments.input_file.read_bytes()
    (directory / "text").mkdir()
    for number in range(COPIES):
        (directory / "text" / f"{number}.txt").write_bytes(text)
    address, workers = cluster
    conf = [f"--spark_conf={name}={value}" for name, value in ON_LOOPBACK.items()]

    def generate(on_spark, **flags):
        engine = {"spark_master": address} if on_spark else TWO_WORKERS
        output_dir = directory / "data"
        command = generate_command(
            input_file=directory / "text",
            vocab_file=arguments.vocab_file,
            output_dir=output_dir,
            **engine,
            **flags,
        )
        with python_peaks(workers) as peaks:
            ended = run(pinned([*command, *conf * on_spark], CORES[-2:]), directory / "log.txt")
        digests = hashlib.sha256()
        for shard in sorted(output_dir.glob("*.tfrecord")):
            digests.update(shard.read_bytes())
        shutil.rmtree(output_dir)
        return ended.seconds, max(peaks.values()) if on_spark else ended.peaks[1], digests.digest()

    print(f"{COPIES * len(text) / MEGABYTE:,.0f} MB of text, five passes", flush=True)
    for _ in range(arguments.rounds):
        seconds, peak, expected = generate(False, dupe_factor=5)
        spark_seconds, spark_peak, digest = generate(True, dupe_factor=5)
        print(f"two worker processes: {seconds:5.1f} s, {peak:4.0f} MB in a worker")
        print(f"Spark:                {spark_seconds:5.1f} s, {spark_peak:4.0f} MB in its Python")
        print(f"the same bytes: {digest == expected}")
        print(
            f"Spark over processes: {spark_seconds / seconds:.2f} times as long (target: at most "
            f"{LARGEST_RATIO}), {spark_peak / peak:.2f} of the memory (target: at most 1)",
            flush=True,
        )
    seconds = [
        generate(True, dupe_factor=passes, num_shards=BUCKETS, max_seq_length=64)[0]
        for passes in PASSES
    ]
    for (few, earlier), (many, later) in pairwise(zip(PASSES, seconds, strict=True)):
        cost = (later - earlier) / (BUCKETS * (many - few))
        print(f"{BUCKETS * few:,} to {BUCKETS * many:,} shards: {1000 * cost:.0f} ms for each more")


@contextlib.contextmanager
def python_peaks(workers):
    """Yields the peak memory, in megabytes, of each Python process that Spark's workers start."""
    peaks = {}
    ended = threading.Event()

    def watch():
        while not ended.wait(0.2):
            for worker in workers:
                for pid, peak in peaks_of_tree(worker.pid).items():
                    with contextlib.suppress(OSError):
                        if "python" in Path(f"/proc/{pid}/comm").read_text():
                            peaks[pid] = peak

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
