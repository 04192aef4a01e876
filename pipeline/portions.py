"""Cuts the corpus into portions at document boundaries.

A plan holds only file names and byte offsets, never text. The positions of the cuts affect neither
the documents nor their ids nor the shards.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.compression import DAMAGED, decompress
from pipeline.encodings import to_utf8
from pipeline.errors import UserError, reason_of
from pipeline.inputs import InputFile, InputFormat, read_blocks
from pipeline.storage import Stamp, open_input

SMALLEST_PORTION_BYTES = 4 << 20
LARGEST_PORTION_BYTES = 64 << 20
LONGEST_DOCUMENT_BYTES = 64 << 20
_PORTIONS_AT_LEAST = 16
# What a request to a store reads: of a range, and in search of the end of a document.
_REQUEST_BYTES = 4 << 20
_CUT_BYTES = 1 << 18

# The line that begins a document in WikiExtractor's output.
DOC_LINE = re.compile(rb"<doc .*?(?: title=\"(?P<title>.*)\")?>\s*$")


@dataclass(frozen=True)
class FileRange:
    """The bytes [start, end) of a file, which are whole documents; by default, to its end."""

    file: InputFile
    start: int = 0
    end: float = math.inf

    @property
    def text_bytes(self) -> int:
        """The (estimated) amount of text in the range, in bytes."""
        size = int(min(self.end, self.file.size)) - self.start
        return size * self.file.text_bytes_per_byte

    def blocks(self) -> Iterator[bytes]:
        """Yields the content of the range, decompressed and as UTF-8, in blocks.

        Raises:
          UserError: the file cannot be read, or has damaged or cut-off compressed data.
        """
        try:
            with open_input(self.file.path, self._stamp, _REQUEST_BYTES) as handle:
                handle.seek(self.start)
                stored = read_blocks(handle, self.end - self.start)
                yield from to_utf8(decompress(stored, self.file.compression), self.file.encoding)
        except DAMAGED as error:
            raise UserError(f"cannot read {self.file.path}: {reason_of(error)}") from error

    @property
    def _stamp(self) -> Stamp:
        """The file's, with the size up to the range's end, beyond which a store is not asked."""
        return self.file.stamp._replace(size=int(min(self.end, self.file.size)))

    def lines(self) -> Iterator[bytes]:
        """Yields the decompressed lines of the range, each with its line ending.

        Raises:
          UserError: as of `blocks`, or a line exceeds the maximum length of a document.
        """
        return lines_of(self.blocks(), self.file)


def lines_of(blocks: Iterable[bytes], file: InputFile) -> Iterator[bytes]:
    """Yields the lines in the blocks of a file, each with its line ending.

    Raises:
      UserError: a line exceeds the maximum length of a document.
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
    """Returns a line's text, stripped; drops invalid UTF-8 as the original does."""
    return line.decode("utf-8", "ignore").strip()


def check_length_of_document(num_bytes: int, file: InputFile) -> None:
    """Checks that a document of `file` fits in memory.

    Raises:
      UserError: the document is longer than 64 MiB.
    """
    if num_bytes > LONGEST_DOCUMENT_BYTES:
        raise UserError(
            f"{file.path} has a document larger than {LONGEST_DOCUMENT_BYTES >> 20} MiB: "
            f"is a blank line missing between documents (for one document a line, give "
            f"--documents=lines), or is --input_format={file.format} wrong?"
        )


Portion = tuple[FileRange, ...]
"""The unit of work for a tokenizing worker: one range of a large file, or several small files."""


def text_bytes_of(portion: Portion) -> int:
    """The (estimated) amount of text in a portion, in bytes."""
    return sum(file_range.text_bytes for file_range in portion)


def corpus_of_portion(portion: Portion) -> str | None:
    """The name of the corpus of a portion's files, which belong to one; None without a mixture."""
    return portion[0].file.corpus


def usual_portion_bytes(files: list[InputFile]) -> int:
    """The usual size of a portion of these files, in bytes.

    It is 4 to 64 MiB, and there are enough portions to keep several workers busy.
    """
    wanted = sum(file.text_bytes for file in files) // _PORTIONS_AT_LEAST
    return min(max(wanted, SMALLEST_PORTION_BYTES), LARGEST_PORTION_BYTES)


