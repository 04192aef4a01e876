"""The flags of all verbs that read text: which files, how, and how it is tokenized."""

from absl import flags

from pipeline.documents import BadRecord, ReadOptions, Sentences
from pipeline.inputs import InputFormat

_DEFAULTS = ReadOptions()

_INPUT_FILE = flags.DEFINE_list(
    "input_file", None, "The corpus: paths or globs, with commas between them.", required=True
)
_INPUT_FORMAT = flags.DEFINE_enum_class(
    "input_format",
    InputFormat.AUTO,
    InputFormat,
    "text: one sentence a line, a blank line between documents. wikiextractor: <doc …> and </doc> "
    "around each document, or what --json made. jsonl: a JSON object a line, one document each. "
    "parquet: a row is a document. auto: by the names and first bytes of the files. All but parquet "
    "may be compressed: .gz, .bz2, .xz, .zst.",
)
_TEXT_FIELD = flags.DEFINE_string(
    "text_field",
    _DEFAULTS.text_field,
    "The field of JSON Lines and Parquet records that holds the document.",
)
_ON_BAD_RECORD = flags.DEFINE_enum_class(
    "on_bad_record",
    _DEFAULTS.on_bad_record,
    BadRecord,
    "Whether a JSON Lines or Parquet record that cannot be read or has no text ends the run, or is "
    "left out and counted.",
)
_MIN_DOCUMENT_CHARACTERS = flags.DEFINE_integer(
    "min_document_characters",
    _DEFAULTS.min_document_characters,
    "Leave out shorter documents.",
)
_DO_LOWER_CASE = flags.DEFINE_boolean(
    "do_lower_case", True, "Lower-case the text and strip accents, for an uncased vocabulary."
)
_STRIP_ACCENTS = flags.DEFINE_boolean(
    "strip_accents",
    None,
    "Drop accents. By default when lower-casing, as the original does; turn it off for Korean and "
    "Japanese, which it destroys.",
)


def input_patterns() -> list[str]:
    """The paths and globs of the corpus."""
    return _INPUT_FILE.value


def input_format() -> InputFormat:
    """How documents are laid out in the files."""
    return _INPUT_FORMAT.value


def read_options(sentences: Sentences | None = None) -> ReadOptions:
    """How documents are read."""
    return ReadOptions(
        text_field=_TEXT_FIELD.value,
        sentences=sentences,
        on_bad_record=_ON_BAD_RECORD.value,
        min_document_characters=_MIN_DOCUMENT_CHARACTERS.value,
    )


def do_lower_case() -> bool:
    """Whether the text is lower-cased."""
    return _DO_LOWER_CASE.value


def strip_accents() -> bool | None:
    """Whether accents are dropped; None: when lower-casing."""
    return _STRIP_ACCENTS.value
