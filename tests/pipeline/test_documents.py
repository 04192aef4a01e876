import bz2
import gzip
import json
import lzma
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import BadRecord, Documents, ReadOptions, Sentences, read_documents
from pipeline.errors import UserError
from pipeline.formats.reading import read_raw_documents
from pipeline.inputs import InputFormat, match_files
from pipeline.portions import FileRange, plan_portions

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def read(tmp_path_factory, documents_of):
    """Writes bytes to a file and reads its documents, as (offset, sentences)."""
    path = tmp_path_factory.mktemp("documents") / "corpus.txt"

    def read_bytes(content, input_format, statistics=None, **reading):
        path.write_bytes(content)
        portions = plan_portions(match_files([str(path)], input_format, "utf-8"))
        documents = documents_of(portions, statistics, **reading)
        assert {document.file for document in documents} <= {"corpus.txt"}
        assert all(0 <= document.text_before <= len(content) for document in documents)
        return [(document.offset, document.sentences) for document in documents]

    return read_bytes


@pytest.fixture
def read_table(tmp_path, documents_of):
    """Writes a column or a table to a Parquet file and reads its documents, as (row, sentences)."""
    path = tmp_path / "corpus.parquet"

    def read_rows(rows, statistics=None, row_group_size=2, portion_bytes=1 << 30, **reading):
        table = rows if isinstance(rows, pa.Table) else pa.table({"text": rows})
        pq.write_table(table, path, row_group_size=row_group_size)
        portions = plan_portions(match_files([str(path)]), portion_bytes)
        documents = documents_of(portions, statistics, **reading)
        assert {document.file for document in documents} <= {"corpus.parquet"}
        return [(document.offset, document.sentences) for document in documents]

    return read_rows


def json_lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


# Text.


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        pytest.param("A b.\nC.\n\nD.\n", [(0, ["A b.", "C."]), (9, ["D."])], id="blank line"),
        pytest.param("A.\n \t\r\nB.", [(0, ["A."]), (7, ["B."])], id="white space is blank"),
        pytest.param("A.\n\u3000\xa0\nB.", [(0, ["A."]), (9, ["B."])], id="also beyond ASCII"),
        pytest.param("A.\n\x85\v\nB.", [(0, ["A."]), (7, ["B."])], id="also control characters"),
        pytest.param("A.\r\n\r\nB.\r\n", [(0, ["A."]), (6, ["B."])], id="CRLF"),
        pytest.param("\n\n  A. \n\n\n\nB.\n\n\n", [(2, ["A."]), (11, ["B."])], id="many blanks"),
        pytest.param(
            "A.\n\u200b\nB.\n\ufeff\n", [(0, ["A.", "\u200b", "B.", "\ufeff"])], id="not blank"
        ),
        pytest.param("A.\u2028B.\rC.\n", [(0, ["A.\u2028B.\rC."])], id="only LF ends a line"),
        pytest.param("A.", [(0, ["A."])], id="no final line end"),
        pytest.param("\n \n", [], id="no document"),
        pytest.param("A. B. C.\n", [(0, ["A. B. C."])], id="a line is a sentence"),
    ],
)
def test_documents_of_text(content, documents, read):
    assert read(content.encode(), InputFormat.TEXT) == documents


@pytest.mark.parametrize("end", ["", "\n", "\r\n\n"])
def test_each_line_is_a_document_when_asked(end, read):
    content = f"\ufeffOne. Two.\n\n \n 漢。字。{end}".encode()
    lines = {"documents": Documents.LINES}
    expected = [(0, ["One.", "Two."]), (16, ["漢。", "字。"])]
    assert read(content, InputFormat.TEXT, **lines) == expected
    unsplit = read(content, InputFormat.TEXT, **lines, sentences=Sentences.LINES)
    assert unsplit == [(0, ["One. Two."]), (16, ["漢。字。"])]


@pytest.mark.parametrize(
    ("content", "num_files"),
    [(b"A.\n" * 10, 1), (b"A.\n" * 9, 0), (b"A.\n" * 20 + b"\nB.", 0), (b"A.\n" * 10 + b"\n", 1)],
)
def test_files_of_many_lines_and_no_blank_one_are_counted(content, num_files, read):
    statistics = Counter()
    read(content, InputFormat.TEXT, statistics)
    assert statistics["text_files_without_blank_line"] == num_files
    read(content, InputFormat.TEXT, statistics, documents=Documents.LINES)
    assert statistics["text_files_without_blank_line"] == num_files


def test_invalid_utf8_is_dropped(read):
    content = b"A\xff\xc3.\n\xe4\xb8\n\xf0\x9f\nB\xe4.\n"
    assert read(content, InputFormat.TEXT) == [(0, ["A."]), (11, ["B."])]
    content = b'<doc id="1" url="u" title="T\xff">\nT\nA\xff b. C\xc3.\n</doc>\n'
    assert read(content, InputFormat.WIKIEXTRACTOR) == [(0, ["A b.", "C."])]


