"""A range of a file to documents; each reader knows one layout."""

import codecs
import html
import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, chain, takewhile

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.inputs import InputFormat
from pipeline.portions import (
    DOC_LINE,
    FileRange,
    check_length_of_document,
    open_parquet,
    row_group_ends,
    text_of,
)
from pipeline.sentences import split_sentences

_BYTE_ORDER_MARK = codecs.BOM_UTF8
_ROWS_PER_BATCH = 64
_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


class Sentences(StrEnum):
    """How the lines of a document become sentences."""

    LINES = "lines"
    """Each line is a sentence."""
    SPLIT = "split"
    """Each line is a paragraph of running text, which is split into sentences."""


class BadRecord(StrEnum):
    """How a record of a JSON Lines or Parquet file without text is treated."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read.

    Attributes:
      text_field: the field of a JSON Lines or Parquet record that holds the document.
      sentences: how lines become sentences; None: `LINES` for TEXT files, `SPLIT` for all others.
      on_bad_record: how a record is treated that cannot be read or has no text field.
      min_document_characters: shorter documents are dropped; line ends do not count.

    Raises:
      UserError: an option is out of range.
    """

    text_field: str = "text"
    sentences: Sentences | None = None
    on_bad_record: BadRecord = BadRecord.FAIL
    min_document_characters: int = 0

    def __post_init__(self) -> None:
        if self.min_document_characters < 0:
            raise UserError(
                f"--min_document_characters={self.min_document_characters} must not be negative"
            )


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


@dataclass(frozen=True)
class _Lines:
    """The lines of a document, without surrounding white space; no line is empty."""

    offset: int
    text_before: int
    lines: list[str]


@dataclass(frozen=True)
class _Unreadable:
    """A record without text, and the reason."""

    offset: int
    problem: str


def read_documents(
    file_range: FileRange, options: ReadOptions, statistics: Counter[str]
) -> Iterator[Document]:
    """The documents of a range of a file, in order. Invalid UTF-8 is dropped, as in the original.

    It adds to `statistics`: records_skipped, lines_outside_documents, lines_with_invalid_utf8,
    documents_read, documents_too_short.

    Raises:
      UserError: the file or a record of it cannot be read, or a document is too long.
    """
    default = Sentences.LINES if file_range.file.format == InputFormat.TEXT else Sentences.SPLIT
    try:
        for found in _read_records(file_range, options.text_field, statistics):
            if isinstance(found, _Unreadable):
                _skip_or_fail(found, file_range, options)
                statistics["records_skipped"] += 1
                continue
            statistics["documents_read"] += 1
            if sum(map(len, found.lines)) < options.min_document_characters:
                statistics["documents_too_short"] += 1
                continue
            sentences = found.lines
            if (options.sentences or default) == Sentences.SPLIT:
                sentences = [sentence for line in found.lines for sentence in split_sentences(line)]
            yield Document(file_range.file.name, found.offset, found.text_before, sentences)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file_range.file.path}: {error}") from error


def _skip_or_fail(record: _Unreadable, file_range: FileRange, options: ReadOptions) -> None:
    if options.on_bad_record == BadRecord.FAIL:
        raise UserError(
            f"{file_range.file.path}, {_place(file_range, record.offset)}: {record.problem}; "
            "give --on_bad_record=skip to leave such records out"
        )


def _read_records(
    file_range: FileRange, text_field: str, statistics: Counter[str]
) -> Iterator[_Lines] | Iterator[_Lines | _Unreadable]:
    match file_range.file.format:
        case InputFormat.WIKIEXTRACTOR:
            return _read_wikiextractor(file_range, statistics)
        case InputFormat.JSONL:
            return _read_jsonl(file_range, text_field, statistics)
        case InputFormat.PARQUET:
            return _read_parquet(file_range, text_field)
        case _:
            return _read_text(file_range, statistics)


def _read_text(file_range: FileRange, statistics: Counter[str]) -> Iterator[_Lines]:
    offset = document_offset = file_range.start
    lines: list[str] = []
    # A blank line ends the last document too.
    for encoded in chain(file_range.lines(), [b"\n"]):
        content = encoded.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else encoded
        line = _text_and_count(content, statistics)
        if line:
            if not lines:
                document_offset = offset
            lines.append(line)
            check_length_of_document(offset - document_offset, file_range.file)
        elif lines:
            yield _Lines(document_offset, document_offset, lines)
            lines = []
        offset += len(encoded)


