"""Raw text to a WordPiece vocabulary, one token a line, for `clozemill generate`.

[PAD] is 0; [UNK], [CLS], [SEP] and [MASK] stand behind the first 99 [unused] tokens, where the original
BERT has them. The same text, flags and seed give the same vocabulary.
"""

from pathlib import Path

from absl import flags, logging

from launch import input_flags
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.inputs import describe_formats, match_files
from pipeline.vocabulary_training import read_sample, train_vocabulary

SHARED_FLAGS = (input_flags,)
_OUTPUT_FILE = flags.DEFINE_string("output_file", None, "Where the vocabulary goes.", required=True)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace --output_file when it is there.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 30522, "The most tokens, all kinds together.", upper_bound=1 << 20
)
_NUM_UNUSED = flags.DEFINE_integer(
    "num_unused", 99, "Rows [unused0], [unused1], … that are kept free for later use."
)
_LIMIT_ALPHABET = flags.DEFINE_integer(
    "limit_alphabet",
    None,
    "How many different characters are kept; words with others are [UNK]. By default as many as "
    "99.98 % of the text consists of, and 1,000 if there are so many.",
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes",
    1_000_000_000,
    "Train on about so much text at most: pieces from all over a larger corpus. A compressed file is "
    "read from its beginning.",
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed", 12345, "Decides which pieces.", lower_bound=0, upper_bound=(1 << 63) - 1
)


def main() -> None:
    """Trains the vocabulary and says how large it is."""
    output_file = Path(_OUTPUT_FILE.value)
    if output_file.exists() and not _OVERWRITE.value:
        raise UserError(
            f"{output_file} is there already: give another --output_file, or --overwrite"
        )
    if not output_file.absolute().parent.is_dir():
        raise UserError(f"the folder of --output_file={output_file} does not exist")
    files = match_files(input_flags.input_patterns(), input_flags.input_format())
    logging.info(
        "input: %s, %.1f MB", describe_formats(files), sum(file.size for file in files) / 1e6
    )
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