def read_text_slowly(content):
    """Every document as the lines between blank lines, found in one walk over the lines."""
    documents = [[]]
    offset = 0
    for line in content.split(b"\n"):
        sentence = line.decode("utf-8", "ignore").strip()
        if sentence:
            documents[-1].append((offset, sentence))
        else:
            documents.append([])
        offset += len(line) + 1
    return [(lines[0][0], [sentence for _, sentence in lines]) for lines in documents if lines]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b" ", b"\r", b"\n", b"\xff", "漢".encode(), b"a", b"b\n"]))
    .map(b"".join)
    .filter(bool)
)
def test_text_agrees_with_a_slow_reader(read, content):
    assert read(content, InputFormat.TEXT) == read_text_slowly(content)


def test_files_without_a_final_blank_line_are_not_joined(tmp_path, documents_of):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"From {name}.")
    documents = [
        (document.file, document.offset, document.sentences)
        for document in documents_of(plan_portions(match_files([f"{tmp_path}/*.txt"])))
    ]
    assert documents == [("a.txt", 0, ["From a.txt."]), ("b.txt", 0, ["From b.txt."])]


# WikiExtractor's documents.


HEAD = '<doc id="1" url="http://x/?curid=1" title="{}">\n'


@pytest.mark.parametrize(
    ("body", "sentences"),
    [
        pytest.param("T\n\nOne. Two.\nThree.\n", ["One.", "Two.", "Three."], id="paragraphs"),
        pytest.param("T\n\nAbout T.\nT\n", ["About T.", "T"], id="only the title line is dropped"),
        pytest.param("Other\nT\n", ["Other", "T"], id="another first line stays"),
        pytest.param("T\n\n", [], id="empty"),
        pytest.param("", [], id="nothing at all"),
        pytest.param("T\n\n今天下雨。我们回家。\n", ["今天下雨。", "我们回家。"], id="Chinese"),
        pytest.param("T\nIn < out > in.\n", ["In < out > in."], id="angle brackets"),
    ],
)
def test_sentences_of_a_wikiextractor_document(body, sentences, read):
    content = HEAD.format("T") + body + "</doc>\n"
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [(0, sentences)]


@pytest.mark.parametrize(
    ("attribute", "title_line"),
    [
        ("AT&amp;T", "AT&T"),
        ('The "X" Files', 'The "X" Files'),
        ("A > B", "A > B"),
        ("長城", "長城"),
    ],
)
def test_the_title_line_is_recognized(attribute, title_line, read):
    content = HEAD.format(attribute) + f"{title_line}\n\nText.\n</doc>\n"
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [(0, ["Text."])]


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        ("x &lt; y &gt; z &amp; w", "x < y > z & w"),
        ("written &amp;lt; in HTML", "written &lt; in HTML"),
        ("&amp;amp;lt;", "&amp;lt;"),
        ("&quot;A&quot; &#39; &nbsp;", "&quot;A&quot; &#39; &nbsp;"),
    ],
)
def test_what_wikiextractor_escapes_is_unescaped_once(escaped, text, read):
    content = HEAD.format("T") + f"T\n\n{escaped}\n</doc>\n"
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [(0, [text])]
    record = {"id": "1", "url": "u", "title": "T", "text": f"T\n\n{escaped}"}
    assert read(json_lines(record), InputFormat.JSONL) == [(0, [text])]
    assert read(json_lines(record | {"revid": "2"}), InputFormat.JSONL) == [(0, [text])]


@pytest.mark.parametrize("title_line", ["AT&amp;T", "AT&T"])
def test_a_title_line_with_an_entity_is_dropped(title_line, read):
    content = HEAD.format("AT&amp;T") + f"{title_line}\n\nText.\n</doc>\n"
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [(0, ["Text."])]
    record = {"id": "1", "url": "u", "title": "AT&amp;T", "text": f"{title_line}\nText."}
    assert read(json_lines(record), InputFormat.JSONL) == [(0, ["Text."])]


@pytest.mark.parametrize("fields", [{}, {"id": "1", "url": "u"}, {"url": "", "id": 1, "n": 2}])
def test_other_json_is_not_unescaped(fields, read):
    content = json_lines({"title": "T", "text": "a &lt; b", **fields})
    assert read(content, InputFormat.JSONL, text_field="text") == [
        (0, ["a < b" if fields == {"id": "1", "url": "u"} else "a &lt; b"])
    ]


