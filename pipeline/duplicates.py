"""Finds exact duplicates in the tokenized corpus by the digests of the documents' text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.buckets import Bucket
from pipeline.corpus import DOCUMENT_ID
from pipeline.storage import Location, source_of

_PARTITION_BYTES = 1 << 30
_COLUMNS = ["digest", *DOCUMENT_ID, "bucket"]
_ROWS_PER_GROUP = 1 << 16


def count_partitions(corpus_bytes: int) -> int:
    """The number of partitions of the digests that lets each partition fit in memory."""
    return 1 + corpus_bytes // _PARTITION_BYTES


def find_duplicates(
    tokenized_files: Sequence[Location], partition: int, num_partitions: int
) -> pa.Table:
    """Finds all documents whose text equals that of a document with a smaller id.

    Args:
      tokenized_files: the files of the tokenized corpus.
      partition: index of the partition, by digest, in which to search.
      num_partitions: total number of partitions.

    Returns:
      A table with the columns `file`, `offset` and `bucket`, sorted by bucket.
    """
    tables = [
        _of_partition(pq.read_table(source_of(path), columns=_COLUMNS), partition, num_partitions)
        for path in tokenized_files
    ]
    documents = pa.concat_tables(tables).sort_by(
        [(column, "ascending") for column in ("digest", *DOCUMENT_ID)]
    )
    digests = documents["digest"].combine_chunks()
    repeats = pc.equal(digests[1:], digests[:-1])
    duplicates = documents.slice(1).filter(repeats).select([*DOCUMENT_ID, "bucket"])
    return duplicates.sort_by([(column, "ascending") for column in ("bucket", *DOCUMENT_ID)])


def write_duplicates(path: Path, duplicates: pa.Table) -> None:
    """Writes the result of `find_duplicates`."""
    pq.write_table(duplicates, path, row_group_size=_ROWS_PER_GROUP)


def read_duplicates(paths: Sequence[Location], bucket: Bucket) -> pa.Table | None:
    """Reads the `file` and `offset` of each duplicate in a bucket; None if `paths` is empty."""
    tables = [
        pq.read_table(source_of(path), columns=DOCUMENT_ID, filters=[("bucket", "==", bucket.name)])
        for path in paths
    ]
    return pa.concat_tables(tables) if tables else None


def _of_partition(documents: pa.Table, partition: int, num_partitions: int) -> pa.Table:
    # The first half of a digest serves as a uniformly distributed number.
    numbers = np.frombuffer(b"".join(documents["digest"].to_pylist()), "<u8")[::2]
    return documents.filter(pa.array(numbers % num_partitions == partition))
