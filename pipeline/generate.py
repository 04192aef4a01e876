"""Turns raw text into a finished data set: plan, Beam pipeline, manifest."""

import itertools
import unicodedata
from dataclasses import asdict, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from absl import logging

from pipeline.buckets import Bucket, BucketPlan
from pipeline.directories import Directories
from pipeline.disk_space import check_disk_space, expected_size
from pipeline.documents import Documents
from pipeline.duplicate_stages import num_files_of_duplicates
from pipeline.duplicates import folder_of_duplicates
from pipeline.errors import UserError
from pipeline.files import locked_directory, write_whole
from pipeline.foreign_vocabularies import vocabulary_of
from pipeline.health import case_line, health_lines
from pipeline.inputs import InputFile, describe_formats, describe_paths, match_files, stamps_sha256
from pipeline.manifest import (
    CORPORA,
    FLAGS_NAME,
    MIXTURE_OPTION,
    DataSet,
    Manifest,
    format_version_of,
    row_options,
)
from pipeline.mixtures import match_corpora
from pipeline.options import GenerateOptions, InstanceOptions, Masking, RandomToken
from pipeline.patterns import check_not_input
from pipeline.portions import Portion, plan_portions, text_bytes_of, usual_portion_bytes
from pipeline.pre_tokenization import describe_pre_tokenizer, load_pre_tokenizer
from pipeline.progress import report_progress
from pipeline.receipts import Plan
from pipeline.report import write_report
from pipeline.sample import Sample, take_sample
from pipeline.sentence_pairs import SentencePairs
from pipeline.shards import plan_shards
from pipeline.spark import SparkOptions, check_spark, run_on_spark
from pipeline.stages import TokenizePortion, Work, read_results
from pipeline.statistics import (
    BuildResults,
    ShardResults,
    check_documents_agree,
    summarize,
    summarize_corpora,
)
from pipeline.verification import verify_finished
from pipeline.vocabulary import Vocabulary
from pipeline.word_segmentation import describe_segmenter, load_segmenter
from pipeline.worker_processes import WorkerProcesses

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Increase this with every change to the results of tokenizing, sentence splitting or bucketing.
TOKENIZED_FORMAT_VERSION = 3
# Increase this with every change to the pairs or masks that are made of the tokenized corpus.
INSTANCE_FORMAT_VERSION = 2


