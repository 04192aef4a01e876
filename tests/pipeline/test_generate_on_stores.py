"""`generate` to a store gives what it gives on a disk, whatever happens on the way."""

import logging
import re
from collections import Counter
from dataclasses import replace

import boto3
import pytest

from pipeline.directories import Directories
from pipeline.errors import UserError
from pipeline.files import locked_directory
from pipeline.generate import generate
from pipeline.mixtures import Corpus, Mixture
from tests.object_store import CUT

BUSY = 503


@pytest.fixture(autouse=True)
def _forgets_hooks(server):
    yield
    server.reset()


@pytest.fixture
def stored(corpus, bucket):
    """The options of `corpus`, with an output directory on the store."""
    return replace(corpus, output_dir=bucket / "data")


def contents_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_equal_files(options, expected):
    assert contents_of(options.output_dir) == contents_of(expected)


def test_a_store_gets_the_files_of_a_disk_and_nothing_else(stored, data_set, bucket, server):
    generate(stored)
    assert_equal_files(stored, data_set[0])
    assert {path.parent for path in bucket.rglob("*")} == {bucket / "data"}
    server.reset()
    generate(stored)  # is finished, so it is only verified
    sent = [path for method, path in server.requests if method == "PUT"]
    assert {path.rpartition("/")[2] for path in sent} == {".clozemill.lock"}
    assert_equal_files(stored, data_set[0])


def test_each_file_is_sent_once_and_takes_few_requests(stored, server):
    manifest = generate(stored)
    counts = Counter()
    for method, path in server.requests:
        name = path.rpartition("/")[2]
        counts[method, re.sub(r"\d+", "#", name)] += 1
    shards, buckets = len(manifest.shards), 4
    assert counts["PUT", "split-#.parquet"] == counts["PUT", "split-#.parquet.json"] == 1
    assert counts["GET", "split-#.parquet.json"] == 2  # is it finished, and its counts
    # Each worker reads each bucket once, however many passes there are.
    assert counts["HEAD", "split-#.parquet"] == buckets
    assert counts["GET", "split-#.parquet"] == 2 * buckets
    names = ("train-#-of-#.tfrecord", "eval-#-of-#.tfrecord")
    for kind, number in (("", 1), (".json", 1)):
        assert sum(counts["PUT", f"{name}{kind}"] for name in names) == number * shards
    assert sum(counts["GET", f"{name}.json"] for name in names) == 2 * shards


@pytest.mark.parametrize(
    ("keeps_tokenized", "keeps_output"), [(True, False), (False, True), (False, False)]
)
def test_each_directory_may_be_on_a_store_or_on_a_disk(
    keeps_tokenized, keeps_output, corpus, bucket, tmp_path, data_set
):
    options = replace(
        corpus,
        output_dir=(tmp_path if keeps_output else bucket) / "data",
        tokenized_dir=(tmp_path if keeps_tokenized else bucket) / "tokenized",
    )
    generate(options)
    assert_equal_files(options, data_set[0])
    other = replace(options, output_dir=bucket / "other")
    again = generate(other)
    assert again.shards == data_set[1].shards


def test_busy_answers_and_cut_connections_change_no_byte(stored, data_set, server):
    faults = iter([BUSY, CUT, 429, CUT, 500, BUSY])

    def fail(number, *_):
        return next(faults, None) if number % 9 == 4 else None

    server.before = fail
    generate(stored)
    assert next(faults, None) is None
    assert_equal_files(stored, data_set[0])


def test_what_a_server_does_before_it_cuts_the_connection_does_no_harm(stored, data_set, server):
    """Its answer is lost, so the same request comes again."""
    faults = iter([CUT] * 6)
    server.after = lambda number, *_: next(faults, None) if number % 11 == 6 else None
    generate(stored)
    assert next(faults, None) is None
    assert_equal_files(stored, data_set[0])


def test_a_damaged_object_is_noticed_and_made_again(
    stored, data_set, fail_at_call, monkeypatch, caplog, server
):
    with monkeypatch.context() as patch:
        fail_at_call(5, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):
            generate(stored)
    directories = Directories(stored.output_dir)
    shards = sorted(path for path in stored.output_dir.iterdir() if path.suffix == ".tfrecord")
    assert len(shards) == 4
    tokenized = directories.tokenized_file(0)
    for file in (shards[0], tokenized):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.upload(bytes(content))
    shards[1].unlink()
    server.reset()
    with caplog.at_level(logging.WARNING):
        generate(stored)
    for file in (shards[0], shards[1], tokenized):
        assert f"{file} or its receipt is damaged: it is made again" in caplog.text
    sent = [path.rpartition("/")[2] for method, path in server.requests if method == "PUT"]
    assert not {shards[2].name, shards[3].name} & set(sent)
    assert_equal_files(stored, data_set[0])


def test_uploads_of_workers_that_were_killed_are_aborted(
    stored, fail_at_call, monkeypatch, caplog, server
):
    with monkeypatch.context() as patch:
        fail_at_call(2, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):  # but the run itself has ended well
            generate(stored)
    bucket = stored.output_dir.root.removeprefix("s3://")
    client = boto3.client("s3", endpoint_url=server.environment["AWS_ENDPOINT_URL"])
    client.create_multipart_upload(Bucket=bucket, Key="data/train-00001-of-00008.tfrecord")
    with caplog.at_level(logging.WARNING):
        generate(stored)
    assert "aborted an unfinished upload" in caplog.text
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


def test_overwrite_replaces_a_data_set_on_a_store(stored, data_set):
    generate(replace(stored, num_shards=4))
    with pytest.raises(UserError, match="already holds a data set, made with"):
        generate(stored)
    generate(replace(stored, overwrite=True))
    assert_equal_files(stored, data_set[0])


def test_a_second_run_in_a_folder_is_one_line(stored):
    with (
        locked_directory(stored.output_dir),
        pytest.raises(UserError, match=rf"{stored.output_dir} is in use by a run on \S+ since"),
    ):
        generate(stored)


def test_an_object_is_no_output_directory(stored, bucket):
    stored.output_dir.upload(b"mine")
    with pytest.raises(UserError, match=f"cannot write to {stored.output_dir}: it is an object"):
        generate(stored)
    assert contents_of(bucket) == {"data": b"mine"}
    stored.output_dir.upload(b"")  # as some programs mark a folder
    generate(stored)


def test_other_objects_are_left_alone(stored):
    (stored.output_dir / "notes.txt").upload(b"mine")
    with pytest.raises(UserError, match=f"{stored.output_dir} holds files that are not a data set"):
        generate(replace(stored, overwrite=True))
    assert contents_of(stored.output_dir) == {"notes.txt": b"mine"}


def test_a_mixture_on_a_store_has_the_shards_of_a_disk(corpus, bucket, tmp_path):
    corpora = [
        Corpus(name, [pattern], weight=weight)
        for name, pattern, weight in zip("ab", corpus.input_patterns, (1, 3), strict=True)
    ]
    mixed = replace(corpus, input_patterns=[], mixture=Mixture(tuple(corpora)))
    manifests = [
        generate(replace(mixed, output_dir=output_dir))
        for output_dir in (tmp_path / "data", bucket / "data")
    ]
    assert manifests[0] == manifests[1]
    assert {path.parent for path in bucket.rglob("*")} == {bucket / "data"}
