"""The Beam pipeline: raw text to a data set, in two stages with a barrier between them.

1. *Tokenize*: each split of the input becomes a Parquet file of tokenized documents.
2. *Build*: each bucket of documents and each pass becomes a shard.

Only file names and bucket numbers cross Beam's shuffle, never text or tokens, so memory is bounded by
one split and one bucket on every runner, however large the corpus. What the workers count stands in the
receipts of the files they finish.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus import (
    Bucket,
    BucketPlan,
    RowGroup,
    TokenizedDocument,
    read_documents_of_bucket,
    tokenize_document,
    write_documents,
)
from pipeline.directories import Directories, Plan, read_receipt, write_receipt
from pipeline.documents import read_documents
from pipeline.errors import UserError
from pipeline.inputs import InputFile, Split, describe_paths, match_files, plan_splits
from pipeline.manifest import Manifest, Shard
from pipeline.options import GenerateOptions, RandomToken
from pipeline.progress import report_progress
from pipeline.runner import choose_runner, dead_worker_ends_process
from pipeline.shards import ShardPlan, build_shard, plan_shards
from pipeline.statistics import BuildResults, check_documents_agree, sum_counters, summarize
from pipeline.tokenization import FullTokenizer, Vocabulary

_BucketKey = tuple[str, int]

# To be raised with every change of what tokenizing, splitting or the buckets give.
TOKENIZED_FORMAT_VERSION = 1


def generate(options: GenerateOptions, beam_options: PipelineOptions) -> Manifest:
    """Makes the data set in `options.output_dir` and returns its manifest.

    After a run that was killed, the same options go on with what it had finished.

    Raises:
      UserError: the input, the vocabulary, the output directory or an option is unusable.
    """
    choose_runner(beam_options)
    vocabulary = Vocabulary(options.vocab_file)
    if options.instances.random_token == RandomToken.WORDS and not len(vocabulary.ordinary_ids()):
        raise UserError(f"the vocabulary {options.vocab_file} has nothing but special tokens")
    files = match_files(options.input_patterns)
    corpus_bytes = sum(file.size for file in files)
    splits = plan_splits(files, options.input_format)
    buckets = BucketPlan.for_corpus(corpus_bytes, options.eval_fraction, options.num_shards)
    shard_plans = plan_shards(buckets, options.instances.dupe_factor)
    logging.info(
        "input files: %d, %.1f MB; splits: %d; shards to build: %d",
        len(files),
        corpus_bytes / 1e6,
        len(splits),
        len(shard_plans),
    )
    directories = Directories(options.output_dir, options.tokenized_dir)
    tokenization_plan = _plan_of_tokenization(options, files, splits, buckets, vocabulary)
    directories.prepare(
        options.vocab_file,
        tokenization_plan,
        {**tokenization_plan, **asdict(options.instances)},
        options.overwrite,
    )
    with report_progress(directories.tokenized, len(splits), directories.output, len(shard_plans)):
        _run_pipeline(options, splits, buckets, shard_plans, directories, beam_options)

    results = _read_results(directories, len(splits), shard_plans)
    results.corpus.update(input_files=len(files), input_bytes=corpus_bytes)
    try:
        check_documents_agree(results)
        _check_any_instance(results, files, options)
    except (RuntimeError, UserError):
        directories.discard()  # nothing that the same command could go on with
        raise
    manifest = _make_manifest(results, options, vocabulary, buckets)
    directories.finish(manifest)
    return manifest


def _plan_of_tokenization(
    options: GenerateOptions,
    files: list[InputFile],
    splits: list[Split],
    buckets: BucketPlan,
    vocabulary: Vocabulary,
) -> Plan:
    """All that decides what is in the files of the tokenized corpus."""
    # Not the text itself, which a kept corpus is to save reading.
    stamps = json.dumps([(file.name, file.size, file.modified) for file in files])
    return {
        "format_version": TOKENIZED_FORMAT_VERSION,
        "unicode_version": unicodedata.unidata_version,
        "input_files": len(files),
        "input_bytes": buckets.corpus_bytes,
        "input_stamps_sha256": hashlib.sha256(stamps.encode()).hexdigest(),
        "input_format": options.input_format,
        "do_lower_case": options.do_lower_case,
        "strip_accents": options.strip_accents,
        "vocab_sha256": vocabulary.sha256,
        "eval_fraction": buckets.eval_fraction,
        "num_train_buckets": buckets.num_train_buckets,
        "num_splits": len(splits),
    }


def _check_any_instance(
    results: BuildResults, files: list[InputFile], options: GenerateOptions
) -> None:
    if not any(shard.instances for shard, _ in results.shards if shard.split == "train"):
        raise UserError(
            f"no training instance came out of {describe_paths([file.path for file in files])}: "
            f"{results.corpus['documents_read']} documents were read, "
            f"{results.corpus['documents_tokenized']} of them with any token; check "
            f"--input_format={options.input_format} and --eval_fraction, or give more text"
        )


def _make_manifest(
    results: BuildResults, options: GenerateOptions, vocabulary: Vocabulary, buckets: BucketPlan
) -> Manifest:
    return Manifest(
        max_seq_length=options.instances.max_seq_length,
        max_predictions_per_seq=options.instances.max_predictions_per_seq,
        do_lower_case=options.do_lower_case,
        strip_accents=options.strip_accents,
        vocab_size=len(vocabulary),
        vocab_sha256=vocabulary.sha256,
        options={
            "unicode_version": unicodedata.unidata_version,
            "input_format": options.input_format,
            "eval_fraction": options.eval_fraction,
            "num_train_buckets": buckets.num_train_buckets,
            **asdict(options.instances),
        },
        statistics=summarize(results, options.instances.max_seq_length),
        shards=[shard for shard, _ in results.shards],
    )


class TokenizeSplit(beam.DoFn):
    """A numbered split to a Parquet file: yields (bucket, row group). What has a receipt is not made again."""

    def __init__(self, options: GenerateOptions, buckets: BucketPlan, directories: Directories):
        self._options = options
        self._buckets = buckets
        self._directories = directories

    def setup(self) -> None:
        """Loads the vocabulary once a worker."""
        self._tokenizer = FullTokenizer(
            self._directories.vocabulary, self._options.do_lower_case, self._options.strip_accents
        )

    def process(self, numbered_split: tuple[int, Split]) -> Iterator[tuple[_BucketKey, RowGroup]]:
        """Reads, tokenizes and writes the split's documents."""
        number, split = numbered_split
        path = _tokenized_file(self._directories, number)
        receipt = read_receipt(path)
        if receipt is None or not path.exists() or path.stat().st_size != receipt["bytes"]:
            documents, statistics = self._tokenize(split)
            write_documents(path, documents)
            receipt = {
                "buckets": [_key(bucket) for bucket in documents],
                "bytes": path.stat().st_size,
                "statistics": statistics,
            }
            write_receipt(path, receipt)
        for row_group, (bucket_split, index) in enumerate(receipt["buckets"]):
            yield (bucket_split, index), RowGroup(path, row_group)

    def _tokenize(self, split: Split) -> tuple[dict[Bucket, list[TokenizedDocument]], Counter[str]]:
        statistics: Counter[str] = Counter()
        documents: dict[Bucket, list[TokenizedDocument]] = defaultdict(list)
        for file_range in split:
            for document in read_documents(file_range, self._options.input_format):
                tokenized = tokenize_document(document, self._tokenizer, statistics)
                if tokenized:
                    bucket = self._buckets.bucket_of(file_range.file, document.offset)
                    documents[bucket].append(tokenized)
        return documents, statistics


