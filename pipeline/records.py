"""The record contract: what a `tf.train.Example` of an instance holds, and its bytes.

The seven features and their shapes are those of the original BERT. A whole batch is serialized at
once, as columns of bytes: the result is what protobuf's deterministic serialization gives.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import google_crc32c
import numpy as np

_BITS_PER_VARINT_BYTE = 7
_MORE_FOLLOWS = 0x80
_LENGTH_BYTES, _CRC_BYTES = 8, 4


@dataclass(frozen=True)
class Feature:
    """One feature of a record, of fixed length.

    Attributes:
      dtype: "int64" or "float32".
      length: how many values; 0 pads the unused ones.
    """

    dtype: str
    length: int


def instance_features(max_seq_length: int, max_predictions_per_seq: int) -> dict[str, Feature]:
    """The features of a record with S tokens and P predictions.

    `next_sentence_labels` is 0 where B follows A and 1 where it is random; `masked_lm_positions` rise,
    and `masked_lm_weights` are 1.0 for real predictions.
    """
    return {
        "input_ids": Feature("int64", max_seq_length),
        "input_mask": Feature("int64", max_seq_length),
        "segment_ids": Feature("int64", max_seq_length),
        "masked_lm_positions": Feature("int64", max_predictions_per_seq),
        "masked_lm_ids": Feature("int64", max_predictions_per_seq),
        "masked_lm_weights": Feature("float32", max_predictions_per_seq),
        "next_sentence_labels": Feature("int64", 1),
    }


def frame_record(record: bytes) -> bytes:
    """A record as it stands in a TFRecord file: length, its CRC, content, its CRC."""
    length = struct.pack("<Q", len(record))
    return length + _masked_crc(length) + record + _masked_crc(record)


def read_frames(file: BinaryIO) -> Iterator[bytes]:
    """The frames of a TFRecord file, one a record, with both checksums checked.

    Raises:
      ValueError: the file ends within a frame, or a checksum is wrong.
    """
    while length := file.read(_LENGTH_BYTES):
        length_crc = file.read(_CRC_BYTES)
        if length_crc != _masked_crc(length):
            raise ValueError("the checksum of its length is wrong")
        record = file.read(int.from_bytes(length, "little"))
        record_crc = file.read(_CRC_BYTES)
        if record_crc != _masked_crc(record):
            raise ValueError("its checksum is wrong")
        yield length + length_crc + record + record_crc


def encode_examples(instances: Mapping[str, np.ndarray]) -> list[bytes]:
    """Serialized `tf.train.Example`s of N instances.

    Args:
      instances: arrays [N, length] by feature name; integers are not negative, floats are float32.
    """
    entries = _Columns(len(next(iter(instances.values()))))
    for name in sorted(instances):
        entries.append(_map_entry(name, instances[name]).prefixed(b"\x0a"))
    return entries.prefixed(b"\x0a").rows()


def _masked_crc(data: bytes) -> bytes:
    """The CRC-32C in the rotated form in which TFRecord files store it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _map_entry(name: str, values: np.ndarray) -> "_Columns":
    """An entry of the map from feature name to `tf.train.Feature`."""
    columns = _Columns(len(values))
    if values.dtype == np.float32:
        columns.append_bytes(np.ascontiguousarray(values).view(np.uint8))
        field_of_list = b"\x12"  # Feature.float_list
    else:
        columns.append_varints(values)
        field_of_list = b"\x1a"  # Feature.int64_list
    key = name.encode()
    feature = columns.prefixed(b"\x0a").prefixed(field_of_list)
    return feature.prefixed(b"\x0a" + bytes([len(key)]) + key + b"\x12")


class _Columns:
    """N byte strings side by side: columns of bytes, and which rows use which."""

    def __init__(self, num_rows: int):
        self._num_rows = num_rows
        self._bytes: list[np.ndarray] = []
        self._used: list[np.ndarray] = []
        self._lengths = np.zeros(num_rows, np.int64)

    def append_bytes(self, columns: np.ndarray) -> None:
        """Adds uint8 [N, K], used in full by every row."""
        self._bytes.append(columns)
        self._used.append(np.broadcast_to(True, columns.shape))
        self._lengths += columns.shape[1]

    def append_varints(self, values: np.ndarray) -> None:
        """Adds not negative integers [N, K] as protobuf varints, low bits first."""
        width = max(1, -(-int(values.max(initial=0)).bit_length() // _BITS_PER_VARINT_BYTE))
        if width == 1:
            self.append_bytes(values.astype(np.uint8))
            return
        shifts = np.arange(width, dtype=np.uint32) * _BITS_PER_VARINT_BYTE
        rest = values.astype(np.uint32)[:, :, np.newaxis] >> shifts
        used = rest > 0
        used[:, :, 0] = True
        follows = np.where(rest >= _MORE_FOLLOWS, _MORE_FOLLOWS, 0)
        groups = (rest & (_MORE_FOLLOWS - 1) | follows).astype(np.uint8)
        self._bytes.append(groups.reshape(self._num_rows, -1))
        self._used.append(used.reshape(self._num_rows, -1))
        self._lengths += used.sum(axis=(1, 2))

    def append(self, other: "_Columns") -> None:
        """Adds the other's columns behind these."""
        self._bytes += other._bytes
        self._used += other._used
        self._lengths += other._lengths

    def prefixed(self, prefix: bytes) -> "_Columns":
        """The same behind `prefix` and each row's length: a length-delimited field."""
        columns = _Columns(self._num_rows)
        columns.append_bytes(
            np.broadcast_to(np.frombuffer(prefix, np.uint8), (self._num_rows, len(prefix)))
        )
        columns.append_varints(self._lengths[:, np.newaxis])
        columns.append(self)
        return columns

    def rows(self) -> list[bytes]:
        """Each row's bytes."""
        content = np.hstack(self._bytes)[np.hstack(self._used)].tobytes()
        ends = np.cumsum(self._lengths).tolist()
        return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
