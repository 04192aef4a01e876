"""The record contract: the features of an instance's `tf.train.Example`, and its bytes.

The seven features and their shapes are the original's. A whole batch is serialized at once, as
columns of bytes. The result equals protobuf's deterministic serialization. A whole batch is also
decoded at once, whoever serialized it.
"""

import functools
import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Location

_BITS = 7  # of a number in each byte of its varint
_MORE_FOLLOWS = 0x80
_LONGEST_VARINT = 10
_LENGTH_BYTES, _CRC_BYTES = 8, 4
# Protobuf: the field numbers of tf.train.Feature, and the type that a tag holds beside the number.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_DTYPES = {_BYTES_LIST: "bytes", _FLOAT_LIST: "float32", _INT64_LIST: "int64"}
_TAG_TYPE_BITS, _DELIMITED = 3, 2
_SMALLEST_TABLE_BITS = 15
_GZIP_MAGIC = b"\x1f\x8b"
_BYTES_PER_GZIP_BYTE = 1 << 10  # at most

ALIASES: dict[str, dict[str, str]] = {
    "original": {},
    "model_garden_v2": {"input_ids": "input_word_ids", "segment_ids": "input_type_ids"},
}
"""The names that features have in records, by their own names, where these differ."""
Instances = dict[str, np.ndarray]
"""A batch of N instances: arrays [N, length] under the names of `instance_features`."""


@dataclass(frozen=True)
class Feature:
    """One feature of a record, of fixed length.

    Attributes:
      dtype: "int64" or "float32".
      length: the number of values; unused ones are 0.
      limit: values are whole numbers from 0 to `limit` - 1.
      name: its name in the record.
    """

    dtype: str
    length: int
    limit: int
    name: str


@dataclass(frozen=True)
class RowLimits:
    """The most that a record holds, which is a row of one or more sequences.

    Attributes:
      tokens: R, the row's length.
      predictions: masked pieces.
      sequences: K.
    """

    tokens: int
    predictions: int
    sequences: int = 1


def instance_features(
    limits: RowLimits, vocab_size: int, names: str = "original", segments: int = 2
) -> dict[str, Feature]:
    """The features of a record of S tokens, P predictions and K sequences; of V tokens in all.

    They have the names of the original. `names`, one of `ALIASES`, are those in the record.

    With one segment in place of two, `segment_ids` and `next_sentence_labels` are 0.
    `masked_lm_positions` are ascending. `masked_lm_weights` are 1.0 for real predictions and 0.0
    for unused slots.

    A record with K > 1 is a packed row. It has one sequence after the other, then padding.
    `input_mask` is the number of the sequence, from 1 on, and 0 for padding; so it is 1 for all
    tokens of a single sequence. `next_sentence_labels` has a label for each sequence.
    """
    shapes = {
        "input_ids": ("int64", limits.tokens, vocab_size),
        "input_mask": ("int64", limits.tokens, limits.sequences + 1),
        "segment_ids": ("int64", limits.tokens, segments),
        "masked_lm_positions": ("int64", limits.predictions, limits.tokens),
        "masked_lm_ids": ("int64", limits.predictions, vocab_size),
        "masked_lm_weights": ("float32", limits.predictions, 2),
        "next_sentence_labels": ("int64", limits.sequences, segments),
    }
    return {name: Feature(*each, ALIASES[names].get(name, name)) for name, each in shapes.items()}


