from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import Bucket
from pipeline.corpus import tokenize_documents, write_documents
from pipeline.documents import Document
from pipeline.duplicates import (
    count_partitions,
    find_duplicates,
    folder_of_duplicates,
    number_documents,
    portions_of,
    read_digests,
    read_dropped,
    read_tables,
    write_dropped,
)
from pipeline.tokenization import FullTokenizer

TRAIN, EVAL = Bucket("train", 0), Bucket("eval", 0)


@pytest.fixture
def write_portion(tmp_path, tokenized_document):
    """Writes a portion, a list of (file, offset, text), as a file with two row groups."""

    def write(number, portion):
        documents = [
            tokenized_document(file, offset, [1], digest=text.encode())
            for file, offset, text in portion
        ]
        half = len(documents) // 2
        batches = [{TRAIN: documents[:half]} if half else {}, {EVAL: documents[half:]}]
        path = tmp_path / f"split-{number:05d}.parquet"
        write_documents(path, batches if documents else [])
        return path

    return write


@pytest.fixture
def duplicates_of(write_portion):
    """The ids of the duplicates in portions, which are written first."""

    def find(*portions):
        found, ids = [], {}
        for number, portion in enumerate(portions):
            rows, order = read_digests(write_portion(number, portion), number)
            found.append(rows)
            for document, (file, offset, _) in zip(rows["document"], portion, strict=True):
                ids[int(document)] = file, offset
            assert sorted(order) == list(range(len(portion)))
        return [ids[int(document)] for document in find_duplicates(np.concatenate(found))]

    return find


def slow_duplicates(portions):
    """The ids of all documents whose text equals that of a document with a smaller id."""
    first = {}
    duplicates = []
    for file, offset, text in sorted(document for portion in portions for document in portion):
        if first.setdefault(text, (file, offset)) != (file, offset):
            duplicates.append((file, offset))
    return duplicates


def test_the_first_of_equal_documents_survives_across_portions_and_files(duplicates_of):
    assert duplicates_of(
        [("a", 7, "same"), ("a", 10, "same"), ("a", 8, "same")],
        [("b", 0, "same"), ("b", 9, "other"), ("b", 20, "same")],
        [("c", 0, "other"), ("c", 3, "once")],
    ) == [("a", 8), ("a", 10), ("b", 0), ("b", 20), ("c", 0)]


def test_offsets_are_compared_as_numbers(duplicates_of):
    assert duplicates_of([("a", 10, "same"), ("a", 9, "same")]) == [("a", 10)]


@pytest.mark.parametrize(
    "portions", [[[]], [[], []], [[("a", 0, "one")]], [[("a", 0, "one")], [], [("a", 4, "two")]]]
)
def test_a_corpus_without_duplicates_has_none(portions, duplicates_of):
    assert duplicates_of(*portions) == []


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
def test_portions_and_their_order_do_not_matter(
    tmp_path_factory, tokenized_document, documents, num_portions, rng
):
    folder = tmp_path_factory.mktemp("corpus")
    documents.sort()
    found, ids = [], {}
    for number in range(num_portions):
        first, end = (n * len(documents) // num_portions for n in (number, number + 1))
        portion = documents[first:end]
        rng.shuffle(portion)
        members = [tokenized_document(*place, [1], text.encode()) for *place, text in portion]
        write_documents(folder / f"{number}.parquet", [{TRAIN: members}] if members else [])
        rows, _ = read_digests(folder / f"{number}.parquet", number)
        found.append(rows)
        ids |= {int(row["document"]): place[:2] for row, place in zip(rows, portion, strict=True)}
    rows = np.concatenate(found)
    duplicates = find_duplicates(rows[np.random.default_rng(0).permutation(len(rows))])
    assert [ids[int(each)] for each in duplicates] == slow_duplicates([documents])


def test_digests_are_compared_to_their_last_byte(duplicates_of):
    texts = ["0123456789abcdef", "0123456789abcdeg", "1123456789abcdef"]
    assert duplicates_of([("a", number, text) for number, text in enumerate(texts)]) == []


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
    rows, _ = read_digests(tmp_path / "split.parquet", 3)
    assert find_duplicates(rows).tolist() == [(3 << 32) + 2]


def test_a_number_tells_the_portion_of_a_document():
    numbers = number_documents(70_000, np.array([2, 0, 1], np.uint32))
    assert portions_of(numbers).tolist() == [70_000] * 3
    assert np.argsort(numbers).tolist() == [1, 2, 0]
    assert number_documents(69_999, np.array([2**32 - 1], np.uint32)) < numbers.min()


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_what_is_dropped_is_listed_by_bucket(batch_bytes, write_portion, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.duplicates._BATCH_BYTES", batch_bytes)
    path = write_portion(0, [("b", 3, "u"), ("a", 9, "v"), ("a", 5, "w"), ("a", 1, "x")])
    assert len(list(read_tables(path))) == (2 if batch_bytes == 1 else 1)
    is_exact, is_near = (np.array(each, bool) for each in ([1, 0, 0, 0], [0, 0, 1, 1]))
    assert write_dropped(tmp_path / "list", path, is_exact, is_near, id_bytes=2) == 3
    assert pq.read_table(tmp_path / "list").to_pylist() == [
        {"bucket": bucket, "file": file, "offset": offset, "num_tokens": 1, "is_near": is_near}
        for bucket, file, offset, is_near in [
            ("eval-00000", "a", 1, True),
            ("eval-00000", "a", 5, True),
            ("train-00000", "b", 3, False),
        ]
    ]
    lists = [tmp_path / "list"] * 2
    assert read_dropped(lists, TRAIN).to_pydict() == {"file": ["b"] * 2, "offset": [3] * 2}
    assert read_dropped(lists, Bucket("train", 1)).num_rows == 0
    assert read_dropped([], TRAIN) is None


def test_nothing_is_listed_where_nothing_is_dropped(write_portion, tmp_path):
    none = np.zeros(1, bool)
    assert write_dropped(tmp_path / "list", write_portion(0, [("a", 0, "u")]), none, none, 2) == 0
    assert read_dropped([tmp_path / "list"], EVAL).num_rows == 0


def test_there_is_a_partition_for_a_gibibyte():
    gib = 1 << 30
    assert [count_partitions(size) for size in (1, gib - 1, gib, 1000 * gib)] == [1, 1, 2, 1001]


def test_the_folder_tells_what_counts_as_a_duplicate():
    names = [
        folder_of_duplicates(*options)
        for options in ((True, None), (True, 0.8), (False, 0.8), (True, 0.8000001), (False, None))
    ]
    assert names[1] == names[2]
    assert len(set(names)) == 4
    assert names[-1] is None
