"""Buckets: which documents are paired with each other and shuffled together.

Which bucket a document falls into depends on its id alone, not on the seed.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.inputs import InputFile
from pipeline.portions import LARGEST_PORTION_BYTES

BUCKET_BYTES = 16 << 20
LARGEST_BUCKET_BYTES = 512 << 20
_SPLITS_PER_GROUP = 64
_REGION_BYTES = LARGEST_PORTION_BYTES


@dataclass(frozen=True)
class Bucket:
    """A bucket of the train or the eval documents (`split`)."""

    split: str
    index: int

    @property
    def name(self) -> str:
        """A name for files: "train-00003"."""
        return f"{self.split}-{self.index:05d}"


@dataclass(frozen=True)
class BucketPlan:
    """Which bucket each document belongs to.

    Documents are spread over the buckets by a hash of their id. Past 64 portions of the corpus, the
    buckets form groups, and all documents of a 64 MiB region of the corpus go to buckets of one
    group, so that the number of row groups grows with the corpus and not with its square.

    Attributes:
      corpus_bytes: text in the input files.
      eval_fraction: share of the documents that go to the eval buckets.
      num_train_buckets: how many buckets the train documents fall into.
    """

    corpus_bytes: int
    eval_fraction: float
    num_train_buckets: int

    @classmethod
    def for_corpus(
        cls, corpus_bytes: int, eval_fraction: float = 0.0, num_shards: int | None = None
    ) -> "BucketPlan":
        """A plan with buckets of about 16 MiB of text, or with `num_shards` train buckets.

        Raises:
          UserError: a bucket would not fit in memory.
        """
        train_bytes = corpus_bytes * (1 - eval_fraction)
        fewest = _ceil_at_least_1(train_bytes / LARGEST_BUCKET_BYTES)
        if num_shards is not None and num_shards < fewest:
            raise UserError(
                f"--num_shards={num_shards} is too few for {corpus_bytes / 1e9:,.1f} GB of text: "
                f"give at least {fewest}"
            )
        return cls(
            corpus_bytes, eval_fraction, num_shards or _ceil_at_least_1(train_bytes / BUCKET_BYTES)
        )

    @property
    def num_eval_buckets(self) -> int:
        """How many buckets the eval documents fall into; 0 without eval documents."""
        eval_bytes = self.corpus_bytes * self.eval_fraction
        return _ceil_at_least_1(eval_bytes / BUCKET_BYTES) if self.eval_fraction else 0

    def buckets(self) -> list[Bucket]:
        """All buckets, the train ones first."""
        return [Bucket("train", index) for index in range(self.num_train_buckets)] + [
            Bucket("eval", index) for index in range(self.num_eval_buckets)
        ]

    def bucket_of(self, file: InputFile, document: Document) -> Bucket:
        """The bucket of a document of `file`."""
        document_id = f"{document.file}\0{document.offset}"
        document_hash = _stable_hash(document_id)
        is_eval = _stable_hash(f"eval\0{document_id}") < self.eval_fraction * 2**64
        num_buckets = self.num_eval_buckets if is_eval else self.num_train_buckets
        corpus_groups = _ceil_at_least_1(self.corpus_bytes / (_REGION_BYTES * _SPLITS_PER_GROUP))
        num_groups = min(corpus_groups, num_buckets)
        region = (file.corpus_offset + document.position) // _REGION_BYTES
        group = _stable_hash(f"region\0{region}") % num_groups
        first, end = (g * num_buckets // num_groups for g in (group, group + 1))
        return Bucket("eval" if is_eval else "train", first + document_hash % (end - first))


def _stable_hash(key: str) -> int:
    """64 bits that are the same in every process, unlike those of `hash`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _ceil_at_least_1(ratio: float) -> int:
    return max(1, int(np.ceil(ratio)))
