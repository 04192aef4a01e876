import bz2
import gzip
from types import SimpleNamespace

import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import read_documents
from pipeline.errors import UserError
from pipeline.inputs import InputFormat, describe_paths, match_files, plan_splits

BLANK_LINES = (b"", b" ", b"\t \t", b"\v", "\u3000".encode())
OTHER_LINES = (b"One.", b"a" * 30, "Zwölf Sätze, 漢字。".encode(), b"\xff", b" <doc ", b"</doc>")
TEXT_LINES = st.sampled_from([*BLANK_LINES, *OTHER_LINES, "\u200b".encode()])
LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def texts(draw, lines=TEXT_LINES):
    """Lines with mixed line ends, the last one perhaps without."""
    text = b"".join(draw(st.lists(st.tuples(lines, LINE_ENDS).map(b"".join), max_size=40)))
    return text + draw(lines) if draw(st.booleans()) else text


@st.composite
def wikiextractor_texts(draw):
    """Documents as WikiExtractor writes them, the last one perhaps cut off."""
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


@pytest.fixture
def corpus(tmp_path):
    """Three files in two folders: a/1.txt, a/2.txt, b/1.txt."""
    for name, content in (("a/1.txt", "One.\n"), ("a/2.txt", "Two.\n\n"), ("b/1.txt", "Three.")):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "corpus"


def write(path, content):
    path.write_bytes(content)
    return match_files([str(path)])


def documents_of(splits, input_format):
    return [
        document
        for split in splits
        for file_range in split
        for document in read_documents(file_range, input_format)
    ]


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


def test_names_stay_when_the_corpus_moves(corpus):
    names = [file.name for file in match_files([f"{corpus}/*/*.txt"])]
    moved = corpus.rename(corpus.with_name("a_longer_name"))
    assert [file.name for file in match_files([f"{moved}/*/*.txt"])] == names


def test_a_single_file_has_its_own_name(corpus):
    assert [file.name for file in match_files([f"{corpus}/a/2.txt"])] == ["2.txt"]


def test_names_of_remote_files_are_relative_to_their_common_folder(monkeypatch):
    metadata = [
        FileMetadata(path, 1, 1.0)
        for path in ("gs://bucket/corpus/a.txt", "gs://bucket/corpus/b/c.txt")
    ]
    monkeypatch.setattr(FileSystems, "match", lambda _: [SimpleNamespace(metadata_list=metadata)])
    assert [file.name for file in match_files(["gs://bucket/corpus/*"])] == ["a.txt", "b/c.txt"]