def _read_wikiextractor(file_range: FileRange, statistics: Counter[str]) -> Iterator[_Lines]:
    offset = document_offset = file_range.start
    title = ""
    lines: list[str] | None = None  # None between documents
    # A last document may lack its </doc>.
    for encoded in chain(file_range.lines(), [b"</doc>"]):
        doc_line = DOC_LINE.match(encoded.removeprefix(_BYTE_ORDER_MARK))
        is_end = encoded.startswith(b"</doc>")
        if lines is not None and (doc_line or is_end):
            yield _Lines(document_offset, document_offset, _without_title(lines, title))
            lines = None
        if doc_line:
            document_offset, lines = offset, []
            title = html.unescape((doc_line["title"] or b"").decode("utf-8", "ignore"))
        elif not is_end and (line := _text_and_count(encoded, statistics)):
            if lines is None:
                statistics["lines_outside_documents"] += 1
            else:
                lines.append(line)
                check_length_of_document(offset - document_offset, file_range.file)
        offset += len(encoded)


def _read_jsonl(
    file_range: FileRange, text_field: str, statistics: Counter[str]
) -> Iterator[_Lines | _Unreadable]:
    offset = file_range.start
    for encoded in file_range.lines():
        line = _text_and_count(encoded.removeprefix(_BYTE_ORDER_MARK), statistics)
        if line:
            try:
                text, title = _text_and_title(line, text_field)
            except (ValueError, RecursionError) as error:
                yield _Unreadable(offset, str(error))
            else:
                yield _Lines(offset, offset, _without_title(_lines_of_record(text), title))
        offset += len(encoded)


def _text_and_count(line: bytes, statistics: Counter[str]) -> str:
    """The result of `text_of`; counts the lines from which that drops anything."""
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError:
        statistics["lines_with_invalid_utf8"] += 1
        return text_of(line)


def _text_and_title(line: str, text_field: str) -> tuple[str, str]:
    """The text of a JSON record, and the title that WikiExtractor repeats in its first line."""
    if line.startswith("["):
        raise ValueError("a JSON array, not one object a line as in JSON Lines")
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    text = record.get(text_field)
    if not isinstance(text, str):
        raise ValueError(f"no text in the field {text_field!r}, of {reprlib.repr(list(record))}")
    title = record.get("title")
    return text, title if isinstance(title, str) else ""


def _read_parquet(file_range: FileRange, text_field: str) -> Iterator[_Lines | _Unreadable]:
    file = file_range.file
    with open_parquet(file) as parquet:
        _check_column(file.path, parquet.schema_arrow, text_field)
        first_row = start = 0
        for group, end in enumerate(row_group_ends(parquet)):
            num_rows = parquet.metadata.row_group(group).num_rows
            if start >= file_range.start and end <= (file_range.end or end):
                for number, text in enumerate(_texts_of_row_group(parquet, group, text_field)):
                    row = first_row + number
                    if text is None:
                        yield _Unreadable(row, f"no text in the column {text_field!r}")
                    else:
                        check_length_of_document(len(text), file)
                        before = start + (end - start) * number // num_rows
                        lines = _lines_of_record(text.decode("utf-8", "ignore"))
                        yield _Lines(row, before * file.text_bytes_per_byte, lines)
            first_row, start = first_row + num_rows, end


def _texts_of_row_group(
    parquet: pq.ParquetFile, group: int, text_field: str
) -> Iterator[bytes | None]:
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, [group], [text_field]):
        # As bytes, since invalid UTF-8 is to be dropped.
        texts = batch.column(0).cast(pa.large_string(), safe=False)
        yield from texts.view(pa.large_binary()).to_pylist()


def _check_column(path: str, schema: pa.Schema, text_field: str) -> None:
    if schema.names.count(text_field) != 1:
        raise UserError(
            f"{path} has {'no column' if text_field not in schema.names else 'two columns'} "
            f"{text_field!r}: give --text_field, one of {', '.join(map(repr, schema.names))}"
        )
    column_type = schema.field(text_field).type
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    if not any(is_text(column_type) for is_text in _TEXT_TYPES):
        raise UserError(
            f"the column {text_field!r} of {path} is of type {column_type}, not text: "
            "give another --text_field"
        )


def _lines_of_record(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def _without_title(lines: list[str], title: str) -> list[str]:
    """The lines, without a first line that only repeats the title."""
    return lines[1:] if lines and lines[0] == title.strip() else lines


def _place(file_range: FileRange, offset: int) -> str:
    """A record's place in its file, for people. To number a line, it reads all lines before it."""
    if file_range.file.format == InputFormat.PARQUET:
        return f"row {offset}"
    ends = accumulate(map(len, FileRange(file_range.file).lines()))
    lines_before = sum(1 for _ in takewhile(lambda end: end <= offset, ends))
    return f"line {lines_before + 1}"
