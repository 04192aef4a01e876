import dataclasses
import gzip
import hashlib
import io
import itertools
import math
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from modeling import batches
from modeling.batches import (
    _lanes_of_process as lanes_of_process,
)
from modeling.batches import (
    batches_in_order,
    check_enough_shards,
    evaluation_batches,
    evaluation_shards,
    readable,
    shard_groups,
    shards_of_instances,
    training_batches,
)
from pipeline.errors import UserError
from pipeline.manifest import DataSet, Manifest, Shard
from pipeline.records import (
    RowLimits,
    decode_example,
    encode_examples,
    frame_record,
    instance_features,
    read_frames,
    record_of,
)

pytestmark = pytest.mark.no_backend

# Two passes of 17 and 15 instances. With two shards per group, they have two and three groups.
SHARDS = [
    ("train", 0, 5),
    ("train", 0, 4),
    ("train", 0, 6),
    ("train", 0, 2),
    ("train", 1, 3),
    ("train", 1, 0),
    ("train", 1, 4),
    ("train", 1, 1),
    ("train", 1, 5),
    ("train", 1, 2),
]
ADOPTED_FEATURES = instance_features(RowLimits(16, 3), 50, "model_garden_v2")
PASSES = [set(range(17)), set(range(17, 32))]


@pytest.fixture(scope="module")
def passes_data_set(tmp_path_factory, write_data_set):
    data_dir = tmp_path_factory.mktemp("passes")
    return write_data_set(data_dir, SHARDS)


