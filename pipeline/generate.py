"""The Beam pipeline: raw text to a data set, in two stages with a barrier between them.

1. *Tokenize*: each split of the input becomes a Parquet file of tokenized documents.
2. *Build*: each bucket of documents and each pass becomes a shard.

Only file names, bucket numbers and statistics cross Beam's shuffle, never text or tokens, so memory
is bounded by one split and one bucket on every runner, however large the corpus.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
from absl import logging
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)

from pipeline.corpus import (
    Bucket,
    BucketPlan,
    Piece,
    TokenizedDocument,
    read_documents_of_bucket,
    tokenize_document,
    write_documents,
)
from pipeline.directories import Directories
from pipeline.documents import read_documents
from pipeline.errors import UserError
from pipeline.inputs import InputFile, Split, describe_paths, match_files, plan_splits
from pipeline.manifest import Manifest, Shard
from pipeline.options import GenerateOptions
from pipeline.progress import report_progress
from pipeline.shards import ShardPlan, build_shard, plan_shards
from pipeline.statistics import BuildResults, check_documents_agree, sum_counters, summarize
from pipeline.tokenization import FullTokenizer, Vocabulary

EMBEDDED_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def generate(options: GenerateOptions, beam_options: PipelineOptions) -> Manifest:
    """Makes the data set in `options.output_dir` and returns its manifest.

    Raises:
      UserError: the input, the vocabulary, the output directory or an option is unusable.
    """
    choose_runner(beam_options)
    vocabulary = Vocabulary(options.vocab_file)
    files = match_files(options.input_patterns)
    corpus_bytes = sum(file.size for file in files)
    splits = plan_splits(files, options.input_format)
    buckets = BucketPlan.for_corpus(corpus_bytes, options.eval_fraction, options.num_shards)
    shard_plans = plan_shards(buckets, options.instances.dupe_factor)
    logging.info(
        "%d files, %.1f MB of text, in %d splits; %d shards to build",
        len(files),
        corpus_bytes / 1e6,
        len(splits),
        len(shard_plans),
    )
    directories = Directories(options.output_dir)
    directories.prepare(options.vocab_file, options.overwrite)

    try:
        with report_progress(
            directories.tokenized, len(splits), directories.output, len(shard_plans)
        ):
            _run_pipeline(options, splits, buckets, shard_plans, directories, beam_options)
        results = _read_results(directories.results)
        results.corpus.update(input_files=len(files), input_bytes=corpus_bytes)
        check_documents_agree(results)
        _check_any_instance(results, files, options)
        manifest = _make_manifest(results, options, vocabulary, buckets)
    except BaseException:
        directories.discard()
        raise
    directories.finish(manifest)
    return manifest


def choose_runner(beam_options: PipelineOptions) -> None:
    """Makes Beam's embedded runner the default, and refuses runners that are known to lose records.

    Raises:
      UserError: the runner or its mode drops records without an error.
    """
    standard = beam_options.view_as(StandardOptions)
    # `DirectRunner` would first try to download another runner.
    if standard.runner in (None, "DirectRunner", "FnApiRunner"):
        standard.runner = EMBEDDED_RUNNER
    if standard.runner.rpartition(".")[2] == "DaskRunner":
        raise UserError("--runner=DaskRunner drops outputs without an error; use another runner")
    multi_threading = beam_options.view_as(DirectOptions).direct_running_mode == "multi_threading"
    timed_flush = beam_options.view_as(DebugOptions).lookup_experiment("data_buffer_time_limit_ms")
    if multi_threading or timed_flush:
        refused = (
            "--direct_running_mode=multi_threading"
            if multi_threading
            else "--experiments=data_buffer_time_limit_ms"
        )
        raise UserError(f"{refused} loses records; use --direct_running_mode=multi_processing")


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
            "input_format": options.input_format,
            "eval_fraction": options.eval_fraction,
            "num_train_buckets": buckets.num_train_buckets,
            **asdict(options.instances),
        },
        statistics=summarize(results, options.instances.max_seq_length),
        shards=[shard for shard, _ in results.shards],
    )


class TokenizeSplit(beam.DoFn):
    """A numbered split to a Parquet file: yields (bucket, piece), and statistics on the side."""

    def __init__(self, options: GenerateOptions, buckets: BucketPlan, directories: Directories):
        self._options = options
        self._buckets = buckets
        self._directories = directories

    def setup(self) -> None:
        """Loads the vocabulary once a worker."""
        self._tokenizer = FullTokenizer(
            self._directories.vocabulary, self._options.do_lower_case, self._options.strip_accents
        )

    def process(self, numbered_split: tuple[int, Split]) -> Iterator[Any]:
        """Reads, tokenizes and writes the split's documents."""
        number, split = numbered_split
        statistics: Counter[str] = Counter()
        documents: dict[Bucket, list[TokenizedDocument]] = defaultdict(list)
        for file_range in split:
            for document in read_documents(file_range, self._options.input_format):
                tokenized = tokenize_document(document, self._tokenizer, statistics)
                if tokenized:
                    bucket = self._buckets.bucket_of(file_range.file, document.offset)
                    documents[bucket].append(tokenized)
        path = self._directories.tokenized / f"split-{number:05d}.parquet"
        for bucket, piece in write_documents(path, documents):
            yield _key(bucket), piece
        yield beam.pvalue.TaggedOutput("statistics", statistics)


