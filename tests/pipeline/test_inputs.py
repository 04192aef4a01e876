import bz2
import gzip
import io
import json
import lzma
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import UserError
from pipeline.inputs import (
    InputFormat,
    describe_formats,
    describe_paths,
    match_files,
    open_stored,
    read_blocks,
)

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@pytest.fixture
def corpus(tmp_path):
    """Three files in two folders: a/1.txt, a/2.txt, b/1.txt."""
    for name, content in (("a/1.txt", "One.\n"), ("a/2.txt", "Two.\n\n"), ("b/1.txt", "Three.")):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "corpus"


@pytest.fixture
def format_of(tmp_path):
    """Writes a file and returns its detected format."""

    def detect(name, content, wanted=InputFormat.AUTO):
        (tmp_path / name).write_bytes(content)
        (file,) = match_files([str(tmp_path / name)], wanted)
        return file.format

    return detect


def parquet_bytes():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["One."]}), buffer)
    return buffer.getvalue()


def test_files_have_names_relative_to_their_common_folder_and_offsets_in_the_corpus(corpus):
    files = match_files([f"{corpus}/a/*.txt", f"{corpus}/b/1.txt"])
    assert [(file.name, file.size, file.corpus_offset) for file in files] == [
        ("a/1.txt", 5, 0),
        ("a/2.txt", 6, 5),
        ("b/1.txt", 6, 11),
    ]
    assert [file.path for file in files] == [f"{corpus}/{file.name}" for file in files]


def test_order_and_overlap_of_patterns_do_not_matter(corpus):
    expected = match_files([f"{corpus}/*/1.txt", f"{corpus}/a/2.txt"])
    assert match_files([f"{corpus}/a/2.txt", f"{corpus}/*/1.txt"]) == expected
    assert match_files([f"{corpus}/b/*", f"{corpus}/**.txt", f"{corpus}/a/1.txt"]) == expected


def test_names_do_not_change_when_the_corpus_moves(corpus):
    names = [file.name for file in match_files([f"{corpus}/*/*.txt"])]
    moved = corpus.rename(corpus.with_name("a_longer_name"))
    assert [file.name for file in match_files([f"{moved}/*/*.txt"])] == names


def test_a_single_file_keeps_its_own_name(corpus):
    assert [file.name for file in match_files([f"{corpus}/a/2.txt"])] == ["2.txt"]


def test_names_of_remote_files_are_relative_to_their_common_folder(monkeypatch):
    metadata = [
        FileMetadata(path, 1, 1.0)
        for path in ("gs://bucket/corpus/a.txt", "gs://bucket/corpus/b/c.txt")
    ]
    monkeypatch.setattr(FileSystems, "match", lambda _: [SimpleNamespace(metadata_list=metadata)])
    files = match_files(["gs://bucket/corpus/*"], InputFormat.TEXT)
    assert [file.name for file in files] == ["a.txt", "b/c.txt"]


def test_a_file_given_with_two_spellings_of_its_path_is_read_once(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    for spelling in ("./a/1.txt", f"{corpus}/a/1.txt", "b/../a/1.txt"):
        assert len(match_files(["a/1.txt", spelling])) == 1


def test_every_pattern_must_match(corpus):
    with pytest.raises(UserError, match=r"nothing_here\*"):
        match_files([f"{corpus}/a/1.txt", f"{corpus}/nothing_here*"])


def test_a_folder_is_refused_as_input(corpus):
    with pytest.raises(UserError, match=str(corpus)):
        match_files([str(corpus)])


def test_a_corpus_of_empty_files_is_refused(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.txt and 1 more"):
        match_files([f"{tmp_path}/*.txt"])


@pytest.mark.parametrize("patterns", [[], ["nowhere://bucket/a.txt"]])
def test_no_pattern_and_an_unknown_file_system_are_errors(patterns):
    with pytest.raises(UserError, match=r"no input file|nowhere://"):
        match_files(patterns)


def test_paths_are_described_by_the_first_path_and_the_number_of_others():
    assert describe_paths(["a"]) == "a"
    assert describe_paths(["a", "b", "c"]) == "a and 2 more"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("corpus.jsonl", InputFormat.JSONL),
        ("corpus.ndjson", InputFormat.JSONL),
        ("corpus.json", InputFormat.JSONL),
        ("CORPUS.JSONL", InputFormat.JSONL),
        ("corpus.parquet", InputFormat.PARQUET),
        ("corpus.jsonl.txt", InputFormat.TEXT),
        ("jsonl", InputFormat.TEXT),
        ("corpus.txt", InputFormat.TEXT),
        ("corpus", InputFormat.TEXT),
    ],
)
def test_the_suffix_decides_the_format(name, expected, format_of):
    assert format_of(name, b"One.\n") == expected


