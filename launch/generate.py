"""Raw text to a data set: TFRecord shards of BERT pretraining instances, and a manifest.

The same input, vocabulary and options give the same bytes, whatever the runner and the workers.
Options of Apache Beam (--runner, --direct_num_workers, …) can be given as well.
"""

import argparse
import logging as python_logging
import sys
from pathlib import Path

from absl import flags
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

from launch import input_flags
from launch.flag_files import save_flags
from pipeline.documents import Sentences
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.manifest import Manifest
from pipeline.options import GenerateOptions, InstanceOptions, MaskedWordAction, RandomToken

PASSES_ON_UNKNOWN_FLAGS = True
SHARED_FLAGS = (input_flags,)
_DEFAULTS = InstanceOptions()
_LOGGERS_OF_EXCEPTIONS = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.worker.sdk_worker",
    "apache_beam.utils.subprocess_server",
)

_VOCAB_FILE = flags.DEFINE_string(
    "vocab_file", None, "The WordPiece vocabulary, one token a line.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the data set goes; all workers must reach it.", required=True
)
_TOKENIZED_DIR = flags.DEFINE_string(
    "tokenized_dir",
    None,
    "Keep the tokenized corpus there, for other data sets of the same text, vocabulary and tokenizer: "
    "other lengths, masks and seeds. One that is there already is used, and no text is read.",
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite",
    False,
    "Replace the data set that --output_dir holds, finished or not. Without it, a run that was "
    "killed goes on.",
)
_SENTENCES = flags.DEFINE_enum_class(
    "sentences",
    None,
    Sentences,
    "split: lines are running text, which is split into sentences. lines: a line is a sentence. "
    "By default lines for the format text, split for all others.",
)
_DROP_DUPLICATES = flags.DEFINE_boolean(
    "drop_duplicates", False, "Use only the first of the documents that have exactly the same text."
)
_WORD_SEGMENTER = flags.DEFINE_string(
    "word_segmenter",
    None,
    "Finds the words of Chinese text, whose characters are then masked together: jieba, or any "
    "function from text to words that all workers can import, as module:function. Without it, each "
    "character is a word, as in the original BERT.",
)
_MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length",
    _DEFAULTS.max_seq_length,
    "Tokens of an instance, with [CLS] and both [SEP].",
)
_MAX_PREDICTIONS_PER_SEQ = flags.DEFINE_integer(
    "max_predictions_per_seq",
    _DEFAULTS.max_predictions_per_seq,
    "The most masked pieces of an instance.",
)
_MASKED_LM_PROB = flags.DEFINE_float(
    "masked_lm_prob", _DEFAULTS.masked_lm_prob, "Share of an instance's tokens that are masked."
)
_SHORT_SEQ_PROB = flags.DEFINE_float(
    "short_seq_prob",
    _DEFAULTS.short_seq_prob,
    "Share of documents whose instances aim at a random shorter length.",
)
_DUPE_FACTOR = flags.DEFINE_integer(
    "dupe_factor",
    _DEFAULTS.dupe_factor,
    "Passes over the corpus, each with other pairs and masks and with shards of its own.",
)
_DO_WHOLE_WORD_MASK = flags.DEFINE_boolean(
    "do_whole_word_mask", _DEFAULTS.do_whole_word_mask, "Mask all pieces of a word together."
)
_MASKED_WORD_ACTION = flags.DEFINE_enum_class(
    "masked_word_action",
    _DEFAULTS.masked_word_action,
    MaskedWordAction,
    "Whether [MASK] (80 %), the same (10 %) or another token (10 %) is drawn for each piece, as in "
    "the original BERT, or once for all pieces of a word.",
)
_RANDOM_TOKEN = flags.DEFINE_enum_class(
    "random_token",
    _DEFAULTS.random_token,
    RandomToken,
    "What the 10 % of masked pieces that become another token are drawn from. words: all but the "
    "special and [unused] tokens. any: the whole vocabulary, as in the original BERT.",
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed", _DEFAULTS.random_seed, "Seeds every random draw."
)
_EVAL_FRACTION = flags.DEFINE_float(
    "eval_fraction", 0.0, "Share of the documents kept apart for `clozemill evaluate`."
)
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    None,
    "Train shards of each pass; there are --dupe_factor times as many in all. "
    "By default one for every 16 MiB of text.",
)