def test_wikiextractor_documents_begin_at_their_doc_line_and_are_never_joined(read):
    first = HEAD.format("A") + "A\n\nOne.\n</doc>\n"
    second = HEAD.format("Ä") + "Ä\n\n</doc>\n\n"
    third = HEAD.format("B") + "B\n\nTwo.\n</doc>\n"
    content = first + second + "outside of a document\n" + third
    offsets = [content.encode().index(HEAD.format(title).encode()) for title in "AÄB"]
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [
        (offsets[0], ["One."]),
        (offsets[1], []),
        (offsets[2], ["Two."]),
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n</doc>", "\r\n</doc>\r\n"])
def test_a_last_document_without_its_end_is_kept(end, read):
    content = HEAD.format("T") + f"T\nOne. Two.{end}"
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [(0, ["One.", "Two."])]


def test_a_doc_line_ends_a_document_that_lacks_its_end(read):
    first = HEAD.format("A") + "A\n\nOne.\n"
    content = first + HEAD.format("B") + "B\n\nTwo.\n</doc>\n"
    assert read(content.encode(), InputFormat.WIKIEXTRACTOR) == [
        (0, ["One."]),
        (len(first), ["Two."]),
    ]


def test_wikiextractor_text_without_documents_has_none(read):
    assert read(b"Just text.\n\nMore.\n", InputFormat.WIKIEXTRACTOR) == []


def test_a_byte_order_mark_does_not_hide_the_first_document(read):
    content = b"\xef\xbb\xbf<doc id='1'>\nOne.\n</doc>\n<doc id='2'>\nTwo.\n</doc>\n"
    documents = read(content, InputFormat.WIKIEXTRACTOR)
    assert [sentences for _, sentences in documents] == [["One."], ["Two."]]


# JSON Lines.


def test_a_json_record_is_a_document_of_paragraphs(read):
    first = json_lines({"id": 1, "text": "One. Two.\nThree.\r\n\n \t Four. "})
    second = b'{"text":"\xe6\xbc\xa2\xe3\x80\x82A.","n":[1,{"text":"no"}]}\n'
    content = first + second + json_lines({"text": ""}, {"text": " \n"})
    assert read(content, InputFormat.JSONL) == [
        (0, ["One.", "Two.", "Three.", "Four."]),
        (len(first), ["漢。", "A."]),
        (len(first + second), []),
        (len(first + second) + len(json_lines({"text": ""})), []),
    ]


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        pytest.param(b'\n \t\n{"text": "A."}\n\n', [(4, ["A."])], id="blank lines"),
        pytest.param(
            b'{"text": "A."}\r\n{"text": "B."}\r\n', [(0, ["A."]), (16, ["B."])], id="CRLF"
        ),
        pytest.param(
            BYTE_ORDER_MARK + b'{"text": "A."}\n' + BYTE_ORDER_MARK + b"\n",
            [(0, ["A."])],
            id="byte order mark",
        ),
        pytest.param(b' {"text": "A."} ', [(0, ["A."])], id="no final line end"),
        pytest.param(b'{"text": "A\xff.", "x": "\xc3"}\n', [(0, ["A."])], id="invalid UTF-8"),
        pytest.param(b'{"text": "A.\\u0000\\u2028B."}', [(0, ["A.\0\u2028B."])], id="escapes"),
        pytest.param(b'{"text": "A.", "text": "B."}', [(0, ["B."])], id="the last of two fields"),
        pytest.param(b"\n\n", [], id="no record"),
    ],
)
def test_lines_of_json(content, documents, read):
    assert read(content, InputFormat.JSONL) == documents


def test_the_text_may_have_another_field(read):
    content = json_lines({"text": 3, "body": "A."}, {"body": "B.", "text": "C."})
    documents = read(content, InputFormat.JSONL, text_field="body")
    assert [sentences for _, sentences in documents] == [["A."], ["B."]]


def test_a_list_of_texts_in_json_is_a_document_of_paragraphs(read):
    content = json_lines({"text": ["One. Two.", "Three.\nFour."]}, {"text": []})
    offset = content.index(b"\n") + 1
    expected = [(0, ["One.", "Two.", "Three.", "Four."]), (offset, [])]
    assert read(content, InputFormat.JSONL) == expected
    unsplit = read(content, InputFormat.JSONL, sentences=Sentences.LINES)
    assert unsplit[0] == (0, ["One. Two.", "Three.", "Four."])


@pytest.mark.parametrize(
    ("record", "sentences"),
    [
        ({"data": {"text": "A."}}, ["A."]),
        ({"data": {"text": ["A.", "B."]}, "text": "C."}, ["A.", "B."]),
        ({"data.text": "A.", "data": {"text": "B."}}, ["A."]),
    ],
)
def test_a_field_of_an_object_is_named_with_dots(record, sentences, read):
    documents = read(json_lines(record), InputFormat.JSONL, text_field="data.text")
    assert documents == [(0, sentences)]


@pytest.mark.parametrize("record", [{"data": None}, {"data": ["text"]}, {"text": "A."}])
def test_a_field_of_no_object_is_a_bad_record(record, read):
    with pytest.raises(UserError, match=r"no text in the field 'data\.text'"):
        read(json_lines(record), InputFormat.JSONL, text_field="data.text")