@pytest.fixture
def read_numbers(passes_data_set, instance_numbers, monkeypatch):
    """A function that reads the numbers of the first instances for training.

    Groups have two shards and are shuffled four records at a time.
    """
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    monkeypatch.setattr(batches, "_SHUFFLE_BUFFER_RECORDS", 4)

    def read(count, seed=1, first_instance=0, batch_size=1, process_id=0, num_processes=1):
        batches = training_batches(
            passes_data_set, batch_size, seed, first_instance, process_id, num_processes
        )
        taken = itertools.islice(batches, -(-count * num_processes // batch_size))
        return [number for batch in taken for number in instance_numbers(batch)][:count]

    return read


@pytest.fixture(scope="module")
def adopted_data_set(tmp_path_factory, passes_data_set):
    """The same instances as another program writes them: other names, some files compressed."""
    folder = tmp_path_factory.mktemp("adopted")
    manifest, shards = passes_data_set.manifest, []
    names = {name: feature.name for name, feature in ADOPTED_FEATURES.items()}
    for number, shard in enumerate(manifest.shards):
        with passes_data_set.path_of(shard).open("rb") as file:
            examples = [decode_example(record_of(frame)) for frame in read_frames(file)]
        columns = (
            {names[name]: np.stack([example[name] for example in examples]) for name in names}
            if examples
            else {}
        )
        content = b"".join(map(frame_record, encode_examples(columns) if columns else []))
        path = folder / f"{number}.records"
        path.write_bytes(gzip.compress(content) if number % 3 else content)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(
            dataclasses.replace(shard, name=str(path), bytes=path.stat().st_size, sha256=sha256)
        )
    options = {"feature_names": "model_garden_v2"}
    return DataSet(
        passes_data_set.directory, dataclasses.replace(manifest, options=options, shards=shards)
    )


@pytest.mark.parametrize("first_instance", [0, 11, 40])
@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_adopted_records_give_the_same_batches(
    first_instance, process, passes_data_set, adopted_data_set
):
    ours, theirs = (
        readable(training_batches(each, 4, 1, first_instance, *process), each)
        for each in (passes_data_set, adopted_data_set)
    )
    for our, their in itertools.islice(zip(ours, theirs, strict=True), 9):
        assert our.keys() == their.keys()
        for name, values in our.items():
            assert values.dtype == their[name].dtype
            assert values.tolist() == their[name].tolist()


def test_adopted_records_are_evaluated_in_order(passes_data_set, adopted_data_set):
    ours, theirs = (
        list(readable(batches_in_order(each, each.manifest.shards, 7), each))
        for each in (passes_data_set, adopted_data_set)
    )
    assert len(ours) == len(theirs) == 5
    for our, their in zip(ours, theirs, strict=True):
        assert {name: values.tolist() for name, values in our.items()} == {
            name: values.tolist() for name, values in their.items()
        }


def test_damage_in_adopted_records_is_reported(tmp_path, adopted_data_set):
    manifest = adopted_data_set.manifest
    shard = manifest.shards[1]
    path = tmp_path / "damaged.gz"
    content = bytearray(adopted_data_set.path_of(shard).read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)
    damaged = dataclasses.replace(shard, name=str(path))
    data_set = DataSet(tmp_path, dataclasses.replace(manifest, shards=[damaged]))
    with pytest.raises(UserError, match=rf"record \d of {path} is damaged"):
        list(readable(batches_in_order(data_set, [damaged], 2), data_set))


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_each_epoch_yields_the_instances_of_its_pass_once(read_numbers, seed):
    epochs = [PASSES[epoch % 2] for epoch in range(5)]
    numbers = iter(read_numbers(sum(map(len, epochs)), seed))
    for expected in epochs:
        assert sorted(itertools.islice(numbers, len(expected))) == sorted(expected)


def test_only_the_same_seed_repeats_the_order(read_numbers):
    first = read_numbers(64, seed=1)
    assert read_numbers(64, seed=1) == first
    assert read_numbers(64, seed=2) != first


def test_order_does_not_depend_on_tensorflows_global_seed(read_numbers):
    before = read_numbers(64)
    tf.random.set_seed(99)
    try:
        after = read_numbers(64)
    finally:
        tf.random.set_seed(None)
    assert after == before


def test_order_does_not_depend_on_the_batch_size(read_numbers):
    assert read_numbers(60, batch_size=7) == read_numbers(60)


def test_each_epoch_of_a_pass_has_its_own_order(read_numbers):
    numbers = read_numbers(64)
    first, second = numbers[:17], numbers[32:49]
    assert sorted(first) == sorted(second)
    assert first != second


def test_shards_of_a_group_are_mixed(read_numbers, monkeypatch):
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 8)
    monkeypatch.setattr(batches, "_SHUFFLE_BUFFER_RECORDS", 10_000)
    shard_ends = np.cumsum([count for _, pass_index, count in SHARDS if pass_index == 0])
    shards = np.searchsorted(shard_ends, read_numbers(17), side="right")
    assert np.count_nonzero(np.diff(shards)) > len(shard_ends) - 1


def test_a_pass_can_begin_with_any_of_its_shards(read_numbers):
    firsts = {read_numbers(1, seed)[0] for seed in range(5)}
    assert any(number < 9 for number in firsts)
    assert any(number >= 9 for number in firsts)


def test_the_first_instances_are_skipped(read_numbers):
    numbers = read_numbers(96 + 6)
    for first_instance in (*range(0, 34, 3), 1, 5, 17, 32, 47, 49, 64, 90):
        rest = read_numbers(6, first_instance=first_instance)
        assert rest == numbers[first_instance : first_instance + 6], first_instance


def test_skipping_spans_groups_and_epochs(read_numbers):
    numbers = read_numbers(100)
    assert read_numbers(75, first_instance=25, batch_size=5) == numbers[25:]


@pytest.mark.parametrize("num_processes", [2, 3, 4])
@pytest.mark.parametrize("first_instance", [0, 40])
def test_processes_share_the_instances_of_one(read_numbers, num_processes, first_instance):
    expected = read_numbers(120, first_instance=first_instance)
    shares = [
        iter(
            read_numbers(
                120 // num_processes + 1,
                first_instance=first_instance,
                batch_size=num_processes,
                process_id=i,
                num_processes=num_processes,
            )
        )
        for i in range(num_processes)
    ]
    actual = [next(shares[k % num_processes]) for k in range(120)]
    assert actual == expected


def test_a_process_gets_its_part_of_each_batch(read_numbers):
    whole = read_numbers(64, batch_size=8)
    parts = [read_numbers(16, batch_size=8, process_id=i, num_processes=4) for i in range(4)]
    for step in range(8):
        batch = whole[8 * step : 8 * (step + 1)]
        for process_id, part in enumerate(parts):
            assert part[2 * step : 2 * (step + 1)] == batch[process_id::4]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize("first_instance", [0, 21])
def test_batches_of_several_sizes_share_the_order_of_equal_ones(
    passes_data_set, instance_numbers, read_numbers, num_processes, first_instance
):
    sizes = np.array([4, 4, 8, 4, 16, 16, 16])
    ends = np.cumsum(sizes)
    numbers = read_numbers(sum(sizes), first_instance=first_instance)
    for process_id in range(num_processes):
        batches = training_batches(
            passes_data_set, 16, 1, first_instance, process_id, num_processes, sizes=sizes
        )
        for end, size, batch in zip(ends, sizes, batches.take(len(sizes)), strict=True):
            whole = numbers[end - size : end]
            assert instance_numbers(batch) == whole[process_id::num_processes]


def many_shards(counts_by_pass):
    return Manifest(
        max_seq_length=16,
        max_predictions_per_seq=1,
        do_lower_case=True,
        vocab_size=1,
        vocab_sha256="",
        options={},
        statistics={},
        shards=[
            Shard(f"{pass_index}-{i}", "train", pass_index, 1, count, 0, 0, "")
            for pass_index, counts in enumerate(counts_by_pass)
            for i, count in enumerate(counts)
        ],
    )


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=300),
    seed=st.integers(0, 1000),
)
def test_groups_hold_each_shard_of_a_pass_once_and_lanes_are_equal(counts, seed):
    epoch = []
    for group in shard_groups(many_shards([counts]), seed):
        assert group.first_instance == sum(each.num_instances for each in epoch)
        epoch.append(group)
        if sum(len(each.shards) for each in epoch) >= len(counts):
            break
    names = [shard.name for group in epoch for shard in group.shards]
    assert sorted(names) == sorted(f"0-{i}" for i in range(len(counts)))
    for group in epoch:
        assert len(group.shards) < 2 * 64
        assert len(group.shards) >= min(64, len(counts))
        assert group.num_lanes <= len(group.shards) < 2 * group.num_lanes
        lanes = [group.lane(i) for i in range(group.num_lanes)]
        assert [place for lane in lanes for place in lane] == list(range(group.num_instances))
        assert {len(lane) for lane in lanes} <= {
            group.num_instances // group.num_lanes,
            group.num_instances // group.num_lanes + 1,
        }


