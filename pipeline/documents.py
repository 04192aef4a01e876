"""The lines of a document to a `Document`: its sentences."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipeline.encodings import canonical_encoding
from pipeline.errors import UserError
from pipeline.formats.raw_document import RawDocument
from pipeline.inputs import InputFormat
from pipeline.sentences import split_sentences


class Sentences(StrEnum):
    """How the lines of a document become sentences."""

    LINES = "lines"
    """Each line is a sentence."""
    SPLIT = "split"
    """Each line is a paragraph of running text, which is split into sentences."""


class Documents(StrEnum):
    """Where the documents of a text file end."""

    BLANK_LINES = "blank_lines"
    """At blank lines."""
    LINES = "lines"
    """At each line: a line is a document of running text."""


class BadRecord(StrEnum):
    """How a record without text is treated, in JSON Lines, Parquet, CSV and TSV files."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read.

    Attributes:
      text_field: the field that holds the document, in JSON Lines, Parquet, CSV and TSV files. The
        name `a.b` finds the field `b` of the object in the field `a`.
      documents: where the documents of a TEXT file end.
      sentences: how lines become sentences; None: `LINES` for TEXT files with documents between
        blank lines, `SPLIT` for all others.
      on_bad_record: how a record is treated that cannot be read or has no text field.
      min_document_characters: shorter documents are dropped; line ends do not count.
      encoding: the encoding of all files but Parquet, by Python's name for it; None: UTF-8, and the
        files are checked.

    Raises:
      UserError: an option is out of range.
    """

    text_field: str = "text"
    documents: Documents = Documents.BLANK_LINES
    sentences: Sentences | None = None
    on_bad_record: BadRecord = BadRecord.FAIL
    min_document_characters: int = 0
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.min_document_characters < 0:
            raise UserError(
                f"--min_document_characters={self.min_document_characters} must not be negative"
            )
        if self.encoding is not None:
            # The one spelling of its name, so that plans with other spellings do not differ.
            object.__setattr__(self, "encoding", canonical_encoding(self.encoding))

    def splits_sentences(self, input_format: InputFormat) -> bool:
        """Whether the lines of files of this format are split into sentences."""
        if self.sentences is None:
            return input_format != InputFormat.TEXT or self.documents == Documents.LINES
        return self.sentences == Sentences.SPLIT


@dataclass(frozen=True)
class Document:
    """A text whose sentences follow one another.

    Attributes:
      file: the name of its file (`InputFile.name`).
      offset: its place in that file: the first byte, decompressed, or the row of a Parquet file.
        File and offset are the document's id. They depend neither on the order of arrival nor on
        the cuts between portions.
      text_before: the text of its file before it, in bytes; an estimate in a Parquet file.
      sentences: its sentences, in order; empty for a document without text.
    """

    file: str
    offset: int
    text_before: int
    sentences: list[str]

    @property
    def characters(self) -> int:
        """The length of the sentences, in characters."""
        return sum(map(len, self.sentences))


def read_documents(
    raw_documents: Iterable[RawDocument], options: ReadOptions, statistics: Counter[str]
) -> Iterator[Document]:
    """Makes sentences of the lines of each document, and drops short documents.

    It adds to `statistics`: documents_read, documents_too_short.
    """
    for raw in raw_documents:
        statistics["documents_read"] += 1
        if sum(map(len, raw.lines)) < options.min_document_characters:
            statistics["documents_too_short"] += 1
            continue
        sentences = raw.lines
        if options.splits_sentences(raw.file.format):
            sentences = [sentence for line in raw.lines for sentence in split_sentences(line)]
        yield Document(raw.file.name, raw.offset, raw.text_before, sentences)
