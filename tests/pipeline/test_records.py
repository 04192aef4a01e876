import dataclasses
import io
from contextlib import suppress

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import (
    Feature,
    RowLimits,
    _frame_head,
    decode_example,
    decode_instances,
    encode_examples,
    frame_record,
    instance_features,
    pack_word_starts,
    read_frames,
    record_of,
    unmasked_features,
    unpack_word_starts,
)


def instances_with_ids_up_to(largest, num_rows=7, max_seq_length=20, max_predictions_per_seq=4):
    """Arrays of the record contract, with ids of every varint length that `largest` allows."""
    rng = np.random.default_rng(largest)
    interesting = [0, 1, 127, 128, 255, 256, 16383, 16384, 65535, 65536, largest]
    choices = [number for number in interesting if number <= largest]
    dtype = np.uint16 if largest < 1 << 16 else np.uint32

    def ids(length):
        return rng.choice(choices, (num_rows, length))

    real = rng.integers(0, 2, (num_rows, max_predictions_per_seq))
    return {
        "input_ids": ids(max_seq_length).astype(dtype),
        "input_mask": rng.integers(0, 2, (num_rows, max_seq_length), np.uint8),
        "segment_ids": rng.integers(0, 2, (num_rows, max_seq_length), np.uint8),
        "masked_lm_positions": rng.integers(0, 512, (num_rows, max_predictions_per_seq)),
        "masked_lm_ids": ids(max_predictions_per_seq),
        "masked_lm_weights": real.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, (num_rows, 1), np.uint8),
    }


def by_protobuf(instances, row):
    example = tf.train.Example()
    for name, values in instances.items():
        feature = example.features.feature[name]
        is_float = values.dtype == np.float32
        value = feature.float_list.value if is_float else feature.int64_list.value
        value.extend(values[row].tolist())
    return example.SerializeToString(deterministic=True)


LARGEST_IDS = [1, 127, 128, 16383, 16384, 65535, 65536, 2_000_000]


@pytest.mark.parametrize("largest", LARGEST_IDS)
def test_records_are_the_bytes_of_protobuf(largest):
    instances = instances_with_ids_up_to(largest)
    records = encode_examples(instances)
    assert records == [by_protobuf(instances, row) for row in range(7)]


@pytest.mark.parametrize("largest", LARGEST_IDS)
def test_records_parse_to_the_same_values(largest):
    instances = instances_with_ids_up_to(largest)
    features = {
        name: tf.io.FixedLenFeature([feature.length], feature.dtype)
        for name, feature in instance_features(RowLimits(20, 4), 100).items()
    }
    parsed = tf.io.parse_example(encode_examples(instances), features)
    assert parsed.keys() == instances.keys()
    for name, values in instances.items():
        assert parsed[name].numpy().tolist() == values.tolist()


def test_lengths_of_rows_may_need_different_numbers_of_bytes():
    ids = np.zeros((3, 7000), np.uint32)
    ids[1, :100] = 300
    ids[2] = 2_000_000
    instances = {"input_ids": ids, "next_sentence_labels": np.ones((3, 1), np.uint8)}
    assert encode_examples(instances) == [by_protobuf(instances, row) for row in range(3)]
    instances["input_ids"] = np.array([[5] * 100, [300] * 100])
    instances["next_sentence_labels"] = np.zeros((2, 1), np.uint8)
    assert encode_examples(instances) == [by_protobuf(instances, row) for row in range(2)]


def test_floats_keep_every_bit():
    weights = np.array([[0.0, 1.0, 0.1, -2.5e-38, 3.4e38]], np.float32)
    assert encode_examples({"w": weights}) == [by_protobuf({"w": weights}, 0)]


def test_features_are_the_seven_of_the_original():
    features = instance_features(RowLimits(128, 20), 30_522)
    assert {name: dataclasses.astuple(feature) for name, feature in features.items()} == {
        "input_ids": ("int64", 128, 30_522, "input_ids"),
        "input_mask": ("int64", 128, 2, "input_mask"),
        "segment_ids": ("int64", 128, 2, "segment_ids"),
        "masked_lm_positions": ("int64", 20, 128, "masked_lm_positions"),
        "masked_lm_ids": ("int64", 20, 30_522, "masked_lm_ids"),
        "masked_lm_weights": ("float32", 20, 2, "masked_lm_weights"),
        "next_sentence_labels": ("int64", 1, 2, "next_sentence_labels"),
    }


