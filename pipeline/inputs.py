"""Finds the files of the corpus and the format of each."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, MatchResult
from apache_beam.io.filesystems import FileSystems

from pipeline.compression import DAMAGED, decompress, is_compressed
from pipeline.errors import UserError
from pipeline.paths import kind_of_special_file

_BLOCK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 12
# Compressed text, and text in Parquet files, takes about a third of its original size.
_TEXT_BYTES_PER_COMPRESSED_BYTE = 3


class InputFormat(StrEnum):
    """The layout of documents and sentences in a file."""

    AUTO = "auto"
    """Each file's format is detected from its name and its first bytes."""
    TEXT = "text"
    """One sentence per line, with a blank line between documents."""
    WIKIEXTRACTOR = "wikiextractor"
    """`<doc …>` and `</doc>` around each document, one paragraph of running text per line."""
    JSONL = "jsonl"
    """One JSON object with one document per line; `wikiextractor --json` writes this too."""
    PARQUET = "parquet"
    """One document per row."""
    CSV = "csv"
    """A header, and one document per row; commas or semicolons between the columns."""
    TSV = "tsv"
    """As CSV, with tabs between the columns."""


_FORMAT_OF_SUFFIX = {
    ".jsonl": InputFormat.JSONL,
    ".ndjson": InputFormat.JSONL,
    ".json": InputFormat.JSONL,
    ".parquet": InputFormat.PARQUET,
    ".csv": InputFormat.CSV,
    ".tsv": InputFormat.TSV,
}
_FORMAT_OF_HEAD = {
    re.compile(rb"PAR1"): InputFormat.PARQUET,
    re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*<doc "): InputFormat.WIKIEXTRACTOR,
    re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*)?\{\s*\"(?:[^\"\\]|\\.)*\"\s*:"): InputFormat.JSONL,
}


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus.

    Attributes:
      path: the file's full path, on any file system that Beam can open.
      name: the path relative to the folder that all input files share, with `/` between parts.
        Document ids contain it, so moving the whole corpus does not change the shards.
      size: size on disk, in bytes.
      modified: time of the last change, in seconds since 1970; 0 if unknown.
      format: layout of the documents in the file; never AUTO.
      corpus_offset: sum of `text_bytes` over all files before this one, in the order of names.
    """

    path: str
    name: str
    size: int
    modified: float
    format: InputFormat
    corpus_offset: int

    @property
    def is_compressed(self) -> bool:
        """Whether it must be decompressed from its beginning; never true of Parquet files."""
        return self.format != InputFormat.PARQUET and is_compressed(self.name)

    @property
    def text_bytes_per_byte(self) -> int:
        """The number of bytes of text per byte on disk: 1, or an estimate if it is not known."""
        is_smaller_than_text = self.is_compressed or self.format == InputFormat.PARQUET
        return _TEXT_BYTES_PER_COMPRESSED_BYTE if is_smaller_than_text else 1

    @property
    def text_bytes(self) -> int:
        """The (estimated) amount of text in the file, in bytes."""
        return self.size * self.text_bytes_per_byte

    def open(self) -> BinaryIO:
        """Opens the file; the handle gives the bytes as stored on disk."""
        return open_stored(self.path)


def match_files(
    patterns: list[str], input_format: InputFormat = InputFormat.AUTO
) -> list[InputFile]:
    """Finds the files that match `patterns` (paths or globs); lists each once, in order of names.

    Raises:
      UserError: a pattern matches nothing or a folder, all files are empty, or a file whose format
        must be detected cannot be read.
    """
    matched: dict[str, FileMetadata] = {}
    for pattern, result in zip(patterns, _match(patterns), strict=True):
        if not result.metadata_list:
            raise UserError(
                f"no input file matches {pattern}: check --input_file "
                "(a glob in quotes, or several names separated by commas)"
            )
        matched.update((_absolute(file.path), file) for file in result.metadata_list)
    paths = sorted(matched)
    for path in paths:
        if Path(path).is_dir():
            raise UserError(f"the input {path} is a folder: name its files, as in '{path}/*'")
        if kind := kind_of_special_file(path):
            raise UserError(f"the input {path} is {kind}: give a file")
    if not any(file.size_in_bytes for file in matched.values()):
        raise UserError(f"nothing to read: there is no text in {describe_paths(paths)}")
    parts = {path: path.replace("\\", "/").split("/") for path in paths}
    folder = os.path.commonprefix([parts[path][:-1] for path in paths])  # noqa: RUF071 - of lists
    files: list[InputFile] = []
    corpus_offset = 0
    for path in paths:
        name = _as_text("/".join(parts[path][len(folder) :]))
        size, modified = matched[path].size_in_bytes, matched[path].last_updated_in_seconds
        file_format = _format_of(path, name, input_format)
        files.append(InputFile(path, name, size, modified, file_format, corpus_offset))
        corpus_offset += files[-1].text_bytes
    return files


def describe_formats(files: list[InputFile]) -> str:
    """Describes the formats of the files and the number of files in each, for messages."""
    return ", ".join(
        f"{input_format} ({count} {'file' if count == 1 else 'files'})"
        for input_format, count in sorted(Counter(file.format for file in files).items())
    )


def describe_paths(paths: list[str]) -> str:
    """Names the first of `paths` and the number of the others, for messages."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def stamps_sha256(files: list[InputFile]) -> str:
    """The SHA-256 of the files' names, sizes, times and formats, which tells if they are the same.

    It takes the place of the text's own, because that would mean to read the text again.
    """
    stamps = json.dumps([(file.name, file.size, file.modified, file.format) for file in files])
    return hashlib.sha256(stamps.encode()).hexdigest()


