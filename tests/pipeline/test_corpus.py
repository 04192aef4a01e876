import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import Bucket
from pipeline.corpus import (
    RowGroup,
    read_documents_of_bucket,
    tokenize_documents,
    write_documents,
)
from pipeline.documents import Document
from pipeline.tokenization import FullTokenizer
from pipeline.word_segmentation import WordFinder

TRAIN, EVAL = Bucket("train", 0), Bucket("eval", 0)
UINT16 = np.dtype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer(write_vocabulary):
    return FullTokenizer(write_vocabulary("play", "##ing", "##ed", "a", ".", "[", "]", "mask"))


def document_of(*sentences, file="a.txt", offset=0):
    return Document(file, offset, offset, list(sentences))


def digest_of(tokenizer, *sentences, **where):
    return tokenize_documents([document_of(*sentences, **where)], tokenizer, Counter())[0].digest


def test_a_document_becomes_ids_word_starts_and_sentence_lengths(tokenizer):
    statistics = Counter()
    document = document_of("Playing a.", "xyz played", "\u200b", "[MASK]", "\ufeff", offset=7)
    (result,) = tokenize_documents([document], tokenizer, statistics)
    assert (result.file, result.offset) == ("a.txt", 7)
    ids = np.frombuffer(result.ids, tokenizer.vocabulary.id_dtype)
    assert [tokenizer.vocabulary.tokens[number] for number in ids] == (
        "play ##ing a . [UNK] play ##ed [ mask ]".split()
    )
    assert np.frombuffer(result.word_starts, bool).tolist() == [
        *(True, False, True, True, True),
        *(True, False, True, True, True),
    ]
    assert np.frombuffer(result.sentence_lengths, np.uint32).tolist() == [4, 3, 3]
    assert statistics == Counter(
        documents_tokenized=1,
        sentences_read=5,
        sentences_without_tokens=2,
        tokens=10,
        unknown_tokens=1,
    )


@pytest.mark.parametrize("sentences", [[], ["\u200b", "\ufeff\u200b"]])
def test_a_document_without_tokens_is_dropped_and_counted(sentences, tokenizer):
    statistics = Counter()
    assert tokenize_documents([document_of(*sentences)], tokenizer, statistics) == [None]
    assert statistics["documents_without_tokens"] == 1
    assert statistics["sentences_read"] == statistics["sentences_without_tokens"] == len(sentences)
    assert statistics["documents_tokenized"] == statistics["tokens"] == 0


def test_the_digest_depends_only_on_the_text(tokenizer):
    digest = digest_of(tokenizer, "Playing.", "a")
    assert len(digest) == 16
    assert digest == digest_of(tokenizer, "Playing.", "a", file="b.txt", offset=99)
    # Different text with the same tokens has a different digest.
    for others in (
        ["playing.", "a"],
        ["Playing. a"],
        ["Playing.a"],
        ["a", "Playing."],
        ["Playing.", "a", "\xad"],
    ):
        assert digest_of(tokenizer, *others) != digest


@pytest.mark.parametrize("text", ["\ud800", "a\udfff play", "\udc00\ud800", "我\ud83d"])
def test_halves_of_surrogate_pairs_are_unknown_tokens_with_a_digest(text, tokenizer):
    statistics = Counter()
    (result,) = tokenize_documents([document_of(text)], tokenizer, statistics)
    assert statistics["unknown_tokens"] >= 1
    assert result.digest == digest_of(tokenizer, text)
    assert result.digest != digest_of(tokenizer, "a" + text)


def test_a_segmenter_decides_where_words_begin(tokenizer):
    (plain,) = tokenize_documents([document_of("a我a.", "a")], tokenizer, Counter())
    assert np.frombuffer(plain.word_starts, bool).tolist() == [True] * 5
    statistics = Counter()
    find_words = WordFinder(tokenizer, lambda text: [text[:2], text[2:]])
    (segmented,) = tokenize_documents(
        [document_of("a我a.", "a")], tokenizer, statistics, find_words
    )
    assert np.frombuffer(segmented.word_starts, bool).tolist() == [True, False, True, False, True]
    assert segmented.ids == plain.ids
    assert segmented.digest == plain.digest
    assert statistics["tokens"] == 5


def test_a_bucket_is_read_in_the_order_of_ids_for_any_order_of_its_row_groups(
    tmp_path, tokenized_document
):
    first, second = tmp_path / "split-0.parquet", tmp_path / "split-1.parquet"
    write_documents(
        first,
        [
            {
                EVAL: [tokenized_document("a", 1, [9])],
                TRAIN: [tokenized_document("b", 3, [2, 1]), tokenized_document("a", 20, [4])],
            }
        ],
    )
    write_documents(
        second,
        [{TRAIN: [tokenized_document("a", 3, [1, 1]), tokenized_document("b", 1, [5])]}],
    )
    row_groups = [RowGroup(first, 1), RowGroup(second, 0)]
    for ordered in (row_groups, row_groups[::-1]):
        batch = read_documents_of_bucket(ordered, UINT16)
        assert batch.ids.tolist() == [3] * 2 + [20] * 4 + [1] * 5 + [3] * 3
        assert batch.sentence_ends.tolist() == [1, 2, 6, 11, 13, 14]
        assert batch.document_ends.tolist() == [2, 3, 4, 6]
        assert batch.word_starts.tolist() == [
            *(True, False, True, False, True, False),
            *(True, False, True, False, True, True, False, True),
        ]
    batch = read_documents_of_bucket([RowGroup(first, 0)], UINT16)
    assert batch.ids.tolist() == [1] * 9


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), unique=True, max_size=20),
    st.lists(st.integers(0, 20), max_size=4),
    st.randoms(use_true_random=False),
)
def test_the_batches_and_row_groups_of_a_bucket_do_not_matter(
    tmp_path_factory, tokenized_document, document_ids, cuts, rng
):
    folder = tmp_path_factory.mktemp("portion")
    documents = [
        tokenized_document(file, offset, [offset % 3 + 1]) for file, offset in document_ids
    ]
    write_documents(folder / "whole.parquet", [{TRAIN: documents}] if documents else [])
    whole = read_documents_of_bucket(
        [RowGroup(folder / "whole.parquet", 0)][: len(documents)], UINT16
    )

    rng.shuffle(documents)
    ends = sorted({*cuts, 0, len(documents)})
    batches = [documents[start:end] for start, end in pairwise(ends)]
    buckets = write_documents(
        folder / "batches.parquet",
        # A row group of the other bucket precedes each row group of this bucket.
        [
            {EVAL: [tokenized_document("z", 99, [1])], TRAIN: batch} if batch else {}
            for batch in batches
        ],
    )
    row_groups = [
        RowGroup(folder / "batches.parquet", number)
        for number, bucket in enumerate(buckets)
        if bucket == TRAIN
    ]
    rng.shuffle(row_groups)
    read = read_documents_of_bucket(row_groups, UINT16)
    for name in ("ids", "word_starts", "sentence_ends", "document_ends"):
        assert getattr(read, name).tolist() == getattr(whole, name).tolist()