@pytest.mark.parametrize("largest", LARGEST_IDS)
def test_records_are_decoded_to_the_same_values(largest):
    instances = instances_with_ids_up_to(largest)
    for row, record in enumerate(encode_examples(instances)):
        decoded = decode_example(record)
        assert decoded.keys() == instances.keys()
        for name, values in instances.items():
            assert decoded[name].tolist() == values[row].tolist()
            assert decoded[name].dtype == (np.float32 if name == "masked_lm_weights" else np.int64)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "input_ids", "x" * 100, "ä"]),
        st.lists(st.integers(0, 2**31), min_size=1, max_size=300)
        | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=300),
        min_size=1,
    )
)
def test_what_protobuf_serialized_is_decoded(features):
    example = tf.train.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        is_float = isinstance(values[0], float)
        (feature.float_list if is_float else feature.int64_list).value.extend(values)
    decoded = decode_example(example.SerializeToString())
    assert {name: values.tolist() for name, values in decoded.items()} == features


def test_the_record_of_a_frame_is_what_was_framed():
    for record in (b"", b"a", bytes(range(256)) * 9):
        assert record_of(frame_record(record)) == record


def test_framed_records_are_the_bytes_of_tensorflows_writer(tmp_path):
    records = [b"", b"a", bytes(range(256)) * 9]
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for record in records:
            writer.write(record)
    assert b"".join(map(frame_record, records)) == (tmp_path / "records").read_bytes()


@pytest.fixture
def framed():
    return [frame_record(record) for record in (b"", b"some record", b"x" * 300)]


def test_frames_are_read_as_they_were_written(framed):
    assert list(read_frames(io.BytesIO(b"".join(framed)))) == framed
    assert list(read_frames(io.BytesIO(b""))) == []


def test_a_file_that_ends_within_a_frame_is_noticed(framed):
    content = b"".join(framed)
    whole = {0, len(framed[0]), len(framed[0] + framed[1])}
    for end in set(range(len(content))) - whole:
        with pytest.raises(ValueError, match="checksum"):
            list(read_frames(io.BytesIO(content[:end])))


@pytest.mark.parametrize("length", [1 << 33, (1 << 64) - 1])
def test_a_length_beyond_the_file_takes_no_memory(framed, length):
    content = framed[1] + _frame_head(length) + b"x"
    with pytest.raises(ValueError, match="checksum"):
        list(read_frames(io.BytesIO(content)))


def test_every_changed_byte_is_noticed(framed):
    content = bytearray(framed[1])
    for position in range(len(content)):
        content[position] ^= 0x10
        with pytest.raises(ValueError, match="checksum"):
            list(read_frames(io.BytesIO(bytes(content))))
        content[position] ^= 0x10


FEATURES = {
    "ids": Feature("int64", 3, 2**62, "numbers"),
    "weights": Feature("float32", 2, 2, "weights"),
}


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**62 - 1), min_size=3, max_size=3),
            st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_records_of_protobuf_are_decoded_side_by_side(rows):
    records = []
    for numbers, weights, is_first in rows:
        example = tf.train.Example()
        feature = example.features.feature
        for name in ("numbers", "weights")[:: 1 if is_first else -1]:
            kind = feature[name].int64_list if name == "numbers" else feature[name].float_list
            kind.value.extend(numbers if name == "numbers" else weights)
        feature["another"].bytes_list.value.append(b"ignored")
        records.append(example.SerializeToString())
    decoded = decode_instances(records, FEATURES)
    assert decoded["ids"].tolist() == [numbers for numbers, _, _ in rows]
    assert decoded["weights"].tolist() == [weights for _, weights, _ in rows]


@given(st.data())
def test_what_is_no_record_is_a_value_error(data):
    """Whatever bytes are changed, a record is read or refused; nothing else happens."""
    instances = {"numbers": np.array([[1, 300, 5]]), "weights": np.array([[0, 1]], np.float32)}
    record = bytearray(encode_examples(instances)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    record = bytes(record[: data.draw(st.integers(0, len(record)))])
    with suppress(ValueError):
        decoded = decode_instances([record], FEATURES)
        assert {name: values.shape for name, values in decoded.items()} == {
            "ids": (1, 3),
            "weights": (1, 2),
        }


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_any_number_of_64_bits_is_decoded(values):
    example = tf.train.Example()
    example.features.feature["x"].int64_list.value.extend(values)
    assert decode_example(example.SerializeToString())["x"].tolist() == values


@pytest.mark.parametrize("length", [1, 6, 7, 8, 127, 128])
def test_where_words_begin_is_one_bit_a_position(length):
    rng = np.random.default_rng(length)
    instances = {
        "input_ids": rng.integers(0, 9, (5, length)),
        "word_starts": rng.random((5, length)) < 0.5,
    }
    feature = unmasked_features(RowLimits(length, 3), 9, 2)["word_starts"]
    packed = pack_word_starts(instances)
    assert packed["word_starts"].shape == (5, feature.length)
    assert packed["word_starts"].max() < feature.limit == 128
    first = sum(int(flag) << place for place, flag in enumerate(instances["word_starts"][0, :7]))
    assert packed["word_starts"][0, 0] == first
    unpacked = unpack_word_starts({**packed, "word_starts": packed["word_starts"].astype(int)})
    assert unpacked["word_starts"].dtype == bool
    assert (unpacked["word_starts"] == instances["word_starts"]).all()
