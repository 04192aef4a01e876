"""Plain text to the lines of its documents."""

import codecs
import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from pipeline.formats.raw_document import RawDocument, text_and_count
from pipeline.portions import FileRange, check_length_of_document

# A file with as many lines and no blank one may hold an article a line.
_MANY_LINES = 10


def read_text(file_range: FileRange, statistics: Counter[str]) -> Iterator[RawDocument]:
    """Yields the lines between blank lines.

    It adds to `statistics`: lines_read, lines_with_invalid_utf8, text_files_without_blank_line.
    """
    offset = document_offset = file_range.start
    lines: list[str] = []
    num_documents = num_lines = 0
    # A blank line ends the last document too.
    for encoded in chain(file_range.lines(), [b"\n"]):
        content = encoded.removeprefix(codecs.BOM_UTF8) if offset == 0 else encoded
        line = text_and_count(content, statistics)
        if line:
            if not lines:
                document_offset = offset
            lines.append(line)
            check_length_of_document(offset - document_offset, file_range.file)
        elif lines:
            yield RawDocument(file_range.file, document_offset, document_offset, lines)
            num_documents, num_lines = num_documents + 1, len(lines)
            lines = []
        offset += len(encoded)
    # A file without blank lines is never cut, so a range with one document may be such a file.
    is_whole_file = file_range.start == 0 and file_range.end == math.inf
    if is_whole_file and num_documents == 1 and num_lines >= _MANY_LINES:
        statistics["text_files_without_blank_line"] += 1


def read_document_lines(file_range: FileRange, statistics: Counter[str]) -> Iterator[RawDocument]:
    """Yields each line that is not blank as a document.

    It adds to `statistics`: lines_read, lines_with_invalid_utf8.
    """
    offset = file_range.start
    for encoded in file_range.lines():
        content = encoded.removeprefix(codecs.BOM_UTF8) if offset == 0 else encoded
        if line := text_and_count(content, statistics):
            yield RawDocument(file_range.file, offset, offset, [line])
        offset += len(encoded)
