"""The stages that find duplicates, between those that tokenize and build.

Each stage works on portions of the corpus, or on partitions of what is compared, by turns:

| stage | an item | reads | writes, for whom |
|---|---|---|---|
| `IndexDigests` | portions | the digests of their documents | these, for each partition of them |
| `FindDuplicates` | a partition | its digests, of all portions | duplicates, for their portions |
| `IndexKeys` | portions | their tokens | MinHash keys, for each partition of them |
| `FindGroups` | a partition | its keys, of all portions | documents in groups, for their portions |
| `SketchGroups` | portions | the tokens of documents in groups | sketches, for each partition |
| `FindNearDuplicates` | a partition | its sketches | near duplicates, for their portions |
| `ListDropped` | portions | duplicates of both kinds | lists of them, for those who build |

Without near duplicates, only the first two and the last are needed. What one item writes for
another is a part of a file, so that every byte is read once. For each change from portions to
partitions or back, each item of the one reads twice from each item of the other. There is a
partition for 1 GiB of text, and an item has up to 8 portions of 64 MiB. So a corpus of 100 GiB
takes 100 · 230 · 2 reads for a change, and one of 1 TiB takes 1,024 · 2,048 · 2.

A partition is itself cut in parts, of which only some are in memory at a time if they are large.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.duplicates import (
    DIGEST,
    DOCUMENT,
    ORDER,
    find_duplicates,
    number_documents,
    portions_of,
    read_digests,
    read_tables,
    write_dropped,
)
from pipeline.files import sha256_of
from pipeline.minhash import Bands, keys_of, sketches_of
from pipeline.near_duplicates import (
    KEY,
    MEMBER,
    SKETCH,
    find_groups,
    find_near_duplicates,
    keys_of_documents,
)
from pipeline.parts import read_part, read_parts, split_rows, write_parts
from pipeline.receipts import DuplicatesReceipt, PartsReceipt, read_receipt_of_whole
from pipeline.stages import Stage, Work
from pipeline.storage import Location
from pipeline.vocabulary import Vocabulary

_DOCUMENTS_AT_ONCE = 4096
_PARTS_OF_PARTITION = 64
_MOST_BYTES_AT_ONCE = 128 << 20


def stages_of_duplicates(work: Work) -> list[tuple["DuplicateStage", range]]:
    """The stages that find the duplicates to drop, in order, each with its items; perhaps none."""
    if not work.directories.finds_duplicates:
        return []
    of_both = [IndexDigests, FindDuplicates]
    of_near = [IndexKeys, FindGroups, SketchGroups, FindNearDuplicates]
    finds_near = work.options.drop_near_duplicates is not None
    stages = [*of_both, *(of_near if finds_near else []), ListDropped]
    return [(stage(work), range(stage.num_items(work))) for stage in stages]


def num_files_of_duplicates(work: Work) -> int:
    """The number of files that these stages make."""
    stages = stages_of_duplicates(work)
    return sum(len(items) for _, items in stages[:-1]) + (len(work.portions) if stages else 0)


class DuplicateStage(Stage):
    """A stage that turns parts of the files of the one before into a file of parts."""

    name: str
    of_partitions = False

    def __init__(self, work: Work):
        super().__init__()
        self._directories = work.directories
        self._num_portions = len(work.portions)
        self._portions_per_group = work.portions_per_group
        self._num_groups = work.num_groups
        self._num_partitions = work.num_partitions
        self._finds_near = work.options.drop_near_duplicates is not None
        self._similarity = work.options.drop_near_duplicates or 1.0

    @classmethod
    def num_items(cls, work: Work) -> int:
        """The number of items: of partitions, or of groups of portions."""
        return work.num_partitions if cls.of_partitions else work.num_groups

    def process(self, item: int) -> Iterator[Location]:
        """Makes the item's file of parts, and yields it."""
        path = self._file(type(self), item)
        if read_receipt_of_whole(path, PartsReceipt) is None:
            self._make(path, partial(self._write, item))
        yield path

    def _write(self, item: int, file: Path) -> PartsReceipt:
        """Writes the file of parts and returns its receipt."""
        parts = self._parts(item)
        write_parts(file, parts, self._num_parts(item))
        return PartsReceipt(sha256_of(file))

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        """The parts that an item hands on."""
        raise NotImplementedError

    def _num_parts(self, item: int) -> int:
        return self._num_groups if self.of_partitions else self._num_parts_of_partitions

    @property
    def _num_parts_of_partitions(self) -> int:
        return self._num_partitions * _PARTS_OF_PARTITION

    def _file(self, stage: type["DuplicateStage"], item: int) -> Location:
        return self._directories.duplicates / f"{stage.name}-{item:05d}.parts"

    def _of_group(self, stage: type["DuplicateStage"], group: int, dtype: np.dtype) -> np.ndarray:
        """What all partitions have for a group of portions."""
        files = [self._file(stage, item) for item in range(self._num_partitions)]
        return read_part(files, group, dtype)

    def _of_partition(
        self, stage: type["DuplicateStage"], partition: int, dtype: np.dtype
    ) -> Iterator[np.ndarray]:
        """What all groups of portions have for a partition, in parts with all rows of a key."""
        files = [self._file(stage, item) for item in range(self._num_groups)]
        first = partition * _PARTS_OF_PARTITION
        parts = range(first, first + _PARTS_OF_PARTITION)
        return read_parts(files, parts, dtype, _MOST_BYTES_AT_ONCE)

    def _by_partition(self, rows: np.ndarray, keys: np.ndarray) -> Iterator[np.ndarray]:
        num_parts = self._num_parts_of_partitions
        return split_rows(rows, (keys % np.uint64(num_parts)).astype(np.int64), num_parts)

    def _by_group(self, rows: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
        groups = portions_of(documents) // self._portions_per_group
        return split_rows(rows, groups, self._num_groups)

    def _portions(self, group: int) -> range:
        """The numbers of the portions of a group."""
        first = group * self._portions_per_group
        return range(first, min(first + self._portions_per_group, self._num_portions))

    def _order(self, portion: int) -> np.ndarray:
        """`ORDER` [documents] of a portion."""
        group, place = divmod(portion, self._portions_per_group)
        file = self._file(IndexDigests, group)
        return read_part([file], self._num_parts_of_partitions + place, ORDER)


class IndexDigests(DuplicateStage):
    """The digests of portions, by partition; and then the order of each portion's documents."""

    name = "digests"

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        paths = [(self._directories.tokenized_file(each), each) for each in self._portions(item)]
        digests, orders = zip(*(read_digests(*each) for each in paths), strict=True)
        rows = np.concatenate(digests)
        yield from self._by_partition(rows, rows["digest"][:, 0])
        yield from orders

    def _num_parts(self, item: int) -> int:
        return self._num_parts_of_partitions + len(self._portions(item))


class FindDuplicates(DuplicateStage):
    """The exact duplicates in a partition of the digests, by the group of their portion."""

    name = "exact"
    of_partitions = True

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        rows = self._of_partition(IndexDigests, item, DIGEST)
        duplicates = np.concatenate(list(map(find_duplicates, rows)))
        return self._by_group(duplicates, duplicates)


class _ReadsTokens(DuplicateStage):
    """A stage that reads the tokens of portions."""

    def load(self) -> None:
        """Loads the vocabulary, which tells the size of ids."""
        super().load()
        self._id_dtype = Vocabulary(self._directories.vocabulary).id_dtype

    def _tokens(
        self, portion: int, documents: np.ndarray, is_wanted: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The tokens of a portion's documents, some thousand at once.

        Args:
          portion: the number of the portion.
          documents: `DOCUMENT` [N], sorted.
          is_wanted: whether those are read, or all others.

        Yields:
          `DOCUMENT` [D], the documents; [T], their ids end to end; int64 [D], how many each has.
        """
        numbers = number_documents(portion, self._order(portion))
        is_read = np.isin(numbers, documents) == is_wanted
        first = 0
        for table in read_tables(self._directories.tokenized_file(portion)):
            rows = slice(first, first + len(table))
            first += len(table)
            all_ids = table["ids"].filter(pa.array(is_read[rows]))
            all_numbers = numbers[rows][is_read[rows]]
            for start in range(0, len(all_numbers), _DOCUMENTS_AT_ONCE):
                ids = all_ids.slice(start, _DOCUMENTS_AT_ONCE).to_pylist()
                lengths = np.array([len(each) for each in ids]) // self._id_dtype.itemsize
                tokens = np.frombuffer(b"".join(ids), self._id_dtype)
                yield all_numbers[start : start + len(ids)], tokens, lengths


class IndexKeys(_ReadsTokens):
    """The MinHash keys of portions, without exact duplicates, by partition."""

    name = "keys"

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        bands = Bands.for_similarity(self._similarity)
        duplicates = self._of_group(FindDuplicates, item, DOCUMENT)
        rows = np.concatenate(
            [np.empty(0, KEY)]
            + [
                keys_of_documents(documents, keys_of(ids, lengths, bands))
                for portion in self._portions(item)
                for documents, ids, lengths in self._tokens(portion, duplicates, is_wanted=False)
            ]
        )
        return self._by_partition(rows, rows["key"])


class FindGroups(DuplicateStage):
    """The groups of documents in a partition of the keys, by the group of their portion."""

    name = "groups"
    of_partitions = True

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        rows = self._of_partition(IndexKeys, item, KEY)
        members = np.concatenate(list(map(find_groups, rows)))
        return self._by_group(members, members["document"])


class SketchGroups(_ReadsTokens):
    """The sketches of documents of portions that are in groups, by partition."""

    name = "sketches"

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        members = self._of_group(FindGroups, item, MEMBER)
        wanted = np.unique(members["document"])
        found = [
            (documents, sketches_of(ids, lengths))
            for portion in self._portions(item)
            for documents, ids, lengths in self._tokens(portion, wanted, is_wanted=True)
        ]
        if not found:
            return
        documents, sketches = map(np.concatenate, zip(*found, strict=True))
        order = np.argsort(documents)
        for part in self._by_partition(members, members["key"]):
            rows = np.empty(len(part), SKETCH)
            rows["key"], rows["document"] = part["key"], part["document"]
            rows["sketch"] = sketches[order[np.searchsorted(wanted, part["document"])]]
            yield rows


class FindNearDuplicates(DuplicateStage):
    """The near duplicates in a partition of the groups, by the group of their portion."""

    name = "near"
    of_partitions = True

    def _parts(self, item: int) -> Iterator[np.ndarray]:
        found = [
            find_near_duplicates(rows, self._similarity)
            for rows in self._of_partition(SketchGroups, item, SKETCH)
        ]
        duplicates = np.unique(np.concatenate(found))
        return self._by_group(duplicates, duplicates)


class ListDropped(_ReadsTokens):
    """The lists of what is dropped of each portion, for those who build shards."""

    name = "dropped"

    def process(self, item: int) -> Iterator[Location]:
        """Writes the lists that are not there yet, and yields them."""
        dropped: Sequence[np.ndarray] | None = None
        for portion in self._portions(item):
            path = self._directories.dropped_file(self._directories.tokenized_file(portion))
            if read_receipt_of_whole(path, DuplicatesReceipt) is None:
                dropped = dropped or self._dropped(item)
                self._make(path, partial(self._write_list, portion, dropped))
            yield path

    def _dropped(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """The exact and the near duplicates of a group of portions."""
        near = np.empty(0, DOCUMENT)
        if self._finds_near:
            near = self._of_group(FindNearDuplicates, item, DOCUMENT)
        return self._of_group(FindDuplicates, item, DOCUMENT), near

    def _write_list(
        self, portion: int, dropped: Sequence[np.ndarray], file: Path
    ) -> DuplicatesReceipt:
        """Writes the list of a portion and returns its receipt."""
        path = self._directories.tokenized_file(portion)
        numbers = number_documents(portion, self._order(portion))
        is_exact, is_near = (np.isin(numbers, documents) for documents in dropped)
        num_tokens = write_dropped(file, path, is_exact, is_near, self._id_dtype.itemsize)
        exact, near = map(int, (np.sum(is_exact), np.sum(is_near)))
        return DuplicatesReceipt(exact, sha256_of(file), near, num_tokens)
