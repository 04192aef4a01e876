"""Streams the content of compressed files in bounded memory; damaged data is an error."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Protocol

import zstandard


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_GZIP_FORMAT = zlib.MAX_WBITS | 16
_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": lambda: zlib.decompressobj(wbits=_GZIP_FORMAT),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
# Kept small because a few kilobytes of highly compressed data can expand to megabytes.
_FED_BYTES = 1 << 12
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""The exceptions that `decompress` raises for damaged data."""


def is_compressed(name: str) -> bool:
    """Whether a file is compressed, judging by its suffix: .gz, .bz2, .xz or .zst."""
    return PurePath(name).suffix.lower() in _DECOMPRESSORS


def decompress(name: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the decompressed content of a file in blocks; a plain file passes through unchanged.

    Args:
      name: the file's name; its suffix gives the compression format.
      blocks: the file's bytes as stored.

    Raises:
      One of `DAMAGED`: the data does not match the suffix of `name`, or its end is missing.
    """
    if not is_compressed(name):
        yield from blocks
        return
    new_decompressor = _DECOMPRESSORS[PurePath(name).suffix.lower()]
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
                    decompressor = new_decompressor()
                yield decompressor.decompress(rest)
                rest = decompressor.unused_data
                if decompressor.eof:
                    decompressor = None
    if decompressor:
        raise EOFError("its end is missing")