def unmasked_features(limits: RowLimits, vocab_size: int, segments: int) -> dict[str, Feature]:
    """The features of a record whose masks are drawn while training, as `instance_features`.

    It has none of those of masks. Instead, `word_starts` tells where words begin: for each
    position one bit, in numbers of seven bits, the first position in the lowest bit of the first.
    `instance_number` is the bucket of its documents, and its number in their shard.
    """
    features = instance_features(limits, vocab_size, segments=segments)
    kept = {name: each for name, each in features.items() if not name.startswith("masked_lm")}
    return kept | {
        "word_starts": Feature("int64", -(-limits.tokens // _BITS), 1 << _BITS, "word_starts"),
        "instance_number": Feature("int64", 2, 1 << 31, "instance_number"),
    }


def pack_word_starts(instances: Instances) -> Instances:
    """The instances, with `word_starts`, bool [N, S], as records hold them: uint8 [N, ⌈S / 7⌉]."""
    flags = instances["word_starts"]
    padded = np.pad(flags, ((0, 0), (0, -flags.shape[1] % _BITS)))
    bits = padded.reshape(len(flags), -1, _BITS)
    return instances | {"word_starts": np.packbits(bits, axis=2, bitorder="little")[:, :, 0]}


def unpack_word_starts(instances: Instances) -> Instances:
    """The instances of records, with `word_starts` as bool [N, S], if they have any."""
    if "word_starts" not in instances:
        return instances
    numbers = instances["word_starts"].astype(np.uint8)[:, :, np.newaxis]
    bits = np.unpackbits(numbers, axis=2, count=_BITS, bitorder="little")
    flags = bits.reshape(len(numbers), -1)[:, : instances["input_ids"].shape[1]]
    return instances | {"word_starts": flags.astype(bool)}


def tfrecord_compression(path: Location) -> str:
    """The compression of a TFRecord file, "GZIP" or ""; its first bytes tell."""
    with path.open("rb") as file:
        return "GZIP" if file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC else ""


@contextmanager
def open_records(path: Location, buffering: int = -1) -> Iterator[BinaryIO]:
    """Opens a TFRecord file for `read_frames`; if it is compressed, gives what it holds.

    Args:
      path: the file.
      buffering: how many bytes are read at a time; -1: the default of a disk, or of a store.
    """
    with cast(io.BufferedReader, path.open("rb", buffering)) as file:
        if file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file) as content:
                yield cast(BinaryIO, content)
        else:
            yield file


def frame_record(record: bytes) -> bytes:
    """A record as a TFRecord file holds it: length, CRC of the length, content, CRC of it."""
    return _frame_head(len(record)) + record + _masked_crc(record)


def read_frames(file: BinaryIO) -> Iterator[bytes]:
    """The frames of a TFRecord file, one for each record; checks both checksums.

    A damaged length never takes more memory than the file's size, decompressed.

    Raises:
      ValueError: the file ends within a frame, a checksum is wrong, or its compression is damaged.
    """
    most_bytes = _size_at_most(file)
    try:
        while length := file.read(_LENGTH_BYTES):
            length_crc = file.read(_CRC_BYTES)
            if length_crc != _masked_crc(length):
                raise ValueError("the checksum of its length is wrong")
            record = file.read(min(int.from_bytes(length, "little"), most_bytes))
            record_crc = file.read(_CRC_BYTES)
            if record_crc != _masked_crc(record):
                raise ValueError("its checksum is wrong")
            yield length + length_crc + record + record_crc
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"its compression is damaged ({error})") from error


def _size_at_most(file: BinaryIO) -> int:
    is_compressed = isinstance(file, gzip.GzipFile)  # its own size is not known before its end
    stored: Any = getattr(file, "fileobj", file)
    # Not through a buffer, because that would forget what it has read already.
    stored = getattr(stored, "raw", stored)
    position = stored.tell()
    size = stored.seek(0, io.SEEK_END)
    stored.seek(position)
    return size * _BYTES_PER_GZIP_BYTE if is_compressed else size


def record_of(frame: bytes) -> bytes:
    """The record in a frame."""
    return frame[_LENGTH_BYTES + _CRC_BYTES : -_CRC_BYTES]


def encode_examples(instances: Mapping[str, np.ndarray]) -> list[bytes]:
    """Serialized `tf.train.Example`s of N instances.

    Args:
      instances: arrays [N, length] by feature name; integers are not negative, floats are float32.
    """
    features = _Messages(len(next(iter(instances.values()))))
    for name in sorted(instances):
        features.append(_map_entry(name, instances[name]).as_field(1))
    return features.as_field(1).to_bytes()


def decode_example(record: bytes) -> dict[str, np.ndarray]:
    """The features of a serialized `tf.train.Example`, by name, but no byte strings.

    Raises:
      ValueError: it is not a `tf.train.Example`.
    """
    return {
        name: _unpacked([packed], _DTYPES[kind])[0]
        for name, (kind, packed) in _packed_features(record).items()
        if kind != _BYTES_LIST
    }


def decode_instances(records: Sequence[bytes], features: Mapping[str, Feature]) -> Instances:
    """The features of N instances, arrays [N, length], whose lengths and values are checked.

    Other features of the records are ignored.

    Raises:
      ValueError: a record is not an instance with these features.
    """
    packed: dict[str, list[bytes]] = {name: [] for name in features}
    for record in records:
        found = _packed_features(record)
        for name, feature in features.items():
            if feature.name not in found:
                raise ValueError(f"it has no {feature.name}")
            kind, content = found[feature.name]
            if _DTYPES[kind] != feature.dtype:
                raise ValueError(f"its {feature.name} are {_DTYPES[kind]}, not {feature.dtype}")
            packed[name].append(content)
    instances = {}
    for name, feature in features.items():
        values, lengths = _unpacked(packed[name], feature.dtype)
        if (wrong := lengths[lengths != feature.length]).size:
            raise ValueError(f"its {feature.name} are {wrong[0]} values, not {feature.length}")
        instances[name] = values.reshape(len(records), feature.length)
    check_values(instances, features)
    return instances


