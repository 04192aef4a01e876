import bz2
import gzip
import lzma

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compression import DAMAGED, compression_of, compression_of_suffix, decompress


def compress_lz4(content):
    stored = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stored, "lz4") as stream:
        stream.write(content)
    return stored.getvalue().to_pybytes()


COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    # With a checksum, like the command line tool.
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
COMPRESSIONS = pytest.mark.parametrize("compression", COMPRESS)
WITH_LZ4 = pytest.mark.parametrize("compression", [*COMPRESS, "lz4"])
COMPRESS_ANY = {**COMPRESS, "lz4": compress_lz4}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
TEXT = "One.\nTwo, twice.\n\nÜber 漢字.\n".encode() * 20


def blocks_of(content, block_bytes):
    return [content[i : i + block_bytes] for i in range(0, len(content), block_bytes)]


def decompressed(compression, content, block_bytes=1 << 18):
    return b"".join(decompress(blocks_of(content, block_bytes), compression))


@WITH_LZ4
@pytest.mark.parametrize("text", [TEXT, b"", b"x"])
def test_the_first_bytes_tell_the_compression(compression, text):
    assert compression_of(COMPRESS_ANY[compression](text)[:1000]) == compression


@pytest.mark.parametrize("head", [b"", b"One.", b"BZh9 is not bzip2", b"PK\3\4", b"\x1f\x8c\x08"])
def test_other_first_bytes_are_of_no_compression(head):
    assert compression_of(head) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt.gz", "gzip"),
        ("folder/A.BZ2", "bzip2"),
        ("a.xz", "xz"),
        ("wiki_00.zst", "zstd"),
        ("wiki_00.lz4", "lz4"),
        ("a.txt", None),
        ("a.gz.txt", None),
        ("folder.gz/a", None),
        ("gz", None),
    ],
)
def test_the_suffix_tells_the_compression_that_a_name_promises(name, expected):
    assert compression_of_suffix(name) == expected


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_frames_without_content_may_come_first(compression):
    content = SKIPPABLE * 2 + COMPRESS_ANY[compression](TEXT) + SKIPPABLE
    assert compression_of(content) == compression
    assert decompressed(compression, content, 7) == TEXT


def test_zstandard_may_have_the_largest_window():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    # A stream, whose size is not known, so that the window is the one asked for.
    content = stream.compress(TEXT) + stream.flush()
    assert decompressed("zstd", content) == TEXT


def test_the_forerunner_of_xz_is_read():
    content = lzma.compress(TEXT, lzma.FORMAT_ALONE)
    assert compression_of(content) == "xz"
    assert decompressed("xz", content) == TEXT


def test_blocks_of_a_plain_file_are_unchanged():
    blocks = [b"One.\n", b"", b"\x1f\x8b\xff"]
    assert list(decompress(blocks, None)) == blocks


@WITH_LZ4
@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 90))
def test_all_members_are_read_for_any_block_size(compression, members, block_bytes):
    content = b"".join(map(COMPRESS_ANY[compression], members))
    assert decompressed(compression, content, block_bytes) == b"".join(members)


@WITH_LZ4
def test_a_file_that_is_cut_off_anywhere_is_detected(compression):
    content = COMPRESS_ANY[compression](TEXT)
    for end in range(1, len(content)):
        with pytest.raises(DAMAGED):
            decompressed(compression, content[:end], 16)


@WITH_LZ4
def test_a_second_member_that_is_cut_off_is_detected(compression):
    content = COMPRESS_ANY[compression](TEXT)
    with pytest.raises(DAMAGED):
        decompressed(compression, content + content[:-1])


@COMPRESSIONS
@pytest.mark.parametrize("content", [b"One.\nTwo.\n", b"\n", b"PK\3\4"])
def test_uncompressed_content_is_detected(compression, content):
    with pytest.raises(DAMAGED):
        decompressed(compression, content)


@COMPRESSIONS
def test_extra_bytes_after_the_compressed_data_are_detected(compression):
    with pytest.raises(DAMAGED):
        decompressed(compression, COMPRESS_ANY[compression](TEXT) + b"something else")


@COMPRESSIONS
def test_a_changed_byte_never_changes_the_content(compression):
    content = bytearray(COMPRESS_ANY[compression](TEXT))
    undetected = 0
    for position in range(len(content)):
        content[position] ^= 0x10
        try:
            # Some bytes, such as the time in gzip's header, do not affect the content.
            assert decompressed(compression, bytes(content)) == TEXT
            undetected += 1
        except DAMAGED:
            pass
        content[position] ^= 0x10
    assert undetected < 10


@pytest.mark.parametrize("compression", [None, *COMPRESS])
def test_blocks_are_read_only_when_needed(compression):
    stored = COMPRESS_ANY[compression](TEXT) if compression else TEXT
    taken = []

    def blocks():
        for block in blocks_of(stored, 16):
            taken.append(block)
            yield block

    decompressing = decompress(blocks(), compression)
    for number in range(3):
        assert len(taken) == number
        next(decompressing)
