"""Builds a WordPiece vocabulary from raw text, one token per line, for `clozemill generate`.

As in the original BERT, [PAD] is 0, and [UNK], [CLS], [SEP] and [MASK] come after the first 99
[unused] tokens. The same text, flags and seed always give the same vocabulary.
"""

from pathlib import Path

from absl import flags, logging

from launch import input_flags
from launch.stopping import at_once
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.inputs import describe_formats, match_files
from pipeline.vocabulary_training import read_sample, train_vocabulary

SHARED_FLAGS = (input_flags,)
_OUTPUT_FILE = flags.DEFINE_string("output_file", None, "The file to write.", required=True)
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
    output_file = Path(_OUTPUT_FILE.value)
    if output_file.is_dir():
        raise UserError(f"--output_file={output_file} is a folder: give the name of a file")
    if output_file.exists() and not _OVERWRITE.value:
        raise UserError(f"{output_file} already exists: give another --output_file, or --overwrite")
    if not output_file.absolute().parent.is_dir():
        raise UserError(f"the folder of --output_file={output_file} does not exist")
    files = match_files(input_flags.input_patterns(), input_flags.input_format())
    logging.info(
        "input: %s, %.1f MB", describe_formats(files), sum(file.size for file in files) / 1e6
    )
    with at_once():
        tokens = train_vocabulary(
            lambda: read_sample(
                files, input_flags.read_options(), _MAX_BYTES.value, _RANDOM_SEED.value
            ),
            vocab_size=_VOCAB_SIZE.value,
            do_lower_case=input_flags.do_lower_case(),
            strip_accents=input_flags.strip_accents(),
            num_unused=_NUM_UNUSED.value,
            limit_alphabet=_LIMIT_ALPHABET.value,
        )
    write_whole(output_file, "".join(f"{token}\n" for token in tokens))
    print(f"{output_file}: {len(tokens):,} tokens")