def generate(
    options: GenerateOptions,
    beam_options: "PipelineOptions | None" = None,
    flags: str = "",
    processes: WorkerProcesses | None = None,
    spark: SparkOptions | None = None,
) -> Manifest:
    """Makes the data set in `options.output_dir` and returns its manifest.

    After a run was killed, a call with the same options resumes it and keeps its finished files. If
    the data set is finished, such a call verifies it.

    Args:
      options: what to make, of what.
      beam_options: how Beam runs it; None: on its embedded runner, without further options.
      flags: the content of the data set's flags.txt.
      processes: those that do the work on the embedded runner; without any, this process does it.
      spark: the Spark cluster that does the work; None: Beam does it.

    Raises:
      UserError: the input, the vocabulary, the output directory or an option is unusable, a disk
        is too small, the data set is finished and damaged, or it fails a `strict` health check.
    """
    if spark:
        check_spark(spark)
    elif beam_options:
        from pipeline.runner import choose_runner  # noqa: PLC0415 - it takes time, see below

        choose_runner(beam_options)
    vocabulary = vocabulary_of(options.vocab_file)
    if repeated := vocabulary.repeated_tokens():
        logging.warning(
            "the vocabulary %s has %d repeated lines (first: %r); the id of a repeated token is "
            "the number of its last line",
            options.vocab_file,
            len(repeated),
            repeated[0],
        )
    if options.instances.random_token == RandomToken.WORDS and not len(vocabulary.ordinary_ids):
        raise UserError(f"the vocabulary {options.vocab_file} has only special tokens")
    _warn_of_few_predictions(options.instances)
    if options.word_segmenter:
        load_segmenter(options.word_segmenter)  # so that a wrong name is an error at once
    if options.pre_tokenizer:
        load_pre_tokenizer(options.pre_tokenizer, options.do_lower_case)  # or a missing package
    directories = _directories(options)
    files = _input_files(options, directories)
    work = _plan_work(options, files, directories)
    tokenization_plan = _plan_of_tokenization(work, files, vocabulary)
    shard_plan = {
        **tokenization_plan,
        "instance_format_version": INSTANCE_FORMAT_VERSION,
        **_instance_options(options.instances),
        **_duplicate_options(options),
        **({MIXTURE_OPTION: options.mixture.as_options()} if options.mixture else {}),
    }
    with locked_directory(directories.output):
        if not options.overwrite and (finished := directories.find_finished(shard_plan)):
            verify_finished(
                DataSet(directories.output, finished),
                "made with the same input and options",
                "damaged or do not belong there: remove the latter, or pass --overwrite to make "
                "the data set again",
            )
            _check_health(finished.health, options)
            return finished
        directories.prepare(vocabulary.content, tokenization_plan, shard_plan, options.overwrite)
        # A copy, because the given file may have been in the directory that was discarded.
        options = replace(options, vocab_file=directories.vocabulary)
        sample, case = _make_shards(work, options, beam_options, processes, spark)
        results = read_results(work)
        results.corpus.update(
            input_files=len(files),
            input_bytes=sum(file.size for file in files),
        )
        try:
            check_documents_agree(results)
            _check_any_instance(results, files, options)
        except (RuntimeError, UserError):
            directories.discard()  # the same command could not resume from these files
            raise
        _warn_without_eval_instances(results, options)
        _warn_without_blank_lines(results)
        statistics = summarize(
            results,
            options.instances.max_seq_length,
            options.instances.packed_row_length,
            options.instances.masking == Masking.TRAINING,
        )
        if options.mixture:
            statistics[CORPORA] = summarize_corpora(results, _eval_shards_of_corpora(work))
        health = health_lines(statistics, options, sample, case)
        _check_health(health, options)
        manifest = _make_manifest(
            results.shards, statistics, health, options, vocabulary, work.buckets
        )
        write_report(directories.output, manifest, vocabulary)
        write_whole(directories.output / FLAGS_NAME, flags)
        directories.finish(manifest)
    return manifest


def translate(options: GenerateOptions, beam_options: "PipelineOptions") -> Work:
    """Translates the job for Dataflow, but submits and writes nothing: Beam's --dry_run.

    It needs no network, unless the input is there.

    Args:
      options: what to make, of what. The directories may be any text.
      beam_options: how Beam would run it.

    Returns:
      What there is to do.

    Raises:
      UserError: the input, the vocabulary or an option is unusable.
    """
    from pipeline.graph import run_on_beam  # noqa: PLC0415 - they take time to import
    from pipeline.runner import choose_runner  # noqa: PLC0415

    choose_runner(beam_options)
    vocabulary_of(options.vocab_file)
    directories = _directories(options)
    work = _plan_work(options, _input_files(options, directories), directories)
    run_on_beam(work, beam_options, None)
    return work


def _make_shards(
    work: Work,
    options: GenerateOptions,
    beam_options: "PipelineOptions | None",
    processes: WorkerProcesses | None,
    spark: SparkOptions | None,
) -> tuple[Sample, str | None]:
    """Makes all shards; checks before that, or while the processes work, what is to be expected.

    Returns:
      A sample of the text, and the result of `case_line` for it.
    """
    try:
        if processes:
            processes.start_ahead(TokenizePortion(work), enumerate(work.portions))
        sample = take_sample(work.portions, options.reading_of)
        expected = expected_size(sample, options, work.buckets)
        logging.info("expected size: %s", expected)
        check_disk_space(expected, work.directories)
        if case := case_line(sample, options):
            logging.warning("%s", case)
        portion_bytes = list(map(text_bytes_of, work.portions))
        num_shards, num_files = len(work.shard_plans), num_files_of_duplicates(work)
        with report_progress(work.directories, portion_bytes, num_shards, num_files):
            if spark:
                run_on_spark(work, spark)
            else:
                # Beam takes half a second to import, in which the processes already work.
                from pipeline.graph import run_on_beam  # noqa: PLC0415

                run_on_beam(work, beam_options, processes)
    finally:
        if processes:
            processes.end()
        work.directories.remove_leftovers()  # of workers that were killed
    return sample, case