@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_suffix_before_the_compression_suffix_decides_the_format(suffix, format_of):
    assert format_of(f"corpus.jsonl{suffix}", COMPRESS[suffix](b"One.\n")) == InputFormat.JSONL


HEADS = pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(parquet_bytes(), InputFormat.PARQUET, id="PAR1"),
        pytest.param(b'<doc id="1" title="T">\n', InputFormat.WIKIEXTRACTOR, id="doc"),
        pytest.param(b'\n\r\n<doc id="1">\n', InputFormat.WIKIEXTRACTOR, id="blank lines, doc"),
        pytest.param(BYTE_ORDER_MARK + b"<doc >\n", InputFormat.WIKIEXTRACTOR, id="BOM, doc"),
        pytest.param(b'{"id": 1, "text": "One."}\n', InputFormat.JSONL, id="JSON"),
        pytest.param(b'\n { "a \\" b" :\t"One."}', InputFormat.JSONL, id="JSON with white space"),
        pytest.param(BYTE_ORDER_MARK + b'{"text": ""}', InputFormat.JSONL, id="BOM, JSON"),
        pytest.param('{"文": "'.encode() + b"x" * 9999, InputFormat.JSONL, id="long JSON"),
        pytest.param(b"One.\nTwo.\n", InputFormat.TEXT, id="text"),
        pytest.param(BYTE_ORDER_MARK + b"One.\n", InputFormat.TEXT, id="BOM, text"),
        pytest.param(b"", InputFormat.TEXT, id="nothing"),
        pytest.param(b"<docs>\n", InputFormat.TEXT, id="another tag"),
        pytest.param(b"One.\n<doc id='1'>\n", InputFormat.TEXT, id="doc further on"),
        pytest.param(b'{"One", he said}\n', InputFormat.TEXT, id="braces and quotes"),
        pytest.param(b'["One."]\n', InputFormat.TEXT, id="a JSON list"),
        pytest.param(b"{One: two}\n", InputFormat.TEXT, id="braces"),
        pytest.param(b" PAR1\n", InputFormat.TEXT, id="PAR1 further on"),
        pytest.param(b"\xff\xfe\0\1", InputFormat.TEXT, id="invalid UTF-8"),
    ],
)


@HEADS
@pytest.mark.parametrize("name", ["wiki_00", "corpus.txt", "corpus.dat"])
def test_without_a_known_suffix_the_first_bytes_decide_the_format(
    name, content, expected, tmp_path
):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "other.txt").write_bytes(b"At least one file must have text.")
    file, _ = sorted(match_files([f"{tmp_path}/*"]), key=lambda file: file.name == "other.txt")
    assert file.format == expected


@HEADS
@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_decompressed_first_bytes_decide_the_format_of_a_compressed_file(
    content, expected, suffix, format_of
):
    assert format_of(f"wiki_00{suffix}", COMPRESS[suffix](content)) == expected


def test_the_first_bytes_may_arrive_in_many_small_blocks(format_of, monkeypatch):
    content = gzip.compress(b"\n" * 100) + gzip.compress(b'{"text": "One."}\n' * 1000)
    monkeypatch.setattr("pipeline.inputs.read_blocks", iter_bytes)
    assert format_of("corpus.gz", content) == InputFormat.JSONL


def iter_bytes(handle):
    return iter(lambda: handle.read(1), b"")


def test_every_file_of_a_mixed_corpus_has_its_own_format(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "One."}\n'))
    (tmp_path / "c.parquet").write_bytes(parquet_bytes())
    (tmp_path / "d").write_bytes(b'<doc id="1">\nOne.\n</doc>\n')
    (tmp_path / "e.txt").write_bytes(b"Two.\n")
    files = match_files([f"{tmp_path}/*"])
    assert [file.format for file in files] == [
        InputFormat.TEXT,
        InputFormat.JSONL,
        InputFormat.PARQUET,
        InputFormat.WIKIEXTRACTOR,
        InputFormat.TEXT,
    ]
    assert describe_formats(files) == (
        "jsonl (1 file), parquet (1 file), text (2 files), wikiextractor (1 file)"
    )


