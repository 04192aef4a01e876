from collections import Counter

import numpy as np
import pytest

from pipeline.corpus import (
    Bucket,
    BucketPlan,
    RowGroup,
    TokenizedDocument,
    read_documents_of_bucket,
    tokenize_document,
    write_documents,
)
from pipeline.documents import Document
from pipeline.inputs import InputFile
from pipeline.tokenization import FullTokenizer

GIB = 1 << 30
REGION = 64 << 20


@pytest.fixture(scope="module")
def tokenizer(write_vocabulary):
    return FullTokenizer(write_vocabulary("play", "##ing", "##ed", "a", ".", "[", "]", "mask"))


def file_of(size, name="corpus.txt", corpus_offset=0):
    return InputFile(f"/data/{name}", name, size, 0, corpus_offset)


def tokenized(file, offset, sentences):
    """A document whose ids tell its offset; every second token begins a word."""
    lengths = np.array(sentences, np.uint32)
    num_tokens = int(lengths.sum())
    ids = np.full(num_tokens, offset, np.uint16)
    word_starts = np.arange(num_tokens) % 2 == 0
    return TokenizedDocument(file, offset, ids.tobytes(), word_starts.tobytes(), lengths.tobytes())


def test_a_document_becomes_ids_word_starts_and_sentence_lengths(tokenizer):
    statistics = Counter()
    document = Document("a.txt", 7, ["Playing a.", "xyz played", "\u200b", "[MASK]", "\ufeff"])
    result = tokenize_document(document, tokenizer, statistics)
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
    assert statistics == {
        "documents_read": 1,
        "documents_tokenized": 1,
        "sentences_read": 5,
        "sentences_without_tokens": 2,
        "tokens": 10,
        "unknown_tokens": 1,
    }


@pytest.mark.parametrize("sentences", [[], ["\u200b", "\ufeff\u200b"]])
def test_a_document_without_tokens_is_dropped_and_counted(sentences, tokenizer):
    statistics = Counter()
    assert tokenize_document(Document("a.txt", 0, sentences), tokenizer, statistics) is None
    assert statistics["documents_read"] == statistics["documents_without_tokens"] == 1
    assert statistics["sentences_read"] == statistics["sentences_without_tokens"] == len(sentences)
    assert statistics["documents_tokenized"] == statistics["tokens"] == 0


def test_a_bucket_is_read_in_the_order_of_ids_whatever_the_order_of_its_pieces(tmp_path):
    train, eval_ = Bucket("train", 0), Bucket("eval", 0)
    first, second = tmp_path / "split-0.parquet", tmp_path / "split-1.parquet"
    write_documents(
        first,
        {
            eval_: [tokenized("a", 1, [9])],
            train: [tokenized("b", 3, [2, 1]), tokenized("a", 20, [4])],
        },
    )
    write_documents(second, {train: [tokenized("a", 3, [1, 1]), tokenized("b", 1, [5])]})
    pieces = [RowGroup(first, 1), RowGroup(second, 0)]
    for ordered in (pieces, pieces[::-1]):
        batch = read_documents_of_bucket(ordered, np.dtype(np.uint16))
        assert batch.ids.tolist() == [3] * 2 + [20] * 4 + [1] * 5 + [3] * 3
        assert batch.sentence_ends.tolist() == [1, 2, 6, 11, 13, 14]
        assert batch.document_ends.tolist() == [2, 3, 4, 6]
        assert batch.word_starts.tolist() == [
            *(True, False, True, False, True, False),
            *(True, False, True, False, True, True, False, True),
        ]
    batch = read_documents_of_bucket([RowGroup(first, 0)], np.dtype(np.uint16))
    assert batch.ids.tolist() == [1] * 9


def test_a_file_of_documents_appears_whole(tmp_path):
    write_documents(tmp_path / "split.parquet", {Bucket("train", 0): [tokenized("a", 0, [1])]})
    assert [path.name for path in tmp_path.iterdir()] == ["split.parquet"]


def test_a_split_without_documents_and_a_bucket_without_pieces_are_empty(tmp_path):
    write_documents(tmp_path / "split.parquet", {})
    assert (tmp_path / "split.parquet").exists()
    batch = read_documents_of_bucket([], np.dtype(np.uint32))
    assert batch.ids.dtype == np.uint32
    for array in (batch.ids, batch.word_starts, batch.sentence_ends, batch.document_ends):
        assert array.shape == (0,)


