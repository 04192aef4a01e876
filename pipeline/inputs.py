"""Which text to read: the files that match, cut into splits at document boundaries.

Only file names and byte offsets leave this module, never text. Where the cuts fall has no influence
on documents, their ids or the shards.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import UserError

SMALLEST_SPLIT_BYTES = 4 << 20
LARGEST_SPLIT_BYTES = 64 << 20
_SPLITS_AT_LEAST = 16
_SCAN_BYTES = 1 << 20


class InputFormat(StrEnum):
    """How documents and sentences are laid out in a file."""

    TEXT = "text"
    """One sentence a line, a blank line between documents."""
    WIKIEXTRACTOR = "wikiextractor"
    """`<doc …>` and `</doc>` around each document, one paragraph of running text a line."""


# A split may begin right behind a match: the next document begins there or later.
_CUT = {
    InputFormat.TEXT: re.compile(rb"\n[ \t\r]*\n"),
    InputFormat.WIKIEXTRACTOR: re.compile(rb"\n(?=<doc )"),
}


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus.

    Attributes:
      path: where it is, for any file system that Beam opens.
      name: its path relative to the folder that all input files share, with `/` between parts. It
        is part of document ids, so that a corpus can move without changing the shards.
      size: bytes on disk.
      corpus_offset: total size of the files before it, in the order of names.
    """

    path: str
    name: str
    size: int
    corpus_offset: int


@dataclass(frozen=True)
class FileRange:
    """The bytes [start, end) of a file; whole documents. `end` None means to the end of the file."""

    file: InputFile
    start: int
    end: int | None

    def read(self) -> bytes:
        """The (decompressed) bytes of the range."""
        with _open(self.file) as handle:
            if self.start:
                handle.seek(self.start)
            return handle.read() if self.end is None else handle.read(self.end - self.start)


Split = tuple[FileRange, ...]
"""What one worker tokenizes at a time: one range of a large file, or several small files."""


def match_files(patterns: list[str]) -> list[InputFile]:
    """The files that `patterns` (paths or globs) match, each once, in the order of their names.

    Raises:
      UserError: a pattern matches nothing, or all the files are empty.
    """
    sizes: dict[str, int] = {}
    for pattern, result in zip(patterns, FileSystems.match(patterns), strict=True):
        if not result.metadata_list:
            raise UserError(
                f"no input file matches {pattern}: check --input_file "
                "(a glob in quotes, or several names with commas between them)"
            )
        sizes.update((metadata.path, metadata.size_in_bytes) for metadata in result.metadata_list)
    paths = sorted(sizes)
    if not any(sizes.values()):
        raise UserError(f"nothing to read: {describe_paths(paths)} has no text in it")
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 - may be URLs
    files: list[InputFile] = []
    corpus_offset = 0
    for path in paths:
        name = path[len(folder) :].lstrip("/\\").replace("\\", "/")
        files.append(InputFile(path, name, sizes[path], corpus_offset))
        corpus_offset += sizes[path]
    return files


def describe_paths(paths: list[str]) -> str:
    """The first of `paths` and how many more there are, for messages."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def plan_splits(
    files: list[InputFile], input_format: InputFormat, split_bytes: int | None = None
) -> list[Split]:
    """Cuts the files into splits of about `split_bytes` each.

    Small files are put together, large ones are cut at document boundaries; a compressed file
    cannot be cut. By default there are enough splits to keep some workers busy, each from 4 to
    64 MiB.
    """
    if split_bytes is None:
        total_bytes = sum(file.size for file in files)
        split_bytes = min(
            max(total_bytes // _SPLITS_AT_LEAST, SMALLEST_SPLIT_BYTES), LARGEST_SPLIT_BYTES
        )
    splits: list[Split] = []
    pending: list[FileRange] = []
    pending_bytes = 0
    for file in files:
        for file_range in _cut_file(file, input_format, split_bytes):
            pending.append(file_range)
            pending_bytes += (
                file.size if file_range.end is None else file_range.end
            ) - file_range.start
            if pending_bytes >= split_bytes:
                splits.append(tuple(pending))
                pending, pending_bytes = [], 0
    if pending:
        splits.append(tuple(pending))
    return splits


def _cut_file(file: InputFile, input_format: InputFormat, split_bytes: int) -> Iterator[FileRange]:
    if file.size <= split_bytes or _is_compressed(file):
        yield FileRange(file, 0, None)
        return
    start = 0
    with _open(file) as handle:
        while (end := _next_cut(handle, start + split_bytes, _CUT[input_format])) is not None:
            yield FileRange(file, start, end)
            start = end
    yield FileRange(file, start, None)


def _next_cut(handle: BinaryIO, position: int, cut: re.Pattern[bytes]) -> int | None:
    """The offset of the first document boundary at or after `position`; None when there is none."""
    handle.seek(position)
    scanned = b""
    while block := handle.read(_SCAN_BYTES):
        scanned += block
        if match := cut.search(scanned):
            return position + match.end()
        # A boundary may straddle two blocks; all but the last lines are done with.
        keep_from = max(scanned.rfind(b"\n", 0, scanned.rfind(b"\n")), 0)
        position += keep_from
        scanned = scanned[keep_from:]
    return None


def _is_compressed(file: InputFile) -> bool:
    detected = CompressionTypes.detect_compression_type(file.path)
    return detected != CompressionTypes.UNCOMPRESSED


def _open(file: InputFile) -> BinaryIO:
    return FileSystems.open(file.path)
