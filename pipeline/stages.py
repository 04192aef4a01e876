"""The work in its stages, each a function of one item, whatever engine calls it.

1. *Tokenize*: each portion of the input becomes a Parquet file of tokenized documents.
2. *Find duplicates*, if they are to be dropped: see `duplicate_stages`.
3. *Build*: each bucket of documents and each pass becomes a shard. Before that, a mixture has two
   stages of its own, see `mixture_stages`.

A stage begins when all items of the one before are done. Only file names and bucket numbers go from
one to the next, never text or tokens. So one portion and one bucket bound the memory of a worker on
every engine, however large the corpus is. The workers' counts are in the receipts of the files that
they finish.
"""

import gc
import hashlib
import itertools
import socket
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.buckets import Bucket, BucketPlan
from pipeline.corpus import (
    DocumentBatch,
    RowGroup,
    TokenizedDocument,
    read_documents_of_bucket,
    tokenize_documents,
    write_documents,
)
from pipeline.directories import Directories
from pipeline.documents import Document, read_documents
from pipeline.duplicates import count_partitions, read_dropped
from pipeline.errors import UserError
from pipeline.files import sha256_of, whole_file
from pipeline.formats.reading import read_raw_documents
from pipeline.inputs import InputFile
from pipeline.json_files import read_json
from pipeline.mixing import MixingPlan, mix_documents, read_measured
from pipeline.options import GenerateOptions
from pipeline.portions import Portion, corpus_of_portion, text_bytes_of
from pipeline.pre_tokenization import make_tokenizer
from pipeline.receipts import (
    DuplicatesReceipt,
    PortionReceipt,
    R,
    read_receipt,
    read_receipt_of_whole,
    write_receipt,
)
from pipeline.segmenters import describe_packages
from pipeline.shards import ShardPlan, build_shard
from pipeline.statistics import BuildResults, ShardResults, sum_counters
from pipeline.storage import Location
from pipeline.vocabulary import Vocabulary
from pipeline.word_segmentation import WordFinder, describe_segmenter, load_segmenter

BucketKey = tuple[str, int]
"""Split and number of a bucket: what engines group row groups by."""

# The text that a worker tokenizes before it writes the tokens to disk.
_BATCH_CHARACTERS = 32 << 20
# The parts of that which it tokenizes at once.
_PARTS_OF_BATCH = 64
# A store answers many requests in the time of one.
_RECEIPTS_AT_ONCE = 16
# Portions whose duplicates one item of work finds, if there are more than so many portions.
_GROUPS_OF_PORTIONS = 256
_MOST_PORTIONS_PER_GROUP = 8