@pytest.mark.parametrize("num_processes", [1, 2, 8, 64])
def test_no_two_processes_share_a_lane_if_their_number_divides_the_lanes(num_processes):
    manifest = many_shards([[100 + i for i in range(70)]] * 2)
    for group in itertools.islice(shard_groups(manifest, seed=3), 4):
        lanes = [
            lane for i in range(num_processes) for lane in lanes_of_process(group, i, num_processes)
        ]
        assert {lane.step for lane in lanes} == {1}
        assert len({lane.seed for lane in lanes}) == len(lanes) == group.num_lanes == 64
        assert sum(lane.take for lane in lanes) == group.num_instances


def test_each_process_needs_its_own_shards(passes_data_set):
    # Four shards of the second pass hold instances.
    for num_processes in (1, 2, 3, 4):
        check_enough_shards(passes_data_set, num_processes)
    with pytest.raises(UserError, match="5 processes exceed the 4 train shards") as raised:
        check_enough_shards(passes_data_set, 5)
    assert "--num_shards" in str(raised.value)
    assert str(passes_data_set.directory) in str(raised.value)


def test_training_batches_have_static_shapes(data_set):
    batches = training_batches(data_set, batch_size=4, seed=0)
    assert {name: (spec.shape, spec.dtype) for name, spec in batches.element_spec.items()} == {
        name: ((4, feature.length), tf.dtypes.as_dtype(feature.dtype))
        for name, feature in data_set.manifest.features_of("train").items()
    }
    assert next(iter(batches))["input_ids"].shape == (4, 16)


def test_batches_hold_the_written_instances(data_set, make_batch):
    batches = evaluation_batches(data_set, batch_size=7)
    batch = next(readable(batches, data_set))
    written_first, written_second = make_batch(4, 26), make_batch(3, 30)
    for name, values in batch.items():
        expected = np.concatenate([written_first[name], written_second[name]])
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)


def test_evaluation_reads_each_instance_once_and_the_last_batch_is_smaller(
    data_set, instance_numbers
):
    batches = [instance_numbers(batch) for batch in evaluation_batches(data_set, batch_size=3)]
    assert batches == [[26, 27, 28], [29, 30, 31], [32]]


