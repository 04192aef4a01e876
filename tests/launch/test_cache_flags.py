"""Where the cache of shards is, and how large it may be."""

from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from launch import cache_flags
from pipeline.errors import UserError


@pytest.fixture
def cache_of(monkeypatch):
    """A function that makes the cache of the flags, and gives its directory and size."""
    made = []
    monkeypatch.setattr(cache_flags, "ShardCache", lambda *arguments: made.append(arguments))
    flags.FLAGS.mark_as_parsed()  # parsing would ask for the flags of all verbs

    def make(**values):
        with flagsaver.flagsaver(**values):
            cache_flags.shard_cache()
        return made[-1]

    return make


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1500", 1500), ("2kB", 2000), ("3MB", 3 * 10**6), ("200GB", 200 * 10**9)],
)
def test_sizes_have_units(cache_of, text, size):
    assert cache_of(cache_size=text, cache_dir="here") == (Path("here"), size)


@pytest.mark.parametrize(
    "text", ["", "0", "0GB", "-1", "1.5GB", "200 GB", "GB", "1PB", "٣", "9" * 99]
)
def test_other_sizes_are_wrong_flags(cache_of, text):
    with pytest.raises(flags.Error, match="200GB"):
        cache_of(cache_size=text)


def test_by_default_the_cache_is_the_users(cache_of, monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_of() == (Path("/home/her/.cache/clozemill"), None)
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_of() == (Path("/scratch/clozemill"), None)


def test_a_cache_on_a_store_is_refused(cache_of):
    with pytest.raises(UserError, match="--cache_dir=s3://bucket/cache must be a directory"):
        cache_of(cache_dir="s3://bucket/cache")
