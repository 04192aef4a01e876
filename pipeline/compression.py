"""Streams the content of compressed files in bounded memory; damaged data is an error."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any, Protocol

import pyarrow as pa
import zstandard


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_FIRST_BYTES = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0|\]\0\0"),  # also its forerunner, .lzma
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
}
_OF_SUFFIX = {
    ".gz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lzma": "xz",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".lz4": "lz4",
}
_GZIP_FORMAT = zlib.MAX_WBITS | 16
_LARGEST_ZSTD_WINDOW = 1 << 31  # of `zstd --long=31`; a file takes as much memory as its own window
_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: zlib.decompressobj(wbits=_GZIP_FORMAT),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zstd": lambda: zstandard.ZstdDecompressor(
        max_window_size=_LARGEST_ZSTD_WINDOW
    ).decompressobj(),
}
# Kept small because a few kilobytes of highly compressed data can expand to megabytes.
_FED_BYTES = 1 << 12
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""The exceptions that `decompress` raises for damaged data."""


def compression_of(head: bytes) -> str | None:
    """The compression of a file, by its first bytes: gzip, bzip2, xz, zstd, lz4, or None."""
    # zstd and lz4 share the frames without content that may come first.
    while re.match(rb"[\x50-\x5f]\x2a\x4d\x18", head):
        rest = head[8 + int.from_bytes(head[4:8], "little") :]
        if not rest:
            break
        head = rest
    found = (name for name, first in _FIRST_BYTES.items() if first.match(head))
    return next(found, None)


def compression_of_suffix(name: str) -> str | None:
    """The compression that a file's name promises."""
    return _OF_SUFFIX.get(PurePath(name).suffix.lower())


def decompress(blocks: Iterable[bytes], compression: str | None) -> Iterator[bytes]:
    """Yields the decompressed content of a file in blocks; a plain file passes through unchanged.

    Args:
      blocks: the file's bytes as stored.
      compression: what `compression_of` says.

    Raises:
      One of `DAMAGED`: the data is not compressed in this way, or its end is missing.
    """
    if compression is None:
        yield from blocks
        return
    if compression == "lz4":
        yield from _decompress_lz4(blocks)
        return
    # A file may hold several compressed streams, one after the other.
    decompressor = None
    for block in blocks:
        for start in range(0, len(block), _FED_BYTES):
            rest = block[start : start + _FED_BYTES]
            while rest:
                if decompressor is None:
                    # Zeros may pad the gap between two streams and the end of the file.
                    rest = rest.lstrip(b"\0")
                    if not rest:
                        break
                    decompressor = _DECOMPRESSORS[compression]()
                yield decompressor.decompress(rest)
                rest = decompressor.unused_data
                if decompressor.eof:
                    decompressor = None
    if decompressor:
        raise EOFError("its end is missing")


def _decompress_lz4(blocks: Iterable[bytes]) -> Iterator[bytes]:
    stored = pa.PythonFile(BlocksAsFile(blocks), mode="r")
    with pa.CompressedInputStream(stored, "lz4") as content:
        while block := content.read(_FED_BYTES):
            yield block


class BlocksAsFile(io.RawIOBase):
    """Blocks of bytes as a file that can only be read on."""

    def __init__(self, blocks: Iterable[bytes]):
        self._blocks = iter(blocks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, or a part of it, and returns how much; 0 at the end."""
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = memoryview(block)
        taken = self._rest[: len(memoryview(buffer))]
        memoryview(buffer)[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)
