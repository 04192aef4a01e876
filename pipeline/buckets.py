"""Buckets: groups of documents that are paired with each other and shuffled together.

A document's bucket depends only on its id, not on the seed.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.inputs import InputFile
from pipeline.portions import LARGEST_PORTION_BYTES

BUCKET_BYTES = 16 << 20
LARGEST_BUCKET_BYTES = 512 << 20
_PORTIONS_PER_GROUP = 64
_REGION_BYTES = LARGEST_PORTION_BYTES


@dataclass(frozen=True)
class Bucket:
    """One bucket of the train or eval documents (`split` says which)."""

    split: str
    index: int

    @property
    def name(self) -> str:
        """The bucket's name in files, such as "train-00003"."""
        return f"{self.split}-{self.index:05d}"


@dataclass(frozen=True)
class BucketPlan:
    """Assigns each document to a bucket.

    A hash of its id picks a document's bucket. If the corpus has more than 64 portions, the buckets
    form groups, and all documents of a 64 MiB region of the corpus go to buckets of one group. The
    number of row groups then grows with the size of the corpus and not with its square.

    Attributes:
      corpus_bytes: amount of text in the input files, in bytes.
      eval_fraction: share of the documents that go to the eval buckets.
      num_train_buckets: number of buckets for the train documents.
      corpora: name of each corpus of a mixture, and its amount of text in bytes. The eval documents
        of each have buckets of their own; the train documents share all buckets.
    """

    corpus_bytes: int
    eval_fraction: float
    num_train_buckets: int
    corpora: tuple[tuple[str, int], ...] = ()

    @classmethod
    def for_corpus(
        cls,
        corpus_bytes: int,
        eval_fraction: float = 0.0,
        num_shards: int | None = None,
        corpora: tuple[tuple[str, int], ...] = (),
    ) -> "BucketPlan":
        """Returns a plan with buckets of about 16 MiB of text, or with `num_shards` train buckets.

        Raises:
          UserError: `num_shards` is so small that a bucket would not fit in memory.
        """
        train_bytes = corpus_bytes * (1 - eval_fraction)
        fewest = _ceil_at_least_1(train_bytes / LARGEST_BUCKET_BYTES)
        if num_shards is not None and num_shards < fewest:
            raise UserError(
                f"--num_shards={num_shards} is too small for {corpus_bytes / 1e9:,.1f} GB of text: "
                f"set it to at least {fewest}"
            )
        num_train_buckets = num_shards or _ceil_at_least_1(train_bytes / BUCKET_BYTES)
        return cls(corpus_bytes, eval_fraction, num_train_buckets, corpora)

    @cached_property
    def eval_buckets(self) -> dict[str | None, range]:
        """The numbers of the eval buckets of each corpus; without a mixture, its name is None."""
        ranges, first = {}, 0
        for name, corpus_bytes in self.corpora or ((None, self.corpus_bytes),):
            eval_bytes = corpus_bytes * self.eval_fraction
            count = _ceil_at_least_1(eval_bytes / BUCKET_BYTES) if self.eval_fraction else 0
            ranges[name] = range(first, first + count)
            first += count
        return ranges

    @property
    def num_eval_buckets(self) -> int:
        """The number of buckets for the eval documents; 0 if there are no eval documents."""
        return sum(map(len, self.eval_buckets.values()))

    def buckets(self) -> list[Bucket]:
        """Returns all buckets, the train buckets first."""
        return [Bucket("train", index) for index in range(self.num_train_buckets)] + [
            Bucket("eval", index) for index in range(self.num_eval_buckets)
        ]

    def bucket_of(self, file: InputFile, document: Document) -> Bucket:
        """Returns the bucket of a document in `file`."""
        document_id = f"{document.file}\0{document.offset}"
        document_hash = _stable_hash(document_id)
        is_eval = _stable_hash(f"eval\0{document_id}") < self.eval_fraction * 2**64
        of_split = self.eval_buckets[file.corpus] if is_eval else range(self.num_train_buckets)
        num_buckets = len(of_split)
        corpus_groups = _ceil_at_least_1(self.corpus_bytes / (_REGION_BYTES * _PORTIONS_PER_GROUP))
        num_groups = min(corpus_groups, num_buckets)
        region = (file.corpus_offset + document.text_before) // _REGION_BYTES
        group = _stable_hash(f"region\0{region}") % num_groups
        first, end = (g * num_buckets // num_groups for g in (group, group + 1))
        index = of_split[first + document_hash % (end - first)]
        return Bucket("eval" if is_eval else "train", index)


def _stable_hash(key: str) -> int:
    """A 64-bit hash that is the same in every process, unlike the built-in `hash`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _ceil_at_least_1(ratio: float) -> int:
    return max(1, int(np.ceil(ratio)))
