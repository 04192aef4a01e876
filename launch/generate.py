"""Builds a data set from raw text: TFRecord shards of BERT pretraining instances, and a manifest.

The same input, vocabulary and options always give the same bytes, with any runner and any number of
workers. Apache Beam's options (--runner, --direct_num_workers, …) are also accepted.
"""

import argparse
import logging as python_logging
import sys
from typing import TYPE_CHECKING

from absl import flags

from launch import input_flags
from launch.flag_files import flag_values, flags_as_text
from launch.mixture_file import read_mixture
from pipeline.documents import ReadOptions, Sentences
from pipeline.errors import UserError
from pipeline.generate import generate, translate
from pipeline.manifest import MANIFEST_NAME, Manifest
from pipeline.mixtures import Mixture
from pipeline.options import (
    GenerateOptions,
    InstanceOptions,
    MaskedWordAction,
    Masking,
    RandomToken,
)
from pipeline.sentence_pairs import SentencePairs
from pipeline.spark import SparkOptions
from pipeline.statistics import (
    DROP_REASONS,
    NEAR_DUPLICATES,
    describe_corpora,
    describe_instances,
    describe_pairs,
)
from pipeline.storage import Location, location
from pipeline.worker_processes import number_of_processes, worker_processes

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

PASSES_ON_UNKNOWN_FLAGS = True
SHARED_FLAGS = (input_flags,)
_DEFAULTS = InstanceOptions()
_LOGGERS_OF_EXCEPTIONS = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.worker.sdk_worker",
    "apache_beam.utils.subprocess_server",
)

