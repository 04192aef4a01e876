"""Which text to read: the files that match, cut into splits at document boundaries.

Only file names and byte offsets leave this module, never text. Where the cuts fall has no influence
on documents, their ids or the shards.
"""

import bz2
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath
from typing import BinaryIO

import zstandard
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, MatchResult
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import UserError

SMALLEST_SPLIT_BYTES = 4 << 20
LARGEST_SPLIT_BYTES = 64 << 20
_SPLITS_AT_LEAST = 16
_SCAN_BYTES = 1 << 20
_DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError)


class InputFormat(StrEnum):
    """How documents and sentences are laid out in a file."""

    TEXT = "text"
    """One sentence a line, a blank line between documents."""
    WIKIEXTRACTOR = "wikiextractor"
    """`<doc …>` and `</doc>` around each document, one paragraph of running text a line."""


# A split may begin right behind a match: the next document begins there or later.
_CUT = {
    InputFormat.TEXT: re.compile(rb"\n[ \t\r]*\n"),
    InputFormat.WIKIEXTRACTOR: re.compile(rb"\n(?=<doc [^\n]*>[ \t\r]*\n)"),
}


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus.

    Attributes:
      path: where it is, for any file system that Beam opens.
      name: its path relative to the folder that all input files share, with `/` between parts. It
        is part of document ids, so that a corpus can move without changing the shards.
      size: bytes on disk.
      modified: when it was last changed, in seconds since 1970; 0 where that is not known.
      corpus_offset: total size of the files before it, in the order of names.
    """

    path: str
    name: str
    size: int
    modified: float
    corpus_offset: int

    @property
    def decompress(self) -> Callable[[bytes], bytes] | None:
        """What turns the content of a .gz, .bz2, .xz or .zst file to text; None for plain files."""
        return _DECOMPRESS.get(PurePath(self.name).suffix.lower())

    def open(self) -> BinaryIO:
        """A handle on the content as it is stored."""
        return FileSystems.open(self.path, compression_type=CompressionTypes.UNCOMPRESSED)


@dataclass(frozen=True)
class FileRange:
    """The bytes [start, end) of a file; whole documents. `end` None means to the end of the file."""

    file: InputFile
    start: int
    end: int | None

    def read(self) -> bytes:
        """The bytes of the range, decompressed.

        Raises:
          UserError: the file cannot be read, or its compressed data is damaged or cut off.
        """
        try:
            with self.file.open() as handle:
                if self.start:
                    handle.seek(self.start)
                data = handle.read() if self.end is None else handle.read(self.end - self.start)
            return self.file.decompress(data) if self.file.decompress else data
        except (OSError, EOFError, ValueError, *_DAMAGED) as error:
            raise UserError(f"cannot read {self.file.path}: {error}") from error


Split = tuple[FileRange, ...]
"""What one worker tokenizes at a time: one range of a large file, or several small files."""


def match_files(patterns: list[str]) -> list[InputFile]:
    """The files that `patterns` (paths or globs) match, each once, in the order of their names.

    Raises:
      UserError: a pattern matches nothing or a folder, or all the files are empty.
    """
    matched: dict[str, FileMetadata] = {}
    for pattern, result in zip(patterns, _match(patterns), strict=True):
        if not result.metadata_list:
            raise UserError(
                f"no input file matches {pattern}: check --input_file "
                "(a glob in quotes, or several names with commas between them)"
            )
        matched.update((_absolute(file.path), file) for file in result.metadata_list)
    paths = sorted(matched)
    for path in paths:
        if Path(path).is_dir():
            raise UserError(f"the input {path} is a folder: give its files, as in '{path}/*'")
    if not any(file.size_in_bytes for file in matched.values()):
        raise UserError(f"nothing to read: {describe_paths(paths)} has no text in it")
    parts = {path: path.replace("\\", "/").split("/") for path in paths}
    folder = os.path.commonprefix([parts[path][:-1] for path in paths])  # noqa: RUF071 - of lists
    files: list[InputFile] = []
    corpus_offset = 0
    for path in paths:
        name = "/".join(parts[path][len(folder) :])
        size, modified = matched[path].size_in_bytes, matched[path].last_updated_in_seconds
        files.append(InputFile(path, name, size, modified, corpus_offset))
        corpus_offset += size
    return files


def _match(patterns: list[str]) -> list[MatchResult]:
    if not patterns:
        raise UserError("no input file: give --input_file")
    try:
        return FileSystems.match(patterns)
    except (BeamIOError, ValueError) as error:
        raise UserError(f"cannot look for {', '.join(patterns)}: {error}") from error


def _absolute(path: str) -> str:
    """One spelling for every path, so that no file is read twice."""
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100 - `..` goes, links stay


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
    if file.size <= split_bytes or file.decompress:
        yield FileRange(file, 0, None)
        return
    start = 0
    with file.open() as handle:
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
        # A boundary may straddle two blocks: it begins at the last line's end or later.
        newline = scanned.rfind(b"\n")
        keep_from = newline if newline >= 0 else len(scanned)
        position += keep_from
        scanned = scanned[keep_from:]
    return None


def _decompress_zstd(data: bytes) -> bytes:
    """The content of all frames; unlike the library's own reader, it sees that the last is cut off."""
    content = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        content.append(frame.decompress(data))
        if not frame.eof:
            raise EOFError("the last frame is cut off")
        data = frame.unused_data
    return b"".join(content)


_DECOMPRESS = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _decompress_zstd,
}
