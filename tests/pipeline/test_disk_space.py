from collections import namedtuple
from dataclasses import replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import disk_space
from pipeline.directories import Directories
from pipeline.disk_space import ExpectedSize, check_disk_space
from pipeline.errors import UserError
from pipeline.generate import generate

Usage = namedtuple("Usage", "free")


@pytest.fixture
def set_free(monkeypatch):
    """Sets the free space of all disks."""

    def set_bytes(free):
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: Usage(free))

    return set_bytes


def test_the_expected_size_is_about_the_real_one(options, tmp_path, monkeypatch):
    expected = []
    monkeypatch.setattr("pipeline.generate.check_disk_space", lambda size, _: expected.append(size))
    manifest = generate(replace(options, tokenized_dir=tmp_path / "kept"), PipelineOptions([]))
    (size,) = expected
    assert size.shards == pytest.approx(sum(shard.bytes for shard in manifest.shards), rel=0.2)
    (file,) = (tmp_path / "kept").glob("*.parquet")
    # Most of this small file is not tokens but a head for each of its row groups.
    assert 0.2 * file.stat().st_size < size.tokenized < 1.2 * file.stat().st_size


def test_a_disk_that_is_too_small_is_an_error_before_any_work(options, set_free):
    set_free(1000)
    with pytest.raises(UserError, match=r"1\.0 kB left, but about .* kB more are needed"):
        generate(options, PipelineOptions([]))
    assert not list(options.output_dir.rglob("*.tfrecord"))
    set_free(10**9)
    assert generate(options, PipelineOptions([]))


def test_what_is_there_already_needs_no_space(tmp_path, set_free):
    directories = Directories(tmp_path / "data", tmp_path / "tokenized")
    set_free(999)
    check_disk_space(ExpectedSize(tokenized=500, shards=499), directories)
    with pytest.raises(UserError, match="needed"):
        check_disk_space(ExpectedSize(tokenized=500, shards=500), directories)
    for directory, name in (
        (directories.output, "train-0-of-2.tfrecord"),
        (directories.tokenized, "split-00000.parquet"),
    ):
        directory.mkdir()
        (directory / name).write_bytes(b"x" * 300)
    check_disk_space(ExpectedSize(tokenized=200, shards=1299), directories)
    with pytest.raises(UserError, match="needed"):
        check_disk_space(ExpectedSize(tokenized=200, shards=1300), directories)
