"""How fast text becomes records, stage by stage, in one thread; run by `make bench`.

Speeds mean little on a shared machine, so each is shown next to that of a peer in the same run: the
plain tokenizer, which follows the original line by line, and the `tokenizers` package.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
from tokenizers import BertWordPieceTokenizer

from pipeline.corpus import (
    Bucket,
    RowGroup,
    read_documents_of_bucket,
    tokenize_document,
    write_documents,
)
from pipeline.documents import read_documents
from pipeline.inputs import InputFormat, match_files, plan_splits
from pipeline.instances import generate_instances
from pipeline.options import InstanceOptions
from pipeline.records import encode_examples, frame_record
from pipeline.tokenization import FullTokenizer

SAMPLES = Path(__file__).parents[2] / "data_samples"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input_file", default=str(SAMPLES / "english.txt"))
    parser.add_argument("--input_format", default=InputFormat.TEXT, choices=list(InputFormat))
    parser.add_argument("--vocab_file", default=str(SAMPLES / "english_vocab.txt"))
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_predictions_per_seq", type=int, default=20)
    arguments = parser.parse_args()

    documents = [
        document
        for split in plan_splits(match_files([arguments.input_file]), arguments.input_format)
        for file_range in split
        for document in read_documents(file_range, arguments.input_format)
    ]
    compare_tokenizers(documents, arguments.vocab_file)
    measure_instances(documents, arguments)


def compare_tokenizers(documents, vocab_file):
    sentences = [sentence for document in documents for sentence in document.sentences]
    megabytes = sum(len(sentence.encode()) for sentence in sentences) / 1e6
    ours, theirs = FullTokenizer(vocab_file), BertWordPieceTokenizer(vocab_file)
    speeds = {
        "the plain tokenizer": megabytes / seconds(lambda: list(map(ours.tokenize, sentences))),
        "tokenizers, one thread": megabytes / seconds(lambda: theirs.encode_batch(sentences)),
        "encode, first time": megabytes / seconds(lambda: list(map(ours.encode, sentences))),
        "encode, again": megabytes / seconds(lambda: list(map(ours.encode, sentences))),
    }
    print(f"tokenizing {megabytes:.1f} MB")
    for name, speed in speeds.items():
        ratio = speed / speeds["the plain tokenizer"]
        print(f"  {name:<24} {speed:8.2f} MB/s {ratio:8.1f} times the plain tokenizer")


def measure_instances(documents, arguments):
    tokenizer = FullTokenizer(arguments.vocab_file)
    tokenized = [tokenize_document(document, tokenizer, Counter()) for document in documents]
    options = InstanceOptions(
        max_seq_length=arguments.max_seq_length,
        max_predictions_per_seq=arguments.max_predictions_per_seq,
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "split.parquet"
        write_documents(path, {Bucket("train", 0): [found for found in tokenized if found]})
        bucket = read_documents_of_bucket([RowGroup(path, 0)], tokenizer.vocabulary.id_dtype)
    statistics = Counter()

    def instances():
        rng = np.random.default_rng(1)
        return list(generate_instances(bucket, tokenizer.vocabulary, options, rng, statistics))

    built = instances()
    statistics.clear()
    instance_seconds = seconds(instances)
    record_seconds = seconds(
        lambda: [frame_record(record) for arrays in built for record in encode_examples(arrays)]
    )
    count = statistics["instances"]
    print(f"building {count:,} instances of {arguments.max_seq_length} tokens")
    print(f"  {'pairs and masks':<24} {count / instance_seconds:10,.0f} instances/s")
    print(f"  {'records':<24} {count / record_seconds:10,.0f} instances/s")


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
