"""Which documents of a mixture each pass reads, and how often.

The documents of a corpus form a circle, in the order of a hash of their ids. Each pass reads on
from where the one before ended, for as many tokens as its share asks. So a pass reads a document
once for each time that it goes past it: a small share takes another part of the corpus in each
pass, and a large share goes round several times. Only whole documents are read. For example, a
corpus of three documents with 4 tokens each, of which three passes ask 8, 8 and 20 tokens::

    documents  a b c | a b c | a b c
    pass 0     a b
    pass 1         c   a
    pass 2               b c   a b c

Where each pass begins and ends follows from the sizes of all documents. They are measured bucket by
bucket, into files. One worker then adds up the tokens of each corpus by the first bits of their
hashes, and looks only at single documents where a pass ends. So its memory does not grow with the
corpus.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus import DOCUMENT_ID, DocumentBatch, RowGroup, read_row_groups
from pipeline.errors import UserError
from pipeline.json_files import NO_OTHER_KEYS
from pipeline.mixtures import Mixture
from pipeline.storage import Location, source_of

_BITS_OF_RANGE = 12
_SHIFT = np.uint64(64 - _BITS_OF_RANGE)
_NUM_RANGES = 1 << _BITS_OF_RANGE
# About as many as of the largest bucket, see `buckets.LARGEST_BUCKET_BYTES`.
_MOST_TOKENS_OF_SHARD = 1 << 27
# A store answers many requests in the time of one.
_FILES_AT_ONCE = 16
_MEASURED = pa.schema([("corpus", pa.int32()), ("key", pa.uint64()), ("tokens", pa.int64())])


@dataclass(frozen=True)
class Rotation:
    """How the passes read the training documents of one corpus, in a circle.

    P passes have P + 1 boundaries: pass p reads from boundary p to boundary p + 1.

    Attributes:
      documents, tokens: the corpus's size, without eval documents and dropped duplicates.
      shares: [P], the share of each pass's tokens that is asked.
      turns: [P + 1], how many times the whole circle was read before each boundary.
      keys: [P + 1], the key of the first document after each boundary.
      documents_read, tokens_read: [P], how many of these each pass reads, copies included.
    """

    documents: int
    tokens: int
    shares: list[float]
    turns: list[int]
    keys: list[int]
    documents_read: list[int]
    tokens_read: list[int]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class MixingPlan:
    """What the passes read of each corpus of a mixture, by name, sorted."""

    rotations: dict[str, Rotation]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS

    @property
    def documents(self) -> int:
        """How many different training documents all corpora have."""
        return sum(each.documents for each in self.rotations.values())

    def copies(self, measured: Mapping[str, np.ndarray], pass_index: int) -> np.ndarray:
        """How often a pass reads each of D documents, int64 [D], given their `read_measured`."""

        def read_before(boundary: int) -> np.ndarray:
            rotations = self.rotations.values()
            turns = np.array([each.turns[boundary] for each in rotations], np.int64)
            keys = np.array([each.keys[boundary] for each in rotations], np.uint64)
            return turns[measured["corpus"]] + (measured["key"] < keys[measured["corpus"]])

        return read_before(pass_index + 1) - read_before(pass_index)

    def documents_read(self, pass_index: int) -> int:
        """How many documents a pass reads, copies included."""
        return sum(each.documents_read[pass_index] for each in self.rotations.values())

    def shares_reached(self, name: str) -> list[float]:
        """The share of each pass's tokens that a corpus has."""
        of_all = zip(*(each.tokens_read for each in self.rotations.values()), strict=True)
        own = self.rotations[name].tokens_read
        return [tokens / sum(all_) for tokens, all_ in zip(own, of_all, strict=True)]


