"""The stages one by one, without an engine; `test_generate.py` runs them all."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline.stages
from pipeline.buckets import BucketPlan
from pipeline.corpus import RowGroup, read_documents_of_bucket
from pipeline.directories import Directories
from pipeline.duplicate_stages import stages_of_duplicates
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.inputs import match_files
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.portions import plan_portions
from pipeline.receipts import PortionReceipt, read_receipt
from pipeline.shards import plan_shards
from pipeline.stages import BuildShard, TokenizePortion, Work
from pipeline.statistics import ShardResults

NUM_DOCUMENTS = 20


@pytest.fixture
def options(tmp_path, write_vocabulary):
    """A corpus whose documents differ in one word; document 3 occurs twice."""
    words = [*(f"w{number}" for number in range(NUM_DOCUMENTS)), "w3"]
    lines = (json.dumps({"text": f"{word} {word}\n{word}\n{word}"}) + "\n" for word in words)
    (tmp_path / "corpus.jsonl").write_text("".join(lines) + '{"text": "\\u200b"}\n')
    return GenerateOptions(
        [f"{tmp_path}/corpus.jsonl"],
        write_vocabulary(*words[:-1]),
        tmp_path / "data",
        instances=InstanceOptions(max_seq_length=16, max_predictions_per_seq=2),
    )


@pytest.fixture
def directories(options):
    directories = Directories(options.output_dir)
    directories.prepare(options.vocab_file.read_bytes(), {}, {}, overwrite=False)
    return directories


@pytest.fixture
def tokenize(options, directories):
    """Tokenizes the corpus in so many buckets and gives what the step yields, in one split."""

    def run(num_buckets=2, eval_fraction=0.0, portion_bytes=1 << 30, **changes):
        files = match_files(options.input_patterns)
        portions = plan_portions(files, portion_bytes)
        plan = BucketPlan.for_corpus(1000, eval_fraction, num_buckets)
        stage = TokenizePortion(Work(replace(options, **changes), portions, plan, [], directories))
        stage.load()
        return [found for portion in enumerate(portions) for found in stage.process(portion)]

    return run


def documents_of_buckets(found):
    """The words of the documents of each bucket, in order."""
    row_groups = {}
    for bucket, row_group in found:
        row_groups.setdefault(bucket, []).append(row_group)
    words = {}
    for bucket, members in row_groups.items():
        batch = read_documents_of_bucket(members, np.dtype(np.uint16))
        first_tokens = [0, *batch.sentence_ends[batch.document_ends - 1][:-1].tolist()]
        words[bucket] = (batch.ids[first_tokens] - 5).tolist()
    return words


def with_duplicates(directories):
    """The same places for a corpus whose duplicates are looked for."""
    return Directories(directories.output, duplicates_name=directories.duplicates.name)


def never(*_):
    raise AssertionError("made again")


def test_every_document_is_in_one_bucket(tokenize, directories):
    found = tokenize(num_buckets=3, eval_fraction=0.3)
    words = documents_of_buckets(found)
    assert words.keys() == {("train", 0), ("train", 1), ("train", 2), ("eval", 0)}
    assert sorted(chain(*words.values())) == sorted([*range(NUM_DOCUMENTS), 3])
    statistics = read_receipt(directories.tokenized_file(0), PortionReceipt).statistics
    assert statistics["documents_read"] == NUM_DOCUMENTS + 2
    assert statistics["documents_without_tokens"] == 1
    assert statistics["tokens"] == 4 * (NUM_DOCUMENTS + 1)


def test_the_receipt_says_what_was_made(tokenize, directories, options):
    found = tokenize()
    receipt = read_receipt(directories.tokenized_file(0), PortionReceipt)
    path = directories.tokenized_file(0)
    assert receipt.buckets == [bucket for bucket, _ in found]
    assert receipt.sha256 == sha256_of(path)
    (file,) = match_files(options.input_patterns)
    assert receipt.text_bytes == file.text_bytes
    assert [row_group for _, row_group in found] == [
        RowGroup(path, number) for number in range(len(found))
    ]


def test_a_file_of_documents_appears_only_when_complete(tokenize, directories, monkeypatch):
    def dies(*_):
        assert not directories.tokenized_file(0).exists()
        raise ValueError("on fire")

    monkeypatch.setattr(pipeline.stages, "tokenize_documents", dies)
    with pytest.raises(ValueError, match="on fire"):
        tokenize()
    assert list(directories.tokenized.glob("*.parquet*")) == []


@pytest.mark.parametrize("batch_characters", [0, 20, 1 << 20])
def test_batches_of_a_split_do_not_matter(batch_characters, tokenize, directories, monkeypatch):
    expected = documents_of_buckets(tokenize())
    statistics = read_receipt(directories.tokenized_file(0), PortionReceipt).statistics
    directories.tokenized_file(0).unlink()
    monkeypatch.setattr("pipeline.stages._BATCH_CHARACTERS", batch_characters)
    found = tokenize()
    assert documents_of_buckets(found) == expected
    assert read_receipt(directories.tokenized_file(0), PortionReceipt).statistics == statistics
    num_row_groups = pq.ParquetFile(directories.tokenized_file(0)).num_row_groups
    assert num_row_groups == len(found)
    assert (len(found) > 2) == (batch_characters < 1 << 20)


def test_no_batch_is_much_longer_than_it_may_be(tokenize, monkeypatch):
    monkeypatch.setattr("pipeline.stages._BATCH_CHARACTERS", 30)
    tokens = Counter()
    for _, row_group in tokenize(num_buckets=1):
        table = pq.ParquetFile(row_group.path).read_row_group(row_group.index)
        tokens[row_group.index] += table.num_rows
    # Every document has 8 to 12 characters.
    assert set(tokens.values()) <= {1, 2, 3, 4}
    assert max(tokens.values()) > 1


def test_what_is_tokenized_is_not_tokenized_again(tokenize, monkeypatch):
    found = tokenize(portion_bytes=100)
    monkeypatch.setattr(pipeline.stages, "read_raw_documents", never)
    assert tokenize(portion_bytes=100) == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.with_name(path.name + ".json").unlink(),
    ],
    ids=["missing", "cut off", "no receipt"],
)
def test_what_is_damaged_is_tokenized_again(damage, tokenize, directories):
    found = tokenize()
    content = directories.tokenized_file(0).read_bytes()
    damage(directories.tokenized_file(0))
    assert tokenize() == found
    assert directories.tokenized_file(0).read_bytes() == content


def test_text_that_cannot_be_read_leaves_no_receipt(tokenize, options, directories):
    with Path(options.input_patterns[0]).open("a") as file:
        file.write("[")
    with pytest.raises(UserError, match="line 23"):
        tokenize()
    assert read_receipt(directories.tokenized_file(0), PortionReceipt) is None
    assert not directories.tokenized_file(0).exists()


@pytest.fixture
def find_duplicates(options, directories):
    """Finds the duplicates of the corpus, tokenized in portions of a few documents."""

    def run(portion_bytes):
        portions = plan_portions(match_files(options.input_patterns), portion_bytes)
        assert len(portions) == 3
        wanted = replace(options, drop_duplicates=True)
        plan = BucketPlan.for_corpus(1000, 0.0, 1)
        directories.duplicates.mkdir()
        places = with_duplicates(directories)
        for stage, items in stages_of_duplicates(Work(wanted, portions, plan, [], places)):
            stage.load()
            for item in items:
                assert list(stage.process(item))

    return run


@pytest.fixture
def build(options, directories):
    """Builds the only shard of what was tokenized."""

    def run(found, drop_duplicates=False):
        buckets = BucketPlan.for_corpus(1000, 0.0, 1)
        (plan,) = plan_shards(buckets, dupe_factor=1)
        places = with_duplicates(directories) if drop_duplicates else directories
        stage = BuildShard(Work(options, [], buckets, [plan], places))
        stage.load()
        assert list(stage.process((plan, [row_group for _, row_group in found]))) == [plan.name]
        path = directories.output / plan.name
        return read_receipt(directories.receipts / plan.name, ShardResults), path

    return run


def test_a_shard_has_the_documents_of_its_bucket_but_the_duplicates(
    tokenize, find_duplicates, build
):
    found = tokenize(num_buckets=1, portion_bytes=200)
    find_duplicates(portion_bytes=200)
    receipt, path = build(found, drop_duplicates=True)
    assert receipt.shard.documents == NUM_DOCUMENTS
    assert receipt.shard.bytes == path.stat().st_size
    path.unlink()
    receipt, _ = build(found)
    assert receipt.shard.documents == NUM_DOCUMENTS + 1


def test_a_shard_that_is_whole_is_not_built_again(tokenize, build, monkeypatch):
    found = tokenize(num_buckets=1)
    receipt, path = build(found)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    assert build(found) == (receipt, path)
    assert path.read_bytes() == content
    monkeypatch.setattr(pipeline.stages, "build_shard", never)
    assert build(found) == (receipt, path)


@pytest.mark.parametrize("name", ["NumPy", "build of Clozemill", "Unicode of Python"])
def test_a_worker_with_other_versions_is_refused(name, options, directories, monkeypatch):
    (file,) = match_files(options.input_patterns)
    buckets = BucketPlan.for_corpus(file.text_bytes, 0.0, 1)
    stage = BuildShard(Work(options, [], buckets, [], directories))
    stage.load()
    others = pipeline.stages.versions() | {name: "0.1"}
    monkeypatch.setattr(pipeline.stages, "versions", lambda: others)
    with pytest.raises(UserError, match=rf"has another {name} \(0.1\) than the driver"):
        stage.load()


def test_a_stage_is_loaded_once_in_a_process_and_then_forgotten(options, directories, monkeypatch):
    monkeypatch.setattr(pipeline.stages, "_loaded", None)
    work = Work(options, [], BucketPlan.for_corpus(1000, 0.0, 1), [], directories)
    first = pipeline.stages.loaded(BuildShard(work))
    assert pipeline.stages.loaded(pickle.loads(pickle.dumps(BuildShard(work)))) is first
    seen = []
    monkeypatch.setattr(TokenizePortion, "load", lambda _: seen.append(pipeline.stages._loaded))
    assert isinstance(pipeline.stages.loaded(TokenizePortion(work)), TokenizePortion)
    assert seen == [None]
    assert pipeline.stages.loaded(BuildShard(work)) is not first
