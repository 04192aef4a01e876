"""The Beam graph: two stages with a barrier between them.

1. *Tokenize*: each portion of the input becomes a Parquet file of tokenized documents.
2. *Build*: each bucket of documents and each pass becomes a shard.

To drop duplicates, a stage between them compares the digests of all documents.

Only file names and bucket numbers cross Beam's shuffle, never text or tokens. So one portion and
one bucket bound the memory on every runner, however large the corpus is. The workers' counts are in
the receipts of the files that they finish.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline.buckets import Bucket, BucketPlan
from pipeline.corpus import (
    RowGroup,
    TokenizedDocument,
    read_documents_of_bucket,
    tokenize_documents,
    write_documents,
)
from pipeline.directories import Directories
from pipeline.documents import Document, read_documents
from pipeline.duplicates import (
    count_partitions,
    find_duplicates,
    read_duplicates,
    write_duplicates,
)
from pipeline.embedded_runner import EmbeddedRunner
from pipeline.failures import as_user_error, step_errors_marked
from pipeline.files import remove_leftovers, sha256_of
from pipeline.formats.reading import read_raw_documents
from pipeline.inputs import InputFile
from pipeline.options import GenerateOptions
from pipeline.portions import Portion
from pipeline.receipts import (
    DuplicatesReceipt,
    PortionReceipt,
    R,
    read_receipt,
    read_receipt_of_whole,
    write_receipt,
)
from pipeline.runner import (
    EMBEDDED_RUNNER,
    dead_worker_ends_process,
    environment_of_workers,
)
from pipeline.shards import ShardPlan, build_shard
from pipeline.statistics import BuildResults, ShardResults, sum_counters
from pipeline.tokenization import FullTokenizer
from pipeline.vocabulary import Vocabulary
from pipeline.word_segmentation import WordFinder, load_segmenter
from pipeline.worker_processes import WorkerProcess

_BucketKey = tuple[str, int]

# The text that a worker tokenizes before it writes the tokens to disk.
_BATCH_CHARACTERS = 32 << 20
# The parts of that which it tokenizes at once.
_PARTS_OF_BATCH = 64


def run_pipeline(
    options: GenerateOptions,
    portions: list[Portion],
    buckets: BucketPlan,
    shard_plans: list[ShardPlan],
    directories: Directories,
    beam_options: PipelineOptions,
    processes: list[WorkerProcess],
) -> BuildResults:
    """Makes all shards and returns the workers' counts.

    Raises:
      UserError: a worker cannot read the text, or the runner fails.
      OSError: a worker cannot write a file.
      RuntimeError: a file was never finished, because the runner has lost work.
    """
    num_partitions = count_partitions(buckets.corpus_bytes) if options.drop_duplicates else 0
    runner = beam_options.view_as(StandardOptions).runner  # Beam forgets it on the way
    root = None
    try:
        with (
            dead_worker_ends_process(),
            environment_of_workers(beam_options),
            beam.Pipeline(
                EmbeddedRunner(processes) if runner == EMBEDDED_RUNNER else None, beam_options
            ) as root,
        ):
            row_groups = (
                root
                | "Portions" >> beam.Create(list(enumerate(portions)))
                | "SpreadPortions" >> beam.Reshuffle()
                | "Tokenize" >> beam.ParDo(TokenizePortion(options, buckets, directories))
            )
            duplicates = []
            if num_partitions:
                found = _find_duplicates(
                    root, row_groups, len(portions), num_partitions, directories
                )
                duplicates = [beam.pvalue.AsList(found)]
            plans = root | "Plans" >> beam.Create(
                [(_key(plan.bucket), plan) for plan in shard_plans]
            )
            _ = (
                {"plans": plans, "row_groups": row_groups}
                | "GroupByBucket" >> beam.CoGroupByKey()
                | "Shards" >> beam.FlatMap(_pair_plans_with_row_groups)
                | "SpreadShards" >> beam.Reshuffle()
                | "Build" >> beam.ParDo(BuildShard(options, directories), *duplicates)
            )
    except KeyboardInterrupt:
        if job := getattr(root, "result", None):
            job.cancel()  # on a cluster it would continue, and meet the next run in its directory
        for directory in (
            directories.tokenized,
            directories.receipts,
            directories.unfinished_shards,
        ):
            remove_leftovers(directory)  # of workers that were killed
        raise
    except Exception as error:
        raise as_user_error(error, runner) from error
    return _read_results(directories, len(portions), num_partitions, shard_plans)


def _find_duplicates(
    root: beam.Pipeline,
    row_groups: beam.PCollection,
    num_portions: int,
    num_partitions: int,
    directories: Directories,
) -> beam.PCollection:
    """The files that list the duplicates; they wait for all row groups."""
    num_row_groups = row_groups | "CountRowGroups" >> beam.combiners.Count.Globally()
    find = FindDuplicates(num_portions, num_partitions, directories)
    return (
        root
        | "Partitions" >> beam.Create(range(num_partitions))
        | "SpreadPartitions" >> beam.Reshuffle()
        | "FindDuplicates" >> beam.ParDo(find, beam.pvalue.AsSingleton(num_row_groups))
    )


class TokenizePortion(beam.DoFn):
    """A numbered portion to a Parquet file, unless it has a receipt: yields (bucket, row group)."""

    def __init__(self, options: GenerateOptions, buckets: BucketPlan, directories: Directories):
        self._options = options
        self._buckets = buckets
        self._directories = directories

    def setup(self) -> None:
        """Loads the vocabulary, once for each worker."""
        _give_freed_memory_back()
        options = self._options
        with step_errors_marked():
            self._tokenizer = FullTokenizer(
                self._directories.vocabulary, options.do_lower_case, options.strip_accents
            )
            name = options.word_segmenter
            segment = load_segmenter(name) if name else None
            self._find_words = WordFinder(self._tokenizer, segment) if segment else None

    def process(
        self, numbered_portion: tuple[int, Portion]
    ) -> Iterator[tuple[_BucketKey, RowGroup]]:
        """Reads, tokenizes and writes the portion's documents."""
        number, portion = numbered_portion
        path = self._directories.tokenized_file(number)
        with step_errors_marked():
            receipt = read_receipt_of_whole(path, PortionReceipt) or self._write(path, portion)
        for row_group, (bucket_split, index) in enumerate(receipt.buckets):
            yield (bucket_split, index), RowGroup(path, row_group)

    def _write(self, path: Path, portion: Portion) -> PortionReceipt:
        """Writes the portion's tokens and returns their receipt."""
        statistics: Counter[str] = Counter()
        buckets = write_documents(path, self._tokenize(portion, statistics))
        receipt = PortionReceipt(
            buckets=[_key(bucket) for bucket in buckets],
            sha256=sha256_of(path),
            text_bytes=sum(file_range.text_bytes for file_range in portion),
            statistics=statistics,
        )
        write_receipt(path, receipt)
        return receipt

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
        for file_range in portion:
            raw_documents = read_raw_documents(file_range, self._options.reading, statistics)
            for document in read_documents(raw_documents, self._options.reading, statistics):
                files.append(file_range.file)
                batch.append(document)
                characters += document.characters
                if characters > _BATCH_CHARACTERS // _PARTS_OF_BATCH:
                    yield files, batch
                    files, batch, characters = [], [], 0
        yield files, batch


