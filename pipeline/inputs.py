"""Which files hold the corpus, and how documents are laid out in each."""

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

_BLOCK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 12
# Compressed text, and text in Parquet files, is about a third of its size.
_TEXT_BYTES_PER_COMPRESSED_BYTE = 3


class InputFormat(StrEnum):
    """How documents and sentences are laid out in a file."""

    AUTO = "auto"
    """Each file's format is found by its name and its first bytes."""
    TEXT = "text"
    """One sentence a line, a blank line between documents."""
    WIKIEXTRACTOR = "wikiextractor"
    """`<doc …>` and `</doc>` around each document, one paragraph of running text a line."""
    JSONL = "jsonl"
    """A JSON object a line, one document each; also what `wikiextractor --json` writes."""
    PARQUET = "parquet"
    """A row is a document."""


_FORMAT_OF_SUFFIX = {
    ".jsonl": InputFormat.JSONL,
    ".ndjson": InputFormat.JSONL,
    ".json": InputFormat.JSONL,
    ".parquet": InputFormat.PARQUET,
}
_FORMAT_OF_HEAD = {
    re.compile(rb"PAR1"): InputFormat.PARQUET,
    re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*<doc "): InputFormat.WIKIEXTRACTOR,
    re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*\"(?:[^\"\\]|\\.)*\"\s*:"): InputFormat.JSONL,
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
      format: how documents are laid out in it; not AUTO.
      corpus_offset: `text_bytes` of the files before it, in the order of names.
    """

    path: str
    name: str
    size: int
    modified: float
    format: InputFormat
    corpus_offset: int

    @property
    def is_compressed(self) -> bool:
        """Whether it has to be decompressed from its beginning; Parquet files have not."""
        return self.format != InputFormat.PARQUET and is_compressed(self.name)

    @property
    def text_bytes_per_byte(self) -> int:
        """How much text a byte on disk holds: 1, or an estimate where that is not known."""
        is_smaller_than_text = self.is_compressed or self.format == InputFormat.PARQUET
        return _TEXT_BYTES_PER_COMPRESSED_BYTE if is_smaller_than_text else 1

    @property
    def text_bytes(self) -> int:
        """How much text it holds, as far as that is known."""
        return self.size * self.text_bytes_per_byte

    def open(self) -> BinaryIO:
        """A handle on the bytes on disk."""
        return open_stored(self.path)


def match_files(
    patterns: list[str], input_format: InputFormat = InputFormat.AUTO
) -> list[InputFile]:
    """The files that `patterns` (paths or globs) match, each once, in the order of their names.

    Raises:
      UserError: a pattern matches nothing or a folder, all the files are empty, or one whose format
        has to be found out cannot be read.
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
        name = _as_text("/".join(parts[path][len(folder) :]))
        size, modified = matched[path].size_in_bytes, matched[path].last_updated_in_seconds
        file_format = _format_of(path, name, input_format)
        files.append(InputFile(path, name, size, modified, file_format, corpus_offset))
        corpus_offset += files[-1].text_bytes
    return files


def describe_formats(files: list[InputFile]) -> str:
    """The formats of the files and how many have each, for messages."""
    return ", ".join(
        f"{input_format} ({count} {'file' if count == 1 else 'files'})"
        for input_format, count in sorted(Counter(file.format for file in files).items())
    )


def describe_paths(paths: list[str]) -> str:
    """The first of `paths` and how many more there are, for messages."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def open_stored(path: str) -> BinaryIO:
    """A handle on the bytes of a file of any file system that Beam opens, not decompressed."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_blocks(handle: BinaryIO, num_bytes: int | None = None) -> Iterator[bytes]:
    """What `handle` still holds, or its next `num_bytes`, in blocks."""
    left = num_bytes
    while block := handle.read(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES)):
        left = None if left is None else left - len(block)
        yield block


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


def _as_text(name: str) -> str:
    """The name with bytes that are not UTF-8, which file systems allow, escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _format_of(path: str, name: str, wanted: InputFormat) -> InputFormat:
    """The format of a file when the user said `wanted`."""
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
