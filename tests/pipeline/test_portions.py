import bz2
import gzip
import io
import itertools
import json
import lzma
import random
from collections import Counter
from math import inf

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import BucketPlan
from pipeline.errors import UserError
from pipeline.inputs import InputFile, InputFormat, match_files
from pipeline.portions import FileRange, _cut_file, open_parquet, plan_portions, row_group_ends

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
SUFFIXES = pytest.mark.parametrize("suffix", COMPRESS)

BLANK_LINES = (b"", b" ", b"\t \t", b"\v", "\u3000".encode())
OTHER_LINES = (b"One.", b"a" * 30, "Zwölf Sätze, 漢字。".encode(), b"\xff", b" <doc ", b"</doc>")
TEXT_LINES = st.sampled_from([*BLANK_LINES, *OTHER_LINES, "\u200b".encode()])
MALFORMED_LINES = st.sampled_from(
    [
        b"",
        b"Title",
        b"Text. More.",
        b"</doc>",
        b"<doc without an end",
        b'<doc id="1" title="Title">',
        b"<doc >\v",
        b"\xef\xbb\xbf<doc >",
    ]
)
JSON_LINES = st.sampled_from(
    [
        b"",
        b" ",
        b'{"text": "One. Two.\\nThree."}',
        b'\xef\xbb\xbf{"text": "", "title": "T"}',
        '{"text": "漢字。字。", "title": "漢字。字。"}'.encode(),
        b'{"text": "\xff\\ud800 \\u2028"}',
        b'{"text": null}',
        b'{"id": 7}',
        b"not JSON",
        b"7",
        b'{"text": "' + b"long " * 20 + b'"}',
    ]
)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def texts(draw, lines=TEXT_LINES):
    """Lines with mixed line endings; the last line may have none."""
    text = b"".join(draw(st.lists(st.tuples(lines, LINE_ENDS).map(b"".join), max_size=40)))
    return text + draw(lines) if draw(st.booleans()) else text


@st.composite
def wikiextractor_texts(draw):
    """Documents as WikiExtractor writes them; the last one may be cut off."""
    paragraphs = st.sampled_from(["", "One. Two.", "Title", "漢字。字。", "a" * 30, " <doc inside"])
    text = ""
    for number in range(draw(st.integers(0, 10))):
        body = "\n".join(draw(st.lists(paragraphs, max_size=5)))
        text += f'<doc id="{number}" url="x" title="Title">\nTitle\n\n{body}\n</doc>\n'
        text += draw(st.sampled_from(["", "\n"]))
    if draw(st.booleans()):
        text = text[: text.rfind("</doc>")] if "</doc>" in text else text
    return text.encode()


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


def write(path, content, input_format=InputFormat.TEXT):
    path.write_bytes(content)
    return match_files([str(path)], input_format, "utf-8")


def write_parquet(path, texts, rows_per_group, **kwargs):
    table = pa.table({"id": range(len(texts)), "text": texts})
    pq.write_table(table, path, row_group_size=rows_per_group, **kwargs)
    return match_files([str(path)])


def ranges_of(portions):
    return [(file_range.start, file_range.end) for portion in portions for file_range in portion]


def lines_of(portions):
    return [line for portion in portions for file_range in portion for line in file_range.lines()]


# The lines of a range.


@settings(max_examples=150, deadline=None)
@given(texts(), st.data())
def test_a_range_has_the_same_lines_for_any_block_size(corpus_folder, text, data):
    (file,) = write(corpus_folder / "corpus.txt", text or b" ")
    content = text or b" "
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.just(inf) | st.integers(start, len(content)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.inputs._BLOCK_BYTES", data.draw(st.integers(1, 30)))
        lines = list(FileRange(file, start, end).lines())
    assert lines == io.BytesIO(content[start : min(end, len(content))]).readlines()


@SUFFIXES
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 18])
def test_a_compressed_file_has_the_lines_of_its_content(suffix, block_bytes, tmp_path, monkeypatch):
    content = "One.\r\nTwo.\n\nÜber 漢字.\n\nNo line end".encode()
    stored = COMPRESS[suffix](content[:9]) + COMPRESS[suffix](content[9:])
    (file,) = write(tmp_path / f"corpus.txt{suffix}", stored)
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", block_bytes)
    assert list(FileRange(file).lines()) == io.BytesIO(content).readlines()