def test_each_bucket_of_each_batch_gets_a_row_group(tmp_path, tokenized_document):
    first, second = tokenized_document("a", 1, [1]), tokenized_document("a", 2, [2])
    path = tmp_path / "split.parquet"
    batches = [{TRAIN: [first], EVAL: [second]}, {}, {TRAIN: [second, first]}]
    assert write_documents(path, iter(batches)) == [TRAIN, EVAL, TRAIN]
    parquet = pq.ParquetFile(path)
    rows = [parquet.metadata.row_group(number).num_rows for number in range(3)]
    assert (parquet.num_row_groups, rows) == (3, [1, 1, 2])


def test_only_one_batch_is_in_memory_at_a_time(tmp_path, tokenized_document):
    written = []

    def batches():
        for number in range(3):
            written.append((tmp_path / "split.parquet").stat().st_size)
            yield {TRAIN: [tokenized_document("a", number, [20_000])]}

    write_documents(tmp_path / "split.parquet", batches())
    assert written[0] + 40_000 < written[1] < written[2] - 40_000


@pytest.mark.parametrize("batches", [[], [{}], [{}, {}]])
def test_a_portion_without_documents_and_a_bucket_without_row_groups_are_empty(batches, tmp_path):
    assert write_documents(tmp_path / "split.parquet", batches) == []
    assert (tmp_path / "split.parquet").exists()
    batch = read_documents_of_bucket([], np.dtype(np.uint32))
    assert batch.ids.dtype == np.uint32
    for array in (batch.ids, batch.word_starts, batch.sentence_ends, batch.document_ends):
        assert array.shape == (0,)


def ids_to_drop(*document_ids):
    files, offsets = zip(*document_ids, strict=True) if document_ids else ((), ())
    return pa.table({"file": pa.array(files, pa.string()), "offset": pa.array(offsets, pa.int64())})


@pytest.fixture
def bucket(tmp_path, tokenized_document):
    """Documents of 1, 2, 3, … tokens in two row groups; token ids equal the document's offset."""
    document_ids = [("a", 4), ("a", 8), ("b", 4), ("b", 9), ("c", 1)]
    documents = [
        tokenized_document(file, offset, [number + 1])
        for number, (file, offset) in enumerate(document_ids)
    ]
    path = tmp_path / "split.parquet"
    write_documents(path, [{TRAIN: documents[3:]}, {TRAIN: documents[:3]}])
    return [RowGroup(path, 0), RowGroup(path, 1)]


@pytest.mark.parametrize(
    ("dropped", "lengths_left"),
    [
        ([], [1, 2, 3, 4, 5]),
        ([("a", 4)], [2, 3, 4, 5]),
        ([("b", 4), ("c", 1)], [1, 2, 4]),
        ([("z", 4), ("a", 9), ("c", 4)], [1, 2, 3, 4, 5]),
        ([("a", 4), ("a", 8), ("b", 4), ("b", 9), ("c", 1)], []),
    ],
)
def test_documents_are_dropped_by_file_and_offset(dropped, lengths_left, bucket):
    batch = read_documents_of_bucket(bucket, UINT16, ids_to_drop(*dropped))
    assert np.diff(batch.sentence_ends, prepend=0).tolist() == lengths_left
    assert len(batch.document_ends) == len(lengths_left)
    assert len(batch.ids) == len(batch.word_starts) == sum(lengths_left)


def test_a_bucket_without_row_groups_has_nothing_to_drop():
    batch = read_documents_of_bucket([], UINT16, ids_to_drop(("a", 1)))
    assert len(batch.ids) == len(batch.document_ends) == 0


def test_dropping_from_a_large_bucket_keeps_the_order_of_ids(tmp_path, tokenized_document):
    path = tmp_path / "split.parquet"
    offsets = list(range(3000))
    random.Random(1).shuffle(offsets)
    documents = [tokenized_document(f"f{offset % 7}", offset, [1]) for offset in offsets]
    write_documents(path, [{TRAIN: documents[:2000]}, {TRAIN: documents[2000:]}])
    dropped = ids_to_drop(*((f"f{offset % 7}", offset) for offset in range(0, 3000, 3)))
    row_groups = [RowGroup(path, 1), RowGroup(path, 0)]
    batch = read_documents_of_bucket(row_groups, UINT16, dropped)
    expected = sorted((offset % 7, offset) for offset in range(3000) if offset % 3)
    assert batch.ids.tolist() == [offset for _, offset in expected]
