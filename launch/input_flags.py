"""The flags of all verbs that read text: the input files, their format, and normalization."""

from absl import flags

from launch.file_lists import patterns_of
from pipeline.documents import BadRecord, Documents, ReadOptions, Sentences
from pipeline.inputs import InputFormat
from pipeline.pre_tokenizers import PreTokenizer

_DEFAULTS = ReadOptions()

_INPUT_FILE = flags.DEFINE_list(
    "input_file",
    None,
    "The corpus: comma-separated paths, URLs (s3://, gs://, az://) or globs of either. A folder "
    "means all files below it, and ** any folders, as in bash. @FILE reads them from a file, one a "
    "line. Beam reads hdfs:// and azfs://.",
)
_INPUT_FORMAT = flags.DEFINE_enum_class(
    "input_format",
    InputFormat.AUTO,
    InputFormat,
    "text: one sentence per line, a blank line between documents (but see --documents). "
    "wikiextractor: the output of WikiExtractor, with <doc …> and </doc> around each document or "
    "from --json. jsonl: one JSON object per line, each a document. parquet, csv, tsv: each row is "
    "a document; csv and tsv have a header. auto: detect the format from the files' names and "
    "first bytes. All formats except parquet may be compressed with gzip, bzip2, xz, zstd or lz4.",
)
_ENCODING = flags.DEFINE_string(
    "encoding",
    _DEFAULTS.encoding,
    "The encoding of all files except parquet, by its name in Python, such as cp1252. Without it, "
    "the files are UTF-8, and a file is an error if more than 1 % of its first lines are invalid. "
    "--encoding=utf-8 drops what is invalid.",
)
_DOCUMENTS = flags.DEFINE_enum_class(
    "documents",
    _DEFAULTS.documents,
    Documents,
    "For the input format text. blank_lines: documents end at blank lines. lines: each line is a "
    "document of running text, which is split into sentences unless --sentences says otherwise.",
)
_TEXT_FIELD = flags.DEFINE_string(
    "text_field",
    _DEFAULTS.text_field,
    "The field or column that holds the document's text, in jsonl, parquet, csv and tsv: a text, "
    "or a list of texts. data.text is the field text of the object in the field data.",
)
_ON_BAD_RECORD = flags.DEFINE_enum_class(
    "on_bad_record",
    _DEFAULTS.on_bad_record,
    BadRecord,
    "What to do with a record of jsonl, parquet, csv or tsv that cannot be read or has no text. "
    "fail: end the run. skip: leave the record out and count it.",
)
_MIN_DOCUMENT_CHARACTERS = flags.DEFINE_integer(
    "min_document_characters",
    _DEFAULTS.min_document_characters,
    "Leave out documents with fewer characters.",
)
_DO_LOWER_CASE = flags.DEFINE_boolean(
    "do_lower_case",
    True,
    "Lower-case the text and, unless --strip_accents says otherwise, strip accents. Turn it off "
    "for a cased vocabulary.",
)
_STRIP_ACCENTS = flags.DEFINE_boolean(
    "strip_accents",
    None,
    "Strip accents. By default on if text is lower-cased, as in the original BERT. It drops vowel "
    "signs and tones of Hindi, Tamil, Burmese, Khmer, Thai, Arabic and Hebrew, and tones of "
    "Vietnamese; makes other letters of Turkish, German, Polish and Russian ones (ç, ä, ż, й); and "
    "destroys Korean and Japanese characters. Turn it off for these.",
)


_PRE_TOKENIZER = flags.DEFINE_enum_class(
    "pre_tokenizer",
    None,
    PreTokenizer,
    "What finds the words of Japanese text before WordPiece cuts them, as in transformers' "
    "BertJapaneseTokenizer and the models of tohoku-nlp. mecab: MeCab with the dictionary "
    "unidic-lite. mecab_ipadic: MeCab with IPAdic. sudachi: Sudachi's shortest units. The text is "
    "normalized (NFKC), and accents are kept. Without it, spaces, punctuation and ideographs tell "
    "the words, as in the original BERT.",
)


def input_patterns() -> list[str]:
    """Returns the paths and globs of the corpus."""
    return patterns_of(_INPUT_FILE)


def input_format() -> InputFormat:
    """Returns the format of the input files."""
    return _INPUT_FORMAT.value


def read_options(sentences: Sentences | None = None) -> ReadOptions:
    """Returns the options for reading documents."""
    return ReadOptions(
        text_field=_TEXT_FIELD.value,
        documents=_DOCUMENTS.value,
        sentences=sentences,
        on_bad_record=_ON_BAD_RECORD.value,
        min_document_characters=_MIN_DOCUMENT_CHARACTERS.value,
        encoding=_ENCODING.value,
    )


def do_lower_case() -> bool:
    """Returns whether the text is lower-cased."""
    return _DO_LOWER_CASE.value


def pre_tokenizer() -> PreTokenizer | None:
    """Returns what finds the words before WordPiece."""
    return _PRE_TOKENIZER.value


def strip_accents() -> bool | None:
    """Returns whether accents are stripped; None means if the text is lower-cased."""
    return _STRIP_ACCENTS.value


def is_normalization_given() -> tuple[bool, bool]:
    """Returns whether the user has given --do_lower_case, and --strip_accents."""
    return _DO_LOWER_CASE.present, _STRIP_ACCENTS.present
