"""The reader for a file's format, and the treatment of records without text."""

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, takewhile

import pyarrow as pa

from pipeline.documents import BadRecord, Documents, ReadOptions
from pipeline.errors import UserError, reason_of
from pipeline.formats.json_lines import read_json_lines
from pipeline.formats.raw_document import RawDocument, Unreadable
from pipeline.formats.tables import read_csv, read_parquet
from pipeline.formats.text import read_document_lines, read_text
from pipeline.formats.wikiextractor import read_wikiextractor
from pipeline.inputs import InputFormat
from pipeline.portions import FileRange

_TABLES = (InputFormat.PARQUET, InputFormat.CSV, InputFormat.TSV)


def read_raw_documents(
    file_range: FileRange, options: ReadOptions, statistics: Counter[str]
) -> Iterator[RawDocument]:
    """The documents of a range of a file, in order. Invalid UTF-8 is dropped, as in the original.

    It adds to `statistics`: records_skipped, and the counts of the format's reader.

    Raises:
      UserError: the file or a record of it cannot be read, or a document is too long.
    """
    try:
        for found in _read(file_range, options, statistics):
            if isinstance(found, RawDocument):
                yield found
            elif options.on_bad_record == BadRecord.SKIP:
                statistics["records_skipped"] += 1
            else:
                raise UserError(
                    f"{file_range.file.path}, {_place(file_range, found.offset)}: {found.problem}; "
                    "give --on_bad_record=skip to leave such records out"
                )
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file_range.file.path}: {reason_of(error)}") from error


def _read(
    file_range: FileRange, options: ReadOptions, statistics: Counter[str]
) -> Iterator[RawDocument] | Iterator[RawDocument | Unreadable]:
    match file_range.file.format:
        case InputFormat.WIKIEXTRACTOR:
            return read_wikiextractor(file_range, statistics)
        case InputFormat.JSONL:
            return read_json_lines(file_range, options.text_field, statistics)
        case InputFormat.PARQUET:
            return read_parquet(file_range, options.text_field)
        case InputFormat.CSV | InputFormat.TSV:
            return read_csv(file_range, options.text_field, statistics)
    if options.documents == Documents.LINES:
        return read_document_lines(file_range, statistics)
    return read_text(file_range, statistics)


def _place(file_range: FileRange, offset: int) -> str:
    """A record's place in its file, for people. To number a line, it reads all lines before it."""
    if file_range.file.format in _TABLES:
        return f"row {offset}"
    ends = accumulate(map(len, FileRange(file_range.file).lines()))
    lines_before = sum(1 for _ in takewhile(lambda end: end <= offset, ends))
    return f"line {lines_before + 1}"
