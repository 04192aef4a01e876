"""Shards to batches: dicts of arrays with the seven features of `pipeline.records`.

TensorFlow reads them under the names that they have in the records; `readable` renames them.

Training reads a data set pass by pass, for ever. The order follows from the seed and the shards'
counts alone, so that training resumes in the middle of a pass when it has read one group:

1. The shards of a pass are put in random order and cut into groups.
2. The shards of a group, one after the other, form one line of instances.
3. The line is cut into lanes of equal length, a power of two of them. Each lane is shuffled.
4. Instances are taken from the lanes in turn.

For example, a group of two shards with five and three instances has two lanes of four::

    line      a0 a1 a2 a3 a4 b0 b1 b2
    lanes     a0 a1 a2 a3 | a4 b0 b1 b2
    shuffled  a2 a0 a3 a1 | b1 a4 b2 b0
    order     a2 b1 a0 a4 a3 b2 a1 b0

Of N processes, process i takes the instances number i, i + N, i + 2N, … of this order, which knows
nothing of N. In the example, process 0 of 2 takes a2 a0 a3 a1: it reads the first lane alone. Where
N does not divide the number of lanes, N / gcd(N, lanes) processes share each lane.
"""

import functools
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.manifest import DataSet, Manifest, Shard
from pipeline.records import (
    Feature,
    check_values,
    decode_instance,
    open_records,
    read_frames,
    record_of,
    tfrecord_compression,
)
from pipeline.storage import size_of

OnOpen = Callable[[list[Shard]], object]
"""Is called with shards when their reading begins, in a thread of TensorFlow."""

# The smallest number of shards in a group, if the pass has that many; a power of two.
_SHARDS_PER_GROUP = 64
_SHUFFLE_BUFFER_RECORDS = 10_000
_RECORDS_AT_A_TIME = 1_000  # where damage is searched for
_MOST_GROUPS = 1_000  # in which the largest is searched for

if keras.config.backend() != "tensorflow":
    # TensorFlow only reads; it would take the GPUs' memory from the backend that computes.
    tf.config.set_visible_devices([], "GPU")


