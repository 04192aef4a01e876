"""Finds the files of the corpus and the format of each."""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import PurePath
from typing import BinaryIO

from absl import logging

from pipeline.compression import DAMAGED, compression_of, compression_of_suffix, decompress
from pipeline.encodings import problem_of_text, to_utf8
from pipeline.errors import UserError, reason_of
from pipeline.paths import kind_of_special_file
from pipeline.patterns import check_not_made_here, find_files
from pipeline.signatures import foreign_content, markup
from pipeline.storage import Stamp, is_for_beam, match_with_beam, open_input
from pipeline.trees import Trees

_BLOCK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 20
# One block of bzip2 suffices; it takes as long to decompress as to tokenize.
_DECOMPRESSED_HEAD_BYTES = 1 << 19
_FIRST_BYTES = 1 << 10
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
      path: the file's full path, or its URL.
      name: the path relative to the folder that all input files share, with `/` between parts.
        Document ids contain it, so moving the whole corpus does not change the shards.
      size: size on disk, in bytes.
      modified, tag: see `storage.Stamp`.
      format: layout of the documents in the file; never AUTO.
      corpus_offset: sum of `text_bytes` over all files before this one, in the order of names.
      compression: how the file is compressed (see `compression.compression_of`); None if it is not.
      encoding: the encoding of its text, if it must become UTF-8; None: UTF-8, or Parquet.
      corpus: the name of its corpus in a mixture; None: there is no mixture.
    """

    path: str
    name: str
    size: int
    modified: float
    format: InputFormat
    corpus_offset: int
    compression: str | None = None
    encoding: str | None = None
    tag: str = ""
    corpus: str | None = None

    @property
    def stamp(self) -> Stamp:
        """What tells this version of the file from another."""
        return Stamp(self.size, self.modified, self.tag)

    @property
    def is_stream(self) -> bool:
        """Whether it can only be read from its beginning, because what is stored is no UTF-8."""
        return bool(self.compression or self.encoding)

    @property
    def text_bytes_per_byte(self) -> int:
        """The number of bytes of text per byte on disk: 1, or an estimate if it is not known."""
        is_smaller_than_text = self.compression or self.format == InputFormat.PARQUET
        return _TEXT_BYTES_PER_COMPRESSED_BYTE if is_smaller_than_text else 1

    @property
    def text_bytes(self) -> int:
        """The (estimated) amount of text in the file, in bytes."""
        return self.size * self.text_bytes_per_byte


def match_files(
    patterns: list[str],
    input_format: InputFormat = InputFormat.AUTO,
    encoding: str | None = None,
) -> list[InputFile]:
    """Finds the files that match `patterns` (paths or globs); lists each once, in order of names.

    Reads the first megabyte of each, or half of it if it is compressed.

    Args:
      patterns: paths, URLs, and globs of either, as in `patterns`; of `hdfs://`, as Beam has them.
      input_format: the format of the files.
      encoding: the encoding of their text; None: UTF-8, which is checked.

    Raises:
      UserError: a pattern matches nothing, all files are empty, or a file cannot be read, is no
        text of this encoding, or was made by Clozemill.
    """
    if not patterns:
        raise UserError("no input file: set --input_file")
    trees = Trees()
    matched: dict[str, Stamp] = {}
    for pattern in patterns:
        if not (stamps := _match(pattern, trees)):
            raise UserError(
                f"no input file matches {pattern}: check --input_file "
                "(a glob in quotes, or several names separated by commas)"
            )
        matched.update(stamps)
    paths = sorted(matched)
    check_not_made_here((path for path in paths if not is_for_beam(path)), trees)
    if not any(stamp.size for stamp in matched.values()):
        raise UserError(f"nothing to read: there is no text in {describe_paths(paths)}")
    parts = {path: path.replace("\\", "/").split("/") for path in paths}
    folder = os.path.commonprefix([parts[path][:-1] for path in paths])  # noqa: RUF071 - of lists
    names = [_as_text("/".join(parts[path][len(folder) :])) for path in paths]
    files: list[InputFile] = []
    corpus_offset = 0
    with ThreadPoolExecutor() as threads:
        openings = threads.map(
            partial(_look_into, input_format, encoding), paths, [matched[path] for path in paths]
        )
        for path, name, (file_format, compression) in zip(paths, names, openings, strict=True):
            is_utf8 = encoding in (None, "utf-8") or file_format == InputFormat.PARQUET
            files.append(
                InputFile(
                    path=path,
                    name=name,
                    **matched[path]._asdict(),
                    format=file_format,
                    corpus_offset=corpus_offset,
                    compression=compression,
                    encoding=None if is_utf8 else encoding,
                )
            )
            corpus_offset += files[-1].text_bytes
    _warn_of_names(files)
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


def read_blocks(handle: BinaryIO, num_bytes: float = math.inf) -> Iterator[bytes]:
    """Yields the rest of `handle`, or its next `num_bytes` bytes, in blocks."""
    while block := handle.read(int(min(num_bytes, _BLOCK_BYTES))):
        num_bytes -= len(block)
        yield block


def read_at_least(blocks: Iterator[bytes], num_bytes: int) -> bytes:
    """The next blocks together, until they are `num_bytes` bytes or there are no more."""
    head = bytearray()
    for block in blocks:  # some may be empty, when a decompressor has not read enough
        head += block
        if len(head) >= num_bytes:
            break
    return bytes(head)


def _match(pattern: str, trees: Trees) -> dict[str, Stamp]:
    """The files that a pattern matches, and their stamps.

    Raises:
      UserError: a file cannot be read, or is none.
    """
    if is_for_beam(pattern):
        found = match_with_beam(pattern)
        return {path: found[path] for path in found if "/." in pattern or "/." not in path}
    found = find_files(pattern, trees)
    for path in found:
        if kind := kind_of_special_file(path):
            raise UserError(f"the input {path} is {kind}: give a file")
    return found


def _as_text(name: str) -> str:
    """The name with its non-UTF-8 bytes escaped; file systems allow such bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _look_into(
    wanted: InputFormat, encoding: str | None, path: str, stamp: Stamp
) -> tuple[InputFormat, str | None]:
    """The format of a file's documents and its compression.

    Args:
      wanted: the format that the user asked for.
      encoding: the encoding that the user asked for.
      path: the file.
      stamp: its version.

    Raises:
      UserError: the file cannot be read, or is no text.
    """
    try:
        with open_input(path, stamp, _HEAD_BYTES) as handle:
            first = handle.read(_FIRST_BYTES)
            compression = compression_of(first)
            num_bytes = _DECOMPRESSED_HEAD_BYTES if compression else _HEAD_BYTES
            blocks = decompress(chain([first], read_blocks(handle)), compression)
            head = read_at_least(blocks, num_bytes)[:num_bytes]
    except DAMAGED as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    text = b"".join(to_utf8([head], encoding))
    file_format = _format_of(PurePath(path).name, text, wanted)
    problem: str | None
    if inner := compression and compression_of(head):
        problem = f"is compressed twice ({inner} inside {compression}): decompress it once"
    elif file_format == InputFormat.PARQUET and head.startswith(b"PAR1"):
        problem = f"is a Parquet file inside {compression}: decompress it" if compression else None
    else:
        problem = foreign_content(head) or (markup(text) if wanted == InputFormat.AUTO else None)
        if problem is None and file_format != InputFormat.PARQUET:
            problem = problem_of_text(head, len(head) >= num_bytes, encoding)
    if problem:
        raise UserError(f"{path} {problem}")
    return file_format, compression


def _format_of(name: str, head: bytes, wanted: InputFormat) -> InputFormat:
    """The format of a file with this name and these first bytes, decompressed."""
    if wanted not in (InputFormat.AUTO, InputFormat.WIKIEXTRACTOR):
        return wanted
    found = next((known for start, known in _FORMAT_OF_HEAD.items() if start.match(head)), None)
    suffix = PurePath(PurePath(name).stem if compression_of_suffix(name) else name).suffix.lower()
    if wanted == InputFormat.AUTO and found != InputFormat.PARQUET and suffix in _FORMAT_OF_SUFFIX:
        return _FORMAT_OF_SUFFIX[suffix]
    if wanted == InputFormat.WIKIEXTRACTOR:
        return InputFormat.JSONL if found == InputFormat.JSONL else wanted
    return found or InputFormat.TEXT


def _warn_of_names(files: list[InputFile]) -> None:
    promised = [compression_of_suffix(file.name) for file in files]
    others = [
        file.path
        for file, suffix in zip(files, promised, strict=True)
        if suffix and file.size and suffix != file.compression
    ]
    if others:
        logging.warning(
            "not compressed as its name says, and read as what its first bytes are: %s",
            describe_paths(others),
        )