def test_a_file_given_by_two_spellings_of_its_path_is_read_once(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    for spelling in ("./a/1.txt", f"{corpus}/a/1.txt", "b/../a/1.txt"):
        assert len(match_files(["a/1.txt", spelling])) == 1


def test_every_pattern_must_match(corpus):
    with pytest.raises(UserError, match=r"nothing_here\*"):
        match_files([f"{corpus}/a/1.txt", f"{corpus}/nothing_here*"])


def test_a_folder_is_no_input_file(corpus):
    with pytest.raises(UserError, match=str(corpus)):
        match_files([str(corpus)])


def test_empty_files_are_no_corpus(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.txt and 1 more"):
        match_files([f"{tmp_path}/*.txt"])


def test_empty_files_beside_others_are_harmless(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("One.\n")
    splits = plan_splits(match_files([f"{tmp_path}/*.txt"]), InputFormat.TEXT, split_bytes=1)
    assert [document.file for document in documents_of(splits, InputFormat.TEXT)] == ["b.txt"]


def test_paths_are_described_by_the_first_and_the_number_of_others():
    assert describe_paths(["a"]) == "a"
    assert describe_paths(["a", "b", "c"]) == "a and 2 more"


def test_a_large_file_is_cut_at_every_document_boundary_when_splits_are_tiny(tmp_path):
    files = write(tmp_path / "corpus.txt", b"One.\nTwo.\n \t\r\n" * 10)
    splits = plan_splits(files, InputFormat.TEXT, split_bytes=1)
    assert [(file_range.start, file_range.end) for (file_range,) in splits] == [
        *((14 * number, 14 * number + 14) for number in range(10)),
        (140, None),
    ]


def test_wikiextractor_files_are_cut_before_documents(tmp_path):
    document = b'<doc id="1" url="u" title="T">\nT\n\nText.\n\nMore.\n</doc>\n'
    files = write(tmp_path / "wiki_00", document * 4)
    splits = plan_splits(files, InputFormat.WIKIEXTRACTOR, split_bytes=1)
    starts = [file_range.start for (file_range,) in splits]
    assert starts == [len(document) * number for number in range(4)]


def test_small_files_share_a_split_and_large_ones_are_cut(tmp_path):
    for number in range(5):
        (tmp_path / f"small{number}.txt").write_text("One.\n\n")
    (tmp_path / "zlarge.txt").write_text("Two.\n\n" * 10)
    files = match_files([f"{tmp_path}/*.txt"])
    splits = plan_splits(files, InputFormat.TEXT, split_bytes=12)
    assert [[file_range.file.name for file_range in split] for split in splits[:3]] == [
        ["small0.txt", "small1.txt"],
        ["small2.txt", "small3.txt"],
        ["small4.txt", "zlarge.txt"],
    ]
    assert len(documents_of(splits, InputFormat.TEXT)) == 15


def test_default_splits_are_as_large_as_the_bounds_allow(tmp_path, monkeypatch):
    files = write(tmp_path / "corpus.txt", b"One.\n\n" * 320)
    assert len(plan_splits(files, InputFormat.TEXT)) == 1
    monkeypatch.setattr("pipeline.inputs.SMALLEST_SPLIT_BYTES", 6)
    assert len(plan_splits(files, InputFormat.TEXT)) == 16
    monkeypatch.setattr("pipeline.inputs.LARGEST_SPLIT_BYTES", 60)
    assert 28 <= len(plan_splits(files, InputFormat.TEXT)) <= 32


def check_that_cuts_do_not_matter(folder, content, input_format, split_bytes, scan_bytes):
    files = write(folder / "corpus.txt", content or b" ")
    uncut = plan_splits(files, input_format, split_bytes=1 << 30)
    assert len(uncut) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.inputs._SCAN_BYTES", scan_bytes)
        splits = plan_splits(files, input_format, split_bytes)
    ranges = [file_range for split in splits for file_range in split]
    assert [0, *(file_range.end for file_range in ranges)] == [
        *(file_range.start for file_range in ranges),
        None,
    ]
    assert documents_of(splits, input_format) == documents_of(uncut, input_format)


@settings(max_examples=150, deadline=None)
@given(texts(), st.integers(1, 80), st.integers(1, 30))
def test_documents_do_not_depend_on_cuts_in_text(corpus_folder, text, split_bytes, scan_bytes):
    check_that_cuts_do_not_matter(corpus_folder, text, InputFormat.TEXT, split_bytes, scan_bytes)


@settings(max_examples=100, deadline=None)
@given(wikiextractor_texts(), st.integers(1, 200), st.integers(1, 100))
def test_documents_do_not_depend_on_cuts_in_wikiextractor_text(
    corpus_folder, text, split_bytes, scan_bytes
):
    check_that_cuts_do_not_matter(
        corpus_folder, text, InputFormat.WIKIEXTRACTOR, split_bytes, scan_bytes
    )


MALFORMED_LINES = st.sampled_from(
    [
        b"",
        b"Title",
        b"Text. More.",
        b"</doc>",
        b"<doc without an end",
        b'<doc id="1" title="Title">',
    ]
)


@settings(max_examples=100, deadline=None)
@given(texts(MALFORMED_LINES), st.integers(1, 80))
def test_documents_do_not_depend_on_cuts_in_malformed_wikiextractor_text(
    corpus_folder, text, split_bytes
):
    check_that_cuts_do_not_matter(corpus_folder, text, InputFormat.WIKIEXTRACTOR, split_bytes, 64)


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress)])
def test_compressed_files_are_read_whole(tmp_path, suffix, compress):
    content = "One.\nTwo.\n\nÜber 漢字.\n\n".encode() * 50
    plain = plan_splits(write(tmp_path / "corpus.txt", content), InputFormat.TEXT)
    files = write(tmp_path / f"corpus.txt.{suffix}", compress(content))
    splits = plan_splits(files, InputFormat.TEXT, split_bytes=1)
    assert [(file_range.start, file_range.end) for (file_range,) in splits] == [(0, None)]
    expected = documents_of(plain, InputFormat.TEXT)
    documents = documents_of(splits, InputFormat.TEXT)
    assert len(documents) == 100
    assert [(document.offset, document.sentences) for document in documents] == [
        (document.offset, document.sentences) for document in expected
    ]


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress)])
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"something else" + content],
    ids=["cut off", "not compressed"],
)
def test_a_damaged_compressed_file_is_named_and_not_half_read(
    damage, suffix, compress, tmp_path, data_samples
):
    content = damage(compress((data_samples / "english.txt").read_bytes()))
    splits = plan_splits(write(tmp_path / f"corpus.{suffix}", content), InputFormat.TEXT)
    with pytest.raises(UserError, match=rf"corpus\.{suffix}"):
        documents_of(splits, InputFormat.TEXT)


def test_a_file_without_line_ends_is_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs._SCAN_BYTES", 16)
    (tmp_path / "long.txt").write_bytes(b"word " * 1000)
    (split,) = plan_splits(match_files([f"{tmp_path}/long.txt"]), InputFormat.TEXT, split_bytes=100)
    assert split[0].read() == b"word " * 1000


def test_suffixes_of_compressed_files_may_be_capitals(tmp_path):
    (tmp_path / "A.TXT.GZ").write_bytes(gzip.compress(b"a sentence\n"))
    ((file_range,),) = plan_splits(match_files([f"{tmp_path}/A.TXT.GZ"]), InputFormat.TEXT)
    assert file_range.read() == b"a sentence\n"


@pytest.mark.parametrize("patterns", [[], ["nowhere://bucket/a.txt"]])
def test_no_pattern_and_an_unknown_file_system_are_errors(patterns):
    with pytest.raises(UserError, match=r"no input file|nowhere://"):
        match_files(patterns)