@dataclass(frozen=True)
class ShardGroup:
    """Shards that are read side by side.

    Attributes:
      shards: in the order of the line that they form.
      first_instance: the number of its first instance in the whole order.
      shuffle_seed: seeds the shuffling of its lanes.
    """

    shards: list[Shard]
    first_instance: int
    shuffle_seed: int

    @property
    def num_instances(self) -> int:
        """Instances of all its shards."""
        return sum(shard.instances for shard in self.shards)

    @property
    def num_lanes(self) -> int:
        """The largest power of two that does not exceed the number of shards."""
        return 1 << (len(self.shards).bit_length() - 1)

    @property
    def shuffle_buffer(self) -> int:
        """Records that the shuffling of one lane holds in memory."""
        return max(1, _SHUFFLE_BUFFER_RECORDS // self.num_lanes)

    def lane(self, index: int) -> range:
        """The places in the line that a lane covers; the first lanes may have one more."""
        size, longer = divmod(self.num_instances, self.num_lanes)
        start = index * size + min(index, longer)
        return range(start, start + size + (index < longer))


def check_enough_shards(data_set: DataSet, num_processes: int) -> None:
    """Checks that each process can have lanes of its own.

    Raises:
      UserError: a pass has fewer shards than there are processes.
    """
    passes = _shards_by_pass(data_set.manifest)
    fewest = min((len(shards) for shards in passes), default=0)
    if num_processes > max(fewest, 1):
        raise UserError(
            f"{num_processes} processes exceed the {fewest} train shards of a pass of "
            f"{data_set.directory}: start fewer processes, or generate the data with a larger "
            "--num_shards"
        )


def training_batches(
    data_set: DataSet,
    batch_size: int,
    seed: int,
    first_instance: int = 0,
    process_id: int = 0,
    num_processes: int = 1,
    on_open: OnOpen = lambda _: None,
    sizes: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Endless batches of the train shards, in an order that `seed` decides.

    Args:
      data_set: the data set.
      batch_size: B, instances of a batch, of which each process gets an equal part.
      seed: decides the order.
      first_instance: the number of instances to skip, because training has seen them.
      process_id: i, the number of this process, from 0.
      num_processes: N, processes that share the instances; a divisor of B.
      on_open: is called with the shards that this process reads, group by group.
      sizes: int64, the numbers of instances of the batches, each a multiple of N, if not all are B.
        After the last one, they begin anew.

    Raises:
      UserError: the data set has no training instance, or a shard is missing or truncated.
    """
    manifest = data_set.manifest
    shards = manifest.shards_of("train")
    if not any(shard.instances for shard in shards):
        raise UserError(f"{data_set.directory} has no training instance: generate it again")
    _check_sizes(data_set, shards)

    def lanes_of_groups() -> Iterator[tuple[list[tuple[str, str]], np.ndarray, int]]:
        parts = parts_of_groups(manifest, seed, first_instance, process_id, num_processes)
        for part, following in itertools.pairwise(parts):
            data_set.open(part.shards, following.shards)
            on_open(part.shards)
            paths = map(data_set.path_of, part.shards)
            files = [(str(path), tfrecord_compression(path)) for path in paths]
            yield files or [("", "")], part.lanes, part.seen

    groups = tf.data.Dataset.from_generator(lanes_of_groups, output_signature=_LANES_OF_GROUP)
    records = groups.flat_map(_records_of_lanes)
    batches = records.batch(batch_size // num_processes, drop_remainder=True)
    if sizes is not None:
        batches = batches.rebatch(sizes // num_processes)
    return _parsed(batches, manifest.features_of("train"))


def evaluation_batches(
    data_set: DataSet,
    batch_size: int,
    on_open: OnOpen = lambda _: None,
    max_batches: int | None = None,
) -> tf.data.Dataset:
    """All instances of the eval shards once, as `batches_in_order`, or the first batches of them.

    Of a mixture, the first batches have the first instances of each corpus, as many as its share.

    Raises:
      UserError: the data set has no eval instance.
    """
    most = None if max_batches is None else max_batches * batch_size
    parts = _parts_to_evaluate(data_set.manifest, most)
    if not parts:
        raise UserError(
            f"the data set {data_set.directory} has no eval instance: generate it with "
            "--eval_fraction, 0.01 for example, or adopt it with --eval_file"
        )
    first, *others = (
        _records_in_order(data_set, shards, on_open).take(count) for shards, count in parts
    )
    records = functools.reduce(tf.data.Dataset.concatenate, others, first)
    return _parsed(records.batch(batch_size), data_set.manifest.features_of("eval"))


def evaluation_shards(manifest: Manifest, most_instances: int | None = None) -> list[Shard]:
    """The eval shards that hold anything: all, or those with the first so many instances."""
    return [shard for shards, _ in _parts_to_evaluate(manifest, most_instances) for shard in shards]


def _parts_to_evaluate(
    manifest: Manifest, most_instances: int | None
) -> list[tuple[list[Shard], int]]:
    """The eval shards of each corpus that are read, and how many of their first instances."""
    corpora = list(manifest.corpora.values()) or [manifest.shards_of("eval")]
    sizes = [sum(shard.instances for shard in shards) for shards in corpora]
    total = sum(sizes)
    most = total if most_instances is None else min(most_instances, total)
    read = [end * most // max(1, total) for end in itertools.accumulate(sizes, initial=0)]
    parts = []
    for shards, (first, end) in zip(corpora, itertools.pairwise(read), strict=True):
        starts = itertools.accumulate((shard.instances for shard in shards), initial=0)
        members = [
            shard
            for shard, start in zip(shards, starts, strict=False)
            if shard.instances and start < end - first
        ]
        if members:
            parts.append((members, end - first))
    return parts


def batches_in_order(
    data_set: DataSet, shards: list[Shard], batch_size: int, on_open: OnOpen = lambda _: None
) -> tf.data.Dataset:
    """All instances of some shards once, in the files' order; the last batch may be smaller."""
    records = _records_in_order(data_set, shards, on_open)
    return _parsed(records.batch(batch_size), data_set.manifest.features_of(shards[0].split))


def _records_in_order(data_set: DataSet, shards: list[Shard], on_open: OnOpen) -> tf.data.Dataset:
    _check_sizes(data_set, shards)

    def opened_files() -> Iterator[tuple[str, str]]:
        for number, shard in enumerate(shards, 1):
            data_set.open([shard], shards[number : number + 1])
            on_open([shard])
            path = data_set.path_of(shard)
            yield str(path), tfrecord_compression(path)

    files = tf.data.Dataset.from_generator(opened_files, output_signature=_FILE)
    return files.flat_map(_records_of_file)


def readable(batches: tf.data.Dataset, data_set: DataSet) -> Generator[dict[str, np.ndarray]]:
    """The batches of a data set as NumPy arrays of int32 and float32, with checked values.

    Raises:
      UserError: a shard cannot be read, or a value is out of its range; the message names file and
        record.
    """
    of_train, of_eval = map(data_set.manifest.features_of, ("train", "eval"))
    features = of_train | of_eval
    try:
        for batch in batches.as_numpy_iterator():
            yield _narrow(batch, features)
    except (tf.errors.OpError, ValueError) as error:
        if data_set.fault:
            raise data_set.fault from error
        # A UnicodeDecodeError, where TensorFlow's message quotes a record.
        reason = _damage_in(data_set) or str(error).partition("\n")[0]
        raise UserError(
            f"cannot read the data set {data_set.directory}: {reason}; generate it again"
        ) from error


def shards_of_instances(
    manifest: Manifest, seed: int, first_instance: int, count: int
) -> list[str]:
    """The names of the shards that `count` instances from `first_instance` on may come from.

    Shuffling fills a buffer, and each instance that it gives is drawn from the buffer. So the n-th
    instance that it gives stood among the first n + buffer of the lane. For example, with a buffer
    of 3 the instances number 4 and 5 of a lane (from 0) stood in the lane's first 4 + 2 + 3 = 9
    places. They may also have stood at its very beginning, and have waited in the buffer since.
    """
    names = set()
    for group in shard_groups(manifest, seed, first_instance):
        if group.first_instance >= first_instance + count:
            break
        first = max(first_instance - group.first_instance, 0) // group.num_lanes
        window = first + -(-count // group.num_lanes) + group.shuffle_buffer
        ends = list(itertools.accumulate(shard.instances for shard in group.shards))
        for lane in map(group.lane, range(group.num_lanes)):
            read = lane[:window]
            names |= {
                shard.name
                for shard, end in zip(group.shards, ends, strict=True)
                if read and end - shard.instances < read.stop and end > read.start
            }
    return sorted(names)


def shard_groups(manifest: Manifest, seed: int, first_instance: int = 0) -> Iterator[ShardGroup]:
    """The groups of train shards, from the group that holds the instance `first_instance` on."""
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


class GroupPart(NamedTuple):
    """What a process reads of a group.

    Attributes:
      first_instance: the number of the group's first instance in the whole order.
      shards: those that it reads, in the order of the line.
      lanes: int64 [L, the fields of a `_Lane`], its lanes, whose `path` is a place in `shards`.
      seen: how many instances of these lanes come before the first instance that is asked for.
    """

    first_instance: int
    shards: list[Shard]
    lanes: np.ndarray
    seen: int


def parts_of_groups(
    manifest: Manifest, seed: int, first_instance: int, process_id: int, num_processes: int
) -> Iterator[GroupPart]:
    """What a process reads, group by group, from the instance `first_instance` on."""
    # The numbers of the process's instances, modulo N.
    remainder = (first_instance + process_id) % num_processes
    for group in shard_groups(manifest, seed, first_instance):
        first_place = (remainder - group.first_instance) % num_processes
        seen = len(range(first_place, first_instance - group.first_instance, num_processes))
        lanes = list(_lanes_of_process(group, first_place, num_processes))
        read = sorted(
            {place for lane in lanes for place in range(lane.path, lane.path + lane.paths)}
        )
        table = np.array(lanes, np.int64).reshape(-1, len(_Lane._fields))
        table[:, 0] = np.searchsorted(read, table[:, 0])
        yield GroupPart(group.first_instance, [group.shards[i] for i in read], table, seen)


def most_bytes_at_once(
    manifest: Manifest, seed: int, num_instances: int, processes: Sequence[int], num_processes: int
) -> int:
    """The size of the largest group of the first instances, or of what some processes read of it.

    Of more than a thousand groups, it is that of the first thousand.
    """
    parts = [parts_of_groups(manifest, seed, 0, i, num_processes) for i in processes]
    largest = 0
    for together in itertools.islice(zip(*parts, strict=True), _MOST_GROUPS):
        if together[0].first_instance >= num_instances:
            break
        read = {shard for part in together for shard in part.shards}
        largest = max(largest, sum(shard.bytes for shard in read))
    return largest


def _shards_by_pass(manifest: Manifest) -> list[list[Shard]]:
    """The train shards that hold anything, for each pass that has any."""
    shards = [shard for shard in manifest.shards_of("train") if shard.instances]
    by_pass = attrgetter("pass_index")
    return [list(each) for _, each in itertools.groupby(sorted(shards, key=by_pass), by_pass)]


def _narrow(
    instances: dict[str, np.ndarray], features: dict[str, Feature]
) -> dict[str, np.ndarray]:
    """The instances under their features' own names, with int32 in place of int64.

    Raises:
      ValueError: a value is out of its feature's range.
    """
    own_names = {feature.name: name for name, feature in features.items()}
    instances = {own_names[name]: values for name, values in instances.items()}
    check_values(instances, features)
    return {
        name: values if values.dtype == np.float32 else values.astype(np.int32)
        for name, values in instances.items()
    }


def _damage_in(data_set: DataSet) -> str | None:
    """What is wrong with the first record that cannot be read."""
    for shard in data_set.manifest.shards:
        if not (data_set.is_in_place(shard) or data_set.path_of(shard).exists()):
            continue
        features = data_set.manifest.features_of(shard.split)
        batches = batches_in_order(data_set, [shard], _RECORDS_AT_A_TIME)
        try:
            for batch in batches.as_numpy_iterator():
                _narrow(batch, features)
        except (tf.errors.OpError, ValueError):
            return _damage_in_shard(data_set, shard)
    return None


def _damage_in_shard(data_set: DataSet, shard: Shard) -> str | None:
    """What is wrong with the first damaged record. Slow: some thousand records a second."""
    features, whole_records = data_set.manifest.features_of(shard.split), 0
    try:
        with open_records(data_set.path_of(shard)) as file:
            for frame in read_frames(file):
                decode_instance(record_of(frame), features)
                whole_records += 1
    except (OSError, ValueError) as error:
        source = data_set.directory / shard.name
        return f"record {whole_records + 1} of {source} is damaged ({error})"
    return None


def _check_sizes(data_set: DataSet, shards: list[Shard]) -> None:
    for shard in filter(data_set.is_in_place, shards):
        path = data_set.path_of(shard)
        if not path.exists() or size_of(path) != shard.bytes:
            raise UserError(
                f"the shard {path} is missing or not {shard.bytes} bytes long: `clozemill verify` "
                "lists the damaged shards; generate the data set again"
            )


class _Lane(NamedTuple):
    """What a process reads of a lane, as numbers that TensorFlow can hold.

    In the example above, processes 1 and 3 of 4 share the second lane. For process 1::

        path 0, paths 2, skip 4, take 4    a4 b0 b1 b2
        buffer, seed                       b1 a4 b2 b0
        step 2, first 0                    b1    b2

    Attributes:
      path, paths: the number of the lane's first file in the group, and how many files it has.
      skip, take: the lane is the first `take` of their records after `skip`.
      buffer, seed: the lane is shuffled with a buffer of so many records, by a seed.
      step, first: the process takes every `step`-th of them, from number `first` on.
    """

    path: int
    paths: int
    skip: int
    take: int
    buffer: int
    seed: int
    step: int
    first: int


def _lanes_of_process(group: ShardGroup, first_place: int, num_processes: int) -> Iterator[_Lane]:
    """The lanes from which a process takes instances in turn.

    Args:
      group: the shards.
      first_place: the process's first place in the order of the group.
      num_processes: N; the process has every N-th place from there on.
    """
    common = math.gcd(group.num_lanes, num_processes)
    ends = list(itertools.accumulate(shard.instances for shard in group.shards))
    # After group.num_lanes // common of its places, a process comes back to the first of its lanes.
    last_place = first_place + group.num_lanes // common * num_processes
    for place in range(first_place, min(last_place, group.num_instances), num_processes):
        first, index = divmod(place, group.num_lanes)
        line = group.lane(index)
        path, last_path = bisect_right(ends, line.start), bisect_right(ends, line.stop - 1)
        yield _Lane(
            path=path,
            paths=last_path - path + 1,
            skip=line.start - (ends[path] - group.shards[path].instances),
            take=len(line),
            buffer=group.shuffle_buffer,
            seed=(group.shuffle_seed + index) % (1 << 62),
            step=num_processes // common,
            first=first,
        )


# A file's path and its compression; the files of a group, its lanes, and the instances to skip.
_FILE = tf.TensorSpec([2], tf.string)
_LANES_OF_GROUP = (
    tf.TensorSpec([None, *_FILE.shape], tf.string),
    tf.TensorSpec([None, len(_Lane._fields)], tf.int64),
    tf.TensorSpec([], tf.int64),
)


def _records_of_file(file: tf.Tensor) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(file[0], compression_type=file[1])


def _records_of_lanes(files: tf.Tensor, lanes: tf.Tensor, seen: tf.Tensor) -> tf.data.Dataset:
    # Otherwise `shuffle` would mix the global seed into the one that it is given.
    tf.compat.v1.set_random_seed(1)

    def records_of_lane(lane: _Lane) -> tf.data.Dataset:
        of_lane = files[lane.path : lane.path + lane.paths]
        records = tf.data.Dataset.from_tensor_slices(of_lane).flat_map(_records_of_file)
        records = records.skip(lane.skip).take(lane.take)
        records = records.shuffle(lane.buffer, lane.seed, reshuffle_each_iteration=False)
        return records.shard(lane.step, lane.first)

    records = tf.data.Dataset.from_tensor_slices(_Lane(*tf.unstack(lanes, axis=1))).interleave(
        records_of_lane,
        cycle_length=tf.maximum(tf.shape(lanes, tf.int64)[0], 1),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return records.skip(seen)


def _parsed(batches: tf.data.Dataset, features: dict[str, Feature]) -> tf.data.Dataset:
    schema = {
        feature.name: tf.io.FixedLenFeature([feature.length], feature.dtype)
        for feature in features.values()
    }
    # TensorFlow's tuner is slower here than the parallelism that it begins with. Where an iterator
    # ends, it may miss that and delay the end of the process by ten seconds and more.
    options = tf.data.Options()
    options.autotune.enabled = False
    parse = functools.partial(tf.io.parse_example, features=schema)
    parsed = batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    return parsed.prefetch(tf.data.AUTOTUNE).with_options(options)