def plan_portions(
    files: list[InputFile],
    portion_bytes: int | None = None,
    lines_are_documents: bool = False,
) -> list[Portion]:
    """Cuts the files into portions with about `portion_bytes` of text each.

    Small files share a portion. Large text files are cut at document boundaries, Parquet files
    between row groups; a file that is compressed, CSV, TSV or not UTF-8 cannot be cut.

    Args:
      files: the files of the corpus.
      portion_bytes: the amount of text in a portion, in bytes; None: what is usual for the files.
      lines_are_documents: whether each line of a text file is a document.

    Raises:
      UserError: a large file cannot be read.
    """
    portion_bytes = portion_bytes or usual_portion_bytes(files)
    portions: list[Portion] = []
    pending: list[FileRange] = []
    pending_bytes = 0
    for file in files:
        for file_range in _cut_file(file, portion_bytes, lines_are_documents):
            pending.append(file_range)
            pending_bytes += file_range.text_bytes
            if pending_bytes >= portion_bytes:
                portions.append(tuple(pending))
                pending, pending_bytes = [], 0
    if pending:
        portions.append(tuple(pending))
    return portions


def open_parquet(file: InputFile) -> pq.ParquetFile:
    """Opens a Parquet file.

    Raises:
      UserError: the file is damaged or is not a Parquet file.
    """
    try:
        # Arrow asks for what it needs: the footer, then a column of a row group at a time.
        return pq.ParquetFile(open_input(file.path, file.stamp, buffering=0))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file.path} as Parquet: {reason_of(error)}") from error


def row_group_ends(parquet: pq.ParquetFile) -> list[int]:
    """Returns the end of each row group in bytes, as if the groups were stored without gaps."""
    groups = map(parquet.metadata.row_group, range(parquet.num_row_groups))
    return list(
        accumulate(
            sum(group.column(i).total_compressed_size for i in range(group.num_columns))
            for group in groups
        )
    )


def _cut_file(
    file: InputFile, portion_bytes: int, lines_are_documents: bool
) -> Iterator[FileRange]:
    # A row of CSV may have several lines, so no line is surely the first of a row.
    is_csv = file.format in (InputFormat.CSV, InputFormat.TSV)
    if file.text_bytes <= portion_bytes or file.is_stream or is_csv:
        yield FileRange(file)
        return
    start = 0
    try:
        for end in _cuts(file, portion_bytes, lines_are_documents):
            yield FileRange(file, start, end)
            start = end
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {reason_of(error)}") from error
    yield FileRange(file, start)


def _cuts(file: InputFile, portion_bytes: int, lines_are_documents: bool) -> Iterator[int]:
    """Yields the ends of ranges with about `portion_bytes` of text each, except the last end."""
    range_bytes = max(1, portion_bytes // file.text_bytes_per_byte)
    start = 0
    if file.format == InputFormat.PARQUET:
        with open_parquet(file) as parquet:
            for end in row_group_ends(parquet)[:-1]:
                if end - start >= range_bytes:
                    yield end
                    start = end
    else:
        any_line = file.format == InputFormat.JSONL or (
            lines_are_documents and file.format == InputFormat.TEXT
        )
        with open_input(file.path, file.stamp, _CUT_BYTES) as handle:
            while cut := _next_cut(handle, start + range_bytes, file, any_line):
                yield cut
                start = cut


def _next_cut(handle: BinaryIO, position: int, file: InputFile, any_line: bool) -> int | None:
    """The first document boundary after the line at `position`; None if there is none."""
    handle.seek(position)
    lines = lines_of(read_blocks(handle), file)
    offset = position + len(next(lines, b""))
    if any_line:
        return offset if offset < file.size else None
    for line in lines:
        if file.format == InputFormat.TEXT and not text_of(line):
            return offset + len(line)
        if file.format == InputFormat.WIKIEXTRACTOR and DOC_LINE.match(line):
            return offset
        offset += len(line)
        check_length_of_document(offset - position, file)
    return None
