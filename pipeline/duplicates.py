"""Finds documents with the same text by their digests, and keeps the lists of what is dropped.

Among the stages, a document is a number, and the smaller number is that of the document that comes
first in the corpus. Numbers depend on the portions, but their order does not.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.buckets import Bucket
from pipeline.corpus import DOCUMENT_ID
from pipeline.storage import Location, source_of

DOCUMENT = np.dtype("<u8")
"""A document's number: that of its portion, and its place among the portion's by id."""
DIGEST = np.dtype([("digest", "<u8", 2), ("document", DOCUMENT)])
"""A document and the digest of its text."""
ORDER = np.dtype("<u4")
"""The place by id of each document of a portion, in the order of the portion's file."""

# Increase this with every change to the files of these stages, or to what they find.
_FORMAT_VERSION = 1
_PARTITION_BYTES = 1 << 30
_ROWS_PER_GROUP = 1 << 16
_BATCH_BYTES = 32 << 20
_PLACE_BITS = 32
_DROPPED = pa.schema(
    [
        ("bucket", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("num_tokens", pa.int64()),
        ("is_near", pa.bool_()),
    ]
)


def folder_of_duplicates(exact: bool, similarity: float | None) -> str | None:
    """The name of the folder with the duplicates of a tokenized corpus; None if all are kept.

    Args:
      exact: whether exact duplicates are dropped.
      similarity: that of near duplicates, which are dropped with exact ones; None: they are kept.
    """
    if similarity is not None:
        return f"near_duplicates-{_FORMAT_VERSION}-{float(similarity)}"
    return f"duplicates-{_FORMAT_VERSION}" if exact else None


def count_partitions(corpus_bytes: int) -> int:
    """The number of partitions in which the documents of a corpus are compared, of 1 GiB each."""
    return 1 + corpus_bytes // _PARTITION_BYTES


def number_documents(portion: int, order: np.ndarray) -> np.ndarray:
    """The numbers of documents of a portion, from their places by id."""
    return order.astype(DOCUMENT) | DOCUMENT.type(portion << _PLACE_BITS)


def portions_of(documents: np.ndarray) -> np.ndarray:
    """The numbers of the portions of documents, int64."""
    return (documents >> DOCUMENT.type(_PLACE_BITS)).astype(np.int64)


def read_digests(path: Location, portion: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the digests of a portion, and puts its documents in order.

    Returns:
      `DIGEST` [documents] and `ORDER` [documents], both in the order of the file.
    """
    columns = [*DOCUMENT_ID, "digest"]
    tables = [table.select(columns) for table in read_tables(path)]
    documents = pa.concat_tables(tables or [pa.table([[]] * len(columns), columns)])
    by_id = pc.sort_indices(documents, [(column, "ascending") for column in DOCUMENT_ID])
    order = np.empty(len(documents), ORDER)
    order[by_id] = np.arange(len(documents), dtype=ORDER)
    rows = np.empty(len(documents), DIGEST)
    content = b"".join(documents["digest"].to_pylist())
    rows["digest"] = np.frombuffer(content, "<u8").reshape(-1, 2)
    rows["document"] = number_documents(portion, order)
    return rows, order


def find_duplicates(rows: np.ndarray) -> np.ndarray:
    """The documents whose text equals that of one before them, `DOCUMENT` [duplicates], sorted.

    Args:
      rows: `DIGEST` [documents], all with any of these digests, in any order.
    """
    rows = rows[np.lexsort((rows["document"], rows["digest"][:, 1], rows["digest"][:, 0]))]
    is_repeat = np.all(rows["digest"][1:] == rows["digest"][:-1], axis=1)
    return np.sort(rows["document"][1:][is_repeat])


def read_tables(path: Location) -> Iterator[pa.Table]:
    """Reads the tokenized documents of a portion, as many at once as fit in memory.

    All columns are read, because a store gives them with fewer requests than some of them.
    """
    with pq.ParquetFile(source_of(path), pre_buffer=True) as file:
        groups: list[int] = []
        num_bytes = 0
        for group in range(file.num_row_groups):
            groups.append(group)
            num_bytes += file.metadata.row_group(group).total_byte_size
            if num_bytes >= _BATCH_BYTES:
                yield file.read_row_groups(groups)
                groups, num_bytes = [], 0
        if groups:
            yield file.read_row_groups(groups)


def write_dropped(
    file: Path, path: Location, is_exact: np.ndarray, is_near: np.ndarray, id_bytes: int
) -> int:
    """Writes which documents of a portion are dropped, and why, sorted by bucket.

    The columns are `bucket`, `file`, `offset`, `num_tokens`, and `is_near`, whether a document is a
    near copy of another one, rather than an exact one.

    Args:
      file: the file to write.
      path: the portion's tokenized documents.
      is_exact: bool [documents], in the order of their file: whether each is an exact duplicate.
      is_near: bool [documents], whether it is a near one.
      id_bytes: the size of a token id.

    Returns:
      The number of tokens of the dropped documents.
    """
    tables = [_DROPPED.empty_table()]
    is_dropped = is_exact | is_near
    first = 0
    for table in read_tables(path) if np.any(is_dropped) else ():
        here = slice(first, first + len(table))
        first += len(table)
        num_tokens = pc.divide(pc.binary_length(table["ids"]).cast(pa.int64()), id_bytes)
        columns = [*table.select(["bucket", *DOCUMENT_ID]).columns, num_tokens, is_near[here]]
        documents = pa.table(columns, schema=_DROPPED)
        tables.append(documents.filter(pa.array(is_dropped[here])))
    dropped = pa.concat_tables(tables)
    dropped = dropped.sort_by([(column, "ascending") for column in ("bucket", *DOCUMENT_ID)])
    pq.write_table(dropped, file, row_group_size=_ROWS_PER_GROUP)
    return int(np.sum(dropped["num_tokens"].to_numpy()))


def read_dropped(paths: Sequence[Location], bucket: Bucket) -> pa.Table | None:
    """Reads `file` and `offset` of what is dropped of a bucket; None if `paths` is empty."""
    tables = [
        pq.read_table(source_of(path), columns=DOCUMENT_ID, filters=[("bucket", "==", bucket.name)])
        for path in paths
    ]
    return pa.concat_tables(tables) if tables else None
