"""One bucket of documents, one pass: one shuffled TFRecord file."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.buckets import Bucket, BucketPlan
from pipeline.corpus import DocumentBatch
from pipeline.errors import UserError
from pipeline.instances import generate_instances
from pipeline.manifest import Shard
from pipeline.ngrams import take_of
from pipeline.options import InstanceOptions, Masking
from pipeline.packing import generate_rows
from pipeline.records import Instances, encode_examples, frame_record, pack_word_starts
from pipeline.segments import plan_pairs
from pipeline.statistics import InstanceHistograms, ShardResults
from pipeline.storage import size_of
from pipeline.vocabulary import Vocabulary

MOST_SHARDS = 1 << 20
_SPLIT_NUMBERS = {"train": 0, "eval": 1}


@dataclass(frozen=True)
class ShardPlan:
    """A shard to build.

    Attributes:
      bucket: the documents that it holds.
      pass_index: the pass over them, from 0.
      name: of the file.
    """

    bucket: Bucket
    pass_index: int
    name: str


def plan_shards(buckets: BucketPlan, dupe_factor: int) -> list[ShardPlan]:
    """All shards: the train passes one after the other, then one pass of the eval buckets.

    The eval documents get no second pass, because every evaluation uses the same instances.

    Raises:
      UserError: there are so many that already their plans do not fit in memory.
    """
    if (num_shards := dupe_factor * buckets.num_train_buckets) > MOST_SHARDS:
        raise UserError(
            f"--dupe_factor={dupe_factor} and {buckets.num_train_buckets:,} shards per pass make "
            f"{num_shards:,} shards, more than {MOST_SHARDS:,}: decrease one of the two"
        )
    plans = []
    for split, num_passes in (("train", dupe_factor), ("eval", 1)):
        members = [bucket for bucket in buckets.buckets() if bucket.split == split]
        total = num_passes * len(members)
        for number in range(total):
            pass_index, index = divmod(number, len(members))
            name = f"{split}-{number:05d}-of-{total:05d}.tfrecord"
            plans.append(ShardPlan(members[index], pass_index, name))
    return plans


def make_instances(
    documents: DocumentBatch,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
    bucket: int = 0,
) -> Iterator[Instances]:
    """One pass over a bucket's documents: shuffled instances in batches, or packed rows of them.

    They are as records hold them. Those without masks are numbered, so that the trainer's draws do
    not depend on their order.

    Args:
      documents: the bucket's documents.
      vocabulary: the vocabulary of their ids.
      options: how instances are made.
      rng: the source of all draws.
      statistics: the counts of `plan_pairs`, and of `generate_instances` or `generate_rows`, are
        added to it.
      bucket: the bucket's number.
    """
    pairs = plan_pairs(documents, options, rng, statistics)
    make = generate_rows if options.packed_row_length else generate_instances
    take, numbers = take_of(options), itertools.count()
    for instances in make(documents, pairs, vocabulary, options, rng, statistics, take=take):
        if options.masking == Masking.STORED:
            yield instances
        else:
            of_bucket = np.array([(bucket, next(numbers)) for _ in instances["input_ids"]])
            yield pack_word_starts(instances) | {"instance_number": of_bucket}


def build_shard(
    plan: ShardPlan,
    documents: DocumentBatch,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    path: Path,
) -> ShardResults:
    """Writes the shard to a file, and counts its content.

    All draws come from a generator seeded by (random_seed, split, bucket, pass). So a shard has the
    same bytes wherever and however often it is built.
    """
    if plan.bucket.split == "eval":
        options = replace(options, masking=Masking.STORED)
    seed = np.random.SeedSequence(
        [options.random_seed, _SPLIT_NUMBERS[plan.bucket.split], plan.bucket.index, plan.pass_index]
    )
    rng = np.random.Generator(np.random.PCG64(seed))
    counts: Counter[str] = Counter(documents=len(documents.document_ends))
    histograms = InstanceHistograms(options.max_seq_length, vocabulary)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for instances in make_instances(
            documents, vocabulary, options, rng, counts, plan.bucket.index
        ):
            histograms.add(instances)
            content = b"".join(map(frame_record, encode_examples(instances)))
            digest.update(content)
            file.write(content)
    shard = Shard(
        name=plan.name,
        split=plan.bucket.split,
        pass_index=plan.pass_index,
        documents=counts["documents"],
        instances=counts["instances"],
        tokens=counts["tokens"],
        bytes=size_of(path),
        sha256=digest.hexdigest(),
    )
    return ShardResults(shard, counts, histograms.lengths(), histograms.masked_tokens())
