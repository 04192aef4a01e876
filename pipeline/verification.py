"""Checks that the files of a data set match its manifest."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import has_sha256
from pipeline.inspection import read_instances
from pipeline.manifest import DataSet, Shard
from pipeline.records import read_frames


def verify(data_set: DataSet) -> Iterator[str]:
    """Reads every file, and yields a line with the file's name for each that differs."""
    manifest = data_set.manifest
    for shard in manifest.shards:
        found = list(_verify_shard(data_set.path_of(shard), shard))
        yield from found or _verify_first_record(data_set, shard)
    known = {shard.name for shard in manifest.shards}
    for path in sorted(data_set.directory.glob("*.tfrecord")):
        if path.name not in known:
            yield f"{path} is not in the manifest"
    vocabulary = data_set.vocabulary
    if not vocabulary.exists():
        yield f"{vocabulary} is missing"
    elif not has_sha256(vocabulary, manifest.vocab_sha256):
        yield f"{vocabulary} is not the vocabulary that made this data set"


def _verify_shard(path: Path, shard: Shard) -> Iterator[str]:
    """Yields the most informative difference of a shard, if any."""
    if not path.exists():
        yield f"{path} is missing"
        return
    if path.stat().st_size != shard.bytes:
        yield f"{path} has {path.stat().st_size} bytes, not {shard.bytes}"
        return
    digest = hashlib.sha256()
    instances = 0
    try:
        with path.open("rb") as file:
            for framed in read_frames(file):
                digest.update(framed)
                instances += 1
    except ValueError as error:
        yield f"{path} is damaged: record {instances}: {error}"
        return
    if instances != shard.instances:
        yield f"{path} has {instances} records, not {shard.instances}"
    elif digest.hexdigest() != shard.sha256:
        yield f"{path} does not have the SHA-256 in the manifest"


def _verify_first_record(data_set: DataSet, shard: Shard) -> Iterator[str]:
    """Yields how the first record differs from what the manifest says of all records, if at all.

    One is enough: the checksums are right, so whoever wrote the manifest wrote all of them.
    """
    try:
        next(read_instances(data_set, shard), None)
    except UserError as error:
        yield str(error)
