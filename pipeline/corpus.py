"""The tokenized corpus: documents as compact arrays in Parquet files with row groups per bucket."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.buckets import Bucket
from pipeline.documents import Document
from pipeline.storage import Location, source_of
from pipeline.tokenization import FullTokenizer

if TYPE_CHECKING:
    from pipeline.mixing import Others

DOCUMENT_ID = ["file", "offset"]
_DIGEST_BYTES = 16
# A store answers many requests in the time of one.
_ROW_GROUPS_AT_ONCE = 8

_SCHEMA = pa.schema(
    [
        ("bucket", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("digest", pa.binary(_DIGEST_BYTES)),
        ("ids", pa.binary()),
        ("word_starts", pa.binary()),
        ("sentence_lengths", pa.binary()),
    ]
)


@dataclass(frozen=True)
class TokenizedDocument:
    """A document's tokens. The arrays are stored as bytes because Parquet is fastest with bytes.

    Attributes:
      file, offset: the document's id (see `Document`).
      digest: hash of the document's text; equal only for documents with the same sentences.
      ids: token ids, `Vocabulary.id_dtype` [tokens].
      word_starts: bool [tokens], whether a word begins at each token.
      sentence_lengths: uint32 [sentences], length of each sentence in tokens; never 0.
    """

    file: str
    offset: int
    digest: bytes
    ids: bytes
    word_starts: bytes
    sentence_lengths: bytes


@dataclass(frozen=True)
class DocumentBatch:
    """Tokenized documents laid end to end: D documents, M sentences, T tokens.

    Attributes:
      ids: [T], token ids.
      word_starts: bool [T], whether a word begins at each token.
      sentence_ends: int64 [M], index of the token after each sentence.
      document_ends: int64 [D], index of the sentence after each document.
      others: where the random B of a document comes from; None: any other document.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    sentence_ends: np.ndarray
    document_ends: np.ndarray
    others: "Others | None" = None


@dataclass(frozen=True)
class RowGroup:
    """A row group with documents of one bucket, in the Parquet file of their portion."""

    path: Location
    index: int


def tokenize_documents(
    documents: Sequence[Document],
    tokenizer: FullTokenizer,
    statistics: Counter[str],
    find_words: Callable[[list[str], np.ndarray], np.ndarray] | None = None,
) -> list[TokenizedDocument | None]:
    """Tokenizes documents and drops sentences without tokens.

    Adds to `statistics`: documents_tokenized, documents_without_tokens, sentences_read,
    sentences_without_tokens, tokens, unknown_tokens.

    Args:
      documents: the documents to tokenize. Many at once are faster than one by one.
      tokenizer: turns sentences into token ids.
      statistics: counter that this function adds to.
      find_words: tells which pieces of sentences, with the ids of these, begin a word, bool
        [pieces]; if None, spaces, punctuation and `##` tell it.

    Returns:
      For each document the tokenized one, or None if no token is left.
    """
    vocabulary = tokenizer.vocabulary
    sentences = [sentence for document in documents for sentence in document.sentences]
    ids, lengths = tokenizer.encode_sentences(sentences)
    begins_word = find_words(sentences, ids) if find_words else vocabulary.begins_word[ids]
    tokenized: list[TokenizedDocument | None] = []
    sentence = token = 0
    for document in documents:
        lengths_here = lengths[sentence : sentence + len(document.sentences)]
        tokens = slice(token, token + int(lengths_here.sum()))
        sentence, token = sentence + len(lengths_here), tokens.stop
        tokenized.append(
            TokenizedDocument(
                file=document.file,
                offset=document.offset,
                digest=_digest(document.sentences),
                ids=ids[tokens].tobytes(),
                word_starts=begins_word[tokens].tobytes(),
                sentence_lengths=lengths_here[lengths_here > 0].astype(np.uint32).tobytes(),
            )
            if tokens.start < token
            else None
        )
    num_empty = tokenized.count(None)
    statistics.update(
        documents_tokenized=len(documents) - num_empty,
        documents_without_tokens=num_empty,
        sentences_read=len(sentences),
        sentences_without_tokens=int(np.count_nonzero(lengths == 0)),
        tokens=len(ids),
        unknown_tokens=int(np.count_nonzero(ids == vocabulary.ids["[UNK]"])),
    )
    return tokenized


def write_documents(
    path: Path, batches: Iterable[Mapping[Bucket, list[TokenizedDocument]]]
) -> list[Bucket]:
    """Writes a Parquet file with a row group for each bucket of each batch.

    Returns:
      The bucket of each row group.
    """
    buckets: list[Bucket] = []
    # Dictionaries and compression hardly help ids; plain bytes are read at memory speed.
    with pq.ParquetWriter(
        path, _SCHEMA, compression="none", use_dictionary=["bucket", "file"]
    ) as writer:
        for documents in batches:
            for bucket, members in documents.items():
                columns = [[getattr(each, name) for each in members] for name in _SCHEMA.names[1:]]
                table = pa.table([[bucket.name] * len(members), *columns], schema=_SCHEMA)
                writer.write_table(table, row_group_size=len(members))
                buckets.append(bucket)
    return buckets


def read_documents_of_bucket(
    row_groups: Sequence[RowGroup], id_dtype: np.dtype, dropped: pa.Table | None = None
) -> DocumentBatch:
    """Reads all documents of a bucket, sorted by id, so the order of the row groups has no effect.

    Args:
      row_groups: the row groups that hold the bucket's documents.
      id_dtype: dtype of the token ids.
      dropped: table with the `file` and `offset` of the documents to leave out.
    """
    table = pa.concat_tables(read_row_groups(row_groups) or [_SCHEMA.empty_table()])
    if dropped is not None:
        table = table.join(dropped, DOCUMENT_ID, join_type="left anti")
    table = table.sort_by([(column, "ascending") for column in DOCUMENT_ID])

    def flat(column: str, dtype: np.typing.DTypeLike) -> np.ndarray:
        return np.frombuffer(b"".join(table[column].to_pylist()), dtype)

    lengths = table["sentence_lengths"].to_pylist()
    sentences_per_document = [len(length) // np.dtype(np.uint32).itemsize for length in lengths]
    return DocumentBatch(
        ids=flat("ids", id_dtype),
        word_starts=flat("word_starts", np.bool_),
        sentence_ends=np.cumsum(flat("sentence_lengths", np.uint32), dtype=np.int64),
        document_ends=np.cumsum(sentences_per_document, dtype=np.int64),
    )


def read_row_groups(row_groups: Sequence[RowGroup], *columns: str) -> list[pa.Table]:
    """Reads row groups, or some columns; those of a store several at once, each in 3 requests."""

    def read(group: RowGroup) -> pa.Table:
        with pq.ParquetFile(source_of(group.path), pre_buffer=True) as file:
            return file.read_row_group(group.index, list(columns) or None)

    with ThreadPoolExecutor(_ROW_GROUPS_AT_ONCE) as threads:
        return list(threads.map(read, row_groups))


def _digest(sentences: list[str]) -> bytes:
    # JSON can hold half of a surrogate pair, which has no UTF-8 encoding.
    text = "\n".join(sentences).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