class BuildShard(beam.DoFn):
    """A shard's plan and the row groups of its bucket to a shard, unless it is there already."""

    def __init__(self, options: GenerateOptions, directories: Directories):
        self._options = options
        self._directories = directories

    def setup(self) -> None:
        """Loads the vocabulary once a worker."""
        self._vocabulary = Vocabulary(self._directories.vocabulary)

    def process(self, plan_and_row_groups: tuple[ShardPlan, list[RowGroup]]) -> None:
        """Reads the bucket and writes the shard."""
        plan, row_groups = plan_and_row_groups
        receipt = read_receipt(self._directories.receipts / plan.name)
        if receipt and _has_sha256(
            self._directories.output / plan.name, receipt["shard"]["sha256"]
        ):
            return
        documents = read_documents_of_bucket(row_groups, self._vocabulary.id_dtype)
        shard, statistics = build_shard(
            plan,
            documents,
            self._vocabulary,
            self._options.instances,
            self._directories.receipts,
            self._directories.output,
        )
        write_receipt(
            self._directories.receipts / plan.name,
            {"shard": asdict(shard), "statistics": statistics},
        )


def _run_pipeline(
    options: GenerateOptions,
    splits: list[Split],
    buckets: BucketPlan,
    shard_plans: list[ShardPlan],
    directories: Directories,
    beam_options: PipelineOptions,
) -> None:
    try:
        with dead_worker_ends_process(), beam.Pipeline(options=beam_options) as root:
            row_groups = (
                root
                | "Splits" >> beam.Create(list(enumerate(splits)))
                | "SpreadSplits" >> beam.Reshuffle()
                | "Tokenize" >> beam.ParDo(TokenizeSplit(options, buckets, directories))
            )
            plans = root | "Plans" >> beam.Create(
                [(_key(plan.bucket), plan) for plan in shard_plans]
            )
            _ = (
                {"plans": plans, "row_groups": row_groups}
                | "GroupByBucket" >> beam.CoGroupByKey()
                | "Shards" >> beam.FlatMap(_pair_plans_with_row_groups)
                | "SpreadShards" >> beam.Reshuffle()
                | "Build" >> beam.ParDo(BuildShard(options, directories))
            )
    except Exception as error:
        # A worker's exception arrives with additions, or as text with a traceback.
        text = f"UserError: {error}" if isinstance(error, UserError) else str(error)
        if match := re.search(r"UserError: (.*?)(?: \[while running|$)", text, re.MULTILINE):
            raise UserError(match[1]) from error
        raise