_MIXTURE = flags.DEFINE_string(
    "mixture",
    None,
    "A mixture of corpora, in place of --input_file: a TOML file with a table [[corpus]] for each, "
    "which has its name, its input_file and its weight, and may have an input_format and other "
    "options of reading, for which the flags give the defaults. temperature = 0.7 in place of "
    "weights gives each corpus a share in proportion to the power 0.7 of its tokens, and a list of "
    "temperatures gives one to each pass. The shares are of the training tokens, and whole "
    "documents are repeated or left out to reach them.",
)
flags.register_multi_flags_validator(
    ["input_file", "mixture"],
    lambda given: [*given.values()].count(None) == 1,
    "give either --input_file or --mixture",
)
_VOCAB_FILE = flags.DEFINE_string(
    "vocab_file",
    None,
    "The WordPiece vocabulary: a file with one token per line, Hugging Face's tokenizer.json, or a "
    "directory that holds one of them; also a URL (s3://, gs://, az://).",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "The directory for the data set, or its URL; all workers must have access to it.",
    required=True,
)
_TOKENIZED_DIR = flags.DEFINE_string(
    "tokenized_dir",
    None,
    "A directory in which to keep the tokenized corpus. Further data sets from the same text, "
    "vocabulary and tokenizer, with other lengths, masks or seeds, then reuse it instead of "
    "tokenizing the text again.",
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite",
    False,
    "Replace the data set in --output_dir, finished or not. Without this flag, an interrupted run "
    "resumes.",
)
_STRICT = flags.DEFINE_boolean(
    "strict",
    False,
    "End with exit code 1, before the manifest is written, if the health check finds a share out "
    "of bounds. The shards are kept, and the same command without this flag finishes at once.",
)
_SENTENCES = flags.DEFINE_enum_class(
    "sentences",
    None,
    Sentences,
    "split: lines are running text, to be split into sentences. lines: each line is a sentence. By "
    "default, lines for the input format text (split with --documents=lines) and split for all "
    "others.",
)
_SPARK_MASTER = flags.DEFINE_string(
    "spark_master",
    None,
    "The Spark cluster that does the work instead of Beam: spark://HOST:7077, yarn, k8s://…, or "
    "local[N] for N processes of this machine. It survives the loss of workers.",
)
_SPARK_CONF = flags.DEFINE_multi_string("spark_conf", [], "A property of Spark, as NAME=VALUE")
_DROP_DUPLICATES = flags.DEFINE_boolean(
    "drop_duplicates", False, "Use only the first of several documents with exactly the same text."
)
_DROP_NEAR_DUPLICATES = flags.DEFINE_float(
    "drop_near_duplicates",
    None,
    "Of documents that have at least this share of their text in common, from 0.5 to 1, use only "
    "the first: of all runs of five tokens in two documents, the share that both have (Jaccard "
    "index). 0.8 is usual. Exact duplicates are dropped, too.",
)
_WORD_SEGMENTER = flags.DEFINE_string(
    "word_segmenter",
    None,
    "The segmenter that finds the words of text without spaces between them, so that each is "
    "masked as a whole: jieba (Chinese), mecab or sudachi (Japanese), kiwi (Korean), thai, or "
    "module:name, any function from text to words that all workers can import. Its words replace "
    "those that spaces and punctuation separate, and change no id. Without it, each ideograph is a "
    "word, as in the original BERT, and so are a run of kana and a clause of Thai.",
)
_EVAL_FRACTION = flags.DEFINE_float(
    "eval_fraction",
    0.0,
    "The share of documents that are set aside as eval shards, for `clozemill evaluate`.",
)
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    None,
    "The number of train shards per pass; the total is --dupe_factor times as many. By default, "
    "one per 16 MiB of text.",
)
# One flag for each field of InstanceOptions.
flags.DEFINE_integer(
    "max_seq_length",
    _DEFAULTS.max_seq_length,
    "The maximum number of tokens per instance, including [CLS] and each [SEP].",
)
flags.DEFINE_integer(
    "max_predictions_per_seq",
    None,
    "The maximum number of masked pieces per instance. By default, what --masked_lm_prob asks of "
    "--max_seq_length tokens, rounded up: 20 of 128; but 76 of 512, as published. With "
    "--masking=training, it concerns the eval shards only.",
)
flags.DEFINE_float(
    "masked_lm_prob",
    _DEFAULTS.masked_lm_prob,
    "The share of an instance's tokens that are masked. With --masking=training, that of the eval "
    "shards; `pretrain` has a flag of the same name, and this for its default.",
)
flags.DEFINE_float(
    "short_seq_prob",
    _DEFAULTS.short_seq_prob,
    "The share of documents whose instances have a random, shorter target length.",
)
flags.DEFINE_integer(
    "dupe_factor",
    _DEFAULTS.dupe_factor,
    "The number of passes over the corpus. Each pass draws new pairs and masks and writes its own "
    "shards.",
)
flags.DEFINE_boolean(
    "do_whole_word_mask", _DEFAULTS.do_whole_word_mask, "Mask all pieces of a word together."
)
flags.DEFINE_integer(
    "max_ngram_size",
    _DEFAULTS.max_ngram_size,
    "Mask n-grams of up to this many whole words, at most 10; n words are drawn with the weight "
    "1/n. With --masked_word_action=per_word, as the Model Garden's script does it.",
)
flags.DEFINE_enum_class(
    "masked_word_action",
    _DEFAULTS.masked_word_action,
    MaskedWordAction,
    "Whether to choose between [MASK] (80 %), the same token (10 %) and another token (10 %) for "
    "each piece separately, as in the original BERT, or once for all pieces of a word or n-gram.",
)
flags.DEFINE_enum_class(
    "random_token",
    _DEFAULTS.random_token,
    RandomToken,
    "The tokens from which the 10 % of random replacements are drawn. words: all except special "
    "and [unused] tokens. any: the whole vocabulary, as in the original BERT.",
)
flags.DEFINE_integer("random_seed", _DEFAULTS.random_seed, "Seeds all random choices.")
flags.DEFINE_enum_class(
    "sentence_pairs",
    _DEFAULTS.sentence_pairs,
    SentencePairs,
    "What an instance holds, and so which heads a model has that is trained on it. next: two "
    "segments of text, of which the second is random in half of the instances, as in the original "
    "BERT. order: two segments that follow each other, swapped in half of the instances, as in "
    "ALBERT. none: one segment; the model has neither pooler nor next-sentence head.",
)
flags.DEFINE_integer(
    "packed_row_length",
    0,
    "Pack several sequences of up to --max_seq_length tokens into each record, a row of this many "
    "tokens, so that next to nothing is padding. Worth it where documents are short. Only "
    "`clozemill pretrain` reads such records. 0: each record is one sequence, as in the original.",
)
flags.DEFINE_enum_class(
    "masking",
    _DEFAULTS.masking,
    Masking,
    "When the masks of the train instances are drawn. stored: here, as in the original BERT, new "
    "ones in each of the --dupe_factor passes. training: by `clozemill pretrain`, new ones in each "
    "epoch, and with a rate that may change. Then --dupe_factor=1 is usually enough, and only "
    "`clozemill pretrain` reads the train shards. Eval shards always have stored masks.",
)


