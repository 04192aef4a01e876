"""How fast tokenized documents become masked instances, and instances become records.

Measures one bucket in memory, in one thread on one core: the work of `generate` without reading,
tokenizing and writing.
"""

import itertools
import os
import statistics
import time
from collections import Counter

import numpy as np
from harness import CORES, parser_of, read_documents

from pipeline.corpus import DocumentBatch
from pipeline.options import InstanceOptions
from pipeline.records import encode_examples, frame_record
from pipeline.shards import make_instances
from pipeline.tokenization import FullTokenizer

CHARACTERS = 16_000_000  # about a bucket of `generate`
ROUNDS = 3


def main():
    arguments = parser_of(__doc__).parse_args()
    os.sched_setaffinity(0, CORES[-1:])
    tokenizer = FullTokenizer(arguments.vocab_file)
    documents = tokenize(arguments.input_file, tokenizer)
    for seq_length, num_predictions in ((128, 20), (512, 76)):
        options = InstanceOptions(
            max_seq_length=seq_length, max_predictions_per_seq=num_predictions
        )
        measure(documents, tokenizer.vocabulary, options)


def tokenize(path, tokenizer):
    """Returns a bucket of documents for `generate_instances`; repeats the file if necessary."""
    sentences, document_ends, characters = [], [], 0
    for document in itertools.cycle(read_documents(path)):
        encoded = map(tokenizer.encode, document.split("\n"))
        sentences.extend(ids for ids in encoded if len(ids))
        document_ends.append(len(sentences))
        characters += len(document)
        if characters >= CHARACTERS:
            break
    ids = np.concatenate(sentences)
    return DocumentBatch(
        ids=ids,
        word_starts=tokenizer.vocabulary.begins_word[ids],
        sentence_ends=np.cumsum(list(map(len, sentences))),
        document_ends=np.array(document_ends),
    )


def measure(documents, vocabulary, options):
    instance_seconds, record_seconds = [], []
    for _ in range(ROUNDS):
        counts = Counter()
        rng = np.random.default_rng(1)
        start = time.perf_counter()
        batches = list(make_instances(documents, vocabulary, options, rng, counts))
        between = time.perf_counter()
        for batch in batches:
            b"".join(map(frame_record, encode_examples(batch)))
        record_seconds.append(time.perf_counter() - between)
        instance_seconds.append(between - start)
    count = counts["instances"]
    print(f"building {count:,} instances of {options.max_seq_length} tokens on one core")
    print(f"  pairs and masks {count / statistics.median(instance_seconds):10,.0f} instances/s")
    print(f"  records         {count / statistics.median(record_seconds):10,.0f} instances/s")


if __name__ == "__main__":
    main()
