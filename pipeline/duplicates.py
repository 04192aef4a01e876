"""Exact duplicates in the tokenized corpus, found by the digests of the documents' text."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus import DOCUMENT_ID

_PARTITION_BYTES = 1 << 30
_COLUMNS = ["digest", *DOCUMENT_ID]


def count_partitions(corpus_bytes: int) -> int:
    """Into how many parts the digests are divided, so that each fits in memory."""
    return 1 + corpus_bytes // _PARTITION_BYTES


def find_duplicates(tokenized_files: list[Path], partition: int, num_partitions: int) -> pa.Table:
    """The ids of all documents with the same text as one before them, in the order of ids.

    Args:
      tokenized_files: the tokenized corpus.
      partition: which part of the documents, by digest, to look at.
      num_partitions: how many parts there are.

    Returns:
      A table with the columns `file` and `offset`.
    """
    tables = [
        _of_partition(pq.read_table(path, columns=_COLUMNS), partition, num_partitions)
        for path in tokenized_files
    ]
    documents = pa.concat_tables(tables).sort_by(
        [(column, "ascending") for column in ("digest", *DOCUMENT_ID)]
    )
    digests = documents["digest"].combine_chunks()
    repeats = pc.equal(digests[1:], digests[:-1])
    return documents.slice(1).filter(repeats).select(DOCUMENT_ID)


def _of_partition(documents: pa.Table, partition: int, num_partitions: int) -> pa.Table:
    # Half of a digest is as good a number as any.
    numbers = np.frombuffer(b"".join(documents["digest"].to_pylist()), "<u8")[::2]
    return documents.filter(pa.array(numbers % num_partitions == partition))
