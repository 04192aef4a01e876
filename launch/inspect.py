"""Shows instances of a data set as text.

A masked piece is shown as {the piece that the model reads → the piece that it must predict}. Where
the trainer draws the masks, these are the masks that it will draw, to the bit.
"""

import sys
from collections.abc import Callable
from itertools import islice

import numpy as np
from absl import flags

from modeling.training_masks import TrainingMasks, shards_of_epoch
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError
from pipeline.inspection import describe_instance, read_sequences
from pipeline.manifest import DataSet, Shard
from pipeline.records import Instances
from pipeline.storage import StoredPath, location
from pipeline.verification import difference_of_size, verify_shard
from pipeline.vocabulary import Vocabulary

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The data set: the --output_dir of `generate` or `adopt`, a directory or a URL (s3://, gs://, "
    "az://).",
    required=True,
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples",
    5,
    "The number of instances to show, from the first shard.",
    lower_bound=1,
    upper_bound=sys.maxsize,
)
_EPOCH = flags.DEFINE_integer(
    "epoch",
    None,
    "For data of `generate --masking=training`: show the masks that `pretrain` draws in this "
    "epoch, from 0, which is the default.",
    lower_bound=0,
    upper_bound=sys.maxsize,
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed",
    None,
    f"With --epoch: the --random_seed of `pretrain`, {TrainingOptions.random_seed} by default.",
    lower_bound=0,
)
_MASKED_LM_PROB = flags.DEFINE_float(
    "masked_lm_prob",
    None,
    "With --epoch: the share of tokens to mask; of a schedule, that of a step. By default, the "
    "data's.",
)


def main() -> None:
    """Prints the first instances of the first shard that has any."""
    data_set = DataSet.read(location(_DATA_DIR.value))
    vocabulary = Vocabulary(data_set.vocabulary)
    shards = [shard for shard in data_set.manifest.shards if shard.instances]
    mask = None
    if data_set.manifest.masks_while_training:
        epoch = _EPOCH.value or 0
        shards, mask = shards_of_epoch(data_set.manifest, epoch), _masks(data_set, epoch)
    else:
        for flag in (_EPOCH, _RANDOM_SEED, _MASKED_LM_PROB):
            if flag.value is not None:
                raise flags.Error(
                    f"--{flag.name} is for data of `generate --masking=training`, but the masks of "
                    f"{data_set.directory} are stored"
                )
    shard = next(iter(shards), None)
    if shard is None:
        raise UserError(f"{data_set.directory} has no instance: generate it from more text")
    if difference := _difference(data_set, shard):
        raise UserError(f"{difference}: generate the data set again, with --overwrite")
    is_packed = data_set.manifest.row_limits.sequences > 1
    instances = islice(read_sequences(data_set, shard, mask), _NUM_EXAMPLES.value)
    for number, sequences in enumerate(instances):
        for place, sequence in enumerate(sequences, 1):
            of_row = f", sequence {place} of {len(sequences)}" if is_packed else ""
            described = describe_instance(sequence, vocabulary, data_set.manifest.sentence_pairs)
            print(f"{shard.name}, instance {number}{of_row}: {described}\n")


def _difference(data_set: DataSet, shard: Shard) -> str | None:
    """What is wrong with a shard. One on a store is not read for that: its records are checked."""
    if isinstance(data_set.path_of(shard), StoredPath):
        return difference_of_size(data_set, shard)
    return next(verify_shard(data_set, shard), None)


def _masks(data_set: DataSet, epoch: int) -> Callable[[Instances], Instances]:
    """Draws the masks of records as the trainer does."""
    seed, rate = _RANDOM_SEED.value, _MASKED_LM_PROB.value
    if seed is None:
        seed = TrainingOptions.random_seed
    if rate is None:
        rate = data_set.manifest.options["masked_lm_prob"]
    masks = TrainingMasks(data_set, seed, rate)
    return lambda records: masks.draw(
        records, np.full(len(records["input_ids"]), epoch, np.int64), rate
    )