@pytest.mark.parametrize("on_bad_record", BadRecord)
@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([{"text": "A."}, {"text": "B."}], "is a JSON array"),
        (["A.", "B."], "is a JSON array"),
        ({"text": "A.", "x": {"y": [1, 2]}}, "has JSON objects over several lines"),
        ({"text": "A.", "x": [0] * 1500}, "has JSON objects over several lines"),
    ],
)
def test_json_that_is_not_json_lines_is_named_as_what_it_is(
    value, problem, indent, on_bad_record, read
):
    content = json.dumps(value, indent=indent).encode()
    if indent is None and isinstance(value, dict):
        assert read(content, InputFormat.JSONL) == [(0, ["A."])]
        return
    for wanted in (InputFormat.JSONL, InputFormat.AUTO):
        if wanted == InputFormat.AUTO and isinstance(value[0] if "array" in problem else 0, str):
            continue  # may be a text that begins with a bracket
        with pytest.raises(UserError, match=rf"corpus\.txt {problem} .*jq -c"):
            read(b"\n" + content + b"\n", wanted, on_bad_record=on_bad_record)


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "a\\udc00\\ud800"])
def test_halves_of_surrogate_pairs_are_characters(half, read):
    ((_, (sentence,)),) = read(f'{{"text": "{half}"}}\n'.encode(), InputFormat.JSONL)
    assert sentence == json.loads(f'"{half}"')


@pytest.mark.parametrize(
    ("record", "sentences"),
    [
        pytest.param({"title": "T", "text": "T\n\nAbout T.\nT"}, ["About T.", "T"], id="repeated"),
        pytest.param({"title": " A & B ", "text": "A & B\nC."}, ["C."], id="spaces around it"),
        pytest.param({"title": "T", "text": "Other\nT"}, ["Other", "T"], id="further on"),
        pytest.param({"title": "T", "text": "T"}, [], id="nothing else"),
        pytest.param({"title": "T", "text": ""}, [], id="nothing at all"),
        pytest.param({"title": "", "text": "\nA."}, ["A."], id="empty"),
        pytest.param({"title": 7, "text": "7\nA."}, ["7", "A."], id="a number"),
        pytest.param({"title": None, "text": "None\nA."}, ["None", "A."], id="null"),
    ],
)
def test_a_first_line_that_repeats_the_title_is_dropped(record, sentences, read):
    assert read(json_lines(record), InputFormat.JSONL) == [(0, sentences)]


BAD_RECORDS = pytest.mark.parametrize(
    ("bad", "problem"),
    [
        pytest.param("not JSON", "Expecting value", id="not JSON"),
        pytest.param('{"text": "A."', "Expecting ',' delimiter", id="cut off"),
        pytest.param('{"text": "A."}, ', "Extra data", id="a comma behind it"),
        pytest.param('["A."]', "a JSON array", id="a list"),
        pytest.param('"A."', "not a JSON object", id="a string"),
        pytest.param("null", "not a JSON object", id="null"),
        pytest.param('{"id": 1, "body": "A."}', "'text', of ['id', 'body']", id="no such field"),
        pytest.param("{}", "'text', of []", id="no field"),
        pytest.param('{"text": null}', "'text', of ['text']", id="null in the field"),
        pytest.param('{"text": 7}', "'text', of ['text']", id="a number in the field"),
        pytest.param('{"text": ["A.", 1]}', "'text', of ['text']", id="a number in a list"),
        pytest.param('{"text": ["A.", null]}', "'text', of ['text']", id="null in a list"),
        pytest.param('{"text": {"a": "A."}}', "'text', of ['text']", id="an object in the field"),
        pytest.param('{"x": ' * 100_000, "recursion", id="deeply nested"),
        pytest.param('{"text": "A.", "x": ' + "[" * 100_000, "recursion", id="nested in a field"),
        pytest.param('{"text": "A.", "x": ' + "1" * 5000 + "}", "digits", id="a long number"),
    ],
)


@BAD_RECORDS
def test_a_bad_json_record_is_named_with_its_line(bad, problem, read):
    content = f'{{"text": "A."}}\n\n{bad}\n{{"text": "B."}}\n'.encode()
    with pytest.raises(UserError) as raised:
        read(content, InputFormat.JSONL)
    message = str(raised.value)
    assert "/corpus.txt, line 3: " in message
    assert problem in message
    assert "--on_bad_record=skip" in message
    assert "\n" not in message
    assert len(message) < 400


@BAD_RECORDS
def test_bad_json_records_are_left_out_and_counted_when_asked(bad, problem, read):
    content = f'{{"text": "A."}}\n\n{bad}\n{{"text": "B."}}\n{bad}'.encode()
    statistics = Counter()
    documents = read(content, InputFormat.JSONL, statistics, on_bad_record=BadRecord.SKIP)
    assert [sentences for _, sentences in documents] == [["A."], ["B."]], problem
    assert statistics["records_skipped"] == 2
    assert statistics["documents_read"] == 2


