import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import read_documents
from pipeline.inputs import InputFormat, match_files, plan_splits


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Writes bytes to a file and reads its documents, as (offset, sentences)."""
    path = tmp_path_factory.mktemp("documents") / "corpus.txt"

    def read_bytes(content, input_format):
        path.write_bytes(content)
        (split,) = plan_splits(match_files([str(path)]), input_format)
        (file_range,) = split
        documents = list(read_documents(file_range, input_format))
        assert {document.file for document in documents} <= {"corpus.txt"}
        return [(document.offset, document.sentences) for document in documents]

    return read_bytes


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


def test_files_without_a_final_blank_line_are_not_joined(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"From {name}.")
    (split,) = plan_splits(match_files([f"{tmp_path}/*.txt"]), InputFormat.TEXT)
    documents = [
        (document.file, document.offset, document.sentences)
        for file_range in split
        for document in read_documents(file_range, InputFormat.TEXT)
    ]
    assert documents == [("a.txt", 0, ["From a.txt."]), ("b.txt", 0, ["From b.txt."])]


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
