import hashlib
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from pipeline.buckets import Bucket, BucketPlan
from pipeline.corpus import (
    RowGroup,
    read_documents_of_bucket,
    tokenize_documents,
    write_documents,
)
from pipeline.inputs import match_files
from pipeline.options import InstanceOptions
from pipeline.portions import plan_portions
from pipeline.shards import ShardPlan, build_shard, plan_shards
from pipeline.tokenization import FullTokenizer

OPTIONS = InstanceOptions(max_seq_length=64, max_predictions_per_seq=10)
PLAN = ShardPlan(Bucket("train", 0), 0, "train-00000-of-00001.tfrecord")


@pytest.fixture(scope="module")
def sample(data_samples, tmp_path_factory, documents_of):
    """The documents of a sample, as one bucket, and its vocabulary."""

    def tokenize(name):
        tokenizer = FullTokenizer(data_samples / f"{name}_vocab.txt")
        portions = plan_portions(match_files([f"{data_samples}/{name}.txt"]))
        documents = tokenize_documents(documents_of(portions), tokenizer, Counter())
        path = tmp_path_factory.mktemp(name) / "split.parquet"
        write_documents(path, [{PLAN.bucket: documents}])
        vocabulary = tokenizer.vocabulary
        return read_documents_of_bucket([RowGroup(path, 0)], vocabulary.id_dtype), vocabulary

    return tokenize


@pytest.fixture(scope="module")
def english(sample):
    return sample("english")


@pytest.fixture
def build(tmp_path):
    def build_sample(documents_and_vocabulary, plan=PLAN, options=OPTIONS):
        path = tmp_path / plan.name
        return build_shard(plan, *documents_and_vocabulary, options, path), path

    return build_sample


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("english", "001f56646b3932daa95c35d38592c3e6a9405ed84b761f98fa5dc5ccb90fd31d"),
        ("chinese", "a730aca02d312925971c8cb3fe76bf14b7cd8514fc6256f811e557f7aa502167"),
    ],
)
def test_bytes_of_a_shard_never_change(name, sha256, sample, build):
    """Holds tokens, draws and record format; only a release that says so may change them."""
    results, _ = build(sample(name))
    assert results.shard.sha256 == sha256


def features_of(path):
    """The values of each feature of the records, by name: lists of int or float."""
    found = {}
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        for name, feature in tf.train.Example.FromString(record).features.feature.items():
            values = feature.int64_list.value or feature.float_list.value
            found.setdefault(name, []).append(list(values))
    return found


def test_a_shard_says_what_is_in_its_file(english, build):
    results, path = build(english)
    shard, content = results.shard, path.read_bytes()
    assert (shard.name, shard.split, shard.pass_index) == (PLAN.name, "train", 0)
    assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    masks = features_of(path)["input_mask"]
    assert shard.instances == results.counts["instances"] == len(masks) > 100
    assert shard.tokens == results.counts["tokens"] == sum(map(sum, masks))
    assert shard.documents == results.counts["documents"] == len(english[0].document_ends)


def test_the_results_count_lengths_and_masked_tokens_of_the_file(english, build):
    results, path = build(english)
    features = features_of(path)
    assert results.lengths == Counter(map(sum, features["input_mask"]))
    vocabulary = english[1]
    masked = Counter(
        vocabulary.tokens[label]
        for labels, weights in zip(
            features["masked_lm_ids"], features["masked_lm_weights"], strict=True
        )
        for label, weight in zip(labels, weights, strict=True)
        if weight
    )
    assert sum(masked.values()) == results.counts["masked"]
    assert len(masked) > len(results.masked_tokens) == 100
    assert results.masked_tokens.items() <= masked.items()
    assert sorted(results.masked_tokens.values()) == sorted(masked.values())[-100:]


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        (ShardPlan(Bucket("train", 0), 1, PLAN.name), OPTIONS),
        (ShardPlan(Bucket("train", 1), 0, PLAN.name), OPTIONS),
        (ShardPlan(Bucket("eval", 0), 0, PLAN.name), OPTIONS),
        (PLAN, InstanceOptions(max_seq_length=64, max_predictions_per_seq=10, random_seed=1)),
    ],
    ids=["pass", "bucket", "split", "seed"],
)
def test_every_pass_bucket_split_and_seed_has_draws_of_its_own(plan, options, english, build):
    original, path = build(english)
    original_records = set(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    other, path = build(english, plan, options)
    assert other.shard.sha256 != original.shard.sha256
    records = set(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert len(records & original_records) < len(records) // 20


def test_the_name_of_a_shard_does_not_matter(english, build):
    renamed, _ = build(english, ShardPlan(PLAN.bucket, PLAN.pass_index, "other.tfrecord"))
    assert renamed.shard.sha256 == build(english)[0].shard.sha256


def test_a_bucket_without_documents_is_an_empty_shard(english, build):
    documents = read_documents_of_bucket([], np.dtype(np.uint16))
    results, path = build((documents, english[1]))
    shard = results.shard
    assert (shard.documents, shard.instances, shard.tokens, shard.bytes) == (0, 0, 0, 0)
    assert results.lengths == results.masked_tokens == Counter()
    assert path.read_bytes() == b""


def test_shards_are_the_train_passes_one_after_the_other_and_one_pass_of_eval():
    plans = plan_shards(BucketPlan(1 << 20, 0.1, 3), dupe_factor=2)
    assert [
        (plan.name, plan.bucket.split, plan.bucket.index, plan.pass_index) for plan in plans
    ] == [
        ("train-00000-of-00006.tfrecord", "train", 0, 0),
        ("train-00001-of-00006.tfrecord", "train", 1, 0),
        ("train-00002-of-00006.tfrecord", "train", 2, 0),
        ("train-00003-of-00006.tfrecord", "train", 0, 1),
        ("train-00004-of-00006.tfrecord", "train", 1, 1),
        ("train-00005-of-00006.tfrecord", "train", 2, 1),
        ("eval-00000-of-00001.tfrecord", "eval", 0, 0),
    ]


def test_without_eval_documents_there_is_no_eval_shard():
    (plan,) = plan_shards(BucketPlan(1 << 20, 0.0, 1), dupe_factor=1)
    assert plan == PLAN
