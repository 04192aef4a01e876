import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import Bucket
from pipeline.corpus import tokenize_documents, write_documents
from pipeline.documents import Document
from pipeline.duplicates import count_partitions, find_duplicates
from pipeline.tokenization import FullTokenizer

TRAIN, EVAL = Bucket("train", 0), Bucket("eval", 0)


@pytest.fixture
def write_corpus(tmp_path, tokenized_document):
    """Writes portions, each a list of (file, offset, text), as files with two row groups."""

    def write(*portions):
        paths = []
        for number, portion in enumerate(portions):
            documents = [
                tokenized_document(file, offset, [1], digest=text.encode())
                for file, offset, text in portion
            ]
            half = len(documents) // 2
            batches = [{TRAIN: documents[:half]} if half else {}, {EVAL: documents[half:]}]
            paths.append(tmp_path / f"split-{number}.parquet")
            write_documents(paths[-1], batches if documents else [])
        return paths

    return write


def ids_of(table):
    assert table.column_names == ["file", "offset", "bucket"]
    columns = table.select(["file", "offset"]).columns
    return sorted(zip(*(column.to_pylist() for column in columns), strict=True))


def slow_duplicates(portions):
    """The ids of all documents whose text equals that of a document with a smaller id."""
    first = {}
    duplicates = []
    for file, offset, text in sorted(document for portion in portions for document in portion):
        if first.setdefault(text, (file, offset)) != (file, offset):
            duplicates.append((file, offset))
    return duplicates


def test_the_first_of_equal_documents_survives_across_portions_and_files(write_corpus):
    paths = write_corpus(
        [("b", 0, "same"), ("b", 9, "other"), ("b", 20, "same")],
        [("a", 7, "same"), ("a", 10, "same")],
        [("a", 8, "same"), ("c", 0, "other"), ("c", 3, "once")],
    )
    duplicates = ids_of(find_duplicates(paths, 0, 1))
    assert sorted(duplicates) == [("a", 8), ("a", 10), ("b", 0), ("b", 20), ("c", 0)]
    assert ids_of(find_duplicates(paths[::-1], 0, 1)) == duplicates


def test_offsets_are_compared_as_numbers(write_corpus):
    paths = write_corpus([("a", 10, "same"), ("a", 9, "same")])
    assert ids_of(find_duplicates(paths, 0, 1)) == [("a", 10)]


@pytest.mark.parametrize(
    "portions", [[[]], [[], []], [[("a", 0, "one")]], [[("a", 0, "one")], [], [("a", 4, "two")]]]
)
def test_a_corpus_without_duplicates_has_none(portions, write_corpus):
    table = find_duplicates(write_corpus(*portions), 0, 1)
    assert ids_of(table) == []
    assert table.schema.types == [pa.string(), pa.int64(), pa.string()]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "ä", "a/b"]), st.integers(0, 12), st.sampled_from("uvwx")
        ),
        unique_by=lambda document: document[:2],
        max_size=25,
    ),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_several_partitions_find_the_same_duplicates_as_one(
    tmp_path_factory, tokenized_document, documents, num_portions, rng
):
    folder = tmp_path_factory.mktemp("corpus")
    portions = [documents[number::num_portions] for number in range(num_portions)]
    for number, portion in enumerate(portions):
        rng.shuffle(portion)
        members = [tokenized_document(*place, [1], text.encode()) for *place, text in portion]
        write_documents(folder / f"{number}.parquet", [{TRAIN: members}] if members else [])
    paths = sorted(folder.iterdir())
    expected = slow_duplicates(portions)
    for partitions in (1, 7):
        tables = [find_duplicates(paths, number, partitions) for number in range(partitions)]
        assert sorted(ids_of(pa.concat_tables(tables))) == expected


def test_partitions_have_about_the_same_size(tmp_path, write_vocabulary):
    tokenizer = FullTokenizer(write_vocabulary("a"))
    texts = [Document("a", number, 0, [f"{number % 1500}"]) for number in range(3000)]
    documents = tokenize_documents(texts, tokenizer, Counter())
    random.Random(1).shuffle(documents)
    write_documents(tmp_path / "split.parquet", [{TRAIN: documents}])
    sizes = [len(find_duplicates([tmp_path / "split.parquet"], n, 5)) for n in range(5)]
    assert sum(sizes) == 1500
    assert sizes == pytest.approx([300] * 5, abs=80)


def test_digests_are_compared_to_their_last_byte(write_corpus):
    texts = ["0123456789abcdef", "0123456789abcdeg", "1123456789abcdef"]
    paths = write_corpus([("a", number, text) for number, text in enumerate(texts)])
    assert ids_of(find_duplicates(paths, 0, 1)) == []


@pytest.mark.parametrize(
    "sentences", [["one", "two"], ["\ud800 a"], ["我用。"], ["x" * 100_000], ["\u200b", "one"]]
)
def test_documents_with_the_same_text_are_duplicates(sentences, tmp_path, write_vocabulary):
    tokenizer = FullTokenizer(write_vocabulary("one"))
    documents = [
        tokenize_documents([Document(file, 0, 0, text)], tokenizer, Counter())[0]
        for file, text in (("a", sentences), ("b", [*sentences, "!"]), ("c", sentences))
    ]
    write_documents(tmp_path / "split.parquet", [{TRAIN: documents}])
    assert ids_of(find_duplicates([tmp_path / "split.parquet"], 0, 1)) == [("c", 0)]


def test_digests_are_divided_into_partitions_that_fit_in_memory():
    gib = 1 << 30
    assert [count_partitions(size) for size in (1, gib - 1, gib, 1000 * gib)] == [1, 1, 2, 1001]