def main(beam_flags: list[str]) -> None:
    """Generates the data set and prints a summary of it."""
    spark = _spark_options(beam_flags)
    _hide_messages_of_beam()
    number, beam_options = 0 if spark else _processes_of(beam_flags), None
    if number is None:
        number, beam_options = parse_beam_options(beam_flags)
    is_dry = beam_options is not None and _is_dry_run(beam_options)
    reading = input_flags.read_options(_SENTENCES.value)
    options = GenerateOptions(
        input_patterns=input_flags.input_patterns(),
        input_format=input_flags.input_format(),
        reading=reading,
        vocab_file=location(_VOCAB_FILE.value),
        output_dir=location(_OUTPUT_DIR.value),
        tokenized_dir=location(_TOKENIZED_DIR.value) if _TOKENIZED_DIR.value else None,
        do_lower_case=input_flags.do_lower_case(),
        strip_accents=input_flags.strip_accents(),
        pre_tokenizer=input_flags.pre_tokenizer(),
        word_segmenter=_WORD_SEGMENTER.value,
        drop_duplicates=_DROP_DUPLICATES.value,
        drop_near_duplicates=_DROP_NEAR_DUPLICATES.value,
        instances=InstanceOptions(**flag_values(InstanceOptions)),
        eval_fraction=_EVAL_FRACTION.value,
        num_shards=_NUM_SHARDS.value,
        overwrite=_OVERWRITE.value,
        strict=_STRICT.value,
        mixture=_mixture(reading),
    )
    if is_dry and beam_options:
        work = translate(options, beam_options)
        print(
            f"dry run: the job was translated for Dataflow (portions: {len(work.portions):,}; "
            f"shards: {len(work.shard_plans):,}); nothing was submitted, and nothing written"
        )
        return
    with worker_processes(number) as processes:
        manifest = generate(
            options, beam_options, flags_as_text(sys.modules[__name__]), processes, spark
        )
    print(describe(manifest, options.output_dir))


def _mixture(reading: ReadOptions) -> Mixture | None:
    """The mixture of --mixture, whose corpora are read in this way where they do not say it."""
    if _MIXTURE.value is None:
        return None
    return read_mixture(_MIXTURE.value, input_flags.input_format(), reading)


def _spark_options(beam_flags: list[str]) -> SparkOptions | None:
    """The Spark cluster to use, if any.

    Raises:
      flags.Error: another flag makes no sense with Spark, or without it.
      UserError: see `SparkOptions`.
    """
    conf = dict(each.partition("=")[::2] for each in _SPARK_CONF.value)
    if _SPARK_MASTER.value is None:
        if conf:
            raise flags.Error("--spark_conf needs --spark_master")
        return None
    if beam_flags:
        raise flags.Error(f"with --spark_master, Beam does nothing: remove {beam_flags[0]}")
    return SparkOptions(_SPARK_MASTER.value, conf)


def _is_dry_run(beam_options: "PipelineOptions") -> bool:
    from pipeline.runner import is_dry_run  # noqa: PLC0415 - it imports Beam

    return is_dry_run(beam_options)


def _hide_messages_of_beam() -> None:
    # Beam logs much that helps only its developers, and every exception twice.
    python_logging.getLogger("apache_beam").setLevel(python_logging.WARNING)
    for logger in _LOGGERS_OF_EXCEPTIONS:
        python_logging.getLogger(logger).setLevel(python_logging.CRITICAL)
    python_logging.getLogger().addFilter(_helps)
    python_logging.getLogger("PrismJobServer").addFilter(_is_not_json)


