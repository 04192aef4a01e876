import bz2
import gzip
import lzma

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compression import DAMAGED, decompress, is_compressed

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    # With a checksum, like the command line tool.
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
SUFFIXES = pytest.mark.parametrize("suffix", COMPRESS)
TEXT = "One.\nTwo, twice.\n\nÜber 漢字.\n".encode() * 20


def blocks_of(content, block_bytes):
    return [content[i : i + block_bytes] for i in range(0, len(content), block_bytes)]


def decompressed(suffix, content, block_bytes=1 << 18):
    return b"".join(decompress(f"corpus.txt{suffix}", blocks_of(content, block_bytes)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt.gz", True),
        ("folder/A.BZ2", True),
        ("a.xz", True),
        ("wiki_00.zst", True),
        ("a.txt", False),
        ("a.gz.txt", False),
        ("folder.gz/a", False),
        ("gz", False),
    ],
)
def test_the_suffix_decides_whether_a_file_is_compressed(name, expected):
    assert is_compressed(name) is expected


def test_blocks_of_a_plain_file_are_unchanged():
    blocks = [b"One.\n", b"", b"\x1f\x8b\xff"]
    assert list(decompress("corpus.txt", blocks)) == blocks


@SUFFIXES
@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 90))
def test_all_members_are_read_for_any_block_size(suffix, members, block_bytes):
    content = b"".join(map(COMPRESS[suffix], members))
    assert decompressed(suffix, content, block_bytes) == b"".join(members)


def test_the_case_of_the_suffix_does_not_matter():
    assert decompressed(".GZ", gzip.compress(TEXT)) == TEXT


def test_zstandard_frames_without_content_are_skipped():
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    content = skippable + COMPRESS[".zst"](TEXT) + skippable
    assert decompressed(".zst", content, 7) == TEXT


@SUFFIXES
def test_a_file_that_is_cut_off_anywhere_is_detected(suffix):
    content = COMPRESS[suffix](TEXT)
    for end in range(1, len(content)):
        with pytest.raises(DAMAGED):
            decompressed(suffix, content[:end], 16)


@SUFFIXES
def test_a_second_member_that_is_cut_off_is_detected(suffix):
    content = COMPRESS[suffix](TEXT)
    with pytest.raises(DAMAGED):
        decompressed(suffix, content + content[:-1])


@SUFFIXES
@pytest.mark.parametrize("content", [b"One.\nTwo.\n", b"\n", b"PK\3\4"])
def test_uncompressed_content_is_detected(suffix, content):
    with pytest.raises(DAMAGED):
        decompressed(suffix, content)


@SUFFIXES
def test_extra_bytes_after_the_compressed_data_are_detected(suffix):
    with pytest.raises(DAMAGED):
        decompressed(suffix, COMPRESS[suffix](TEXT) + b"something else")


@SUFFIXES
def test_a_changed_byte_never_changes_the_content(suffix):
    content = bytearray(COMPRESS[suffix](TEXT))
    undetected = 0
    for position in range(len(content)):
        content[position] ^= 0x10
        try:
            # Some bytes, such as the time in gzip's header, do not affect the content.
            assert decompressed(suffix, bytes(content)) == TEXT
            undetected += 1
        except DAMAGED:
            pass
        content[position] ^= 0x10
    assert undetected < 10


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_blocks_are_read_only_when_needed(suffix):
    stored = COMPRESS[suffix](TEXT) if suffix else TEXT
    taken = []

    def blocks():
        for block in blocks_of(stored, 16):
            taken.append(block)
            yield block

    decompressing = decompress(f"corpus{suffix}", blocks())
    for number in range(3):
        assert len(taken) == number
        next(decompressing)