@pytest.mark.parametrize("wanted", [InputFormat.TEXT, InputFormat.JSONL, InputFormat.PARQUET])
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.parquet", "corpus.txt", "no_gzip.gz"])
def test_a_given_format_is_not_checked(wanted, name, format_of):
    assert format_of(name, b"One.\n", wanted) == wanted


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("wiki_00", b'<doc id="1">\nOne.\n</doc>\n', InputFormat.WIKIEXTRACTOR),
        ("wiki_00", b'{"id": "1", "text": "One."}\n', InputFormat.JSONL),
        ("wiki_00.bz2", bz2.compress(b'{"id": "1", "text": "One."}\n'), InputFormat.JSONL),
        ("wiki_00.json", b'<doc id="1">\nOne.\n</doc>\n', InputFormat.WIKIEXTRACTOR),
        ("wiki_00", b"One.\n", InputFormat.WIKIEXTRACTOR),
        ("wiki_00", b"PAR1", InputFormat.WIKIEXTRACTOR),
    ],
)
def test_wikiextractor_may_have_written_json(name, content, expected, format_of):
    assert format_of(name, content, InputFormat.WIKIEXTRACTOR) == expected


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("wanted", [InputFormat.AUTO, InputFormat.WIKIEXTRACTOR])
def test_the_error_names_a_file_whose_content_does_not_match_its_suffix(wanted, suffix, format_of):
    with pytest.raises(UserError, match=rf"cannot read .*corpus{suffix}: "):
        format_of(f"corpus{suffix}", b"One.\n", wanted)


@pytest.fixture(scope="module")
def dense_text():
    """A megabyte that hardly compresses: bzip2 turns it into one block of 400 KB."""
    return random.Random(1).randbytes(450_000).hex().encode()


@pytest.mark.parametrize("end", [None, -3], ids=["whole", "cut off"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_first_bytes_decide_the_format_of_a_large_compressed_file(
    suffix, end, dense_text, format_of
):
    content = b'{"text": "%b"}\n' % dense_text
    compressed = COMPRESS[suffix](content * 2 if suffix == ".bz2" else content)
    assert format_of(f"wiki_00{suffix}", compressed[:end]) == InputFormat.JSONL


def test_finding_the_format_reads_at_most_one_block_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_bytes(b"One.\n" * 400_000)
    num_read = []

    class Watched(io.FileIO):
        def read(self, size=-1):
            num_read.append(size)
            return super().read(size)

    monkeypatch.setattr("pipeline.inputs.open_stored", Watched)
    match_files([f"{tmp_path}/corpus.txt"])
    assert 0 < sum(num_read) <= 1 << 18
    assert min(num_read) > 0


def test_compressed_text_is_estimated_at_three_times_its_size(tmp_path):
    sizes = {}
    for name, content in (
        ("a.txt", b"One.\n"),
        ("b.txt.gz", gzip.compress(b"One.\n")),
        ("c.parquet", parquet_bytes()),
        ("d.jsonl.zst", COMPRESS[".zst"](b'{"text": "One."}')),
        ("e.jsonl", b'{"text": "One."}'),
    ):
        (tmp_path / name).write_bytes(content)
        sizes[name] = len(content)
    files = match_files([f"{tmp_path}/*"])
    assert {file.name: file.text_bytes // file.size for file in files} == {
        "a.txt": 1,
        "b.txt.gz": 3,
        "c.parquet": 3,
        "d.jsonl.zst": 3,
        "e.jsonl": 1,
    }
    assert [file.size for file in files] == list(sizes.values())
    assert [file.corpus_offset for file in files] == [
        sum(before.text_bytes for before in files[:number]) for number in range(5)
    ]
    assert [file.is_compressed for file in files] == [False, True, False, True, False]


def test_a_parquet_file_is_never_decompressed_from_its_beginning(tmp_path):
    (tmp_path / "corpus.gz").write_bytes(parquet_bytes())
    (file,) = match_files([f"{tmp_path}/corpus.gz"], InputFormat.PARQUET)
    assert not file.is_compressed
    with file.open() as handle:
        assert handle.read() == parquet_bytes()


def test_stored_bytes_are_not_decompressed(tmp_path):
    content = gzip.compress(json.dumps({"text": "One."}).encode())
    (tmp_path / "corpus.jsonl.gz").write_bytes(content)
    with open_stored(f"{tmp_path}/corpus.jsonl.gz") as handle:
        assert handle.read() == content


@pytest.mark.parametrize(
    ("num_bytes", "blocks"),
    [
        (None, [b"abcd", b"efgh", b"ij"]),
        (0, []),
        (3, [b"abc"]),
        (8, [b"abcd", b"efgh"]),
        (9, [b"abcd", b"efgh", b"i"]),
        (99, [b"abcd", b"efgh", b"ij"]),
    ],
)
def test_blocks_stop_at_the_requested_number_of_bytes(num_bytes, blocks, monkeypatch):
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", 4)
    handle = io.BytesIO(b"..abcdefghij")
    handle.seek(2)
    assert list(read_blocks(handle, num_bytes)) == blocks