def _warn_of_few_predictions(options: InstanceOptions) -> None:
    """Logs a warning if full instances will get fewer masks than their share of them asks."""
    wanted = round(options.max_seq_length * options.masked_lm_prob)
    if options.max_predictions_per_seq < min(wanted, options.default_predictions):
        logging.warning(
            "--max_predictions_per_seq=%d is too small: --masked_lm_prob=%s asks for %d of %d "
            "tokens; without the flag, it is %d",
            options.max_predictions_per_seq,
            options.masked_lm_prob,
            wanted,
            options.max_seq_length,
            options.default_predictions,
        )


def _directories(options: GenerateOptions) -> Directories:
    name = folder_of_duplicates(options.drop_duplicates, options.drop_near_duplicates)
    return Directories(options.output_dir, options.tokenized_dir, name)


def _input_files(options: GenerateOptions, directories: Directories) -> list[InputFile]:
    """The files of the corpus, none of which this run writes."""
    patterns = options.input_patterns
    if options.mixture:
        patterns = [each for corpus in options.mixture.corpora for each in corpus.input_patterns]
    check_not_input(patterns, "vocab_file", [options.vocab_file])
    check_not_input(patterns, "output_dir", directories.examples_of_output(), directories.output)
    check_not_input(
        patterns, "tokenized_dir", directories.examples_of_tokenized(), directories.tokenized
    )
    if options.mixture:
        return match_corpora(options.mixture)
    return match_files(patterns, options.input_format, options.reading.encoding)


def _plan_work(options: GenerateOptions, files: list[InputFile], directories: Directories) -> Work:
    portions: list[Portion] = []
    corpora: list[tuple[str, int]] = []
    portion_bytes = usual_portion_bytes(files)
    for corpus, group in itertools.groupby(files, attrgetter("corpus")):
        members = list(group)
        lines_are_documents = options.reading_of(corpus).documents == Documents.LINES
        portions += plan_portions(members, portion_bytes, lines_are_documents)
        if corpus is not None:
            corpora.append((corpus, sum(file.text_bytes for file in members)))
    buckets = BucketPlan.for_corpus(
        sum(file.text_bytes for file in files),
        options.eval_fraction,
        options.num_shards,
        tuple(corpora),
    )
    shard_plans = plan_shards(buckets, options.instances.dupe_factor)
    logging.info(
        "input: %s, %.1f MB; portions: %d; shards to build: %d",
        describe_formats(files),
        sum(file.size for file in files) / 1e6,
        len(portions),
        len(shard_plans),
    )
    return Work(options, portions, buckets, shard_plans, directories)


def _plan_of_tokenization(work: Work, files: list[InputFile], vocabulary: Vocabulary) -> Plan:
    """Everything that determines the content of the tokenized corpus."""
    options = work.options
    return {
        "format_version": TOKENIZED_FORMAT_VERSION,
        "unicode_version": unicodedata.unidata_version,
        "input_files": len(files),
        "input_bytes": sum(file.size for file in files),
        "input_stamps_sha256": stamps_sha256(files),
        **_reading_options(options),
        "do_lower_case": options.do_lower_case,
        "strip_accents": options.strip_accents,
        "word_segmenter": describe_segmenter(options.word_segmenter),
        **describe_pre_tokenizer(options.pre_tokenizer),
        "vocab_sha256": vocabulary.sha256,
        "eval_fraction": work.buckets.eval_fraction,
        "num_train_buckets": work.buckets.num_train_buckets,
        "num_splits": len(work.portions),
    }


def _reading_options(options: GenerateOptions) -> dict[str, Any]:
    """How documents are read, by option; for a mixture, by corpus."""
    if options.mixture:
        return {CORPORA: options.mixture.reading_options()}
    return asdict(options.reading)


def _eval_shards_of_corpora(work: Work) -> dict[str, list[str]]:
    """The names of the eval shards of each corpus of a mixture."""
    names = {plan.bucket: plan.name for plan in work.shard_plans}
    return {
        str(corpus): [names[Bucket("eval", index)] for index in indices]
        for corpus, indices in work.buckets.eval_buckets.items()
    }


