"""Compares how fast and how well near-duplicates are found with text-dedup, on planted copies.

A copy is added to every document: of any similarity from 0.6 to 1, with other words, a part cut
off, or a part added. Each program finds those of 0.8 or more on one core, start-up included, and
is judged by the exact Jaccard index of all pairs, of the shingles that it uses itself: five
tokens here, five words there. Seconds are those of the processor, so that what else runs on the
core hardly counts.

* Recall: the share of the pairs of at least 0.8 of which not both stay.
* Precision: the share of the documents left out that belong to such a pair.
"""

import itertools
import json
import random
import re
import resource
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path

import numpy as np
from harness import CORES, MEGABYTE, parser_of, pinned, read_documents, run

SIMILARITY = 0.8
SHINGLE = 5
TEXT_DEDUP = Path(sys.prefix) / "text_dedup" / "bin" / "python"
TARGET_MEGABYTES_PER_SECOND = 20
TARGET_RATIO = 2
TARGET_SHARE = 0.95
# Prints the numbers of the documents that text-dedup has kept.
READ_KEPT = (
    "import sys, json, datasets; print(json.dumps(datasets.load_from_disk(sys.argv[1])['id'][:]))"
)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--contender", action="store_true", help="run only ours, in this process")
    parser.add_argument("--directory", type=Path, help="where that finds corpus.jsonl")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest is shown")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(find_ours(arguments.directory, arguments.vocab_file)))
        return
    documents = planted(read_documents(arguments.input_file), random.Random(1))
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with (directory / "corpus.jsonl").open("w") as file:
            for number, text in enumerate(documents):
                file.write(json.dumps({"id": number, "text": text}) + "\n")
        compare(documents, directory, arguments)


def compare(documents, directory, arguments):
    megabytes = sum(len(text.encode()) for text in documents) / MEGABYTE
    print(f"{len(documents):,} documents, {megabytes:.1f} MB of text, one core", flush=True)
    ours, peers = [], []
    for _ in range(arguments.rounds):
        ours.append(run_ours(directory, arguments))
        peers.append(run_text_dedup(directory, len(documents)))
    seconds, found = min(ours, key=itemgetter(0))
    seconds_of_peer, dropped_by_peer = min(peers, key=itemgetter(0))
    tokens = tokens_of(documents, arguments.vocab_file)
    words = [re.split(r"\W", text.lower()) for text in documents]
    report("Clozemill, tokenizing included", megabytes / seconds, found["dropped"], tokens)
    report("text-dedup", megabytes / seconds_of_peer, dropped_by_peer, words)
    speed = megabytes / min(each["seconds"] for _, each in ours)
    print(f"  duplicates alone: {speed:.1f} MB/s (target: {TARGET_MEGABYTES_PER_SECOND})")
    print(f"  {seconds_of_peer / seconds:.1f} times text-dedup (target: {TARGET_RATIO})")


def report(name, speed, dropped, units):
    """Prints the speed of a program, and its recall and precision on documents as lists of units.

    Args:
      name: that of the program.
      speed: in megabytes per second.
      dropped: the numbers of the documents that it has left out.
      units: the documents as lists of what its shingles are made of.
    """
    pairs = similar_pairs(units)
    dropped = set(dropped)
    recall = np.mean([not dropped.isdisjoint(pair) for pair in pairs])
    precision = len(dropped & set(itertools.chain(*pairs))) / len(dropped)
    print(
        f"  {name:<31} {speed:6.1f} MB/s; recall {recall:.3f}, precision {precision:.3f} "
        f"(target: {TARGET_SHARE}) of {len(pairs):,} pairs",
        flush=True,
    )


def planted(documents, rng):
    """The documents, each with a copy, in random order."""
    copies = [copy_of(text.split(" "), rng) for text in documents]
    documents = [*documents, *map(" ".join, copies)]
    rng.shuffle(documents)
    return documents


def copy_of(words, rng):
    similarity = rng.uniform(0.6, 1)
    others = rng.sample(words, len(words))
    match rng.randrange(3):
        case 0:
            kept = (2 * similarity / (1 + similarity)) ** (1 / SHINGLE)
            pairs = zip(words, others, strict=True)
            return [word if rng.random() < kept else other for word, other in pairs]
        case 1:
            return words[: int(similarity * len(words))]
    return [*words, *others[: int((1 / similarity - 1) * len(words))]]


