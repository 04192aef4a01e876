"""Shards to batches: a dict of arrays with the seven names of `pipeline.records`.

Training reads the data set pass by pass, for ever. A pass's shards are put in random order and taken
in groups; the records of a group are interleaved and shuffled, and a group ends before the next one
begins. So the place of any instance in the order follows from the seed and the manifest's counts, and
training goes on in the middle of a pass after reading a part of one group.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.manifest import Manifest, Shard
from pipeline.records import decode_example, instance_features, read_frames, record_of

_SHARDS_PER_GROUP = 8
_SHUFFLE_BUFFER_RECORDS = 10_000

if keras.config.backend() != "tensorflow":
    # TensorFlow only reads; it would take the memory of GPUs from the backend that computes.
    tf.config.set_visible_devices([], "GPU")

ShardGroup = tuple[list[str], int, int]
"""Paths of shards that are shuffled together, the seed for it, and how many records to skip."""


def training_batches(
    data_dir: Path, manifest: Manifest, batch_size: int, seed: int, first_instance: int = 0
) -> tf.data.Dataset:
    """Endless batches of the train shards, in an order that `seed` decides.

    Args:
      data_dir: the data set.
      manifest: that of the data set.
      batch_size: B, instances of every batch.
      seed: of the order.
      first_instance: how many instances to leave out because training has seen them.

    Raises:
      UserError: the data set has no training instance, or a shard is missing or cut off.
    """
    shards = manifest.shards_of("train")
    if not any(shard.instances for shard in shards):
        raise UserError(f"the data set {data_dir} has no training instance; generate it again")
    _check_sizes(data_dir, shards)
    groups = tf.data.Dataset.from_generator(
        lambda: shard_groups(data_dir, shards, seed, first_instance),
        output_signature=(
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([], tf.int64),
        ),
    )
    records = groups.flat_map(_shuffled_records)
    return _parsed_batches(records, manifest, batch_size, drop_remainder=True)


def evaluation_batches(data_dir: Path, manifest: Manifest, batch_size: int) -> tf.data.Dataset:
    """All instances of the eval shards once, as `batches_in_order`.

    Raises:
      UserError: the data set has no eval instance.
    """
    shards = [shard for shard in manifest.shards_of("eval") if shard.instances]
    if not shards:
        raise UserError(
            f"the data set {data_dir} has no eval instance: generate it with --eval_fraction, "
            "0.01 for example"
        )
    return batches_in_order(data_dir, shards, manifest, batch_size)


def batches_in_order(
    data_dir: Path, shards: list[Shard], manifest: Manifest, batch_size: int
) -> tf.data.Dataset:
    """All instances of some shards once, in the order of the files; the last batch may be smaller."""
    _check_sizes(data_dir, shards)
    records = tf.data.TFRecordDataset([str(data_dir / shard.name) for shard in shards])
    return _parsed_batches(records, manifest, batch_size, drop_remainder=False)


def readable(
    batches: tf.data.Dataset, data_dir: Path, manifest: Manifest
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a data set as NumPy arrays.

    Raises:
      UserError: a shard cannot be read; its file and record are named.
    """
    try:
        yield from batches.as_numpy_iterator()
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        # The second, where TensorFlow's message quotes a record.
        reason = _damage_in(data_dir, manifest) or str(error).partition("\n")[0]
        raise UserError(
            f"cannot read the data set {data_dir}: {reason}; generate it again"
        ) from error


def shards_of_instances(
    manifest: Manifest, seed: int, first_instance: int, count: int
) -> list[str]:
    """The names of the shards that `count` instances from `first_instance` on may come from.

    The shards of a group are shuffled together, so they are all those of a group, or of several.
    """
    names: list[str] = []
    shards = manifest.shards_of("train")
    for group, _, skip in shard_groups(Path(), shards, seed, first_instance):
        names += group
        instances = {shard.name: shard.instances for shard in shards}
        count -= sum(instances[name] for name in group) - skip
        if count <= 0:
            break
    return sorted(set(names))


def shard_groups(
    data_dir: Path, shards: list[Shard], seed: int, first_instance: int
) -> Iterator[ShardGroup]:
    """The groups of shards from that on which holds the instance number `first_instance`."""
    num_passes = 1 + max(shard.pass_index for shard in shards)
    position = 0
    for epoch in itertools.count():
        members = [s for s in shards if s.pass_index == epoch % num_passes and s.instances]
        rng = np.random.default_rng([seed, epoch])
        order = np.argsort(rng.random(len(members)))
        for first in range(0, len(members), _SHARDS_PER_GROUP):
            group = [members[i] for i in order[first : first + _SHARDS_PER_GROUP]]
            shuffle_seed = int(rng.integers(1 << 62))
            end = position + sum(shard.instances for shard in group)
            if end > first_instance:
                paths = [str(data_dir / shard.name) for shard in group]
                yield paths, shuffle_seed, max(0, first_instance - position)
            position = end


def _damage_in(data_dir: Path, manifest: Manifest) -> str | None:
    """What is wrong with the first record that cannot be read."""
    features = instance_features(manifest.max_seq_length, manifest.max_predictions_per_seq)
    lengths = {name: feature.length for name, feature in features.items()}
    for shard in manifest.shards:
        whole_records = 0
        try:
            with (data_dir / shard.name).open("rb") as file:
                for frame in read_frames(file):
                    _check_record(record_of(frame), lengths)
                    whole_records += 1
        except (OSError, ValueError, KeyError, IndexError) as error:
            return f"record {whole_records + 1} of {data_dir / shard.name} is damaged ({error})"
    return None


def _check_record(record: bytes, lengths: dict[str, int]) -> None:
    found = {name: len(values) for name, values in decode_example(record).items()}
    if found != lengths:
        raise ValueError("it is no instance of this data set")


def _check_sizes(data_dir: Path, shards: list[Shard]) -> None:
    for shard in shards:
        path = data_dir / shard.name
        if not path.exists() or path.stat().st_size != shard.bytes:
            raise UserError(
                f"the shard {path} is missing or not {shard.bytes} bytes long: `clozemill verify` "
                "tells which shards are damaged; generate the data set again"
            )


def _shuffled_records(paths: tf.Tensor, seed: tf.Tensor, skip: tf.Tensor) -> tf.data.Dataset:
    # Else `shuffle` would mix the global seed into the one that it is given.
    tf.compat.v1.set_random_seed(1)
    records = tf.data.Dataset.from_tensor_slices(paths).interleave(
        tf.data.TFRecordDataset,
        cycle_length=_SHARDS_PER_GROUP,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    shuffled = records.shuffle(_SHUFFLE_BUFFER_RECORDS, seed=seed, reshuffle_each_iteration=False)
    return shuffled.skip(skip)


def _parsed_batches(
    records: tf.data.Dataset, manifest: Manifest, batch_size: int, drop_remainder: bool
) -> tf.data.Dataset:
    features = instance_features(manifest.max_seq_length, manifest.max_predictions_per_seq)
    schema = {
        name: tf.io.FixedLenFeature([feature.length], tf.dtypes.as_dtype(feature.dtype))
        for name, feature in features.items()
    }

    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = tf.io.parse_example(serialized, schema)
        return {
            name: tf.cast(values, tf.int32) if values.dtype == tf.int64 else values
            for name, values in batch.items()
        }

    return (
        records.batch(batch_size, drop_remainder=drop_remainder)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