def test_the_first_batches_of_a_mixture_have_the_first_instances_of_each_corpus(
    tmp_path, write_data_set, instance_numbers
):
    """As many as its share: of 20 instances, 12 and 6 and 2."""
    sizes = [5, 7, 6, 0, 2]
    data_set = write_data_set(tmp_path, [("train", 0, 1), *(("eval", 0, size) for size in sizes)])
    names = [shard.name for shard in data_set.manifest.shards_of("eval")]
    corpora = {"a": names[:2], "b": names[2:4], "c": names[4:]}
    statistics = {name: {"eval_shards": shards} for name, shards in corpora.items()}
    manifest = dataclasses.replace(data_set.manifest, statistics={"corpora": statistics})
    data_set = dataclasses.replace(data_set, manifest=manifest)

    def read(max_batches):
        batches = evaluation_batches(data_set, 5, max_batches=max_batches)
        return [instance_numbers(batch) for batch in batches]

    assert read(2) == [[1, 2, 3, 4, 5], [6, 13, 14, 15, 19]]
    opened = [shard.name for shard in evaluation_shards(manifest, 10)]
    assert opened == [names[number] for number in (0, 1, 2, 4)]
    assert read(1) == [[1, 2, 3, 13, 19]]
    for max_batches in (4, 9, None):
        assert list(itertools.chain(*read(max_batches))) == list(range(1, 21))


def shards_with(numbers):
    """The names of the shards in `SHARDS` that hold these instances."""
    ends = np.cumsum([count for _, _, count in SHARDS])
    indices = np.searchsorted(ends, numbers, side="right")
    return {f"train-{index:05d}-of-{len(SHARDS):05d}.tfrecord" for index in indices}


def test_named_shards_hold_the_instances_after_a_position(read_numbers, passes_data_set):
    manifest = passes_data_set.manifest
    numbers = read_numbers(200)
    rng = np.random.default_rng(0)
    positions = [*range(34), *rng.integers(34, 180, 40).tolist()]
    counts = [1, *rng.integers(1, 20, len(positions) - 1).tolist()]
    for first, count in zip(positions, counts, strict=True):
        names = shards_of_instances(manifest, 1, first, count)
        assert names == sorted(set(names))
        assert shards_with(numbers[first : first + count]) <= set(names), (first, count)
        # Groups have two shards, and the first and the last may have been read in part.
        assert len(names) <= count + 3, (first, count)


def test_shards_of_one_instance_are_of_its_group(read_numbers, passes_data_set):
    manifest = passes_data_set.manifest
    numbers = read_numbers(64)
    for first, number in enumerate(numbers):
        names = shards_of_instances(manifest, 1, first, 1)
        assert shards_with([number]) <= set(names)
        assert len(names) <= 3


@pytest.mark.usefixtures("read_numbers")
def test_named_shards_depend_on_the_seed(passes_data_set):
    manifest = passes_data_set.manifest
    assert len({tuple(shards_of_instances(manifest, seed, 0, 1)) for seed in range(9)}) > 1


def test_a_batch_over_both_passes_names_all_their_shards(passes_data_set):
    manifest = passes_data_set.manifest
    names = [shard.name for shard in manifest.shards if shard.instances]
    assert shards_of_instances(manifest, 1, 0, 32) == names
    assert shards_of_instances(manifest, 1, 0, 17) == names[:4]
    assert shards_of_instances(manifest, 1, 16, 2) == names
    assert shards_of_instances(manifest, 1, 17, 15) == names[4:]


def test_readable_batches_are_numpy_arrays_in_the_same_order(data_set, instance_numbers):
    read = list(readable(evaluation_batches(data_set, batch_size=3), data_set))
    assert all(type(values) is np.ndarray for batch in read for values in batch.values())
    assert [instance_numbers(batch) for batch in read] == [[26, 27, 28], [29, 30, 31], [32]]
    assert {values.dtype.name for values in read[0].values()} == {"int32", "float32"}


def test_selected_shards_are_read_in_the_given_order(passes_data_set, instance_numbers):
    shards = [passes_data_set.manifest.shards[number] for number in (3, 0)]
    batches = batches_in_order(passes_data_set, shards, batch_size=4)
    assert [instance_numbers(batch) for batch in batches] == [[15, 16, 0, 1], [2, 3, 4]]


READ = {"train": partial(training_batches, seed=0), "eval": evaluation_batches}
LENGTH, CONTENT, CONTENT_CRC = 0, 20, -1