def test_the_line_of_a_bad_record_is_that_of_the_file_and_not_of_the_range(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(
        json_lines({"text": "A."}) + b"\r\n" + json_lines(*[{"text": "B."}] * 4) + b"?"
    )
    portions = plan_portions(match_files([str(path)]), portion_bytes=1)
    (last,) = (part for portion in portions for part in portion if part.end == math.inf)
    assert last.start > 0
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 7: "):
        list(read_raw_documents(last, ReadOptions(), Counter()))


def test_the_line_of_a_bad_record_is_found_in_a_compressed_file(tmp_path, documents_of):
    path = tmp_path / "corpus.jsonl.gz"
    members = [json_lines({"text": "A."}) * 3, b"\n" + json_lines({"text": "B."}), b"[]\n\n"]
    path.write_bytes(b"".join(map(gzip.compress, members)))
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz, line 6: a JSON array"):
        documents_of(plan_portions(match_files([str(path)])))


@pytest.mark.parametrize("names", [["a\nb"], ["x" * 5000], [f"field{n}" for n in range(9999)]])
def test_fields_of_a_bad_record_make_a_short_line(names, read):
    with pytest.raises(UserError) as raised:
        read(json_lines(dict.fromkeys(names, 1)), InputFormat.JSONL)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2000


# Parquet.


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("portion_bytes", [1, 1 << 30])
def test_rows_are_documents_of_paragraphs(text_type, portion_bytes, read_table):
    texts = ["One. Two.\n\n Three. ", "漢。字", "", "\n", "Last"]
    assert read_table(pa.array(texts, text_type), portion_bytes=portion_bytes) == [
        (0, ["One.", "Two.", "Three."]),
        (1, ["漢。", "字"]),
        (2, []),
        (3, []),
        (4, ["Last"]),
    ]


def test_the_column_of_the_text_may_have_another_name(read_table):
    table = pa.table({"text": [1, 2, 3], "id": list("abc"), "body": ["A.", "B.", "C."]})
    documents = read_table(table, text_field="body")
    assert documents == [(0, ["A."]), (1, ["B."]), (2, ["C."])]


def test_there_are_more_rows_than_are_read_at_a_time(read_table, monkeypatch):
    monkeypatch.setattr("pipeline.formats.tables._ROWS_PER_BATCH", 3)
    texts = [f"Row {number}" for number in range(20)]
    documents = read_table(texts, row_group_size=8)
    assert documents == [(number, [text]) for number, text in enumerate(texts)]


@pytest.mark.parametrize("portion_bytes", [1, 1 << 30])
def test_rows_without_text_are_bad_records(portion_bytes, read_table):
    texts = pa.array(["A.", None, "B.", None, "C."], pa.string())
    with pytest.raises(UserError, match=r"corpus\.parquet, row 1: .*--on_bad_record=skip"):
        read_table(texts, portion_bytes=portion_bytes)
    statistics = Counter()
    documents = read_table(
        texts, statistics, portion_bytes=portion_bytes, on_bad_record=BadRecord.SKIP
    )
    assert documents == [(0, ["A."]), (2, ["B."]), (4, ["C."])]
    assert statistics == {"records_skipped": 2, "documents_read": 3}


def test_the_row_of_a_bad_record_is_that_of_the_file(read_table):
    texts = pa.array(["A."] * 7 + [None], pa.string())
    with pytest.raises(UserError, match="row 7: "):
        read_table(texts, portion_bytes=1)


@pytest.mark.parametrize("on_bad_record", BadRecord)
def test_a_missing_column_is_an_error_that_lists_the_columns(on_bad_record, read_table):
    table = pa.table({"id": [1], "body": ["A."]})
    with pytest.raises(UserError) as raised:
        read_table(table, on_bad_record=on_bad_record)
    assert "corpus.parquet has no column 'text': give --text_field, one of ['id', 'body']" in str(
        raised.value
    )


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1]),
        pa.array([True]),
        pa.array([[1]], pa.list_(pa.int64())),
        pa.array([[["A."]]], pa.list_(pa.list_(pa.string()))),
        pa.array([None], pa.null()),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_another_type_is_an_error_that_names_the_type(column, read_table):
    with pytest.raises(UserError) as raised:
        read_table(column, on_bad_record=BadRecord.SKIP)
    assert "the column 'text' of" in str(raised.value)
    assert "corpus.parquet is of type " in str(raised.value)
    assert str(column.type).partition("<")[0] in str(raised.value)


def test_two_columns_of_the_same_name_are_an_error(read_table):
    table = pa.Table.from_arrays([pa.array(["A."]), pa.array(["B."])], names=["text", "text"])
    with pytest.raises(UserError, match=r"corpus\.parquet.*'text'"):
        read_table(table)


