"""The tokenized corpus: documents as compact arrays, in Parquet files with a row group per bucket.

A *bucket* is the set of documents that are paired with each other and shuffled together; which one a
document falls into depends on its id alone.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import Document
from pipeline.inputs import LARGEST_SPLIT_BYTES, InputFile
from pipeline.manifest import temporary_name
from pipeline.tokenization import FullTokenizer

BUCKET_BYTES = 16 << 20
_SPLITS_PER_GROUP = 64
_REGION_BYTES = LARGEST_SPLIT_BYTES

_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("ids", pa.binary()),
        ("word_starts", pa.binary()),
        ("sentence_lengths", pa.binary()),
    ]
)


@dataclass(frozen=True)
class TokenizedDocument:
    """A document's tokens. The arrays are kept as bytes, the form in which Parquet is fastest.

    Attributes:
      file, offset: the document's id (see `Document`).
      ids: `Vocabulary.id_dtype` [tokens].
      word_starts: bool [tokens], whether a word begins here.
      sentence_lengths: uint32 [sentences], in tokens; none is 0.
    """

    file: str
    offset: int
    ids: bytes
    word_starts: bytes
    sentence_lengths: bytes


@dataclass(frozen=True)
class DocumentBatch:
    """Tokenized documents laid end to end: D documents, M sentences, T tokens.

    Attributes:
      ids: [T], token ids.
      word_starts: bool [T], whether a word begins here.
      sentence_ends: int64 [M], the token behind each sentence.
      document_ends: int64 [D], the sentence behind each document.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    sentence_ends: np.ndarray
    document_ends: np.ndarray


@dataclass(frozen=True)
class Bucket:
    """A bucket of the train or the eval documents (`split`)."""

    split: str
    index: int


@dataclass(frozen=True)
class RowGroup:
    """The documents of one bucket that came from one split, in that split's Parquet file."""

    path: Path
    index: int


@dataclass(frozen=True)
class BucketPlan:
    """Which bucket each document belongs to.

    Documents are spread over the buckets by a hash of their id. Past 64 splits of the corpus, the
    buckets form groups, and all documents of a 64 MiB region of the corpus go to buckets of one
    group, so that the number of row groups grows with the corpus and not with its square.

    Attributes:
      corpus_bytes: total size of the input files.
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
        """A plan with buckets of about 16 MiB of text, or with `num_shards` train buckets."""
        train_bytes = corpus_bytes * (1 - eval_fraction)
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

    def bucket_of(self, file: InputFile, offset: int) -> Bucket:
        """The bucket of the document at `offset` of `file`."""
        document_hash = _stable_hash(f"{file.name}\0{offset}")
        is_eval = _stable_hash(f"eval\0{file.name}\0{offset}") < self.eval_fraction * 2**64
        num_buckets = self.num_eval_buckets if is_eval else self.num_train_buckets
        corpus_groups = _ceil_at_least_1(self.corpus_bytes / (_REGION_BYTES * _SPLITS_PER_GROUP))
        num_groups = min(corpus_groups, num_buckets)
        region = (file.corpus_offset + offset) // _REGION_BYTES
        group = _stable_hash(f"region\0{region}") % num_groups
        first, end = (g * num_buckets // num_groups for g in (group, group + 1))
        return Bucket("eval" if is_eval else "train", first + document_hash % (end - first))


def tokenize_document(
    document: Document, tokenizer: FullTokenizer, statistics: Counter[str]
) -> TokenizedDocument | None:
    """The tokens of a document; sentences without tokens are dropped. None when nothing is left.

    Added to `statistics`: documents_read, documents_tokenized, documents_without_tokens,
    sentences_read, sentences_without_tokens, tokens, unknown_tokens.
    """
    vocabulary = tokenizer.vocabulary
    encoded = [ids for ids in map(tokenizer.encode_to_bytes, document.sentences) if ids]
    statistics["documents_read"] += 1
    statistics["sentences_read"] += len(document.sentences)
    statistics["sentences_without_tokens"] += len(document.sentences) - len(encoded)
    if not encoded:
        statistics["documents_without_tokens"] += 1
        return None
    ids = np.frombuffer(b"".join(encoded), vocabulary.id_dtype)
    lengths = np.array([len(sentence) for sentence in encoded]) // vocabulary.id_dtype.itemsize
    statistics["documents_tokenized"] += 1
    statistics["tokens"] += len(ids)
    statistics["unknown_tokens"] += int(np.count_nonzero(ids == vocabulary.ids["[UNK]"]))
    return TokenizedDocument(
        document.file,
        document.offset,
        ids.tobytes(),
        vocabulary.begins_word[ids].tobytes(),
        lengths.astype(np.uint32).tobytes(),
    )


def write_documents(path: Path, documents: Mapping[Bucket, list[TokenizedDocument]]) -> None:
    """Writes one row group per bucket, in their order. The file appears when it is whole."""
    temporary = temporary_name(path)
    # Neither dictionary nor compression helps ids much; plain bytes read at memory speed.
    with pq.ParquetWriter(
        temporary, _SCHEMA, compression="none", use_dictionary=["file"]
    ) as writer:
        for members in documents.values():
            columns = [[getattr(member, name) for member in members] for name in _SCHEMA.names]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=len(members))
    temporary.replace(path)


def read_documents_of_bucket(row_groups: list[RowGroup], id_dtype: np.dtype) -> DocumentBatch:
    """All documents of a bucket, in the order of their ids whatever the order of the row groups."""
    tables = [pq.ParquetFile(group.path).read_row_group(group.index) for group in row_groups]
    table = pa.concat_tables(tables or [_SCHEMA.empty_table()])
    table = table.sort_by([("file", "ascending"), ("offset", "ascending")])

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


def _stable_hash(key: str) -> int:
    """64 bits that are the same in every process, unlike those of `hash`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _ceil_at_least_1(ratio: float) -> int:
    return max(1, int(np.ceil(ratio)))