@pytest.mark.parametrize("damaged_byte", [LENGTH, CONTENT, CONTENT_CRC])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_damaged_record_is_reported_with_its_number_and_file(
    tmp_path, write_data_set, split, damaged_byte
):
    data_set = write_data_set(
        tmp_path, [("train", 0, 5), ("train", 0, 6), ("eval", 0, 5), ("eval", 0, 6)]
    )
    shard = data_set.path_of(data_set.manifest.shards_of(split)[1])
    with shard.open("rb") as file:
        frames = list(read_frames(file))
    content = bytearray(frames[3])
    content[damaged_byte] ^= 4
    shard.write_bytes(b"".join([*frames[:3], bytes(content), *frames[4:]]))
    batches = READ[split](data_set, batch_size=1)
    with pytest.raises(UserError, match="generate it again") as raised:
        list(itertools.islice(readable(batches, data_set), 11))
    assert f"record 4 of {shard} is damaged" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_record_with_other_features_is_reported(tmp_path, write_data_set):
    """The record is intact, but its features have another length than the manifest says."""
    written = write_data_set(tmp_path, [("train", 0, 5)], max_seq_length=17)
    manifest = dataclasses.replace(written.manifest, max_seq_length=16)
    data_set = DataSet(tmp_path, manifest)
    batches = training_batches(data_set, batch_size=1, seed=0)
    with pytest.raises(UserError, match="are 17 values, not 16") as raised:
        next(readable(batches, data_set))
    assert f"record 1 of {data_set.path_of(manifest.shards[0])}" in str(raised.value)


def test_record_that_is_not_an_example_is_reported(tmp_path, write_data_set):
    """The record's checksums are right."""
    data_set = write_data_set(tmp_path, [("train", 0, 5)])
    path = data_set.path_of(data_set.manifest.shards[0])
    with path.open("rb") as file:
        frames = list(read_frames(file))
    frames[3] = frame_record(b"\xff" * len(record_of(frames[3])))
    path.write_bytes(b"".join(frames))
    batches = training_batches(data_set, batch_size=5, seed=0)
    with pytest.raises(UserError, match=r"record 4 of .*train-00000"):
        next(readable(batches, data_set))


LIMITS = {"input_ids": 50, "masked_lm_positions": 16, "masked_lm_ids": 50}


@pytest.fixture(scope="module")
def with_value(tmp_path_factory, write_data_set):
    """A function that writes a data set in which one value of record 4 of the second shard differs.

    Its checksums are right, in the records and in the manifest.
    """
    data_dir = tmp_path_factory.mktemp("values")
    written = write_data_set(data_dir, [("train", 0, 5), ("train", 0, 6)])
    shard = written.manifest.shards[1]
    content = (data_dir / shard.name).read_bytes()

    def write(name, index, value):
        frames = list(read_frames(io.BytesIO(content)))
        example = tf.train.Example.FromString(record_of(frames[3]))
        feature = example.features.feature[name]
        (feature.int64_list.value or feature.float_list.value)[index] = value
        frames[3] = frame_record(example.SerializeToString(deterministic=True))
        changed = b"".join(frames)
        (data_dir / shard.name).write_bytes(changed)
        sha256 = hashlib.sha256(changed).hexdigest()
        described = dataclasses.replace(shard, bytes=len(changed), sha256=sha256)
        shards = [written.manifest.shards[0], described]
        return DataSet(data_dir, dataclasses.replace(written.manifest, shards=shards))

    return write


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_ids", 2**32 + 5),
        ("input_mask", 2),
        ("segment_ids", -1),
        ("masked_lm_positions", 16),
        ("masked_lm_ids", 50),
        ("masked_lm_weights", 0.5),
        ("next_sentence_labels", 2),
    ],
)
def test_a_value_out_of_its_range_is_reported_with_its_record(with_value, name, value):
    data_set = with_value(name, 0, value)
    batches = training_batches(data_set, batch_size=3, seed=0)
    with pytest.raises(UserError, match="generate it again") as raised:
        list(itertools.islice(readable(batches, data_set), 4))
    path = data_set.path_of(data_set.manifest.shards[1])
    assert f"record 4 of {path} is damaged (its {name} are from " in str(raised.value)
    assert f"not whole numbers from 0 to {LIMITS.get(name, 2) - 1})" in str(raised.value)
    assert "\n" not in str(raised.value)


class GivenBatches:
    """Batches without TensorFlow."""

    def __init__(self, *batches):
        self.as_numpy_iterator = lambda: iter(batches)