def test_invalid_utf8_in_a_column_of_strings_is_dropped(read_table):
    texts = pa.array([b"A\xff.\n\xc3B.", b"\xe4\xb8"], pa.binary())
    unchecked = pc.cast(texts, options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
    assert read_table(unchecked) == [(0, ["A.", "B."]), (1, [])]


def test_a_parquet_file_of_no_rows_has_no_documents(read_table):
    assert read_table(pa.array([], pa.string())) == []
    assert read_table(pa.array([], pa.string()), portion_bytes=1) == []


def test_a_title_beside_the_text_of_a_row_is_ignored(read_table):
    table = pa.table({"title": ["T"], "text": ["T\nAbout T."]})
    assert read_table(table) == [(0, ["T", "About T."])]


@pytest.mark.parametrize(
    "make",
    [pa.list_, pa.large_list, lambda text: pa.list_(text, 2)],
    ids=["list", "large_list", "fixed_size_list"],
)
@pytest.mark.parametrize(
    "text_type",
    [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_a_list_of_texts_is_a_document_of_paragraphs(make, text_type, read_table):
    texts = pa.array([["One. Two.", "Three.\nFour."], ["", " 漢。"]], pa.list_(pa.string()))
    table = pa.table({"text": texts}).cast(pa.schema([("text", pa.list_(text_type))]))
    column = table["text"].cast(make(text_type))
    assert read_table(column.combine_chunks()) == [
        (0, ["One.", "Two.", "Three.", "Four."]),
        (1, ["漢。"]),
    ]


@pytest.mark.parametrize(
    "text_type", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string_view()], ids=str
)
def test_columns_of_bytes_are_utf8(text_type, read_table):
    assert read_table(pa.array(["Über.", "漢"], text_type)) == [(0, ["Über."]), (1, ["漢"])]
    if text_type != pa.string_view():
        assert read_table(pa.array([b"A\xff."], text_type)) == [(0, ["A."])]


def test_lists_without_text_are_bad_records(read_table):
    lists = pa.array([["A."], None, ["B.", None], []], pa.list_(pa.string()))
    with pytest.raises(UserError, match=r"corpus\.parquet, row 1: "):
        read_table(lists)
    statistics = Counter()
    documents = read_table(lists, statistics, on_bad_record=BadRecord.SKIP)
    assert documents == [(0, ["A."]), (3, [])]
    assert statistics["records_skipped"] == 2


def test_a_field_of_a_struct_is_named_with_dots(read_table):
    rows = [{"x": 1, "body": {"text": "A."}}, {"x": 2, "body": None}, None]
    kind = pa.struct([("x", pa.int64()), ("body", pa.struct([("text", pa.string())]))])
    table = pa.table({"data": pa.array(rows, kind)})
    skip = {"on_bad_record": BadRecord.SKIP}
    assert read_table(table, text_field="data.body.text", **skip) == [(0, ["A."])]
    with pytest.raises(UserError, match=r"is a struct: .* one of \['data\.body\.text'\]"):
        read_table(table, text_field="data.body")
    with pytest.raises(UserError, match=r"column 'data' of .* has no field 'y', only \['x', 'b"):
        read_table(table, text_field="data.y")
    with pytest.raises(UserError, match=r"column 'data\.x' of .* has no field 'z'$"):
        read_table(table, text_field="data.x.z")


def test_a_column_with_a_dot_in_its_name_is_found(read_table):
    assert read_table(pa.table({"data.text": ["A."]}), text_field="data.text") == [(0, ["A."])]


# CSV and TSV.


def test_rows_of_csv_are_documents_of_paragraphs(read):
    content = (
        b'\xef\xbb\xbfid,text,label\r\n1,"One, ""two"". Three.\n\n Four. ",x\r\n\r\n2,,y\r\n3,NA,z'
    )
    assert read(content, InputFormat.CSV) == [
        (0, ['One, "two".', "Three.", "Four."]),
        (1, []),
        (2, ["NA"]),
    ]


@pytest.mark.parametrize(
    ("content", "input_format"),
    [
        (b"id;text\n1;A, b.\n", InputFormat.CSV),
        (b"id\ttext\n1\tA, b.\n", InputFormat.TSV),
        (b'id\ttext\n1\t"A, b."', InputFormat.TSV),
        (b'"text"\n"A, b."\n', InputFormat.CSV),
        (b'\nid;"a, b";text\n1;2;A, b.\n', InputFormat.CSV),
    ],
)
def test_columns_are_separated_by_commas_semicolons_or_tabs(content, input_format, read):
    assert read(content, input_format) == [(0, ["A, b."])]


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv", ".csv.gz", ".tsv.zst"])
def test_tables_are_recognized_by_their_names(suffix, tmp_path, documents_of):
    delimiter = "\t" if "tsv" in suffix else ","
    content = f"id{delimiter}text\n1{delimiter}A.\n".encode()
    compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(suffix[5:], bytes)
    (tmp_path / f"corpus{suffix}").write_bytes(compress(content))
    (document,) = documents_of(plan_portions(match_files([f"{tmp_path}/*"])))
    assert document.sentences == ["A."]


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress, gzip.compress])
def test_compressed_tables_are_read_whole(compress, tmp_path, documents_of):
    """Decompressors give nothing for the first bytes, and between two blocks of bzip2."""
    words = np.random.default_rng(1).integers(0, 10**9, (60_000, 3)).tolist()
    texts = [f"w{a} w{b} w{c}" for a, b, c in words]
    rows = "".join(f"{number},{text}\n" for number, text in enumerate(texts))
    (tmp_path / "corpus.csv.packed").write_bytes(compress(b"id,text\n" + rows.encode()))
    files = match_files([f"{tmp_path}/*"], InputFormat.CSV)
    assert [document.sentences for document in documents_of(plan_portions(files))] == [
        [text] for text in texts
    ]


def test_rows_with_other_numbers_of_columns_are_bad_records(read):
    content = b"id,text\n1,A.\n2,B.,C.\n3\n4,D.\n"
    with pytest.raises(UserError, match="row 3: 3 columns, but the header has 2; give --on_bad_r"):
        read(content, InputFormat.CSV)
    statistics = Counter()
    documents = read(content, InputFormat.CSV, statistics, on_bad_record=BadRecord.SKIP)
    assert documents == [(0, ["A."]), (1, ["D."])]
    assert statistics == {"lines_read": 2, "documents_read": 2, "records_skipped": 2}