class EndlessFile(io.RawIOBase):
    """Ten terabytes of one repeated line; counts the bytes read from it."""

    LINE = b"One sentence on a line of its own.\n"
    SIZE = 10 << 40

    def __init__(self):
        super().__init__()
        self.position = self.bytes_read = 0

    def seekable(self):
        return True

    def readable(self):
        return True

    def seek(self, position, whence=0):
        assert whence == 0
        self.position = position
        return position

    def read(self, size=-1):
        assert 0 < size <= 1 << 20
        self.bytes_read += size
        skipped = self.position % len(self.LINE)
        self.position += size
        lines = self.LINE * (size // len(self.LINE) + 2)
        return lines[skipped : skipped + size]


@pytest.fixture
def endless(monkeypatch):
    handle = EndlessFile()
    monkeypatch.setattr("pipeline.portions.open_input", lambda *_: handle)
    file = InputFile("/data/endless.txt", "endless.txt", handle.SIZE, 0, InputFormat.TEXT, 0)
    return file, handle


@pytest.mark.parametrize(("start", "end"), [(0, inf), (35 << 30, inf), (35 << 30, 70 << 30)])
def test_a_large_file_is_never_read_whole(start, end, endless):
    file, handle = endless
    lines = FileRange(file, start, end).lines()
    assert list(itertools.islice(lines, 100_000)) == [handle.LINE] * 100_000
    assert handle.bytes_read < 5 << 20


def test_cutting_a_file_reads_only_the_beginnings_of_its_portions(endless):
    file, handle = endless
    jsonl = InputFile(file.path, file.name, 16 << 40, 0, InputFormat.JSONL, 0)
    first, second = itertools.islice(_cut_file(jsonl, 1 << 40, False), 2)
    assert (first.start, first.end) == (0, second.start)
    assert 0 <= second.start - (1 << 40) < len(handle.LINE)
    assert second.start % len(handle.LINE) == 0
    assert handle.bytes_read < 100 << 20


@pytest.mark.parametrize("block_bytes", [3, 1000])
@pytest.mark.parametrize("line_bytes", [50, 51])
def test_a_line_that_exceeds_the_maximum_is_an_error_that_names_the_file(
    line_bytes, block_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.LONGEST_DOCUMENT_BYTES", 50)
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", block_bytes)
    (file,) = write(tmp_path / "corpus.txt", b"One.\n" * 20 + b"x" * line_bytes)
    if line_bytes == 50:
        assert len(list(FileRange(file).lines())) == 21
    else:
        with pytest.raises(UserError, match=rf"{tmp_path}/corpus\.txt has a document larger than"):
            list(FileRange(file).lines())


@SUFFIXES
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"something else" + content],
    ids=["cut off", "not compressed"],
)
def test_the_error_names_a_damaged_compressed_file(damage, suffix, tmp_path, data_samples):
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(damage(COMPRESS[suffix]((data_samples / "english.txt").read_bytes())))
    with pytest.raises(UserError, match=rf"(cannot read |).*corpus{suffix}(:| is not text:) "):
        match_files([str(path)])


@SUFFIXES
def test_the_error_names_a_file_that_is_damaged_further_on(
    suffix, tmp_path, data_samples, documents_of, monkeypatch
):
    monkeypatch.setattr("pipeline.inputs._DECOMPRESSED_HEAD_BYTES", 1)
    content = COMPRESS[suffix]((data_samples / "english.txt").read_bytes() * 8)
    portions = plan_portions(write(tmp_path / f"corpus{suffix}", content[:-9]))
    with pytest.raises(UserError, match=rf"cannot read .*corpus{suffix}: "):
        documents_of(portions)