def decode_instance(record: bytes, features: Mapping[str, Feature]) -> dict[str, np.ndarray]:
    """The features of an instance, whose lengths and values are checked.

    Raises:
      ValueError: the record is not an instance with these features.
    """
    return {name: values[0] for name, values in decode_instances([record], features).items()}


def check_values(instances: Mapping[str, np.ndarray], features: Mapping[str, Feature]) -> None:
    """Checks that all values of one or more instances are in the ranges of their features.

    Raises:
      ValueError: a value is out of its range.
    """
    for name, values in instances.items():
        lowest, highest, limit = values.min(), values.max(), features[name].limit
        # Written so that NaN is out of range, and so that no infinity is divided.
        is_in_range = lowest >= 0 and highest < limit
        if not (is_in_range and (values.dtype != np.float32 or (values % 1 == 0).all())):
            raise ValueError(
                f"its {features[name].name} are from {lowest} to {highest}, not whole numbers "
                f"from 0 to {limit - 1}"
            )


@functools.cache
def _frame_head(record_bytes: int) -> bytes:
    length = struct.pack("<Q", record_bytes)
    return length + _masked_crc(length)


def _masked_crc(data: bytes) -> bytes:
    """The CRC-32C of data, in the rotated form that TFRecord files store."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _map_entry(name: str, values: np.ndarray) -> "_Messages":
    """An entry of the map from feature name to `tf.train.Feature`.

    A message that holds another one is built from the inside out. For example, `[5, 300]` as the
    feature "ids" of one record (the varint of 300 is ac 02; a tag and a length begin each field)::

        Int64List   0a 03  05 ac 02
        Feature     1a 05  0a 03 05 ac 02
        entry       0a 03  "ids"   12 07  1a 05 0a 03 05 ac 02
    """
    packed = _Messages(len(values))
    if values.dtype == np.float32:
        packed.append_bytes(np.ascontiguousarray(values).view(np.uint8))
        kind = _FLOAT_LIST
    else:
        packed.append_varints(values)
        kind = _INT64_LIST
    entry = _Messages(len(values))
    key = name.encode()
    entry.append_constant(bytes([_tag(1), len(key)]) + key)
    entry.append(packed.as_field(1).as_field(kind).as_field(2))
    return entry


def _packed_features(record: bytes) -> dict[str, tuple[int, bytes]]:
    """The features of a serialized `tf.train.Example` by name: kind, and values one by one.

    Raises:
      ValueError: it is not a `tf.train.Example`.
    """
    packed = {}
    try:
        for _, features in _fields(record):
            for _, entry in _fields(features):
                (_, name), (_, feature) = _fields(entry)
                ((kind, value_list),) = _fields(feature)
                if kind not in _DTYPES:
                    raise ValueError(f"a feature is of the unknown kind {kind}")
                lists = [content for _, content in _fields(value_list)]
                packed[name.decode()] = (kind, lists[0] if len(lists) == 1 else b"".join(lists))
    except (LookupError, ValueError) as error:
        raise ValueError(f"it is not a tf.train.Example: {error}") from error
    return packed


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protobuf message, whose fields all have a length."""
    position = 0
    while position < len(message):
        tag, length = message[position], message[position + 1]
        position += 2
        if length >= _MORE_FOLLOWS:
            length, shift = length & (_MORE_FOLLOWS - 1), 0
            more = _MORE_FOLLOWS
            while more >= _MORE_FOLLOWS:
                more = message[position]
                position += 1
                shift += _BITS
                length |= (more & (_MORE_FOLLOWS - 1)) << shift
        end = position + length
        if tag & ((1 << _TAG_TYPE_BITS) - 1) != _DELIMITED or end > len(message):
            raise ValueError("a field has another form, or is cut off")
        yield tag >> _TAG_TYPE_BITS, message[position:end]
        position = end