def test_a_table_of_many_blocks_is_read_whole(read, monkeypatch):
    small = pyarrow.csv.ReadOptions(use_threads=False, block_size=100)
    monkeypatch.setattr("pipeline.formats.tables._READING", small)
    monkeypatch.setattr("pipeline.formats.tables._HEAD_BYTES", 1)
    rows = [f'{number},"Row\n{number}"\n' for number in range(100)]
    rows.insert(90, "bad\n")
    content = ("id,text\n" + "".join(rows)).encode()
    documents = read(content, InputFormat.CSV, on_bad_record=BadRecord.SKIP)
    assert documents == [(number, ["Row", str(number)]) for number in range(100)]
    with pytest.raises(UserError, match="row 92: 1 columns"):
        read(content, InputFormat.CSV)
    with pytest.raises(UserError, match=r"corpus\.txt has a row longer than 16 MiB"):
        read(b"text\n" + b"x\n" * 99 + b"x" * 300, InputFormat.CSV)


@pytest.mark.parametrize("content", [b"\n \n", b"text\n", b"\xef\xbb\xbftext,id\r\n"])
def test_a_table_without_rows_has_no_documents(content, read):
    assert read(content, InputFormat.CSV) == []


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"id,body\n", r"no column 'text': give --text_field, one of \['id', 'body'\]"),
        (b"text,text\n", "two columns 'text'"),
    ],
)
def test_a_header_without_the_column_is_an_error(header, problem, read):
    with pytest.raises(UserError, match=rf"corpus\.txt.*{problem}|{problem}.*corpus\.txt"):
        read(header, InputFormat.CSV, on_bad_record=BadRecord.SKIP)


def test_invalid_utf8_in_csv_is_dropped_and_counted(read):
    statistics = Counter()
    assert read(b"text\nB\xe4r.\n", InputFormat.CSV, statistics) == [(0, ["Br."])]
    assert statistics["lines_with_invalid_utf8"] == 1


# What is the same in all formats.

DOCUMENTS = [
    ["It rained.", "We left.", "Über 漢字 wird geredet."],
    ["今天下雨。", "我们回家。", "A 3.5 % rise!"],
    ["One line"],
]


def paragraphs_of(sentences):
    """Two paragraphs, the first of one sentence."""
    return "\n".join([sentences[0], " ".join(sentences[1:])]).strip()


@pytest.mark.parametrize("sentences", Sentences)
def test_the_same_documents_have_the_same_sentences_in_all_formats(
    sentences, tmp_path, documents_of
):
    texts = list(map(paragraphs_of, DOCUMENTS))
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    (tmp_path / "corpus.jsonl").write_bytes(json_lines(*({"text": text} for text in texts)))
    pq.write_table(pa.table({"text": texts}), tmp_path / "corpus.parquet")
    documents = [f'<doc id="1" title="T">\nT\n\n{text}\n</doc>\n' for text in texts]
    (tmp_path / "wiki_00").write_text("".join(documents))
    (tmp_path / "wiki_json").write_bytes(
        json_lines(*({"id": "1", "title": "T", "text": f"T\n\n{text}"} for text in texts))
    )
    read = {
        path.name: [
            document.sentences
            for document in documents_of(
                plan_portions(match_files([str(path)])), sentences=sentences
            )
        ]
        for path in tmp_path.iterdir()
    }
    assert len(read) == 5
    expected = DOCUMENTS if sentences == Sentences.SPLIT else [text.split("\n") for text in texts]
    assert read == dict.fromkeys(read, expected)


@pytest.mark.parametrize("input_format", InputFormat)
def test_lines_are_running_text_in_all_formats_but_text(input_format, read, read_table):
    content = {
        InputFormat.AUTO: b"A b. C d.\nE.\n",
        InputFormat.TEXT: b"A b. C d.\nE.\n",
        InputFormat.WIKIEXTRACTOR: b"<doc >\nA b. C d.\nE.\n</doc>\n",
        InputFormat.JSONL: b'{"text": "A b. C d.\\nE."}\n',
        InputFormat.CSV: b'text,id\n"A b. C d.\nE.",1\n',
        InputFormat.TSV: b'id\ttext\n1\t"A b. C d.\nE."\n',
    }
    lines, split = ["A b. C d.", "E."], ["A b.", "C d.", "E."]

    def sentences_of(**reading):
        if input_format == InputFormat.PARQUET:
            documents = read_table(["A b. C d.\nE."], **reading)
        else:
            documents = read(content[input_format], input_format, **reading)
        ((_, sentences),) = documents
        return sentences

    is_text = input_format in (InputFormat.AUTO, InputFormat.TEXT)
    assert sentences_of() == (lines if is_text else split)
    assert sentences_of(sentences=Sentences.LINES) == lines
    assert sentences_of(sentences=Sentences.SPLIT) == split


