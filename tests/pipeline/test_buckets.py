from collections import Counter
from dataclasses import replace

import pytest

from pipeline.buckets import Bucket, BucketPlan
from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.inputs import InputFile, InputFormat

GIB = 1 << 30
REGION = 64 << 20


def file_of(size, name="corpus.txt", corpus_offset=0):
    return InputFile(f"/data/{name}", name, size, 0, InputFormat.TEXT, corpus_offset)


def bucket_of(plan, file, offset, position=None):
    """The bucket of the document with this offset, located at the byte `position`."""
    position = offset if position is None else position
    return plan.bucket_of(file, Document(file.name, offset, position, ["One."]))


def test_the_number_of_buckets_follows_the_corpus_or_the_option():
    assert BucketPlan.for_corpus(1).buckets() == [Bucket("train", 0)]
    assert BucketPlan.for_corpus(GIB).num_train_buckets == 64
    assert BucketPlan.for_corpus(GIB).num_eval_buckets == 0
    with_eval = BucketPlan.for_corpus(GIB, eval_fraction=0.25)
    assert (with_eval.num_train_buckets, with_eval.num_eval_buckets) == (48, 16)
    as_asked = BucketPlan.for_corpus(GIB, eval_fraction=1e-9, num_shards=2)
    assert as_asked.buckets() == [Bucket("train", 0), Bucket("train", 1), Bucket("eval", 0)]


def test_documents_spread_evenly_over_the_buckets_of_a_small_corpus():
    plan = BucketPlan.for_corpus(GIB, num_shards=8)
    counts = Counter(bucket_of(plan, file_of(GIB), offset) for offset in range(8000))
    assert counts.keys() == set(plan.buckets())
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_rows_of_a_row_group_spread_over_the_buckets_too():
    """All rows of a row group have the byte position of the group."""
    plan = BucketPlan.for_corpus(GIB, num_shards=8)
    counts = Counter(bucket_of(plan, file_of(GIB), row, position=12345) for row in range(8000))
    assert counts.keys() == set(plan.buckets())
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_the_share_of_eval_documents_matches_the_option():
    plan = BucketPlan.for_corpus(GIB, eval_fraction=0.2, num_shards=3)
    splits = Counter(bucket_of(plan, file_of(GIB), offset).split for offset in range(10_000))
    assert splits["eval"] == pytest.approx(2000, abs=200)
    none = BucketPlan.for_corpus(GIB)
    assert {bucket_of(none, file_of(GIB), offset).split for offset in range(1000)} == {"train"}


def test_a_document_stays_in_its_split_when_corpus_and_shards_change():
    offsets = range(0, 10_000, 10)
    plans = [
        (BucketPlan.for_corpus(100_000, 0.3, 4), file_of(100_000)),
        (BucketPlan.for_corpus(100_000, 0.3, 9), file_of(100_000)),
        (BucketPlan.for_corpus(20 * GIB, 0.3), file_of(20 * GIB, corpus_offset=7 * GIB)),
    ]
    first, *others = (
        [bucket_of(plan, file, offset).split for offset in offsets] for plan, file in plans
    )
    assert "eval" in first
    assert all(splits == first for splits in others)


def test_the_text_of_a_document_does_not_affect_its_bucket():
    plan, file = BucketPlan.for_corpus(GIB, 0.3, 9), file_of(GIB)
    for offset in range(100):
        document = Document(file.name, offset, offset, ["Another", "text."])
        assert plan.bucket_of(file, document) == bucket_of(plan, file, offset)


def test_buckets_do_not_depend_on_the_process_or_the_release():
    plan = BucketPlan.for_corpus(GIB, eval_fraction=0.3, num_shards=10)
    file = file_of(GIB, "wiki/Ä.txt")
    buckets = [bucket_of(plan, file, 1000 * number) for number in range(12)]
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
            bucket_of(plan, file, start + (REGION - 1) * step // 39).index for step in range(40)
        ]
        # 100 GiB hold 25 times 64 regions of 64 MiB, so the 6400 buckets form 25 groups of 256.
        (group,) = {index // 256 for index in indices}
        groups.add(group)
        assert len(set(indices)) > 30
    assert groups == set(range(25))


def test_regions_are_counted_across_all_files():
    plan = BucketPlan.for_corpus(100 * GIB)
    first, second = file_of(GIB, "a"), file_of(GIB, "b", corpus_offset=REGION * 3)
    in_first = {bucket_of(plan, first, REGION * 3 + step).index // 256 for step in range(50)}
    in_second = {bucket_of(plan, second, step).index // 256 for step in range(50)}
    assert in_first == in_second
    assert len(in_first) == 1


def test_rows_belong_to_the_region_of_their_byte_position():
    plan = BucketPlan.for_corpus(100 * GIB)
    file = file_of(100 * GIB)
    for position in (0, 5 * REGION, 99 * GIB):
        by_offset = bucket_of(plan, file, position).index // 256
        rows = {bucket_of(plan, file, row, position).index // 256 for row in range(50)}
        assert rows == {by_offset}


@pytest.mark.parametrize("num_shards", [1, 3, 26])
def test_a_large_corpus_uses_all_of_a_few_buckets(num_shards):
    size = 100 * GIB
    plan = BucketPlan(size, eval_fraction=0.001, num_train_buckets=num_shards)
    buckets = Counter(bucket_of(plan, file_of(size), size // 4000 * step) for step in range(4000))
    trained = {bucket for bucket in plan.buckets() if bucket.split == "train"}
    assert trained <= buckets.keys() <= set(plan.buckets())


def test_buckets_that_would_not_fit_in_memory_are_refused():
    assert BucketPlan.for_corpus(100 * GIB, num_shards=200).num_train_buckets == 200
    with pytest.raises(UserError, match=r"--num_shards=199 .* at least 200"):
        BucketPlan.for_corpus(100 * GIB, num_shards=199)


def test_eval_documents_of_each_corpus_have_buckets_of_their_own():
    sizes = {"a": 100 * GIB, "b": 1000, "c": 40 * GIB}
    plan = BucketPlan.for_corpus(sum(sizes.values()), 0.01, 9000, tuple(sizes.items()))
    ranges = plan.eval_buckets
    assert [len(ranges[name]) for name in sizes] == [64, 1, 26]
    assert [index for name in sizes for index in ranges[name]] == list(range(91))
    assert plan.num_eval_buckets == 91
    offset = 0
    for name, size in sizes.items():
        file = replace(file_of(size, f"{name}/x", offset), corpus=name)
        found = {bucket_of(plan, file, size * step // 997) for step in range(997)}
        indices = {bucket.index for bucket in found if bucket.split == "eval"}
        assert indices <= set(ranges[name])
        assert indices or name == "b"
        trained = {bucket.index for bucket in found if bucket.split == "train"}
        assert max(trained) > 91
        offset += size