def similar_pairs(documents):
    """All pairs of documents whose shingles have at least the exact Jaccard index."""
    numbers = {}
    members, owners = [], []
    for number, units in enumerate(documents):
        shingles = {
            numbers.setdefault(shingle, len(numbers))
            for shingle in zip(*(units[start:] for start in range(SHINGLE)), strict=False)
        }
        members.append(np.fromiter(shingles, np.int64, len(shingles)))
        owners.append(np.full(len(shingles), number))
    sizes = np.array(list(map(len, members)))
    shingles, owners = map(np.concatenate, (members, owners))
    order = np.lexsort((owners, shingles))
    shingles, owners = shingles[order], owners[order]
    common = []
    for distance in itertools.count(1):
        is_common = shingles[distance:] == shingles[:-distance]
        if not np.any(is_common):
            break
        common.append(owners[:-distance][is_common] * len(sizes) + owners[distance:][is_common])
    codes, counts = np.unique(np.concatenate(common), return_counts=True)
    first, second = divmod(codes, len(sizes))
    is_similar = counts >= SIMILARITY * (sizes[first] + sizes[second] - counts)
    return list(zip(first[is_similar].tolist(), second[is_similar].tolist(), strict=True))


def tokens_of(documents, vocab_file):
    from pipeline.tokenization import FullTokenizer

    tokenizer = FullTokenizer(vocab_file)
    return [tokenizer.encode(text.replace("\n", " ")).tolist() for text in documents]


def run_ours(directory, arguments):
    command = [
        *(sys.executable, __file__, "--contender", f"--directory={directory}"),
        f"--vocab_file={arguments.vocab_file}",
    ]
    seconds, finished = run_on_a_core(command, directory)
    return seconds, json.loads(finished.output.splitlines()[-1])


def run_on_a_core(command, directory, **environment):
    """Runs a command; returns the seconds of the processor that it took, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run(pinned(command, CORES[-1:]), directory / "log.txt", **environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, finished


def find_ours(directory, vocab_file):
    """Runs the stages up to the lists of duplicates; returns what they drop, and their seconds."""
    import pyarrow.parquet as pq

    from pipeline.buckets import BucketPlan
    from pipeline.directories import Directories
    from pipeline.duplicate_stages import stages_of_duplicates
    from pipeline.inputs import match_files
    from pipeline.options import GenerateOptions
    from pipeline.portions import plan_portions
    from pipeline.stages import TokenizePortion, Work

    with tempfile.TemporaryDirectory() as folder:
        options = GenerateOptions(
            [str(directory / "corpus.jsonl")],
            vocab_file,
            Path(folder) / "data",
            drop_near_duplicates=SIMILARITY,
        )
        files = match_files(options.input_patterns)
        directories = Directories(options.output_dir, None, "duplicates")
        directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
        buckets = BucketPlan.for_corpus(sum(file.text_bytes for file in files))
        work = Work(options, plan_portions(files), buckets, [], directories)
        do(TokenizePortion(work), enumerate(work.portions))
        started = time.process_time()
        for stage, items in stages_of_duplicates(work):
            made = do(stage, items)
        seconds = time.process_time() - started
        tables = map(pq.read_table, made)
        offsets = {offset for table in tables for offset in table["offset"].to_pylist()}
    with (directory / "corpus.jsonl").open("rb") as file:
        starts = itertools.accumulate(map(len, file), initial=0)
        dropped = [number for number, start in enumerate(starts) if start in offsets]
    return {"seconds": seconds, "dropped": dropped}


def do(stage, items):
    stage.load()
    return [made for item in items for made in stage.process(item)]


def run_text_dedup(directory, num_documents):
    output = directory / "kept"
    command = [
        *(str(TEXT_DEDUP), "-m", "text_dedup.minhash", "--path=json", "--split=train"),
        *(f"--data_files={directory / 'corpus.jsonl'}", f"--cache_dir={directory / 'cache'}"),
        *(f"--output={output}", "--column=text", f"--threshold={SIMILARITY}", "--num_proc=1"),
        "--batch_size=10000",
    ]
    environment = {"HF_HOME": directory / "cache", "HF_HUB_OFFLINE": 1}
    seconds, _ = run_on_a_core(command, directory, **environment)
    kept = run([str(TEXT_DEDUP), "-c", READ_KEPT, str(output)], directory / "kept.txt")
    return seconds, sorted(
        set(range(num_documents)) - set(json.loads(kept.output.splitlines()[-1]))
    )


if __name__ == "__main__":
    main()