def _processes_of(beam_flags: list[str]) -> int | None:
    """The number of worker processes, if the flags ask nothing else of Beam; otherwise None.

    So that they can be forked before Beam is imported, which takes half a second.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--direct_running_mode", choices=["in_memory", "multi_processing"])
    parser.add_argument("--direct_num_workers", type=int, default=1)
    try:
        known, others = parser.parse_known_args(beam_flags)
    except argparse.ArgumentError:
        return None
    if others or known.direct_num_workers < 0:
        return None
    return number_of_processes(known.direct_running_mode, known.direct_num_workers)


def parse_beam_options(beam_flags: list[str]) -> "tuple[int, PipelineOptions]":
    """Parses Beam's options.

    Returns:
      The number of worker processes on this machine, and the options.

    Raises:
      flags.Error: a flag is not one of Beam's either; Beam itself would ignore it.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions  # noqa: PLC0415

    from pipeline.runner import num_processes  # noqa: PLC0415

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    known = PipelineOptions(beam_flags)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # type: ignore[arg-type]
    try:
        _, unknown = parser.parse_known_args(beam_flags)
    except argparse.ArgumentError as error:
        raise flags.Error(str(error)) from error
    if unknown:
        raise flags.UnrecognizedFlagError(unknown[0])
    workers = known.view_as(WorkerOptions)
    if workers.default_sdk_harness_log_level is None:
        workers.default_sdk_harness_log_level = "ERROR"
    if workers.sdk_harness_log_level_overrides is None:
        workers.sdk_harness_log_level_overrides = dict.fromkeys(_LOGGERS_OF_EXCEPTIONS, "CRITICAL")
    return num_processes(known), known


def _helps(record: python_logging.LogRecord) -> bool:
    """Filters out messages of failures that are also raised, and those of imports."""
    of_failure = ("portable_runner", "java_gateway", "clientserver")  # Beam's and PySpark's
    return record.module not in of_failure and "apitools not found" not in str(record.msg)


def _is_not_json(record: python_logging.LogRecord) -> bool:
    """Filters out the log of Prism, but not what it prints if it cannot start."""
    return not record.getMessage().startswith("{")


def describe(manifest: Manifest, output_dir: Location) -> str:
    """The content of the data set, for people.

    Raises:
      UserError: the manifest does not have the statistics that `generate` writes.
    """
    try:
        return _describe(manifest, output_dir)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{output_dir / MANIFEST_NAME} lacks statistics ({error!r}): generate the data set "
            "again, with --overwrite"
        ) from error


def _describe(manifest: Manifest, output_dir: Location) -> str:
    corpus, train = manifest.statistics["corpus"], manifest.statistics["train"]
    masked = f"{train['share_masked']:.1%} masked" if "masked" in train else "masked while training"
    lines = [
        f"{output_dir}: {len(manifest.shards)} shards, "
        f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB",
        f"  corpus     {corpus['documents_tokenized']:,} documents, {corpus['sentences_read']:,} "
        f"sentences, {corpus['tokens']:,} tokens ({corpus['share_unknown']:.2%} [UNK])",
        f"  training   {describe_instances(train)}, {describe_pairs(train)}"
        f"{masked}, {train['share_padding']:.1%} padding",
    ]
    lines[2:2] = [
        f"  left out   {corpus[name]:,} {reason}"
        for name, reason in (DROP_REASONS | NEAR_DUPLICATES).items()
        if name.startswith(("records", "documents")) and corpus.get(name)
    ]
    if "eval" in manifest.statistics:
        evaluation = manifest.statistics["eval"]
        lines.append(
            f"  evaluation {describe_instances(evaluation)} from "
            f"{evaluation['documents']:,} documents"
        )
    lines += [f"  mixture    {line}" for line in describe_corpora(manifest.statistics)]
    lines += [f"  health     {line}" for line in manifest.health]
    return "\n".join(lines)
