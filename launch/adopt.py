"""Makes a data set of TFRecords that other software wrote, without copying them.

The records are those of create_pretraining_data.py of the original BERT (google-research/bert) or
of the TensorFlow Model Garden, with either of its versions' feature names, and with or without
gzip. All of them are read, checked and counted. The directory then serves as the --data_dir of all
verbs. If the records lie elsewhere, they must stay under the same paths or URLs.
"""

import sys

from absl import flags

from launch.file_lists import patterns_of
from launch.flag_files import flags_as_text
from pipeline.adoption import AdoptOptions, adopt
from pipeline.manifest import Manifest
from pipeline.statistics import describe_instances, describe_pairs
from pipeline.storage import Location, location

_INPUT_FILE = flags.DEFINE_list(
    "input_file",
    None,
    "The TFRecord files to train on: comma-separated paths, URLs (s3://, gs://, az://) or globs of "
    "either. A folder means all files in and below it. @FILE reads them from a file, one a line.",
    required=True,
)
_EVAL_FILE = flags.DEFINE_list(
    "eval_file",
    None,
    "The TFRecord files to evaluate on, for `clozemill evaluate`, named as those of --input_file.",
)
_VOCAB_FILE = flags.DEFINE_string(
    "vocab_file",
    None,
    "The WordPiece vocabulary that the records were made with.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "The directory, or its URL, for the manifest and a copy of the vocabulary; it may be that of "
    "the records.",
    required=True,
)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite",
    False,
    "Adopt again what --output_dir describes, or other records; no record is changed or removed.",
)
_DO_LOWER_CASE = flags.DEFINE_boolean(
    "do_lower_case",
    True,
    "Whether the text of the records was lower-cased; exported tokenizers do the same.",
)
_STRIP_ACCENTS = flags.DEFINE_boolean(
    "strip_accents",
    None,
    "Whether accents were stripped from it. By default, if it was lower-cased.",
)


def main() -> None:
    """Adopts the records and prints what they are."""
    options = AdoptOptions(
        train_patterns=patterns_of(_INPUT_FILE),
        eval_patterns=patterns_of(_EVAL_FILE),
        vocab_file=location(_VOCAB_FILE.value),
        output_dir=location(_OUTPUT_DIR.value),
        do_lower_case=_DO_LOWER_CASE.value,
        strip_accents=_STRIP_ACCENTS.value,
        overwrite=_OVERWRITE.value,
    )
    print(describe(adopt(options, flags_as_text(sys.modules[__name__])), options.output_dir))


def describe(manifest: Manifest, output_dir: Location) -> str:
    """The content of the data set, for people."""
    num_bytes = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{output_dir}: {len(manifest.shards)} files, {num_bytes / 1e6:,.1f} MB, "
        f"{manifest.max_seq_length} tokens and {manifest.max_predictions_per_seq} predictions "
        "per sequence",
    ]
    for split, name in (("train", "training"), ("eval", "evaluation")):
        if counts := manifest.statistics.get(split):
            lines.append(
                f"  {name:<10} {describe_instances(counts)}, "
                f"{describe_pairs(counts)}{counts['share_masked']:.1%} masked, "
                f"{counts['share_padding']:.1%} padding"
            )
    lines.append(f"  tokens     {manifest.statistics['corpus']['share_unknown']:.2%} [UNK]")
    lines += [f"  health     {line}" for line in manifest.health]
    return "\n".join(lines)
