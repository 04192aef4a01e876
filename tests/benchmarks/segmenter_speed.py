"""Measures how fast words are found in text of any script, on one core.

The text is one of the segmenter's language, the vocabulary cased. What a package takes alone is
beside each figure: it is the limit. `BertJapaneseTokenizer` of transformers is the peer of the
pre-tokenizers.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import CORES, MEGABYTE, parser_of, pinned, read_documents, run

SENTENCES_PER_BATCH = 1000


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--word_segmenter", help="find words for masks with this segmenter")
    parser.add_argument("--pre_tokenizer", help="find words before WordPiece with this one")
    parser.add_argument("--megabytes", type=float, default=5, help="how much of the text to read")
    parser.add_argument("--rounds", type=int, default=3, help="number of runs: shows the median")
    parser.add_argument("--contender", help="run only this one, in this process")
    arguments = parser.parse_args()
    if bool(arguments.word_segmenter) == bool(arguments.pre_tokenizer):
        parser.error("give --word_segmenter or --pre_tokenizer")
    contenders = SEGMENTING if arguments.word_segmenter else PRE_TOKENIZING
    if arguments.contender:
        print(json.dumps(speed_of(contenders[arguments.contender](arguments), arguments)))
        return
    name = arguments.word_segmenter or arguments.pre_tokenizer
    print(f"{name}, {arguments.input_file}, on one core", flush=True)
    for contender in contenders:
        speeds = [measure_in_process(contender) for _ in range(arguments.rounds)]
        print(f"  {contender:<14} {statistics.median(speeds):8.2f} MB/s", flush=True)


def measure_in_process(contender):
    command = [sys.executable, *sys.argv, f"--contender={contender}"]
    with tempfile.TemporaryDirectory() as directory:
        finished = run(pinned(command, CORES[-1:]), Path(directory) / "log.txt")
    return json.loads(finished.output.splitlines()[-1])


def speed_of(process, arguments):
    """The speed of a function of a batch of sentences, in megabytes per second of the core."""
    text = "\n".join(read_documents(arguments.input_file)).encode()
    text = text[: int(arguments.megabytes * MEGABYTE)].decode("utf-8", "ignore")
    sentences = text.split("\n")
    process(sentences[:1])  # which may still load something
    start = time.process_time()
    for first in range(0, len(sentences), SENTENCES_PER_BATCH):
        process(sentences[first : first + SENTENCES_PER_BATCH])
    return len(text.encode()) / MEGABYTE / (time.process_time() - start)


def segmenter_alone(arguments):
    from pipeline.word_segmentation import load_segmenter

    segment = load_segmenter(arguments.word_segmenter)
    return lambda sentences: [list(segment(sentence)) for sentence in sentences]


def ids_alone(arguments):
    from pipeline.tokenization import FullTokenizer

    return FullTokenizer(arguments.vocab_file, do_lower_case=False).encode_sentences


def ids_and_words(arguments):
    from pipeline.tokenization import FullTokenizer
    from pipeline.word_segmentation import WordFinder, load_segmenter

    tokenizer = FullTokenizer(arguments.vocab_file, do_lower_case=False)
    find_words = WordFinder(tokenizer, load_segmenter(arguments.word_segmenter))
    return lambda sentences: find_words(sentences, tokenizer.encode_sentences(sentences)[0])


def pre_tokenizer_alone(arguments):
    from pipeline.pre_tokenization import load_pre_tokenizer

    pre_tokenize = load_pre_tokenizer(arguments.pre_tokenizer, do_lower_case=False)
    return lambda sentences: list(map(pre_tokenize, sentences))


def pre_tokenized_ids(arguments):
    from pipeline.pre_tokenization import PreTokenizedTokenizer

    return PreTokenizedTokenizer(arguments.vocab_file, arguments.pre_tokenizer).encode_sentences


def transformers_ids(arguments):
    from transformers import BertJapaneseTokenizer

    name, _, dictionary = arguments.pre_tokenizer.partition("_")
    found = (
        {} if name == "sudachi" else {"mecab_kwargs": {"mecab_dic": dictionary or "unidic_lite"}}
    )
    tokenizer = BertJapaneseTokenizer(
        str(arguments.vocab_file), do_lower_case=False, word_tokenizer_type=name, **found
    )
    return lambda sentences: tokenizer(sentences, add_special_tokens=False)["input_ids"]


SEGMENTING = {"package": segmenter_alone, "ids": ids_alone, "ids and words": ids_and_words}
PRE_TOKENIZING = {
    "package": pre_tokenizer_alone,
    "ids": pre_tokenized_ids,
    "transformers": transformers_ids,
}

if __name__ == "__main__":
    main()