def test_buckets_are_sized_by_the_corpus_or_as_asked():
    assert BucketPlan.for_corpus(1).buckets() == [Bucket("train", 0)]
    assert BucketPlan.for_corpus(GIB).num_train_buckets == 64
    assert BucketPlan.for_corpus(GIB).num_eval_buckets == 0
    with_eval = BucketPlan.for_corpus(GIB, eval_fraction=0.25)
    assert (with_eval.num_train_buckets, with_eval.num_eval_buckets) == (48, 16)
    as_asked = BucketPlan.for_corpus(GIB, eval_fraction=1e-9, num_shards=2)
    assert as_asked.buckets() == [Bucket("train", 0), Bucket("train", 1), Bucket("eval", 0)]


def test_documents_spread_evenly_over_the_buckets_of_a_small_corpus():
    plan = BucketPlan.for_corpus(GIB, num_shards=8)
    file = file_of(GIB)
    counts = Counter(plan.bucket_of(file, offset) for offset in range(8000))
    assert counts.keys() == set(plan.buckets())
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_the_share_of_eval_documents_is_as_asked():
    plan = BucketPlan.for_corpus(GIB, eval_fraction=0.2, num_shards=3)
    splits = Counter(plan.bucket_of(file_of(GIB), offset).split for offset in range(10_000))
    assert splits["eval"] == pytest.approx(2000, abs=200)
    none = BucketPlan.for_corpus(GIB)
    assert {none.bucket_of(file_of(GIB), offset).split for offset in range(1000)} == {"train"}


def test_a_document_stays_in_its_split_when_corpus_and_shards_change():
    offsets = range(0, 10_000, 10)
    plans = [
        (BucketPlan.for_corpus(100_000, 0.3, 4), file_of(100_000)),
        (BucketPlan.for_corpus(100_000, 0.3, 9), file_of(100_000)),
        (BucketPlan.for_corpus(20 * GIB, 0.3), file_of(20 * GIB, corpus_offset=7 * GIB)),
    ]
    first, *others = (
        [plan.bucket_of(file, offset).split for offset in offsets] for plan, file in plans
    )
    assert "eval" in first
    assert all(splits == first for splits in others)


def test_buckets_do_not_depend_on_the_process_or_the_release():
    plan = BucketPlan.for_corpus(GIB, eval_fraction=0.3, num_shards=10)
    buckets = [plan.bucket_of(file_of(GIB, "wiki/Ä.txt"), 1000 * number) for number in range(12)]
    assert [f"{bucket.split} {bucket.index}" for bucket in buckets] == [
        *("train 3", "train 7", "train 0", "train 0", "train 1", "train 1"),
        *("train 7", "eval 16", "eval 14", "train 4", "train 1", "train 9"),
    ]


def test_a_region_of_a_large_corpus_touches_one_group_of_buckets():
    size = 100 * GIB
    plan = BucketPlan.for_corpus(size)
    file = file_of(size)
    assert plan.num_train_buckets == 6400
    groups = set()
    for region in range(0, size // REGION, 8):
        start = region * REGION
        indices = [
            plan.bucket_of(file, start + (REGION - 1) * step // 39).index for step in range(40)
        ]
        # 100 GiB are 25 times 64 regions of 64 MiB; 6400 buckets make 25 groups of 256.
        (group,) = {index // 256 for index in indices}
        groups.add(group)
        assert len(set(indices)) > 30
    assert groups == set(range(25))


def test_regions_count_through_all_files():
    plan = BucketPlan.for_corpus(100 * GIB)
    first, second = file_of(GIB, "a"), file_of(GIB, "b", corpus_offset=REGION * 3)
    in_first = {plan.bucket_of(first, REGION * 3 + step).index // 256 for step in range(50)}
    in_second = {plan.bucket_of(second, step).index // 256 for step in range(50)}
    assert in_first == in_second
    assert len(in_first) == 1


@pytest.mark.parametrize("num_shards", [1, 3, 26])
def test_few_buckets_of_a_large_corpus_are_all_used(num_shards):
    size = 100 * GIB
    plan = BucketPlan.for_corpus(size, eval_fraction=0.001, num_shards=num_shards)
    buckets = Counter(plan.bucket_of(file_of(size), size // 4000 * step) for step in range(4000))
    trained = {bucket for bucket in plan.buckets() if bucket.split == "train"}
    assert trained <= buckets.keys() <= set(plan.buckets())