def _key(bucket: Bucket) -> _BucketKey:
    return bucket.split, bucket.index


def _pair_plans_with_row_groups(
    grouped: tuple[_BucketKey, dict[str, Iterable[Any]]],
) -> Iterator[tuple[ShardPlan, list[RowGroup]]]:
    """The plans of a bucket's shards, each with all its row groups (none for an empty bucket)."""
    _, members = grouped
    row_groups = list(members["row_groups"])
    for plan in members["plans"]:
        yield plan, row_groups


def _tokenized_file(directories: Directories, split_number: int) -> Path:
    return directories.tokenized / f"split-{split_number:05d}.parquet"


def _has_sha256(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _read_results(
    directories: Directories, num_splits: int, shard_plans: list[ShardPlan]
) -> BuildResults:
    """What the workers counted, from the receipts of all files.

    Raises:
      RuntimeError: a file has no receipt, so the runner has lost work.
    """

    def receipt(path: Path) -> dict[str, Any]:
        if content := read_receipt(path):
            return content
        raise RuntimeError(f"{path.name} was never finished: the runner has lost work")

    splits = [receipt(_tokenized_file(directories, number)) for number in range(num_splits)]
    shards = [receipt(directories.receipts / plan.name) for plan in shard_plans]
    return BuildResults(
        sum_counters(split["statistics"] for split in splits),
        [(Shard(**shard["shard"]), Counter(shard["statistics"])) for shard in shards],
    )