@pytest.mark.filterwarnings("error")
@given(
    name=st.sampled_from(sorted(instance_features(RowLimits(16, 3), 50))),
    values=st.lists(st.integers(-2, 60) | st.integers(-(2**63), 2**63 - 1) | st.floats(width=32)),
)
@example(name="masked_lm_weights", values=[0, math.nan])
@example(name="masked_lm_weights", values=[math.inf])
@example(name="input_ids", values=[2**32 + 5])
def test_values_are_read_if_all_are_in_their_range(data_set, name, values):
    # Without shards, in which a wrong value would be searched for.
    data_set = DataSet(data_set.directory, dataclasses.replace(data_set.manifest, shards=[]))
    is_weight = name == "masked_lm_weights"
    values = [value for value in values if is_weight or isinstance(value, int)] or [0]
    given_batch = {name: np.array([values], np.float32 if is_weight else np.int64)}
    batches = readable(GivenBatches(given_batch), data_set)
    if all(value in range(LIMITS.get(name, 2)) for value in values):
        (batch,) = batches
        assert batch[name].tolist() == [values]
        assert batch[name].dtype == (np.float32 if is_weight else np.int32)
    else:
        with pytest.raises(UserError, match=f"its {name} are from"):
            next(batches)


@pytest.mark.parametrize("name", instance_features(RowLimits(16, 3), 50))
@pytest.mark.parametrize("is_largest", [False, True])
def test_the_smallest_and_the_largest_value_are_read(with_value, name, is_largest):
    value = LIMITS.get(name, 2) - 1 if is_largest else 0
    data_set = with_value(name, -1, value)
    batches = batches_in_order(data_set, data_set.manifest.shards[1:], batch_size=6)
    (batch,) = readable(batches, data_set)
    assert batch[name][3, -1] == value


@pytest.fixture
def many_instances(tmp_path, write_data_set, monkeypatch):
    """Two passes of three groups, each of which is far longer than what TensorFlow reads ahead."""
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    shards = [("train", pass_index, 160) for pass_index in (0, 1) for _ in range(6)]
    return write_data_set(tmp_path, shards)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_shards_are_opened_when_reading_comes_to_them(
    many_instances, instance_numbers, num_processes
):
    shards = many_instances.manifest.shards
    # At the start of a group, and within one of each pass.
    for first_instance in (0, 650, 1000):
        group = next(shard_groups(many_instances.manifest, 1, first_instance))
        opened_by_all = []
        for process_id in range(num_processes):
            opened = []
            part = (4 * num_processes, 1, first_instance, process_id, num_processes)
            read = iter(training_batches(many_instances, *part, on_open=opened.extend))
            first = next(read)
            opened_by_all += opened
            for batch in itertools.chain([first], itertools.islice(read, 160)):
                assert {shards[number // 160] for number in instance_numbers(batch)} <= {*opened}
        assert {*opened_by_all} == {*group.shards}
        # With two processes, each has a lane of its own, which is a shard here.
        assert len(opened_by_all) == {1: 2, 2: 2, 3: 6}[num_processes]


def test_eval_shards_are_opened_one_after_the_other(data_set):
    opened = []
    batches = evaluation_batches(data_set, batch_size=1, on_open=opened.extend)
    assert not opened
    for _ in range(2):
        list(batches)
    assert opened == data_set.manifest.shards_of("eval") * 2


@pytest.mark.parametrize("damage", ["missing", "cut off"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_shard_of_the_wrong_size_is_reported_before_anything_is_read(
    tmp_path, write_data_set, split, damage
):
    data_set = write_data_set(
        tmp_path, [("train", 0, 5), ("train", 0, 6), ("eval", 0, 5), ("eval", 0, 6)]
    )
    shard = data_set.path_of(data_set.manifest.shards_of(split)[1])
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(UserError, match="clozemill verify") as raised:
        READ[split](data_set, batch_size=1)
    assert str(shard) in str(raised.value)


@pytest.mark.parametrize("shards", [[], [("eval", 0, 3)], [("train", 0, 0), ("eval", 0, 3)]])
def test_training_needs_a_training_instance(tmp_path, write_data_set, shards):
    data_set = write_data_set(tmp_path, shards)
    with pytest.raises(UserError, match="no training instance") as raised:
        training_batches(data_set, batch_size=1, seed=0)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("shards", [[], [("train", 0, 3)], [("train", 0, 3), ("eval", 0, 0)]])
def test_evaluation_needs_an_eval_instance(tmp_path, write_data_set, shards):
    data_set = write_data_set(tmp_path, shards)
    with pytest.raises(UserError, match="eval_fraction") as raised:
        evaluation_batches(data_set, batch_size=1)
    assert str(tmp_path) in str(raised.value)
