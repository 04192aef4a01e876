"""Checks that the files of a data set match its manifest."""

import gzip
import hashlib
from collections.abc import Iterator
from typing import Any

from absl import logging

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.json_files import read_json
from pipeline.manifest import PLAN_NAME, DataSet, Shard
from pipeline.records import decode_instance, open_records, read_frames, record_of
from pipeline.storage import size_of

# To decode a record takes as long as to compare the checksums of 50. Training checks every value.
_RECORDS_PER_SAMPLE = 1_000


def verify(data_set: DataSet) -> Iterator[str]:
    """Reads every file, and yields a line with the file's name for each that differs.

    Checksums and counts are those of all records. Of each shard, the first record and one of every
    1,000 are also decoded, and compared with the lengths and the vocabulary.
    """
    for shard in data_set.manifest.shards:
        yield from verify_shard(data_set, shard)
    try:
        data_set.check_vocabulary()
    except UserError as error:
        yield str(error)
    try:
        read_json(data_set.directory / PLAN_NAME, dict[str, Any])
    except FileNotFoundError:
        pass  # a data set of an earlier build, or of another program
    except UserError as error:
        yield str(error)
    if data_set.manifest.is_adopted:
        return  # files that were not adopted are no part of the data set
    known = {shard.name for shard in data_set.manifest.shards}
    for path in sorted(data_set.directory.glob("*.tfrecord")):
        if path.name not in known:
            yield f"{path} is not in the manifest"


def verify_finished(data_set: DataSet, how: str, problem: str) -> None:
    """Verifies a data set that the same command has made before.

    Args:
      data_set: the data set.
      how: how it was made, for the log.
      problem: what is wrong with files that differ and what to do, for the error.

    Raises:
      UserError: a file differs; each is logged.
    """
    logging.info("%s was %s before: verifying its files", data_set.directory, how)
    differences = list(verify(data_set))
    for difference in differences:
        logging.error("%s", difference)
    if differences:
        raise UserError(f"{len(differences)} files of {data_set.directory} are {problem}")


def verify_shard(data_set: DataSet, shard: Shard) -> Iterator[str]:
    """Yields the most informative difference of a shard, if any."""
    path, features = data_set.path_of(shard), data_set.manifest.features_of(shard.split)
    if not path.is_file():
        yield f"{path} is missing"
        return
    if (size := size_of(path)) != shard.bytes:
        yield f"{path} has {size} bytes, not {shard.bytes}"
        return
    digest = hashlib.sha256()
    instances = 0
    try:
        with open_records(path) as file:
            is_compressed = isinstance(file, gzip.GzipFile)
            for frame in read_frames(file):
                digest.update(frame)
                if instances % _RECORDS_PER_SAMPLE == 0:
                    decode_instance(record_of(frame), features)
                instances += 1
    except (OSError, ValueError) as error:
        yield f"{path} is damaged: record {instances + 1}: {error}"
        return
    if instances != shard.instances:
        yield f"{path} has {instances} records, not {shard.instances}"
    elif (sha256_of(path) if is_compressed else digest.hexdigest()) != shard.sha256:
        yield f"{path} does not have the SHA-256 in the manifest"
