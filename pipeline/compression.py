"""Compressed files as streams, in bounded memory; damage and missing ends are errors."""

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
# Little at a time: a few kilobytes of what is highly compressed hold megabytes.
_FED_BYTES = 1 << 12
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What `decompress` raises for damaged data."""


def is_compressed(name: str) -> bool:
    """Whether a file's name says that it is compressed: .gz, .bz2, .xz or .zst."""
    return PurePath(name).suffix.lower() in _DECOMPRESSORS


def decompress(name: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of a file whose bytes are `blocks`, block by block; a plain file's as it is.

    Raises:
      One of `DAMAGED`: the data is not of the format that `name` says, or its end is missing.
    """
    if not is_compressed(name):
        yield from blocks
        return
    new_decompressor = _DECOMPRESSORS[PurePath(name).suffix.lower()]
    # A file may hold several compressed streams, one behind the other.
    decompressor = None
    for block in blocks:
        for start in range(0, len(block), _FED_BYTES):
            rest = block[start : start + _FED_BYTES]
            while rest:
                if decompressor is None:
                    # Zeros may pad what stands between two streams and behind the last.
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
