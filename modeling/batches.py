"""Shards to batches: a dict of arrays with the seven names of `pipeline.records`.

Training reads the data set pass by pass, for ever. A pass's shards are put in random order and taken
in groups. The shards of a group, one behind the other, make one line of instances, which is cut into
equal lanes; each lane is shuffled, and instances are taken from the lanes in turn. So the place of any
instance in the order follows from the seed and the manifest's counts, and training goes on in the middle
of a pass after reading a part of one group.

Of N processes each takes every N-th instance, and the order knows nothing of N. Where N divides the number of
lanes, a power of two, a process takes its instances from lanes of its own; of a shard that lies on the border
of two lanes, each has a part. Where it does not, N / gcd(N, lanes) processes share each lane.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.manifest import Manifest, Shard
from pipeline.records import decode_example, instance_features, read_frames, record_of

# At least, where a pass has so many; a power of two.
_SHARDS_PER_GROUP = 64
_SHUFFLE_BUFFER_RECORDS = 10_000

if keras.config.backend() != "tensorflow":
    # TensorFlow only reads; it would take the memory of GPUs from the backend that computes.
    tf.config.set_visible_devices([], "GPU")


@dataclass(frozen=True)
class ShardGroup:
    """Shards that are read side by side.

    Attributes:
      shards: in the order of the line that they make.
      first_instance: the number of its first instance.
      shuffle_seed: of its lanes.
    """

    shards: list[Shard]
    first_instance: int
    shuffle_seed: int

    @property
    def num_instances(self) -> int:
        """Of all its shards."""
        return sum(shard.instances for shard in self.shards)

    @property
    def num_lanes(self) -> int:
        """The largest power of two that is not more than its shards."""
        return 1 << (len(self.shards).bit_length() - 1)

    def lane(self, index: int) -> range:
        """The places in the line that a lane holds; the first lanes may have one more."""
        size, longer = divmod(self.num_instances, self.num_lanes)
        start = index * size + min(index, longer)
        return range(start, start + size + (index < longer))


def check_enough_shards(data_dir: Path, manifest: Manifest, num_processes: int) -> None:
    """Sees that each process can have lanes of its own.

    Raises:
      UserError: a pass has fewer shards than there are processes.
    """
    passes = _shards_by_pass(manifest)
    fewest = min((len(shards) for shards in passes), default=0)
    if num_processes > max(fewest, 1):
        raise UserError(
            f"{num_processes} processes are more than the {fewest} train shards that a pass of {data_dir} "
            "has: start fewer processes, or generate the data with a larger --num_shards"
        )


def training_batches(
    data_dir: Path,
    manifest: Manifest,
    batch_size: int,
    seed: int,
    first_instance: int = 0,
    process_id: int = 0,
    num_processes: int = 1,
) -> tf.data.Dataset:
    """Endless batches of the train shards, in an order that `seed` decides.

    Args:
      data_dir: the data set.
      manifest: that of the data set.
      batch_size: B, instances of a batch, of which each process gets an equal part.
      seed: of the order.
      first_instance: how many instances to leave out because training has seen them.
      process_id: of this process, which gets every N-th instance from the one so far behind the first.
      num_processes: N, processes that share the instances; a divisor of B.

    Raises:
      UserError: the data set has no training instance, or a shard is missing or cut off.
    """
    shards = manifest.shards_of("train")
    if not any(shard.instances for shard in shards):
        raise UserError(f"the data set {data_dir} has no training instance; generate it again")
    _check_sizes(data_dir, shards)
    # The numbers modulo N of the instances that are this process's.
    remainder = (first_instance + process_id) % num_processes

    def lanes_of_groups() -> Iterator[tuple[list[str], dict[str, list[int]], int]]:
        for group in shard_groups(manifest, seed, first_instance):
            paths = [str(data_dir / shard.name) for shard in group.shards]
            # Those of the process that were seen.
            first = _first_place(group, remainder, num_processes)
            seen = len(range(first, first_instance - group.first_instance, num_processes))
            yield paths, _lanes_of_process(group, remainder, num_processes), seen

    groups = tf.data.Dataset.from_generator(
        lanes_of_groups,
        output_signature=(
            tf.TensorSpec([None], tf.string),
            dict.fromkeys(_LANE_FIELDS, tf.TensorSpec([None], tf.int64)),
            tf.TensorSpec([], tf.int64),
        ),
    )
    records = groups.flat_map(_records_of_lanes)
    return _parsed_batches(records, manifest, batch_size // num_processes, drop_remainder=True)


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
    """The names of the shards that `count` instances from `first_instance` on may come from."""
    names = set()
    for group in shard_groups(manifest, seed, first_instance):
        if group.first_instance >= first_instance + count:
            break
        first = max(first_instance - group.first_instance, 0) // group.num_lanes
        # From behind, the shuffling may have brought instances nearer; the first may have waited.
        reach = -(-count // group.num_lanes) + _shuffle_buffer(group)
        ends = list(itertools.accumulate(shard.instances for shard in group.shards))
        for lane in map(group.lane, range(group.num_lanes)):
            read = lane[: first + reach]
            names |= {
                shard.name
                for shard, end in zip(group.shards, ends, strict=True)
                if read and end - shard.instances < read.stop and end > read.start
            }
    return sorted(names)


def shard_groups(manifest: Manifest, seed: int, first_instance: int = 0) -> Iterator[ShardGroup]:
    """The groups of train shards from that on which holds the instance number `first_instance`."""
    passes = _shards_by_pass(manifest)
    position = 0
    for epoch in itertools.count():
        members = passes[epoch % len(passes)]
        rng = np.random.default_rng([seed, epoch])
        order = np.argsort(rng.random(len(members)))
        num_groups = max(1, len(members) // _SHARDS_PER_GROUP)
        for part in np.array_split(order, num_groups):
            group = ShardGroup([members[i] for i in part], position, int(rng.integers(1 << 62)))
            position += group.num_instances
            if position > first_instance:
                yield group


def _shards_by_pass(manifest: Manifest) -> list[list[Shard]]:
    """The train shards that hold anything, for each pass that has any."""
    passes: dict[int, list[Shard]] = {}
    for shard in manifest.shards_of("train"):
        if shard.instances:
            passes.setdefault(shard.pass_index, []).append(shard)
    return [passes[index] for index in sorted(passes)]


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


# What a process reads of a lane. `paths` of its group's from `path` on are its files; of their records,
# `take` behind the first `skip` are the lane. Shuffled in a buffer of `buffer` by `seed`, every `step`-th of
# them from number `first` on is the process's.
_LANE_FIELDS = ("path", "paths", "skip", "take", "buffer", "seed", "step", "first")


def _lanes_of_process(
    group: ShardGroup, remainder: int, num_processes: int
) -> dict[str, list[int]]:
    """The lanes from which a process takes its instances in turn, by `_LANE_FIELDS`.

    Args:
      group: of which the instances are.
      remainder: modulo `num_processes`, of the numbers of the process's instances.
      num_processes: that share the instances.
    """
    common = math.gcd(group.num_lanes, num_processes)
    ends = np.cumsum([shard.instances for shard in group.shards])
    lanes: dict[str, list[int]] = {name: [] for name in _LANE_FIELDS}
    first_place = _first_place(group, remainder, num_processes)
    for turn in range(group.num_lanes // common):
        place = first_place + turn * num_processes
        if place >= group.num_instances:
            break
        first, index = divmod(place, group.num_lanes)
        line = group.lane(index)
        path, last_path = np.searchsorted(ends, [line.start, line.stop - 1], side="right")
        lane = {
            "path": path,
            "paths": last_path - path + 1,
            "skip": line.start - (ends[path] - group.shards[path].instances),
            "take": len(line),
            "buffer": _shuffle_buffer(group),
            "seed": (group.shuffle_seed + index) % (1 << 62),
            "step": num_processes // common,
            "first": first,
        }
        for name, value in lane.items():
            lanes[name].append(int(value))
    return lanes


def _first_place(group: ShardGroup, remainder: int, num_processes: int) -> int:
    """The first place in a group's order that is a process's; every N-th behind it is, too."""
    return (remainder - group.first_instance) % num_processes


def _shuffle_buffer(group: ShardGroup) -> int:
    return max(1, _SHUFFLE_BUFFER_RECORDS // group.num_lanes)


def _records_of_lanes(
    paths: tf.Tensor, lanes: dict[str, tf.Tensor], skip: tf.Tensor
) -> tf.data.Dataset:
    # Else `shuffle` would mix the global seed into the one that it is given.
    tf.compat.v1.set_random_seed(1)

    def records_of_lane(lane: dict[str, tf.Tensor]) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(paths[lane["path"] : lane["path"] + lane["paths"]])
        records = records.skip(lane["skip"]).take(lane["take"])
        records = records.shuffle(lane["buffer"], lane["seed"], reshuffle_each_iteration=False)
        return records.shard(lane["step"], lane["first"])

    records = tf.data.Dataset.from_tensor_slices(lanes).interleave(
        records_of_lane,
        cycle_length=tf.maximum(tf.size(lanes["path"], tf.int64), 1),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return records.skip(skip)


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

    # TensorFlow's tuner, as it runs, is slower here than the parallelism it begins with; and where an iterator
    # ends, it may miss that and hold up the process for ten seconds and more.
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        records.batch(batch_size, drop_remainder=drop_remainder)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
