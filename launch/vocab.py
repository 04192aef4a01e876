"""Builds a WordPiece vocabulary from raw text, one token per line, for `clozemill generate`.

As in the original BERT, [PAD] is 0, and [UNK], [CLS], [SEP] and [MASK] come after the first 99
[unused] tokens. The same text, flags and seed always give the same vocabulary. A receipt beside it,
OUTPUT_FILE.json, says what it was made from: the same command again only verifies the file.
"""

import dataclasses
import hashlib
import unicodedata
from typing import Any

from absl import flags, logging

from launch import input_flags
from launch.stopping import at_once
from pipeline.errors import UserError
from pipeline.files import can_hold_files, has_sha256, remove_leftovers, write_whole
from pipeline.inputs import describe_formats, match_files, stamps_sha256
from pipeline.patterns import check_not_input
from pipeline.pre_tokenization import describe_pre_tokenizer
from pipeline.pre_tokenizers import accents_with
from pipeline.receipts import (
    Plan,
    VocabularyReceipt,
    differences,
    path_of_receipt,
    read_receipt,
    write_receipt,
)
from pipeline.storage import Location, location
from pipeline.vocabulary import tokens_of
from pipeline.vocabulary_training import read_sample, train_vocabulary

SHARED_FLAGS = (input_flags,)
_OUTPUT_FILE = flags.DEFINE_string(
    "output_file", None, "The file to write; also a URL (s3://, gs://, az://).", required=True
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace --output_file if it exists.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    30522,
    "The maximum number of tokens, special and unused ones included.",
    upper_bound=1 << 20,
)
_NUM_UNUSED = flags.DEFINE_integer(
    "num_unused",
    99,
    "The number of tokens [unused0], [unused1], … that are reserved for later use.",
    upper_bound=1 << 20,
)
_LIMIT_ALPHABET = flags.DEFINE_integer(
    "limit_alphabet",
    None,
    "The number of distinct characters to keep; words with others become [UNK]. By default, as "
    "many as make up 99.98 % of the text, but at least 1,000 if the text has that many.",
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes",
    1_000_000_000,
    "The approximate maximum size of the training text in bytes. A larger corpus is sampled in "
    "portions from all over it, but a compressed file is read from its beginning.",
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed",
    12345,
    "Seeds the choice of the sampled portions.",
    lower_bound=0,
    upper_bound=(1 << 63) - 1,
)


def main() -> None:
    """Builds the vocabulary and prints its size."""
    output_file = location(_OUTPUT_FILE.value)
    if output_file.is_dir():
        raise UserError(f"--output_file={output_file} is a folder: give the name of a file")
    if not can_hold_files(output_file.absolute().parent):
        raise UserError(f"the folder of --output_file={output_file} does not exist")
    patterns, reading = input_flags.input_patterns(), input_flags.read_options()
    check_not_input(patterns, "output_file", [output_file, path_of_receipt(output_file)])
    files = match_files(patterns, input_flags.input_format(), reading.encoding)
    pre_tokenizer = input_flags.pre_tokenizer()
    options: dict[str, Any] = {
        "do_lower_case": input_flags.do_lower_case(),
        "strip_accents": accents_with(pre_tokenizer, input_flags.strip_accents()),
        "vocab_size": _VOCAB_SIZE.value,
        "num_unused": _NUM_UNUSED.value,
        "limit_alphabet": _LIMIT_ALPHABET.value,
    }
    plan = {
        "input_stamps_sha256": stamps_sha256(files),
        "unicode_version": unicodedata.unidata_version,
        **dataclasses.asdict(reading),
        **options,
        **describe_pre_tokenizer(pre_tokenizer),
        "max_bytes": _MAX_BYTES.value,
        "random_seed": _RANDOM_SEED.value,
    }
    remove_leftovers(output_file.parent, output_file.name)
    if not _OVERWRITE.value and _is_finished(output_file, plan):
        logging.info(
            "%s was made from the same input with the same options before, and is as it was made",
            output_file,
        )
        print(_describe(output_file, len(tokens_of(output_file.read_bytes()))))
        return
    logging.info(
        "input: %s, %.1f MB", describe_formats(files), sum(file.size for file in files) / 1e6
    )
    with at_once():
        tokens = train_vocabulary(
            lambda: read_sample(files, reading, _MAX_BYTES.value, _RANDOM_SEED.value),
            **options,
            pre_tokenizer=pre_tokenizer,
        )
    text = "".join(f"{token}\n" for token in tokens)
    # The receipt comes first: if the process is killed after it, the same command begins again.
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    write_receipt(output_file, VocabularyReceipt(plan, sha256))
    write_whole(output_file, text)
    print(_describe(output_file, len(tokens)))


def _is_finished(output_file: Location, plan: Plan) -> bool:
    """Whether the vocabulary is there, made by the same plan, and not changed since.

    Raises:
      UserError: another file has its name or that of its receipt, or it was changed.
    """
    receipt = read_receipt(output_file, VocabularyReceipt)
    advice = "give another --output_file, or --overwrite"
    for path in (path_of_receipt(output_file), output_file):
        if path.exists() and receipt is None:
            raise UserError(f"{path} already exists: {advice}")
    if receipt is None or not output_file.exists():
        return False
    if others := differences(receipt.plan, plan):
        raise UserError(f"{output_file} already exists, made with {'; '.join(others)}: {advice}")
    if not has_sha256(output_file, receipt.sha256):
        raise UserError(f"{output_file} was changed after it was made: --overwrite makes it again")
    return True


def _describe(output_file: Location, num_tokens: int) -> str:
    return f"{output_file}: {num_tokens:,} tokens"
