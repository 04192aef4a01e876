"""Shows instances of a data set as text.

A masked piece is shown as {the piece that the model reads → the piece that it must predict}.
"""

import sys
from itertools import islice
from pathlib import Path

from absl import flags

from pipeline.errors import UserError
from pipeline.inspection import describe_instance, read_sequences
from pipeline.manifest import DataSet
from pipeline.verification import verify_shard
from pipeline.vocabulary import Vocabulary

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `generate` or `adopt`.", required=True
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples",
    5,
    "The number of instances to show, from the first shard.",
    lower_bound=1,
    upper_bound=sys.maxsize,
)


def main() -> None:
    """Prints the first instances of the first shard that has any."""
    data_set = DataSet.read(Path(_DATA_DIR.value))
    vocabulary = Vocabulary(data_set.vocabulary)
    shard = next((shard for shard in data_set.manifest.shards if shard.instances), None)
    if shard is None:
        raise UserError(f"{data_set.directory} has no instance: generate it from more text")
    if difference := next(verify_shard(data_set, shard), None):
        raise UserError(f"{difference}: generate the data set again, with --overwrite")
    is_packed = data_set.manifest.row_limits.sequences > 1
    instances = islice(read_sequences(data_set, shard), _NUM_EXAMPLES.value)
    for number, sequences in enumerate(instances):
        for place, sequence in enumerate(sequences, 1):
            of_row = f", sequence {place} of {len(sequences)}" if is_packed else ""
            described = describe_instance(sequence, vocabulary, data_set.manifest.sentence_pairs)
            print(f"{shard.name}, instance {number}{of_row}: {described}\n")
