"""The corpus cut into portions at document boundaries.

Only file names and byte offsets leave this module, never text. Where the cuts fall has no influence
on documents, their ids or the shards.
"""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.compression import DAMAGED, decompress
from pipeline.errors import UserError
from pipeline.inputs import InputFile, InputFormat, read_blocks

SMALLEST_PORTION_BYTES = 4 << 20
LARGEST_PORTION_BYTES = 64 << 20
LONGEST_DOCUMENT_BYTES = 64 << 20
_PORTIONS_AT_LEAST = 16

# What begins a document of WikiExtractor.
DOC_LINE = re.compile(rb"<doc .*?(?: title=\"(?P<title>.*)\")?>\s*$")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class FileRange:
    """The bytes [start, end) of a file; whole documents. `end` None means to the end of the file."""

    file: InputFile
    start: int = 0
    end: int | None = None

    @property
    def text_bytes(self) -> int:
        """How much text it holds, as far as that is known."""
        end = self.file.size if self.end is None else self.end
        return (end - self.start) * self.file.text_bytes_per_byte

    def lines(self) -> Iterator[bytes]:
        """The lines of the range, decompressed, each with its end.

        Raises:
          UserError: the file cannot be read, its compressed data is damaged or cut off, or a line is
            longer than any document may be.
        """
        try:
            with self.file.open() as handle:
                handle.seek(self.start)
                blocks = read_blocks(handle, None if self.end is None else self.end - self.start)
                lines = lines_of(decompress(self.file.name, blocks), self.file)
                first = next(lines, b"")
                if self.start == 0 and first[:2] in _UTF16_MARKS:
                    raise UserError(f"{self.file.path} is UTF-16: convert it to UTF-8")
                yield from chain([first] if first else [], lines)
        except DAMAGED as error:
            raise UserError(f"cannot read {self.file.path}: {error}") from error


def lines_of(blocks: Iterable[bytes], file: InputFile) -> Iterator[bytes]:
    """The lines in blocks of a file, each with its end.

    Raises:
      UserError: a line is longer than any document may be.
    """
    unfinished: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield from io.BytesIO(b"".join([*unfinished, block[:end]]))
            unfinished = []
        unfinished.append(block[end:])
        check_length_of_document(sum(map(len, unfinished)), file)
    if rest := b"".join(unfinished):
        yield rest


def text_of(line: bytes) -> str:
    """A line's text, without white space around it; invalid UTF-8 is dropped, as in the original."""
    return line.decode("utf-8", "ignore").strip()


def check_length_of_document(num_bytes: int, file: InputFile) -> None:
    """Sees that a document of `file` fits in memory.

    Raises:
      UserError: it does not.
    """
    if num_bytes > LONGEST_DOCUMENT_BYTES:
        raise UserError(
            f"{file.path} has a document of more than {LONGEST_DOCUMENT_BYTES >> 20} MiB: "
            f"is a blank line missing between documents, or is --input_format={file.format} wrong?"
        )


Portion = tuple[FileRange, ...]
"""What one worker tokenizes at a time: one range of a large file, or several small files."""


def plan_portions(files: list[InputFile], portion_bytes: int | None = None) -> list[Portion]:
    """Cuts the files into portions with about `portion_bytes` of text each.

    Small files are put together, large ones are cut: at document boundaries, Parquet files between
    row groups; a compressed file cannot be cut. By default there are enough portions to keep some
    workers busy, each from 4 to 64 MiB.

    Raises:
      UserError: a large file cannot be read.
    """
    if portion_bytes is None:
        total_bytes = sum(file.text_bytes for file in files)
        portion_bytes = min(
            max(total_bytes // _PORTIONS_AT_LEAST, SMALLEST_PORTION_BYTES), LARGEST_PORTION_BYTES
        )
    portions: list[Portion] = []
    pending: list[FileRange] = []
    pending_bytes = 0
    for file in files:
        for file_range in _cut_file(file, portion_bytes):
            pending.append(file_range)
            pending_bytes += file_range.text_bytes
            if pending_bytes >= portion_bytes:
                portions.append(tuple(pending))
                pending, pending_bytes = [], 0
    if pending:
        portions.append(tuple(pending))
    return portions


def open_parquet(file: InputFile) -> pq.ParquetFile:
    """The Parquet file.

    Raises:
      UserError: it is none, or it is damaged.
    """
    try:
        return pq.ParquetFile(file.open())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file.path} as Parquet: {error}") from error


def row_group_ends(parquet: pq.ParquetFile) -> list[int]:
    """Where each row group ends, when they stand one behind the other, in bytes on disk."""
    ends = []
    end = 0
    for group in range(parquet.num_row_groups):
        columns = parquet.metadata.row_group(group)
        end += sum(columns.column(i).total_compressed_size for i in range(columns.num_columns))
        ends.append(end)
    return ends


def _cut_file(file: InputFile, portion_bytes: int) -> Iterator[FileRange]:
    if file.text_bytes <= portion_bytes or file.is_compressed:
        yield FileRange(file)
        return
    start = 0
    try:
        for end in _cuts(file, portion_bytes):
            yield FileRange(file, start, end)
            start = end
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {error}") from error
    yield FileRange(file, start)


def _cuts(file: InputFile, portion_bytes: int) -> Iterator[int]:
    """Where ranges with about `portion_bytes` of text end, but for the last."""
    range_bytes = max(1, portion_bytes // file.text_bytes_per_byte)
    start = 0
    if file.format == InputFormat.PARQUET:
        with open_parquet(file) as parquet:
            for end in row_group_ends(parquet)[:-1]:
                if end - start >= range_bytes:
                    yield end
                    start = end
    else:
        with file.open() as handle:
            while cut := _next_cut(handle, start + range_bytes, file):
                yield cut
                start = cut


def _next_cut(handle: BinaryIO, position: int, file: InputFile) -> int | None:
    """The first document boundary behind the line at `position`; None when there is none."""
    handle.seek(position)
    lines = lines_of(read_blocks(handle), file)
    offset = position + len(next(lines, b""))
    if file.format == InputFormat.JSONL:
        return offset if offset < file.size else None
    for line in lines:
        if file.format == InputFormat.TEXT and not text_of(line):
            return offset + len(line)
        if file.format == InputFormat.WIKIEXTRACTOR and DOC_LINE.match(line):
            return offset
        offset += len(line)
        check_length_of_document(offset - position, file)
    return None