@dataclass(frozen=True)
class Others:
    """The documents of a batch that a random B may come from, for each of its D documents.

    It is another document of the same corpus, because a change of language or of subject would give
    the answer away; only if there is none, one of another corpus. It is never a copy of the
    document itself.

    Attributes:
      first, end: int64 [D], the range of documents to draw from, which includes the own copies.
      first_copy, end_of_copies: int64 [D], the range of these copies.
    """

    first: np.ndarray
    end: np.ndarray
    first_copy: np.ndarray
    end_of_copies: np.ndarray

    @classmethod
    def of(cls, copies: np.ndarray, corpus: np.ndarray) -> "Others":
        """Those of a batch in which copies of a document, and documents of a corpus, are adjacent.

        Args:
          copies: int64 [N], how often each of N different documents is in the batch.
          corpus: int [N], the number of its corpus, at least 0.
        """
        ends = np.cumsum(copies)
        starts = ends - copies
        # The first and the last document of each corpus that is there.
        firsts = np.flatnonzero(np.diff(corpus, prepend=-1))
        lasts = np.flatnonzero(np.diff(corpus, append=-1))
        first, end = (np.repeat(each, lasts + 1 - firsts) for each in (starts[firsts], ends[lasts]))
        is_alone = end - first == copies
        first, end = np.where(is_alone, 0, first), np.where(is_alone, copies.sum(), end)
        return cls(*(np.repeat(each, copies) for each in (first, end, starts, ends)))

    @property
    def exist(self) -> bool:
        """Whether the batch has more than one different document."""
        return bool((self.end - self.first > self.end_of_copies - self.first_copy).any())

    def draw(self, document: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws another document for each of some, int64 of their shape."""
        first, first_copy = self.first[document], self.first_copy[document]
        num_copies = self.end_of_copies[document] - first_copy
        drawn = first + rng.integers(0, self.end[document] - first - num_copies)
        return drawn + (drawn >= first_copy) * num_copies


def measure_documents(
    row_groups: Sequence[RowGroup], names: Sequence[str], seed: int, dropped: pa.Table | None = None
) -> pa.Table:
    """Measures the documents of a bucket, in the order of `read_documents_of_bucket`.

    Args:
      row_groups: the row groups that hold the bucket's documents.
      names: the names of all corpora, sorted.
      seed: decides the keys.
      dropped: table with the `file` and `offset` of the documents to leave out.

    Returns:
      A table with the columns `corpus`, the number of the document's corpus in `names`; `key`, its
      place in the circle, a hash of its id; and `tokens`, its length.
    """
    columns = [*DOCUMENT_ID, "sentence_lengths"]
    tables = read_row_groups(row_groups, *columns)
    if not tables:
        return _MEASURED.empty_table()
    table = pa.concat_tables(tables)
    if dropped is not None:
        table = table.join(dropped, DOCUMENT_ID, join_type="left anti")
    table = table.sort_by([(column, "ascending") for column in DOCUMENT_ID])
    files, offsets, lengths = (table[column].to_pylist() for column in columns)
    numbers = {name: number for number, name in enumerate(names)}
    of_sentences = np.frombuffer(b"".join(lengths), np.uint32).astype(np.int64)
    ends = np.cumsum([len(each) // np.dtype(np.uint32).itemsize for each in lengths], dtype=int)
    total = np.concatenate([[0], np.cumsum(of_sentences)])
    return pa.table(
        [
            [numbers[corpus_of(file)] for file in files],
            [_key(seed, file, offset) for file, offset in zip(files, offsets, strict=True)],
            np.diff(total[ends], prepend=0),
        ],
        schema=_MEASURED,
    )


def corpus_of(file: str) -> str:
    """The name of the corpus that a file of this name (`InputFile.name`) belongs to."""
    return file.partition("/")[0]


def _key(seed: int, file: str, offset: int) -> int:
    """A document's place in the circle: 64 bits, independent of its bucket and its split."""
    place = f"mixture\0{seed}\0{file}\0{offset}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little")


def write_measured(path: Path, documents: pa.Table) -> None:
    """Writes the result of `measure_documents`."""
    pq.write_table(documents, path)


def read_measured(path: Location) -> dict[str, np.ndarray]:
    """Reads the columns that `write_measured` wrote: int32, uint64 and int64 [D]."""
    table = pq.read_table(source_of(path))
    return {name: table[name].to_numpy() for name in table.column_names}