class BuildShard(beam.DoFn):
    """A shard's plan and the pieces of its bucket to a shard: yields (shard, statistics)."""

    def __init__(self, options: GenerateOptions, directories: Directories):
        self._options = options
        self._directories = directories

    def setup(self) -> None:
        """Loads the vocabulary once a worker."""
        self._vocabulary = Vocabulary(self._directories.vocabulary)

    def process(
        self, plan_and_pieces: tuple[ShardPlan, list[Piece]]
    ) -> Iterator[tuple[Shard, Counter[str]]]:
        """Reads the bucket and writes the shard."""
        plan, pieces = plan_and_pieces
        documents = read_documents_of_bucket(pieces, self._vocabulary.id_dtype)
        yield build_shard(
            plan,
            documents,
            self._vocabulary,
            self._options.instances,
            self._directories.shards,
            self._directories.output,
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
        with beam.Pipeline(options=beam_options) as root:
            tokenized = (
                root
                | "Splits" >> beam.Create(list(enumerate(splits)))
                | "SpreadSplits" >> beam.Reshuffle()
                | "Tokenize"
                >> beam.ParDo(TokenizeSplit(options, buckets, directories)).with_outputs(
                    "statistics", main="pieces"
                )
            )
            plans = root | "Plans" >> beam.Create(
                [(_key(plan.bucket), plan) for plan in shard_plans]
            )
            shards = (
                {"plans": plans, "pieces": tokenized.pieces}
                | "GroupByBucket" >> beam.CoGroupByKey()
                | "Shards" >> beam.FlatMap(_pair_plans_with_pieces)
                | "SpreadShards" >> beam.Reshuffle()
                | "Build" >> beam.ParDo(BuildShard(options, directories))
                | "ListShards" >> beam.combiners.ToList()
            )
            statistics = tokenized.statistics | beam.CombineGlobally(sum_counters)
            _ = shards | "WriteResults" >> beam.Map(
                _write_results, beam.pvalue.AsSingleton(statistics), directories.results
            )
    except Exception as error:
        # A worker's exception arrives as text.
        if match := re.search(r"UserError: (.*?)(?: \[while running|$)", str(error), re.MULTILINE):
            raise UserError(match[1]) from error
        raise


def _key(bucket: Bucket) -> tuple[str, int]:
    return bucket.split, bucket.index


def _pair_plans_with_pieces(
    grouped: tuple[tuple[str, int], dict[str, Iterable[Any]]],
) -> Iterator[tuple[ShardPlan, list[Piece]]]:
    """The plans of a bucket's shards, each with all the bucket's pieces (none for an empty bucket)."""
    _, members = grouped
    pieces = list(members["pieces"])
    for plan in members["plans"]:
        yield plan, pieces


def _write_results(
    built: list[tuple[Shard, Counter[str]]], corpus: Counter[str], path: Path
) -> None:
    """Leaves what the workers found where the driver, on any runner, can read it."""
    results = {"corpus": corpus, "shards": [[asdict(shard), counts] for shard, counts in built]}
    path.write_text(json.dumps(results), "utf-8")


def _read_results(path: Path) -> BuildResults:
    results = json.loads(path.read_text("utf-8"))
    shards = [(Shard(**shard), Counter(counts)) for shard, counts in results["shards"]]
    # They arrive in any order; train before eval, pass by pass.
    shards.sort(key=lambda built: (built[0].split == "eval", built[0].name))
    return BuildResults(Counter(results["corpus"]), shards)
