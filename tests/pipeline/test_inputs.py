import bz2
import gzip
import io
import json
import lzma
import math
import pickle
import random
import re
import sqlite3
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
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
    read_blocks,
)
from pipeline.json_files import write_json
from pipeline.portions import FileRange, plan_portions
from pipeline.records import frame_record
from pipeline.storage import location, open_input

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


def test_names_of_files_that_beam_reads_are_relative_to_their_common_folder(monkeypatch):
    metadata = [
        FileMetadata(path, 1, 1.0)
        for path in (
            "hdfs://bucket/corpus/a.txt",
            "hdfs://bucket/corpus/b/c.txt",
            "hdfs://bucket/corpus/.a.txt.crc",
        )
    ]
    monkeypatch.setattr(FileSystems, "match", lambda _: [SimpleNamespace(metadata_list=metadata)])
    monkeypatch.setattr(FileSystems, "open", lambda path, **_: io.BytesIO(path.encode()))
    files = match_files(["hdfs://bucket/corpus/*"], InputFormat.TEXT)
    assert [file.name for file in files] == ["a.txt", "b/c.txt"]


def test_a_file_given_with_two_spellings_of_its_path_is_read_once(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    for spelling in ("./a/1.txt", f"{corpus}/a/1.txt", "b/../a/1.txt"):
        assert len(match_files(["a/1.txt", spelling])) == 1


def test_every_pattern_must_match(corpus):
    with pytest.raises(UserError, match=r"nothing_here\*"):
        match_files([f"{corpus}/a/1.txt", f"{corpus}/nothing_here*"])


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
    name, compressed = f"wiki_00{suffix}", COMPRESS[suffix](content)
    if expected == InputFormat.PARQUET:
        with pytest.raises(UserError, match=r"wiki_00.* is a Parquet file inside"):
            format_of(name, compressed)
    else:
        assert format_of(name, compressed) == expected


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
def test_first_bytes_and_not_the_name_tell_the_compression(suffix, tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(COMPRESS[suffix](b"One.\n"))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(b'{"text": "One."}\n')
    files = match_files([f"{tmp_path}/*"])
    assert [file.compression is None for file in files] == [False, True]
    assert [file.format for file in files] == [InputFormat.TEXT, InputFormat.JSONL]
    assert f"/b.jsonl{suffix}" in caplog.text
    assert "/a.txt" not in caplog.text


@pytest.fixture(scope="module")
def dense_text():
    """A megabyte that hardly compresses: bzip2 turns it into one block of 400 KB."""
    return random.Random(1).randbytes(450_000).hex().encode()


@pytest.mark.parametrize("end", [None, -3], ids=["whole", "cut off"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_first_bytes_decide_the_format_of_a_large_compressed_file(
    suffix, end, dense_text, format_of, monkeypatch
):
    monkeypatch.setattr("pipeline.inputs._DECOMPRESSED_HEAD_BYTES", 1 << 12)
    content = b'{"text": "%b"}\n' % dense_text
    compressed = COMPRESS[suffix](content * 2 if suffix == ".bz2" else content)
    assert format_of(f"wiki_00{suffix}", compressed[:end]) == InputFormat.JSONL


def test_no_more_than_the_first_megabyte_of_a_file_is_read_to_find_what_it_is(
    tmp_path, monkeypatch
):
    (tmp_path / "corpus.txt").write_bytes(b"One.\n" * 800_000)
    num_read = []

    class Watched(io.FileIO):
        def read(self, size=-1):
            num_read.append(size)
            return super().read(size)

    monkeypatch.setattr("pipeline.inputs.open_input", lambda path, *_: Watched(path))
    match_files([f"{tmp_path}/corpus.txt"])
    assert 1 << 20 <= sum(num_read) <= (1 << 20) + (1 << 18)
    assert min(num_read) > 0


def test_compressed_text_is_estimated_at_three_times_its_size(tmp_path):
    sizes = {}
    for name, content in (
        ("a.txt", b"One.\n"),
        ("b.txt.gz", gzip.compress(b"One.\n", mtime=0)),
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
    assert [file.is_stream for file in files] == [False, True, False, True, False]


def test_a_parquet_file_is_never_decompressed_from_its_beginning(tmp_path):
    (tmp_path / "corpus.gz").write_bytes(parquet_bytes())
    (file,) = match_files([f"{tmp_path}/corpus.gz"], InputFormat.PARQUET)
    assert not file.is_stream
    with open_input(file.path) as handle:
        assert handle.read() == parquet_bytes()


def test_stored_bytes_are_not_decompressed(tmp_path):
    content = gzip.compress(json.dumps({"text": "One."}).encode())
    (tmp_path / "corpus.jsonl.gz").write_bytes(content)
    with open_input(f"{tmp_path}/corpus.jsonl.gz") as handle:
        assert handle.read() == content


@pytest.mark.parametrize(
    ("num_bytes", "blocks"),
    [
        (math.inf, [b"abcd", b"efgh", b"ij"]),
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


# What is not text.


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as zipped:
            zipped.writestr("a.txt", "One.\n")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(__file__, "a.txt")
    return buffer.getvalue()


def arrow(new):
    buffer = io.BytesIO()
    table = pa.table({"text": ["One."]})
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def sqlite(folder):
    with sqlite3.connect(folder / "database") as connection:
        connection.execute("create table a (b)")
    return (folder / "database").read_bytes()


FOREIGN = {
    "a zip archive: unpack it": archive("zip"),
    "a tar archive: unpack it": archive("tar"),
    "an Arrow (Feather) file: convert it": arrow(pa.ipc.new_file),
    "an Arrow stream: convert it": arrow(pa.ipc.new_stream),
    "a NumPy array": b"\x93NUMPY\1\0v\0{}\n" + b"\0" * 64,
    "a Python pickle": pickle.dumps(["One."]),
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
    "a TFRecord file": frame_record(b"\n\x10abc\0\xff"),
    "not text: it has many NUL bytes": b"a\0b\0\0c\n" * 50,
    "not text: it has many control characters": bytes(range(1, 256)),
    "compressed twice": gzip.compress(bz2.compress(b"One.\n")),
}


@pytest.mark.parametrize("wanted", [InputFormat.AUTO, InputFormat.TEXT, InputFormat.JSONL])
@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("what", FOREIGN)
def test_the_error_says_what_a_file_is_that_is_no_text(what, is_compressed, wanted, format_of):
    content = gzip.compress(FOREIGN[what]) if is_compressed else FOREIGN[what]
    with pytest.raises(UserError, match=re.escape("/corpus.txt is ")) as raised:
        format_of("corpus.txt", content, wanted)
    assert what in str(raised.value)


def test_a_database_is_no_text(tmp_path, format_of):
    with pytest.raises(UserError, match="is an SQLite database"):
        format_of("corpus.csv", sqlite(tmp_path))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'<mediawiki xmlns="x">\n', "a dump of MediaWiki: .*WikiExtractor"),
        (b'<?xml version="1.0"?>\n<mediawiki>', "a dump of MediaWiki"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<a>', "XML"),
        (b"\n<!DOCTYPE html>\n", "HTML"),
        (b"{\\rtf1\\ansi One.}", "RTF"),
        (b"%!PS-Adobe-3.0\n", "PostScript"),
        (b"%PDF-1.4\nplain", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "the pointer to a file of Git LFS"),
    ],
)
def test_markup_is_text_only_if_the_user_says_so(content, what, format_of):
    with pytest.raises(UserError, match=f"/corpus.txt is .*{what}"):
        format_of("corpus.txt", content)
    assert format_of("corpus.txt", content, InputFormat.TEXT) == InputFormat.TEXT


def test_a_parquet_file_is_not_read_as_text(format_of):
    with pytest.raises(UserError, match="a Parquet file: give --input_format=parquet"):
        format_of("corpus.txt", parquet_bytes(), InputFormat.TEXT)
    assert format_of("corpus.json", parquet_bytes()) == InputFormat.PARQUET


def test_a_single_nul_is_still_text(format_of):
    assert format_of("corpus.txt", b"One.\n" * 100 + b"\0\n") == InputFormat.TEXT


# Encodings.


def test_a_file_of_another_encoding_is_an_error_that_names_it(tmp_path):
    text = "Der Bäcker heißt Müller.\nDie Straße führt über die Brücke.\n" * 5
    (tmp_path / "b.txt").write_text(text, "latin-1")
    (tmp_path / "c.txt").write_text(text, "latin-1")
    (tmp_path / "a.txt").write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"/b\.txt is not UTF-8 .*--encoding=cp1252"):
        match_files([f"{tmp_path}/*"])
    (file,) = match_files([f"{tmp_path}/b.txt"], encoding="cp1252")
    assert (file.encoding, file.is_stream) == ("cp1252", True)
    (file,) = match_files([f"{tmp_path}/b.txt"], encoding="utf-8")
    assert (file.encoding, file.is_stream) == (None, False)
    with pytest.raises(UserError, match=r"/a\.txt is UTF-8, not cp1252"):
        match_files([f"{tmp_path}/*"], encoding="cp1252")


@pytest.mark.parametrize(("num_lines", "is_error"), [(99, True), (101, False)])
def test_one_percent_of_the_lines_may_be_invalid(num_lines, is_error, format_of):
    content = b"One.\n" * (num_lines - 1) + b"B\xe4r.\n"
    if is_error:
        with pytest.raises(UserError, match="--encoding=utf-8"):
            format_of("corpus.txt", content)
    else:
        assert format_of("corpus.txt", content) == InputFormat.TEXT


def test_a_character_across_the_end_of_the_first_megabyte_is_not_invalid(tmp_path):
    (tmp_path / "a.txt").write_bytes(("a" + "ä" * (1 << 19)).encode())
    assert len(match_files([f"{tmp_path}/a.txt"])) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "cp500"])
def test_the_format_is_found_in_the_decoded_text(encoding, tmp_path):
    for name, text in (("a", '{"text": "Über."}\n'), ("b", '<doc id="1">\n'), ("c", "Über.\n")):
        (tmp_path / name).write_text(text * 20, encoding)
    assert [file.format for file in match_files([f"{tmp_path}/*"], encoding=encoding)] == [
        InputFormat.JSONL,
        InputFormat.WIKIEXTRACTOR,
        InputFormat.TEXT,
    ]


def test_parquet_is_always_utf8(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet_bytes())
    (file,) = match_files([f"{tmp_path}/a.parquet"], encoding="cp1252")
    assert file.encoding is None


# On a store.


TEXT = "".join(f"第{number}句。\n" * 9 + "\n" for number in range(900))
ROWS = [f"Größe {number}. Zwei." for number in range(900)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with a file of each kind."""
    folder = tmp_path_factory.mktemp("texts")
    records = "".join(json.dumps({"text": row}) + "\n" for row in ROWS).encode()
    for suffix, compress in COMPRESS.items():
        (folder / f"chinese.txt{suffix}").write_bytes(compress(TEXT.encode()))
    (folder / "chinese.txt").write_text(TEXT, "utf-8")
    (folder / "gb18030.dat").write_text(TEXT, "gb18030")
    (folder / "rows.jsonl").write_bytes(records)
    (folder / "rows.jsonl.lz4").write_bytes(pa.compress(records, "lz4", asbytes=True))
    (folder / "empty.txt").touch()
    pq.write_table(pa.table({"text": ROWS, "other": ROWS}), folder / "p.parquet", row_group_size=99)
    (folder / "rows.csv").write_text("text\n" + "".join(f"{row}\n" for row in ROWS), "utf-8")
    return folder


@pytest.fixture
def stored(texts, bucket, server):
    """A folder of a store with these files."""
    for path in texts.iterdir():
        (bucket / "texts" / path.name).upload(path)
    server.reset()
    return bucket / "texts"


def test_files_on_a_store_are_read_as_those_on_a_disk(texts, stored, documents_of):
    for pattern, encoding in (("[!g]*", None), ("gb18030.dat", "gb18030")):
        on_disk, on_store = (
            match_files([f"{folder}/{pattern}"], encoding=encoding) for folder in (texts, stored)
        )
        assert [file.path for file in on_store] == [
            file.path.replace(str(texts), str(stored)) for file in on_disk
        ]
        assert on_disk == [
            replace(mine, path=other.path, modified=other.modified, tag="")
            for mine, other in zip(on_store, on_disk, strict=True)
        ]
        portions = plan_portions(on_store, 10_000)
        assert len(portions) > 10 or encoding
        reading = {"encoding": encoding}
        expected = documents_of(plan_portions(on_disk, 10_000), **reading)
        assert documents_of(portions, **reading) == expected
        assert len(expected) >= 900


def test_a_store_gets_one_list_and_one_request_for_the_first_bytes_of_each_file(
    texts, stored, server
):
    match_files([f"{stored}/*.txt*", f"{stored}/rows.jsonl"])
    read = [path.name for path in texts.iterdir() if ".txt" in path.name and path.stat().st_size]
    got = [Path(path).name for _, path in server.requests]
    assert sorted(set(got) & {path.name for path in texts.iterdir()}) == sorted(
        [*read, "rows.jsonl"]
    )
    # The others are a list, and four that ask whether the bucket is a data set of ours.
    assert len(got) == len(read) + 1 + 1 + 4


def test_a_range_of_a_file_on_a_store_is_one_request(stored, server, documents_of):
    (text,) = match_files([f"{stored}/chinese.txt"])
    (table,) = match_files([f"{stored}/p.parquet"])
    server.reset()
    documents_of([(FileRange(text, 0, 12_000),)])
    assert len(server.requests) == 1
    documents_of([(FileRange(table, 0, 3000),)])
    assert len(server.requests) < 6


def test_a_file_that_changes_or_vanishes_while_it_is_read_is_an_error(stored, documents_of):
    text, table = match_files([f"{stored}/chinese.txt", f"{stored}/p.parquet"])
    for file in (text, table):
        url = location(file.path)
        url.upload(url.read_bytes()[:-9] + b"123456789")
        with pytest.raises(UserError, match=f"cannot read {url}.*: it has changed meanwhile$"):
            documents_of([(FileRange(file),)])
        url.unlink()
        with pytest.raises(UserError, match=f"cannot read {url}.*: there is no such object$"):
            documents_of([(FileRange(file),)])


def test_files_of_ours_on_a_store_are_no_input(stored, bucket):
    write_json(stored / "chinese.txt.json", {"x": 1})
    for pattern in ("chinese.txt", "*.txt"):
        with pytest.raises(UserError, match=r"/chinese\.txt is a vocabulary"):
            match_files([f"{stored}/{pattern}"])
    for folder in (stored, bucket):
        write_json(folder / "plan.json", {"x": 1})
        for pattern in ("rows.jsonl", "rows*"):
            with pytest.raises(UserError, match=f"lies in {folder}, which Clozemill has made"):
                match_files([f"{stored}/{pattern}"])
        (folder / "plan.json").unlink()
    (bucket / "clozemill_in_progress" / "x").upload(b"")
    with pytest.raises(UserError, match=f"lies in {bucket}, which Clozemill has made"):
        match_files([f"{stored}/rows*"])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("s4://bucket/a.txt", "Clozemill knows no URL like s4://bucket/a.txt: give a path, or"),
        (
            "https://host/a.txt",
            r"of s3://, gs://, az:// \(input files may also be of hdfs://, azfs",
        ),
        ("ftp://me:password@host/a.txt", "knows no URL like ftp://host/a.txt"),
        ("s3://", "no bucket"),
        ("s3://no-such-bucket-here/*.txt", "there is no bucket s3://no-such-bucket-here"),
        ("s3://no-such-bucket-here/a.txt", "there is no bucket s3://no-such-bucket-here"),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_url_that_leads_nowhere_is_an_error(pattern, says):
    with pytest.raises(UserError, match=says):
        match_files([pattern])


# What cannot be opened, and what is ours.


def test_a_link_to_nothing_is_an_error_that_names_it(corpus):
    (corpus / "a" / "3.txt").symlink_to("nothing")
    with pytest.raises(UserError, match=r"cannot read .*/a/3\.txt, a link: No such file"):
        match_files([f"{corpus}/a/*"])
    (corpus / "a" / "3.txt").unlink()
    (corpus / "a" / "3.txt").symlink_to("3.txt")
    with pytest.raises(UserError, match=r"cannot read .*/a/3\.txt, a link: Too many levels"):
        match_files([str(corpus)])


def test_a_file_without_permission_is_an_error_that_names_it(corpus, monkeypatch):
    def open_input(path, *_):
        if path.endswith("b/1.txt"):
            raise PermissionError(13, "Permission denied", path)
        return io.BytesIO(b"One.\n")

    monkeypatch.setattr("pipeline.inputs.open_input", open_input)
    with pytest.raises(UserError, match=r"cannot read .*/b/1\.txt: Permission denied$"):
        match_files([str(corpus)])


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "export.json"])
def test_a_data_set_a_run_or_an_export_of_ours_is_no_input(name, corpus):
    (corpus / "a" / name).write_text('{"other": 1}')
    assert len(match_files([f"{corpus}/*/1.txt"])) == 2
    write_json(corpus / "b" / name, {"x": 1})
    with pytest.raises(UserError, match=r"/b/1\.txt lies in .*/b, which Clozemill has made"):
        match_files([f"{corpus}/*/1.txt"])


def test_a_vocabulary_of_ours_is_no_input(corpus):
    write_json(corpus / "a" / "2.txt.json", {"x": 1})
    with pytest.raises(UserError, match=r"/a/2\.txt is a vocabulary"):
        match_files([f"{corpus}/a/*.txt"])