@pytest.mark.parametrize(
    ("minimum", "left"),
    [(0, ["", "aé", "abc", "ab c"]), (2, ["aé", "abc", "ab c"]), (3, ["abc", "ab c"])],
)
def test_short_documents_are_dropped_and_counted(minimum, left, read):
    """Characters are counted, not bytes; line ends and what is around a line do not count."""
    texts = ["", " a\né \n", "abc", "ab c\n"]
    statistics = Counter()
    documents = read(
        json_lines(*({"text": text} for text in texts)),
        InputFormat.JSONL,
        statistics,
        min_document_characters=minimum,
    )
    assert ["".join(sentences) for _, sentences in documents] == left
    assert statistics["documents_read"] == 4
    assert statistics["documents_too_short"] == 4 - len(left)


def test_a_title_does_not_count_as_a_part_of_a_document(read):
    content = b'<doc id="1" title="Title">\nTitle\n\nabc\n</doc>\n'
    for minimum, expected in ((3, [(0, ["abc"])]), (4, [])):
        documents = read(content, InputFormat.WIKIEXTRACTOR, min_document_characters=minimum)
        assert documents == expected


def test_a_negative_number_of_characters_is_an_error():
    with pytest.raises(UserError, match="--min_document_characters=-1"):
        ReadOptions(min_document_characters=-1)


@pytest.mark.parametrize(
    ("input_format", "content"),
    [
        (InputFormat.TEXT, b"One line.\n" * 10),
        (InputFormat.WIKIEXTRACTOR, b"<doc >\n" + b"One line.\n" * 10 + b"</doc>\n"),
        (InputFormat.JSONL, b'{"text": "' + b"One line. " * 10 + b'"}\n'),
    ],
)
def test_a_document_that_is_too_long_is_an_error_that_names_the_file(
    input_format, content, read, monkeypatch
):
    monkeypatch.setattr("pipeline.inputs._BLOCK_BYTES", 8)
    monkeypatch.setattr("pipeline.portions.LONGEST_DOCUMENT_BYTES", 120)
    ((_, sentences),) = read(content, input_format)
    assert len(sentences) == 10
    monkeypatch.setattr("pipeline.portions.LONGEST_DOCUMENT_BYTES", 80)
    with pytest.raises(
        UserError, match=rf"/corpus\.txt has a document .*--input_format={input_format}"
    ):
        read(content, input_format)


def test_a_row_that_is_too_long_is_an_error_that_names_the_file(read_table, monkeypatch):
    monkeypatch.setattr("pipeline.portions.LONGEST_DOCUMENT_BYTES", 80)
    assert read_table(["x" * 80]) == [(0, ["x" * 80])]
    with pytest.raises(UserError, match=r"/corpus\.parquet has a document larger than"):
        read_table(["x" * 81])


def test_documents_come_one_by_one(tmp_path):
    """A range is not read to its end before its first document is given."""
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(json_lines({"text": "A."}) * 1000 + b"?")
    options, statistics = ReadOptions(), Counter()
    raw_documents = read_raw_documents(FileRange(match_files([str(path)])[0]), options, statistics)
    documents = read_documents(raw_documents, options, statistics)
    for number in range(1000):
        assert statistics["documents_read"] == number
        next(documents)
    with pytest.raises(UserError, match="line 1001"):
        next(documents)


def test_text_outside_of_documents_is_counted(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text('before\n\n<doc id="1" title="T">\nT\nInside.\n</doc>\nbetween\nand\n')
    statistics = Counter()
    ((file_range,),) = plan_portions(match_files([str(path)], InputFormat.WIKIEXTRACTOR))
    (document,) = read_raw_documents(file_range, ReadOptions(), statistics)
    assert document.lines == ["Inside."]
    assert statistics["lines_outside_documents"] == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_with_its_mark_is_an_error_and_not_one_odd_document(encoding, tmp_path):
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "a.txt").write_bytes((mark + "One.\n\nTwo.\n").encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt is UTF-16: give --encoding=utf-16"):
        match_files([f"{tmp_path}/a.txt"])
    ((file_range,),) = plan_portions(match_files([f"{tmp_path}/a.txt"], encoding="utf-16"))
    raw_documents = list(read_raw_documents(file_range, ReadOptions(), Counter()))
    assert [raw.lines for raw in raw_documents] == [["One."], ["Two."]]


@pytest.mark.parametrize(
    ("name", "content", "num_lines"),
    [
        ("a.txt", b"B\xe4r.\nOne.\n", 2),
        ("wiki_00", b"<doc id='1'>\nB\xe4r.\nOne.\n</doc>\n", 2),
        ("a.jsonl", b'{"text": "B\xe4r.\\nOne."}\n', 1),
    ],
)
def test_lines_with_invalid_utf8_are_counted(name, content, num_lines, tmp_path):
    (tmp_path / name).write_bytes(content)
    statistics = Counter()
    ((file_range,),) = plan_portions(match_files([str(tmp_path / name)], encoding="utf-8"))
    (document,) = read_raw_documents(file_range, ReadOptions(), statistics)
    assert document.lines == ["Br.", "One."]
    assert statistics["lines_with_invalid_utf8"] == 1
    assert statistics["lines_read"] == num_lines