def _unpacked(rows: list[bytes], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of N packed lists, one list after the other; and int64 [N], their lengths.

    Raises:
      ValueError: a value is cut off or too long.
    """
    joined = np.frombuffer(b"".join(rows), np.uint8)
    ends_of_rows = np.cumsum([len(row) for row in rows], dtype=np.int64)
    if dtype == "float32":
        return joined.view("<f4"), np.diff(ends_of_rows, prepend=0) // 4
    ends = np.flatnonzero(joined < _MORE_FOLLOWS) + 1
    if (joined[ends_of_rows[ends_of_rows > 0] - 1] >= _MORE_FOLLOWS).any():
        raise ValueError("a number is cut off")
    widths = np.diff(ends, prepend=0)
    longest = int(widths.max(initial=1))
    if longest > _LONGEST_VARINT:
        raise ValueError("a number has too many bytes")
    bits = (joined & (_MORE_FOLLOWS - 1)).astype(np.uint64)
    starts = ends - widths
    values = bits[starts]
    for place in range(1, longest):
        has_more = np.flatnonzero(widths > place)
        shift = np.uint64(place * _BITS)
        # The varint of a negative number is that of its 64 bits.
        values[has_more] |= bits[starts[has_more] + place] << shift
    return values.view(np.int64), np.diff(np.searchsorted(ends, ends_of_rows, "right"), prepend=0)


class _Messages:
    """N protobuf messages side by side, as the sequence of parts that each of them consists of.

    A part is a constant, or a column of N byte strings. Arrow joins parts without a Python loop.
    """

    def __init__(self, num_messages: int):
        self._num_messages = num_messages
        self._parts: list[bytes | pa.Array] = []
        self._lengths = np.zeros(num_messages, np.int64)

    def append_constant(self, content: bytes) -> None:
        """Adds the same bytes to every message."""
        self._parts.append(content)
        self._lengths += len(content)

    def append_bytes(self, rows: np.ndarray) -> None:
        """Adds uint8 [N, K]."""
        content = pa.py_buffer(np.ascontiguousarray(rows))
        column = pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, content])
        self._parts.append(column.cast(pa.binary()))
        self._lengths += rows.shape[1]

    def append_varints(self, values: np.ndarray) -> None:
        """Adds non-negative integers [N, K], K > 0, as varints."""
        largest = int(values.max(initial=0))
        if largest < _MORE_FOLLOWS:
            self.append_bytes(values.astype(np.uint8))
            return
        varints = _varints(largest).take(pa.array(values.ravel()))
        _, ends, content = varints.buffers()
        ends_of_messages = np.frombuffer(ends, np.int32)[:: values.shape[1]].copy()
        self._parts.append(
            pa.Array.from_buffers(
                pa.binary(), len(values), [None, pa.py_buffer(ends_of_messages), content]
            )
        )
        self._lengths += np.diff(ends_of_messages)

    def append(self, other: "_Messages") -> None:
        """Adds the parts of other messages."""
        self._parts += other._parts
        self._lengths += other._lengths

    def as_field(self, number: int) -> "_Messages":
        """These messages as a field of outer messages: a tag, the length, the message."""
        field = _Messages(self._num_messages)
        field.append_constant(bytes([_tag(number)]))
        if (self._lengths == self._lengths[0]).all():
            field.append_constant(_varint(int(self._lengths[0])))
        else:
            field.append_varints(self._lengths[:, np.newaxis])
        field.append(self)
        return field

    def to_bytes(self) -> list[bytes]:
        """The N messages."""
        columns: list[pa.Scalar | pa.Array] = []
        for is_constant, group in itertools.groupby(self._parts, lambda part: type(part) is bytes):
            parts = list(group)
            columns += [pa.scalar(b"".join(parts))] if is_constant else parts
        return pc.binary_join_element_wise(*columns, pa.scalar(b"")).to_pylist()


@functools.cache
def _varint_table(bits: int) -> pa.Array:
    return pa.array([_varint(value) for value in range(1 << bits)], pa.binary())


def _varints(largest: int) -> pa.Array:
    """The varints of 0, 1, 2, … up to at least `largest`."""
    return _varint_table(max(_SMALLEST_TABLE_BITS, largest.bit_length()))


def _varint(value: int) -> bytes:
    """The protobuf varint of a non-negative number: seven bits a byte, low bits first."""
    varint = bytearray()
    while value >= _MORE_FOLLOWS:
        varint.append(value & (_MORE_FOLLOWS - 1) | _MORE_FOLLOWS)
        value >>= _BITS
    varint.append(value)
    return bytes(varint)


def _tag(field_number: int) -> int:
    """The byte before the length of a field."""
    return field_number << _TAG_TYPE_BITS | _DELIMITED