def main(beam_flags: list[str]) -> None:
    """Generates the data set and says what is in it."""
    beam_options = parse_beam_options(beam_flags)
    options = GenerateOptions(
        input_patterns=input_flags.input_patterns(),
        input_format=input_flags.input_format(),
        reading=input_flags.read_options(_SENTENCES.value),
        vocab_file=_local_path("vocab_file", _VOCAB_FILE.value),
        output_dir=_local_path("output_dir", _OUTPUT_DIR.value),
        tokenized_dir=(
            _local_path("tokenized_dir", _TOKENIZED_DIR.value) if _TOKENIZED_DIR.value else None
        ),
        do_lower_case=input_flags.do_lower_case(),
        strip_accents=input_flags.strip_accents(),
        word_segmenter=_WORD_SEGMENTER.value,
        drop_duplicates=_DROP_DUPLICATES.value,
        instances=InstanceOptions(
            max_seq_length=_MAX_SEQ_LENGTH.value,
            max_predictions_per_seq=_MAX_PREDICTIONS_PER_SEQ.value,
            masked_lm_prob=_MASKED_LM_PROB.value,
            short_seq_prob=_SHORT_SEQ_PROB.value,
            dupe_factor=_DUPE_FACTOR.value,
            do_whole_word_mask=_DO_WHOLE_WORD_MASK.value,
            masked_word_action=_MASKED_WORD_ACTION.value,
            random_token=_RANDOM_TOKEN.value,
            random_seed=_RANDOM_SEED.value,
        ),
        eval_fraction=_EVAL_FRACTION.value,
        num_shards=_NUM_SHARDS.value,
        overwrite=_OVERWRITE.value,
    )
    manifest = generate(options, beam_options)
    save_flags(sys.modules[__name__], options.output_dir)
    print(describe(manifest, options.output_dir))


def _local_path(name: str, value: str) -> Path:
    """The path in a flag.

    Raises:
      UserError: it is a URL; only the input may be one.
    """
    if "://" in value:
        raise UserError(
            f"--{name}={value} is a URL: give a folder of a file system that all workers mount"
        )
    return Path(value)


def parse_beam_options(beam_flags: list[str]) -> PipelineOptions:
    """Beam's options.

    Raises:
      flags.Error: one of the flags is none of Beam's either, which Beam would ignore.
    """
    # Beam says much that only its own developers can use, and every exception twice.
    python_logging.getLogger("apache_beam").setLevel(python_logging.WARNING)
    for logger in _LOGGERS_OF_EXCEPTIONS:
        python_logging.getLogger(logger).setLevel(python_logging.CRITICAL)
    python_logging.getLogger().addFilter(_is_no_message_of_job)
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
    return known


def _is_no_message_of_job(record: python_logging.LogRecord) -> bool:
    """What a job service says arrives without a logger's name; why a job failed is raised as well."""
    return record.module != "portable_runner"


def describe(manifest: Manifest, output_dir: Path) -> str:
    """What the data set holds, for people."""
    corpus, train = manifest.statistics["corpus"], manifest.statistics["train"]
    lines = [
        f"{output_dir}: {len(manifest.shards)} shards, "
        f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB",
        f"  corpus     {corpus['documents_tokenized']:,} documents, {corpus['sentences_read']:,} "
        f"sentences, {corpus['tokens']:,} tokens ({corpus['share_unknown']:.2%} [UNK])",
        f"  training   {train['instances']:,} instances, {train['share_random_next']:.1%} random "
        f"next, {train['share_masked']:.1%} masked, {train['share_padding']:.1%} padding",
    ]
    if "eval" in manifest.statistics:
        evaluation = manifest.statistics["eval"]
        lines.append(
            f"  evaluation {evaluation['instances']:,} instances from "
            f"{evaluation['documents']:,} documents"
        )
    return "\n".join(lines)