@dataclass(frozen=True)
class Work:
    """All that is to be done for a data set.

    Attributes:
      options: what to make, of what.
      portions: the portions of the input.
      buckets: how documents get their buckets.
      shard_plans: the shards to build.
      directories: where the files of all stages are.
    """

    options: GenerateOptions
    portions: list[Portion]
    buckets: BucketPlan
    shard_plans: list[ShardPlan]
    directories: Directories

    @property
    def num_partitions(self) -> int:
        """The number of partitions in which duplicates are looked for."""
        return count_partitions(self.buckets.corpus_bytes)

    @property
    def portions_per_group(self) -> int:
        """The number of portions whose duplicates one item of work finds."""
        wanted = -(-len(self.portions) // _GROUPS_OF_PORTIONS)
        return min(max(wanted, 1), _MOST_PORTIONS_PER_GROUP)

    @property
    def num_groups(self) -> int:
        """The number of such groups of portions."""
        return -(-len(self.portions) // self.portions_per_group)


class Stage:
    """The work on each item of a stage. Each worker has its own copy.

    Attributes:
      finish: calls a function that moves or sends a written file to its place, at once or soon.
    """

    def __init__(self) -> None:
        self.finish: Callable[[Callable[[], None]], None] = _at_once
        self._versions = self._versions_here()

    def _versions_here(self) -> dict[str, str]:
        """The versions of what decides the bytes that this stage makes, on this machine."""
        return versions()

    def load(self) -> None:
        """Loads what all items need, once for each worker.

        Raises:
          UserError: the worker has other versions than the driver, and so might make other bytes.
        """
        for name, version in self._versions_here().items():
            if version != self._versions[name]:
                raise UserError(
                    f"the worker on {socket.gethostname()} has another {name} ({version}) than "
                    f"the driver ({self._versions[name]}): install the same on all machines"
                )

    def process(self, item: Any) -> Iterator[Any]:
        """Does the work on an item, unless it is done already, and yields what comes of it.

        Raises:
          UserError: the input cannot be read.
          OSError: a file cannot be written.
        """
        raise NotImplementedError

    def _make(
        self,
        path: Location,
        write: Callable[[Path], R],
        path_of_receipt: Location | None = None,
        temporary_dir: Location | None = None,
    ) -> R:
        """Makes a file: a function writes it and returns its receipt, which is written last."""
        with ExitStack() as stack:
            receipt = write(stack.enter_context(whole_file(path, temporary_dir)))
            written = stack.pop_all()

        def finish() -> None:
            written.close()
            write_receipt(path_of_receipt or path, receipt)

        self.finish(finish)
        return receipt


def _at_once(finish: Callable[[], None]) -> None:
    finish()


class TokenizePortion(Stage):
    """A numbered portion to a Parquet file, unless it has a receipt: yields (bucket, row group)."""

    def __init__(self, work: Work):
        self._options = work.options
        self._buckets = work.buckets
        self._directories = work.directories
        super().__init__()

    def _versions_here(self) -> dict[str, str]:
        segmenter, pre_tokenizer = self._options.word_segmenter, self._options.pre_tokenizer
        found = super()._versions_here()
        if segmenter:
            found = found | {"--word_segmenter": str(describe_segmenter(segmenter))}
        if pre_tokenizer:
            described = describe_packages("pre_tokenizer", pre_tokenizer)
            found = found | {"--pre_tokenizer": described}
        return found

    def load(self) -> None:
        """Loads the vocabulary and the segmenter."""
        super().load()
        _give_freed_memory_back()
        options = self._options
        self._tokenizer = make_tokenizer(
            self._directories.vocabulary,
            options.do_lower_case,
            options.strip_accents,
            options.pre_tokenizer,
        )
        name = options.word_segmenter
        segment = load_segmenter(name) if name else None
        self._find_words = WordFinder(self._tokenizer, segment) if segment else None

    def process(self, item: tuple[int, Portion]) -> Iterator[tuple[BucketKey, RowGroup]]:
        """Reads, tokenizes and writes the portion's documents."""
        number, portion = item
        path = self._directories.tokenized_file(number)
        receipt = read_receipt_of_whole(path, PortionReceipt) or self._make(
            path, partial(self._write, portion)
        )
        for row_group, (split, index) in enumerate(receipt.buckets):
            yield (split, index), RowGroup(path, row_group)

    def _write(self, portion: Portion, file: Path) -> PortionReceipt:
        """Writes the portion's tokens and returns their receipt."""
        statistics: Counter[str] = Counter()
        buckets = write_documents(file, self._tokenize(portion, statistics))
        return PortionReceipt(
            buckets=[key_of(bucket) for bucket in buckets],
            sha256=sha256_of(file),
            text_bytes=text_bytes_of(portion),
            statistics=statistics,
        )

    def _tokenize(
        self, portion: Portion, statistics: Counter[str]
    ) -> Iterator[dict[Bucket, list[TokenizedDocument]]]:
        """The portion's documents by bucket, in batches that fit in memory."""
        documents: dict[Bucket, list[TokenizedDocument]] = defaultdict(list)
        characters = 0
        for files, batch in self._read(portion, statistics):
            tokenized = tokenize_documents(batch, self._tokenizer, statistics, self._find_words)
            for file, document, tokens in zip(files, batch, tokenized, strict=True):
                if tokens:
                    documents[self._buckets.bucket_of(file, document)].append(tokens)
                    characters += document.characters
            if characters > _BATCH_CHARACTERS:
                yield documents
                documents, characters = defaultdict(list), 0
        yield documents

    def _read(
        self, portion: Portion, statistics: Counter[str]
    ) -> Iterator[tuple[list[InputFile], list[Document]]]:
        """The portion's documents, each with its file, as many at once as are tokenized fast."""
        files, batch, characters = [], [], 0
        reading = self._options.reading_of(corpus_of_portion(portion))
        for file_range in portion:
            raw_documents = read_raw_documents(file_range, reading, statistics)
            for document in read_documents(raw_documents, reading, statistics):
                files.append(file_range.file)
                batch.append(document)
                characters += document.characters
                if characters > _BATCH_CHARACTERS // _PARTS_OF_BATCH:
                    yield files, batch
                    files, batch, characters = [], [], 0
        yield files, batch


class BuildShard(Stage):
    """A shard's plan and the row groups of its bucket to a shard, unless it is finished already."""

    def __init__(self, work: Work):
        super().__init__()
        self._options = work.options
        self._directories = work.directories

    def load(self) -> None:
        """Loads the vocabulary."""
        super().load()
        _give_freed_memory_back()
        self._vocabulary = Vocabulary(self._directories.vocabulary)
        self._last_read: tuple[Bucket, DocumentBatch] | None = None
        self._mixing: MixingPlan | None = None

    def process(self, item: tuple[ShardPlan, list[RowGroup]]) -> Iterator[str]:
        """Reads the bucket, without duplicates, writes the shard and yields its name."""
        plan, row_groups = item
        path = self._directories.output / plan.name
        receipt_path = self._directories.receipts / plan.name
        if not read_receipt_of_whole(receipt_path, ShardResults, path):
            write = partial(self._write, plan, row_groups)
            self._make(path, write, receipt_path, self._directories.unfinished_shards)
        yield plan.name

    def _write(self, plan: ShardPlan, row_groups: list[RowGroup], file: Path) -> ShardResults:
        """Writes the shard and returns its receipt."""
        documents = self._documents_of(plan.bucket, row_groups)
        if self._options.mixture and plan.bucket.split == "train":
            documents = self._mixed(documents, plan)
        return build_shard(plan, documents, self._vocabulary, self._options.instances, file)

    def _documents_of(self, bucket: Bucket, row_groups: list[RowGroup]) -> DocumentBatch:
        """Reads a bucket without its duplicates, unless this worker read it last."""
        if self._last_read is None or self._last_read[0] != bucket:
            self._last_read = None  # before the next one takes memory
            dropped = self._directories.dropped_files(group.path for group in row_groups)
            documents = read_documents_of_bucket(
                row_groups, self._vocabulary.id_dtype, read_dropped(dropped, bucket)
            )
            self._last_read = bucket, documents
        return self._last_read[1]

    def _mixed(self, documents: DocumentBatch, plan: ShardPlan) -> DocumentBatch:
        """The documents of a bucket as often as the shard's pass reads them."""
        if self._mixing is None:
            self._mixing = read_json(self._directories.mixing_plan, MixingPlan)
        measured = read_measured(self._directories.measured_file(plan.bucket))
        copies = self._mixing.copies(measured, plan.pass_index)
        return mix_documents(documents, copies, measured["corpus"])


_loaded: Stage | None = None


def loaded(stage: Stage) -> Stage:
    """The stage, loaded once in each process; the one before it is forgotten first.

    Raises:
      UserError: see `Stage.load`.
    """
    global _loaded  # noqa: PLW0603 - of this process
    if type(_loaded) is not type(stage):
        _loaded = None
        stage.load()
        _loaded = stage
        gc.freeze()  # because some engines collect garbage after every task
    return _loaded


@cache
def versions() -> dict[str, str]:
    """The versions of what decides the bytes, here: of Python's tables, NumPy and this package."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return {
        "Unicode of Python": unicodedata.unidata_version,
        "NumPy": np.__version__,
        "build of Clozemill": digest.hexdigest()[:12],
    }


def key_of(bucket: Bucket) -> BucketKey:
    """The bucket's key."""
    return bucket.split, bucket.index


def read_results(work: Work) -> BuildResults:
    """The workers' counts, from the receipts of all files.

    Raises:
      RuntimeError: a file was never finished, because the engine has lost work.
    """

    def receipt(path: Location, kind: type[R]) -> R:
        if found := read_receipt(path, kind):
            return found
        raise RuntimeError(f"{path.name} was never finished: the runner has lost work")

    def receipts(paths: Iterable[Location], kind: type[R]) -> list[R]:
        with ThreadPoolExecutor(_RECEIPTS_AT_ONCE) as threads:
            return list(threads.map(receipt, paths, itertools.repeat(kind)))

    directories = work.directories
    tokenized = list(map(directories.tokenized_file, range(len(work.portions))))
    portions = receipts(tokenized, PortionReceipt)
    dropped = receipts(directories.dropped_files(tokenized), DuplicatesReceipt)
    shards = receipts((directories.receipts / plan.name for plan in work.shard_plans), ShardResults)
    counts = [portion.statistics for portion in portions]
    for counter, duplicates in zip(counts if dropped else [], dropped, strict=True):
        counter["documents_duplicate"] = duplicates.documents
        if work.options.drop_near_duplicates is not None:
            counter["documents_near_duplicate"] = duplicates.near_documents
    if not work.options.mixture:
        return BuildResults(sum_counters(counts), shards)
    of_corpora: dict[str, list[Counter[str]]] = {name: [] for name in work.options.mixture.names}
    for portion, counter in zip(work.portions, counts, strict=True):
        of_corpora[str(corpus_of_portion(portion))].append(counter)
    return BuildResults(
        sum_counters(counts),
        shards,
        {name: sum_counters(found) for name, found in of_corpora.items()},
        read_json(directories.mixing_plan, MixingPlan),
    )


def _give_freed_memory_back() -> None:
    """Makes Arrow use the C library's allocator; its own keeps the memory of the largest bucket."""
    pa.set_memory_pool(pa.system_memory_pool())