def test_the_error_names_a_file_that_was_removed(tmp_path):
    (file,) = write(tmp_path / "corpus.txt", b"One.\n" * 100)
    (tmp_path / "corpus.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*corpus\.txt: "):
        list(FileRange(file).lines())
    with pytest.raises(UserError, match=r"cannot read .*corpus\.txt: "):
        plan_portions([file], portion_bytes=10)


# Where files are cut.


def test_empty_files_beside_others_are_harmless(tmp_path, documents_of):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("One.\n")
    (tmp_path / "c.txt.gz").touch()
    portions = plan_portions(match_files([f"{tmp_path}/*"]), portion_bytes=1)
    assert [document.file for document in documents_of(portions)] == ["b.txt"]


BLOCK_SIZES = pytest.mark.parametrize("block_bytes", [1, 2, 5, 1 << 18])


@BLOCK_SIZES
def test_tiny_portions_cut_a_large_file_at_every_document_boundary(
    block_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", block_bytes)
    files = write(tmp_path / "corpus.txt", b"One.\nTwo.\n \t\r\n" * 10)
    assert ranges_of(plan_portions(files, portion_bytes=1)) == [
        *((14 * number, 14 * number + 14) for number in range(10)),
        (140, inf),
    ]


@BLOCK_SIZES
def test_wikiextractor_files_are_cut_before_documents(block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", block_bytes)
    document = b'<doc id="1" url="u" title="T">\nT\n\nText.\n\nMore.\n</doc>\n'
    files = write(tmp_path / "wiki_00", document * 4, InputFormat.WIKIEXTRACTOR)
    starts = [start for start, _ in ranges_of(plan_portions(files, portion_bytes=1))]
    assert starts == [len(document) * number for number in range(4)]


@BLOCK_SIZES
def test_json_lines_are_cut_at_line_ends(block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", block_bytes)
    files = write(tmp_path / "corpus.jsonl", b'{"text": ""}\r\n' * 4 + b"{}", InputFormat.JSONL)
    assert ranges_of(plan_portions(files, portion_bytes=20)) == [(0, 28), (28, 56), (56, inf)]


def test_text_is_cut_at_any_line_if_lines_are_documents(tmp_path):
    files = write(tmp_path / "corpus.txt", b"One. Two.\n" * 4)
    assert ranges_of(plan_portions(files, 15)) == [(0, inf)]
    assert ranges_of(plan_portions(files, 15, lines_are_documents=True)) == [
        (0, 20),
        (20, inf),
    ]


def test_tables_with_quoted_line_ends_are_not_cut(tmp_path):
    files = write(tmp_path / "corpus.csv", b'text\n"One.\nTwo."\n' * 4, InputFormat.CSV)
    assert ranges_of(plan_portions(files, 15, lines_are_documents=True)) == [(0, inf)]


def test_small_files_share_a_portion_and_large_ones_are_cut(tmp_path, documents_of):
    for number in range(5):
        (tmp_path / f"small{number}.txt").write_text("One.\n\n")
    (tmp_path / "zlarge.txt").write_text("Two.\n\n" * 10)
    portions = plan_portions(match_files([f"{tmp_path}/*.txt"]), portion_bytes=12)
    assert [[file_range.file.name for file_range in portion] for portion in portions[:3]] == [
        ["small0.txt", "small1.txt"],
        ["small2.txt", "small3.txt"],
        ["small4.txt", "zlarge.txt"],
    ]
    assert len(documents_of(portions)) == 15


def test_files_of_all_formats_share_a_portion(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n")
    (tmp_path / "b.jsonl").write_text('{"text": "Two."}\n')
    write_parquet(tmp_path / "c.parquet", ["Three."], 1)
    ((text, jsonl, parquet),) = plan_portions(match_files([f"{tmp_path}/*"]))
    assert [part.file.format for part in (text, jsonl, parquet)] == [
        InputFormat.TEXT,
        InputFormat.JSONL,
        InputFormat.PARQUET,
    ]


def test_default_portions_stay_within_their_bounds(tmp_path, monkeypatch):
    files = write(tmp_path / "corpus.txt", b"One.\n\n" * 320)
    assert len(plan_portions(files)) == 1
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 6)
    assert len(plan_portions(files)) == 16
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", 60)
    assert 28 <= len(plan_portions(files)) <= 32


def test_compressed_files_are_not_cut_and_count_as_more_text(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(b"One.\n\n" * 1000))
    files = match_files([f"{tmp_path}/*"])
    assert ranges_of(plan_portions(files, portion_bytes=1)) == [(0, inf)] * 6
    text_bytes = files[0].text_bytes
    assert text_bytes == 3 * files[0].size
    assert [len(portion) for portion in plan_portions(files, portion_bytes=2 * text_bytes)] == [
        2,
        2,
        2,
    ]


@SUFFIXES
def test_compressed_files_have_the_same_documents_as_plain_ones(suffix, tmp_path, documents_of):
    content = "One.\nTwo.\n\nÜber 漢字.\n\n".encode() * 50
    plain = plan_portions(write(tmp_path / "corpus.txt", content))
    compressed = write(tmp_path / f"corpus.txt{suffix}", COMPRESS[suffix](content))
    documents = documents_of(plan_portions(compressed, portion_bytes=1))
    assert len(documents) == 100
    assert [(document.offset, document.sentences) for document in documents] == [
        (document.offset, document.sentences) for document in documents_of(plain)
    ]


def test_a_file_without_line_ends_is_one_portion(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", 16)
    files = write(tmp_path / "long.txt", b"word " * 1000)
    portions = plan_portions(files, portion_bytes=100)
    assert ranges_of(portions) == [(0, inf)]
    assert lines_of(portions) == [b"word " * 1000]


def test_suffixes_of_compressed_files_may_be_upper_case(tmp_path):
    portions = plan_portions(write(tmp_path / "A.TXT.GZ", gzip.compress(b"a sentence\n")))
    assert lines_of(portions) == [b"a sentence\n"]


@pytest.mark.parametrize("portion_bytes", [1, 7, 100, 10_000])
def test_ranges_together_have_the_text_of_their_files(portion_bytes, tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_bytes(b"One.\nTwo.\n\n" * 100 * number)
    files = match_files([f"{tmp_path}/*"])
    portions = plan_portions(files, portion_bytes)
    assert sum(file_range.text_bytes for portion in portions for file_range in portion) == sum(
        file.text_bytes for file in files
    )
    # A document may begin inside a portion's planned range and end after it.
    assert all(
        sum(file_range.text_bytes for file_range in portion) < 2 * portion_bytes + 11
        for portion in portions
    )


# Documents do not depend on cuts.


def check_that_cuts_do_not_matter(
    documents_of, folder, content, input_format, portion_bytes, block_bytes
):
    files = write(folder / "corpus", content or b" ", input_format)
    uncut = plan_portions(files, portion_bytes=1 << 30)
    assert len(uncut) == 1
    statistics, statistics_of_cut = Counter(), Counter()
    expected = documents_of(uncut, statistics, on_bad_record="skip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.inputs._BLOCK_BYTES", block_bytes)
        portions = plan_portions(files, portion_bytes)
        documents = documents_of(portions, statistics_of_cut, on_bad_record="skip")
    ranges = ranges_of(portions)
    assert [0, *(end for _, end in ranges)] == [*(start for start, _ in ranges), inf]
    assert documents == expected
    assert statistics_of_cut == statistics


@settings(max_examples=150, deadline=None)
@given(texts(), st.integers(1, 80), st.integers(1, 30))
def test_documents_do_not_depend_on_cuts_in_text(
    documents_of, corpus_folder, text, portion_bytes, block_bytes
):
    check_that_cuts_do_not_matter(
        documents_of, corpus_folder, text, InputFormat.TEXT, portion_bytes, block_bytes
    )


@settings(max_examples=100, deadline=None)
@given(wikiextractor_texts(), st.integers(1, 200), st.integers(1, 100))
def test_documents_do_not_depend_on_cuts_in_wikiextractor_text(
    documents_of, corpus_folder, text, portion_bytes, block_bytes
):
    check_that_cuts_do_not_matter(
        documents_of, corpus_folder, text, InputFormat.WIKIEXTRACTOR, portion_bytes, block_bytes
    )


@settings(max_examples=100, deadline=None)
@given(texts(MALFORMED_LINES), st.integers(1, 80))
def test_documents_do_not_depend_on_cuts_in_malformed_wikiextractor_text(
    documents_of, corpus_folder, text, portion_bytes
):
    check_that_cuts_do_not_matter(
        documents_of, corpus_folder, text, InputFormat.WIKIEXTRACTOR, portion_bytes, 64
    )


@settings(max_examples=100, deadline=None)
@given(texts(JSON_LINES), st.integers(1, 200), st.integers(1, 100))
def test_documents_do_not_depend_on_cuts_in_json_lines(
    documents_of, corpus_folder, text, portion_bytes, block_bytes
):
    check_that_cuts_do_not_matter(
        documents_of, corpus_folder, text, InputFormat.JSONL, portion_bytes, block_bytes
    )


def test_line_ends_inside_json_text_do_not_end_a_line_of_the_file(tmp_path, documents_of):
    texts = ["One.\nTwo.", "Three.\r\n\u2028Four.\x85"]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    files = write(tmp_path / "corpus.jsonl", lines.encode(), InputFormat.JSONL)
    assert len(documents_of(plan_portions(files, portion_bytes=1))) == 2


# Parquet.


def test_parquet_files_are_cut_between_row_groups(tmp_path):
    files = write_parquet(tmp_path / "corpus.parquet", ["One. Two."] * 12, rows_per_group=4)
    with open_parquet(files[0]) as parquet:
        first, second, third = row_group_ends(parquet)
    assert 0 < first < second < third < files[0].size
    assert ranges_of(plan_portions(files, portion_bytes=1)) == [
        (0, first),
        (first, second),
        (second, inf),
    ]
    text_of_first = first * files[0].text_bytes_per_byte
    assert ranges_of(plan_portions(files, portion_bytes=text_of_first + 3)) == [
        (0, second),
        (second, inf),
    ]
    assert ranges_of(plan_portions(files, portion_bytes=files[0].text_bytes)) == [(0, inf)]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.none() | st.text(st.sampled_from("aß漢. \n"), max_size=30), max_size=30),
    st.integers(1, 9),
    st.integers(1, 400),
)
def test_documents_and_buckets_do_not_depend_on_cuts_in_parquet(
    documents_of, corpus_folder, texts, rows_per_group, portion_bytes
):
    files = write_parquet(
        corpus_folder / "corpus.parquet", pa.array(texts, pa.string()), rows_per_group
    )
    statistics, statistics_of_cut = Counter(), Counter()
    expected = documents_of(plan_portions(files, 1 << 30), statistics, on_bad_record="skip")
    documents = documents_of(
        plan_portions(files, portion_bytes), statistics_of_cut, on_bad_record="skip"
    )
    assert documents == expected
    assert [document.offset for document in documents] == [
        number for number, text in enumerate(texts) if text is not None
    ]
    assert statistics_of_cut == statistics
    plan = BucketPlan.for_corpus(files[0].text_bytes, eval_fraction=0.3, num_shards=3)
    assert [plan.bucket_of(files[0], document) for document in documents] == [
        plan.bucket_of(files[0], document) for document in expected
    ]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("portion_bytes", [1, 40_000, 1 << 30])
def test_ranges_of_parquet_together_have_the_text_of_their_file(
    portion_bytes, compression, tmp_path
):
    """Progress is reported in bytes of text, so ranges must add up to the size of their file."""
    texts = [random.Random(number).randbytes(500).hex() for number in range(100)]
    files = write_parquet(tmp_path / "corpus.parquet", texts, 10, compression=compression)
    ranges = [part for portion in plan_portions(files, portion_bytes) for part in portion]
    assert len(ranges) == (10 if portion_bytes == 1 else 5 if portion_bytes == 40_000 else 1)
    assert sum(part.text_bytes for part in ranges) == files[0].text_bytes


def test_the_position_of_a_parquet_document_estimates_the_text_before_it(tmp_path, documents_of):
    files = write_parquet(tmp_path / "corpus.parquet", ["One."] * 5, rows_per_group=2)
    with open_parquet(files[0]) as parquet:
        first, second, _ = row_group_ends(parquet)
    for portion_bytes in (1, 1 << 30):
        documents = documents_of(plan_portions(files, portion_bytes))
        assert [document.text_before for document in documents] == [
            before * files[0].text_bytes_per_byte
            for before in (0, first // 2, first, first + (second - first) // 2, second)
        ]


def test_a_parquet_file_without_row_groups_is_one_portion(tmp_path, documents_of):
    schema = pa.schema([("text", pa.string())])
    pq.ParquetWriter(tmp_path / "none.parquet", schema).close()
    files = match_files([f"{tmp_path}/none.parquet"])
    portions = plan_portions(files, 1)
    assert ranges_of(portions) == [(0, inf)]
    assert documents_of(portions) == []


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"One.\n" * 100, b"PAR1" + b"\0" * 100 + b"PAR1"]
)
def test_the_error_names_a_file_that_is_not_parquet(content, tmp_path):
    path = tmp_path / "corpus.parquet"
    path.write_bytes(content)
    file = InputFile(str(path), path.name, len(content), 0, InputFormat.PARQUET, 0)
    with pytest.raises(UserError, match=r"cannot read .*corpus\.parquet as Parquet: "):
        open_parquet(file)
    if content:
        with pytest.raises(UserError, match=r"cannot read .*corpus\.parquet as Parquet: "):
            plan_portions([file], portion_bytes=1)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_error_names_a_parquet_file_whose_damaged_pages_are_detected(
    compression, tmp_path, documents_of
):
    """Parquet has no checksums by default, so changed text may remain undetected."""
    path = tmp_path / "corpus.parquet"
    texts = [random.Random(number).randbytes(20).hex() for number in range(20)]
    files = write_parquet(path, texts, 10, compression=compression)
    content = bytearray(path.read_bytes())
    with open_parquet(files[0]) as parquet:
        end_of_pages = row_group_ends(parquet)[-1]
    messages = []
    for position in range(4, end_of_pages, 5):
        content[position] ^= 0xFF
        path.write_bytes(content)
        try:
            documents_of(plan_portions(files, portion_bytes=1), on_bad_record="skip")
        except UserError as error:
            messages.append(str(error))
        content[position] ^= 0xFF
    assert len(messages) > 20
    assert all(str(path) in message for message in messages)


def test_the_error_names_a_parquet_file_with_a_missing_part(tmp_path, documents_of):
    path = tmp_path / "corpus.parquet"
    files = write_parquet(path, [f"Sentence {number}." for number in range(99)], 10)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:99], content[:50] + content[400:], content[:4]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot read .*corpus\.parquet"):
            documents_of(plan_portions(files, portion_bytes=1 << 30))


def test_the_error_names_a_parquet_file_with_a_damaged_column_name(tmp_path):
    path = tmp_path / "corpus.parquet"
    files = write_parquet(path, ["One."], 1, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xfft"))
    with pytest.raises(UserError, match=r"cannot read .*corpus\.parquet"):
        open_parquet(files[0])