class FindDuplicates(beam.DoFn):
    """A partition of the documents, by digest, to a Parquet file that lists the duplicates' ids."""

    def __init__(self, num_portions: int, num_partitions: int, directories: Directories):
        self._num_portions = num_portions
        self._num_partitions = num_partitions
        self._directories = directories

    def process(self, partition: int, num_row_groups: int) -> Iterator[Path]:
        """Compares the digests of all documents, which the number of row groups waits for."""
        path = self._directories.duplicates_file(partition)
        with step_errors_marked():
            if read_receipt_of_whole(path, DuplicatesReceipt) is None:
                tokenized_files = map(self._directories.tokenized_file, range(self._num_portions))
                duplicates = find_duplicates(list(tokenized_files), partition, self._num_partitions)
                write_duplicates(path, duplicates)
                write_receipt(path, DuplicatesReceipt(len(duplicates), sha256_of(path)))
        yield path


class BuildShard(beam.DoFn):
    """A shard's plan and the row groups of its bucket to a shard, unless it is finished already."""

    def __init__(self, options: GenerateOptions, directories: Directories):
        self._options = options
        self._directories = directories

    def setup(self) -> None:
        """Loads the vocabulary, once for each worker."""
        _give_freed_memory_back()
        with step_errors_marked():
            self._vocabulary = Vocabulary(self._directories.vocabulary)

    def process(
        self, plan_and_row_groups: tuple[ShardPlan, list[RowGroup]], duplicates: Sequence[Path] = ()
    ) -> None:
        """Reads the bucket, without the documents that `duplicates` list, and writes the shard."""
        with step_errors_marked():
            self._build(*plan_and_row_groups, duplicates)

    def _build(
        self, plan: ShardPlan, row_groups: list[RowGroup], duplicates: Sequence[Path]
    ) -> None:
        path = self._directories.output / plan.name
        receipt_path = self._directories.receipts / plan.name
        if read_receipt_of_whole(receipt_path, ShardResults, path):
            return
        documents = read_documents_of_bucket(
            row_groups, self._vocabulary.id_dtype, read_duplicates(duplicates, plan.bucket)
        )
        results = build_shard(
            plan,
            documents,
            self._vocabulary,
            self._options.instances,
            self._directories.unfinished_shards,
            self._directories.output,
        )
        write_receipt(receipt_path, results)


def _give_freed_memory_back() -> None:
    """Makes Arrow use the C library's allocator; its own keeps the memory of the largest bucket."""
    pa.set_memory_pool(pa.system_memory_pool())


def _key(bucket: Bucket) -> _BucketKey:
    return bucket.split, bucket.index


def _pair_plans_with_row_groups(
    grouped: tuple[_BucketKey, dict[str, Iterable[Any]]],
) -> Iterator[tuple[ShardPlan, list[RowGroup]]]:
    """The plans of a bucket's shards, each with all row groups of the bucket."""
    _, members = grouped
    row_groups = list(members["row_groups"])
    for plan in members["plans"]:
        yield plan, row_groups


def _read_results(
    directories: Directories, num_portions: int, num_partitions: int, shard_plans: list[ShardPlan]
) -> BuildResults:
    """The workers' counts, from the receipts of all files."""

    def receipt(path: Path, kind: type[R]) -> R:
        if found := read_receipt(path, kind):
            return found
        raise RuntimeError(f"{path.name} was never finished: the runner has lost work")

    portions = [
        receipt(directories.tokenized_file(number), PortionReceipt)
        for number in range(num_portions)
    ]
    duplicates = [
        receipt(directories.duplicates_file(number), DuplicatesReceipt)
        for number in range(num_partitions)
    ]
    shards = [receipt(directories.receipts / plan.name, ShardResults) for plan in shard_plans]
    corpus = sum_counters(portion.statistics for portion in portions)
    corpus["documents_duplicate"] = sum(partition.documents for partition in duplicates)
    return BuildResults(corpus, shards)