def open_stored(path: str) -> BinaryIO:
    """Opens a file on any file system that Beam supports, without decompressing it."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_blocks(handle: BinaryIO, num_bytes: int | None = None) -> Iterator[bytes]:
    """Yields the rest of `handle`, or its next `num_bytes` bytes, in blocks."""
    left = num_bytes
    while block := handle.read(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES)):
        left = None if left is None else left - len(block)
        yield block


def _match(patterns: list[str]) -> list[MatchResult]:
    if not patterns:
        raise UserError("no input file: set --input_file")
    try:
        return FileSystems.match(patterns)
    except (BeamIOError, ValueError) as error:
        raise UserError(f"cannot search for {', '.join(patterns)}: {error}") from error


def _absolute(path: str) -> str:
    """The one spelling of a path, so that no file is read twice."""
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100 - keeps symbolic links


def _as_text(name: str) -> str:
    """The name with its non-UTF-8 bytes escaped; file systems allow such bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _format_of(path: str, name: str, wanted: InputFormat) -> InputFormat:
    """The format of a file if the user asked for the format `wanted`."""
    if wanted not in (InputFormat.AUTO, InputFormat.WIKIEXTRACTOR):
        return wanted
    plain_name = PurePath(name).stem if is_compressed(name) else name
    suffix = PurePath(plain_name).suffix.lower()
    if wanted == InputFormat.AUTO and suffix in _FORMAT_OF_SUFFIX:
        return _FORMAT_OF_SUFFIX[suffix]
    head = _read_head(path, name)
    found = next((known for start, known in _FORMAT_OF_HEAD.items() if start.match(head)), None)
    if wanted == InputFormat.WIKIEXTRACTOR:
        return InputFormat.JSONL if found == InputFormat.JSONL else wanted
    return found or InputFormat.TEXT


def _read_head(path: str, name: str) -> bytes:
    """The first bytes of a file's content."""
    head = b""
    try:
        with open_stored(path) as handle:
            for block in decompress(name, read_blocks(handle)):
                head += block
                if len(head) >= _HEAD_BYTES:
                    break
    except DAMAGED as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return head