def _read_all(paths: Sequence[Location]) -> Iterator[dict[str, np.ndarray]]:
    """Reads all files, of which only a few are in memory at a time."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        for first in range(0, len(paths), _FILES_AT_ONCE):
            yield from threads.map(read_measured, paths[first : first + _FILES_AT_ONCE])


def plan_mixing(mixture: Mixture, measured: Sequence[Location], num_passes: int) -> MixingPlan:
    """Plans what each pass reads of each corpus.

    In each pass, the mixture has as many tokens as all corpora together. Each boundary lies beside
    the document that contains the place that is asked, on the nearer side. So a pass has at most
    one document of a corpus, the longest, more or less than asked, and no error adds up.

    Args:
      mixture: the corpora and their shares.
      measured: the files with the measured documents.
      num_passes: P, the number of passes.

    Raises:
      UserError: a corpus has no training document, or so few that a shard with all their copies
        would not fit in memory.
    """
    names = mixture.names
    sizes = _sizes_of_ranges(measured, len(names))
    num_tokens = sizes[1].sum(axis=1)
    for name, tokens in zip(names, num_tokens, strict=True):
        if not tokens:
            raise UserError(
                f"the corpus {name} of the mixture has no training document besides eval documents "
                "and duplicates: give it more text, or remove it"
            )
    shares = mixture.shares(num_tokens, num_passes)
    # [P + 1, corpora], in tokens from the beginning of the first pass.
    asked = np.concatenate([np.zeros((1, len(names))), np.cumsum(shares * num_tokens.sum(), 0)])
    whole, rest = np.divmod(asked, num_tokens)
    turns = whole.astype(np.int64)
    before = np.cumsum(sizes, axis=2) - sizes
    # The range of keys that holds each boundary, [P + 1, corpora].
    ranges = np.stack(
        [np.searchsorted(row, rest[:, n], "right") - 1 for n, row in enumerate(before[1])], axis=1
    )
    wanted = np.zeros((len(names), _NUM_RANGES), bool)
    wanted[np.arange(len(names)), ranges] = True
    near = _read_ranges(measured, wanted)
    rotations = {}
    for number, name in enumerate(names):
        boundaries = [
            _boundary(
                near[number, place], place, before[:, number, place], float(rest[step, number])
            )
            for step, place in enumerate(ranges[:, number].tolist())
        ]
        totals = sizes[:, number].sum(axis=1)
        # All documents and tokens up to each boundary, [P + 1, 2].
        read = np.array([size for _, size in boundaries]) + np.outer(turns[:, number], totals)
        documents_read, tokens_read = np.diff(read, axis=0).T.tolist()
        ends_circle = [key == 1 << 64 for key, _ in boundaries]
        rotations[name] = Rotation(
            documents=int(totals[0]),
            tokens=int(totals[1]),
            shares=shares[:, number].tolist(),
            turns=(turns[:, number] + ends_circle).tolist(),
            keys=[key % (1 << 64) for key, _ in boundaries],
            documents_read=documents_read,
            tokens_read=tokens_read,
        )
    plan = MixingPlan(rotations)
    _check_shards(plan, measured, num_passes)
    return plan


def _check_shards(plan: MixingPlan, measured: Sequence[Location], num_passes: int) -> None:
    """Checks that no bucket has so many copies of documents that they do not fit in memory."""
    for documents in _read_all(measured):
        for pass_index in range(num_passes):
            copies = plan.copies(documents, pass_index)
            tokens = copies * documents["tokens"]
            if tokens.sum() > _MOST_TOKENS_OF_SHARD:
                most = tokens.argmax()
                name = list(plan.rotations)[documents["corpus"][most]]
                raise UserError(
                    f"a shard would have {tokens.sum():,} tokens, because a document of the corpus "
                    f"{name} is read {copies[most]:,} times in a pass, and copies stay together: "
                    "lower the share of this corpus, or give it more documents"
                )


def _sizes_of_ranges(measured: Sequence[Location], num_corpora: int) -> np.ndarray:
    """The documents and the tokens in each range of keys, int64 [2, corpora, ranges]."""
    sizes = np.zeros((2, num_corpora * _NUM_RANGES), np.int64)
    for documents in _read_all(measured):
        place = _range_of(documents)
        np.add.at(sizes[0], place, 1)
        np.add.at(sizes[1], place, documents["tokens"])
    return sizes.reshape(2, num_corpora, _NUM_RANGES)


def _range_of(documents: Mapping[str, np.ndarray]) -> np.ndarray:
    """The range of each document, by corpus and by the first bits of the key, int64 [D]."""
    first_bits = (documents["key"] >> _SHIFT).astype(np.int64)
    return documents["corpus"].astype(np.int64) * _NUM_RANGES + first_bits


def _read_ranges(
    measured: Sequence[Location], wanted: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    """The documents in some ranges: key and tokens, in the order of the keys, uint64 [D, 2].

    Args:
      measured: the files with the measured documents.
      wanted: bool [corpora, ranges].
    """
    places, rows = [], []
    for documents in _read_all(measured):
        place = _range_of(documents)
        chosen = np.flatnonzero(wanted.reshape(-1)[place])
        places.append(place[chosen])
        tokens = documents["tokens"][chosen].astype(np.uint64)
        rows.append(np.stack([documents["key"][chosen], tokens], axis=1))
    place, row = np.concatenate(places), np.concatenate(rows)
    order = np.lexsort((row[:, 0], place))
    place, row = place[order], row[order]
    found = {}
    for number in np.flatnonzero(wanted).tolist():
        first, end = np.searchsorted(place, [number, number + 1])
        found[divmod(number, _NUM_RANGES)] = row[first:end]
    return found


def _boundary(
    documents: np.ndarray, place: int, before: np.ndarray, tokens: float
) -> tuple[int, list[int]]:
    """The boundary between documents that is nearest to a number of tokens.

    Args:
      documents: uint64 [D, 2], key and tokens of the documents in a range of keys, sorted.
      place: the number of the range.
      before: int64 [2], the documents and the tokens before the range.
      tokens: where the boundary should be: in this range, in tokens from the circle's beginning.

    Returns:
      The key of the first document after the boundary, 2^64 for the end of the circle; and the
      documents and tokens before it.
    """
    keys = [*documents[:, 0].tolist(), (place + 1) << int(_SHIFT)]
    ends = before[1] + np.concatenate([[0], np.cumsum(documents[:, 1].astype(np.int64))])
    nearest = int(np.argmin(np.abs(ends - tokens)))
    return keys[nearest], [int(before[0]) + nearest, int(ends[nearest])]


def mix_documents(
    documents: DocumentBatch, copies: np.ndarray, corpus: np.ndarray
) -> DocumentBatch:
    """Repeats documents and leaves others out; copies of a document are adjacent.

    Args:
      documents: D documents, corpus by corpus.
      copies: int64 [D], how often each is wanted.
      corpus: int [D], the number of its corpus.
    """
    sentences = _spans(documents.document_ends, copies)
    sentence_lengths = np.diff(documents.sentence_ends, prepend=0)
    token_ends = documents.sentence_ends[documents.document_ends - 1]
    tokens = _spans(token_ends, copies)
    return DocumentBatch(
        ids=_taken(documents.ids, tokens),
        word_starts=_taken(documents.word_starts, tokens),
        sentence_ends=np.cumsum(_taken(sentence_lengths, sentences), dtype=np.int64),
        document_ends=np.cumsum([each.stop - each.start for each in sentences], dtype=np.int64),
        others=Others.of(copies, corpus),
    )


def _spans(ends: np.ndarray, copies: np.ndarray) -> list[slice]:
    """The span of each copy, given where the spans end that lie end to end."""
    spans = list(starmap(slice, pairwise([0, *ends.tolist()])))
    return [span for span, count in zip(spans, copies.tolist(), strict=True) for _ in range(count)]


def _taken(values: np.ndarray, spans: Sequence[slice]) -> np.ndarray:
    return np.concatenate([values[:0], *(values[span] for span in spans)])
