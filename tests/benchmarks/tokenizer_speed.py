"""Compares the tokenizer's speed with the original BERT's and with the `tokenizers` package.

Each runs in a separate process, in one thread on one core. The targets are for tens of megabytes of
a real corpus, because in a first reading the memo helps only with repeated words. "Again" is a
second reading of the first few megabytes, whose words fit in the bounded memo.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import CORES, MEGABYTE, PEERS, parser_of, pinned, read_documents, run

SENTENCES_PER_BATCH = 1000
MEGABYTES_READ_AGAIN = 5
TARGETS = {
    ("ours, first time", "original"): 8,
    ("ours, again", "original"): 25,
    ("ours, again", "tokenizers"): 8,
}


def main():
    parser = parser_of(__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of runs, whose median is shown"
    )
    parser.add_argument(
        "--contender", choices=CONTENDERS, help="run only this one, in this process"
    )
    arguments = parser.parse_args()
    sentences = "\n".join(read_documents(arguments.input_file)).split("\n")
    if arguments.contender:
        speeds = CONTENDERS[arguments.contender](sentences, str(arguments.vocab_file))
        print(json.dumps(speeds))
    else:
        compare(sentences, arguments)


def compare(sentences, arguments):
    print(
        f"tokenizing {megabytes_of(sentences):.2f} MB, {len(sentences):,} sentences, on one core",
        flush=True,
    )
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({})
        for contender in CONTENDERS:
            rounds[-1] |= measure_in_process(contender, arguments)
    speeds = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    for name, speed in speeds.items():
        print(f"  {name:<18} {speed:8.2f} MB/s")
    for (name, peer), target in TARGETS.items():
        ratio = speeds[name] / speeds[peer]
        print(f"  {name:<18} {ratio:8.1f} times {peer} (target: {target})")


def measure_in_process(contender, arguments):
    command = [
        *(sys.executable, __file__, f"--contender={contender}"),
        *(f"--input_file={arguments.input_file}", f"--vocab_file={arguments.vocab_file}"),
    ]
    environment = {"RAYON_NUM_THREADS": 1}
    if contender == "original":
        environment["PYTHONPATH"] = PEERS
    with tempfile.TemporaryDirectory() as directory:
        finished = run(pinned(command, CORES[-1:]), Path(directory) / "log.txt", **environment)
    return json.loads(finished.output.splitlines()[-1])


def measure_original(sentences, vocab_file):
    from official.nlp.tools.tokenization import FullTokenizer

    tokenizer = FullTokenizer(vocab_file, do_lower_case=True)

    def encode(sentences):
        for sentence in sentences:
            tokenizer.convert_tokens_to_ids(tokenizer.tokenize(sentence))

    return {"original": speed_of(encode, sentences)}


def measure_tokenizers(sentences, vocab_file):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece.from_file(vocab_file, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(sentences):
        for batch in batches_of(sentences):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                _ = encoding.ids

    return {"tokenizers": speed_of(encode, sentences)}


def measure_ours(sentences, vocab_file):
    from pipeline.tokenization import FullTokenizer

    tokenizer = FullTokenizer(vocab_file, do_lower_case=True)

    def encode(sentences):
        for batch in batches_of(sentences):
            tokenizer.encode_sentences(batch)

    speeds = {"ours, first time": speed_of(encode, sentences)}
    few = sentences[: int(len(sentences) * MEGABYTES_READ_AGAIN / megabytes_of(sentences)) + 1]
    encode(few)
    return speeds | {"ours, again": speed_of(encode, few)}


CONTENDERS = {"original": measure_original, "tokenizers": measure_tokenizers, "ours": measure_ours}


def speed_of(encode, sentences):
    """Returns the speed in megabytes per second."""
    gc.collect()
    start = time.perf_counter()
    encode(sentences)
    seconds = time.perf_counter() - start
    return megabytes_of(sentences) / seconds


def megabytes_of(sentences):
    return sum(len(sentence.encode()) for sentence in sentences) / MEGABYTE


def batches_of(sentences):
    for first in range(0, len(sentences), SENTENCES_PER_BATCH):
        yield sentences[first : first + SENTENCES_PER_BATCH]


if __name__ == "__main__":
    main()