def _instance_options(options: InstanceOptions) -> dict[str, Any]:
    """The options by name, without the defaults of those that earlier builds did not know."""
    newer = ("packed_row_length", "masking", "sentence_pairs", "max_ngram_size")
    given, defaults = asdict(options), asdict(InstanceOptions())
    for name in newer:
        if given[name] == defaults[name]:
            del given[name]
    return given


def _duplicate_options(options: GenerateOptions) -> dict[str, Any]:
    """What is dropped as a duplicate; near duplicates, which earlier builds kept, if at all."""
    similarity = options.drop_near_duplicates
    near = {} if similarity is None else {"drop_near_duplicates": similarity}
    return {"drop_duplicates": options.drop_duplicates, **near}


def _check_any_instance(
    results: BuildResults, files: list[InputFile], options: GenerateOptions
) -> None:
    if not any(built.shard.instances for built in results.shards if built.shard.split == "train"):
        corpus = results.corpus
        duplicates = corpus["documents_duplicate"] + corpus["documents_near_duplicate"]
        raise UserError(
            f"{describe_paths([file.path for file in files])} gave no training instance: "
            f"{corpus['documents_read']} documents were read, "
            f"{corpus['documents_tokenized']} of them have tokens"
            f"{f', {duplicates} of these are duplicates' if duplicates else ''}; check "
            f"--input_format={options.input_format} and --eval_fraction, or provide more text"
            + (
                "; with --sentence_pairs=order, a document needs two sentences"
                if options.instances.sentence_pairs == SentencePairs.ORDER
                else ""
            )
        )


def _warn_without_eval_instances(results: BuildResults, options: GenerateOptions) -> None:
    built = [result.shard.instances for result in results.shards if result.shard.split == "eval"]
    if built and not any(built):
        logging.warning(
            "--eval_fraction=%s left no instance for evaluation: increase it, or provide more "
            "documents",
            options.eval_fraction,
        )


def _warn_without_blank_lines(results: BuildResults) -> None:
    if num_files := results.corpus["text_files_without_blank_line"]:
        logging.warning(
            "text files of many lines without a blank one, each read as one document: %d; if each "
            "line is a document of its own, give --documents=lines",
            num_files,
        )


def _check_health(lines: list[str], options: GenerateOptions) -> None:
    if lines and options.strict:
        for line in lines:
            logging.warning("%s", line)
        raise UserError(
            f"the health check of {options.output_dir} has {len(lines)} lines, see above: mend "
            "that, or accept it with the same command without --strict, which ends at once"
        )


def _make_manifest(
    shards: list[ShardResults],
    statistics: dict[str, Any],
    health: list[str],
    options: GenerateOptions,
    vocabulary: Vocabulary,
    buckets: BucketPlan,
) -> Manifest:
    limits, masking = options.instances.limits_of_rows, options.instances.masking
    return Manifest(
        max_seq_length=options.instances.max_seq_length,
        max_predictions_per_seq=options.instances.max_predictions_per_seq,
        do_lower_case=options.do_lower_case,
        strip_accents=options.strip_accents,
        vocab_size=len(vocabulary),
        vocab_sha256=vocabulary.sha256,
        options={
            "unicode_version": unicodedata.unidata_version,
            **({} if options.mixture else {"input_format": options.input_format}),
            **_reading_options(options),
            **({MIXTURE_OPTION: options.mixture.as_options()} if options.mixture else {}),
            "word_segmenter": describe_segmenter(options.word_segmenter),
            **describe_pre_tokenizer(options.pre_tokenizer),
            **_duplicate_options(options),
            "eval_fraction": options.eval_fraction,
            "num_train_buckets": buckets.num_train_buckets,
            **_instance_options(options.instances),
            **row_options(limits),
        },
        statistics=statistics,
        shards=[built.shard for built in shards],
        format_version=format_version_of(
            limits,
            masking,
            options.instances.sentence_pairs,
            options.pre_tokenizer,
            is_mixture=options.mixture is not None,
        ),
        health=health,
    )
