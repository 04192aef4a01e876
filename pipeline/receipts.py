"""Receipts: records of finished files, with the counts taken while each was made.

Every finished file of the pipeline has a *receipt*, a small JSON file beside it or in a folder of
receipts. Receipts survive a killed worker or run, and a file with a receipt is not made again. A
damaged receipt is none.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from absl import logging

from pipeline.files import has_sha256
from pipeline.json_files import NO_OTHER_KEYS, DamagedFileError, read_json, write_json
from pipeline.storage import Location

_SUFFIX = ".json"
_OTHER_FILES = {
    "input_stamps_sha256": "different input files or older versions of them",
    "vocab_sha256": "a different vocabulary",
    "instance_format_version": "a build of Clozemill that masks otherwise",
}

Plan = Mapping[str, Any]
"""Everything that determines the content of files, as JSON values."""


class Receipt(Protocol):
    """A dataclass with what is known of a finished file."""

    @property
    def sha256(self) -> str:
        """The file's SHA-256, in hexadecimal."""


@dataclass(frozen=True)
class PortionReceipt:
    """What is known of the tokenized documents of a portion.

    Attributes:
      buckets: split and number of the bucket of each row group.
      sha256: the file's SHA-256, in hexadecimal.
      text_bytes: the amount of text, in bytes.
      statistics: the counts taken while it was read.
    """

    buckets: list[tuple[str, int]]
    sha256: str
    text_bytes: int
    statistics: Counter[str]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class PartsReceipt:
    """What is known of a file of parts: its SHA-256."""

    sha256: str

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class DuplicatesReceipt:
    """What is known of the list of a portion's documents that are dropped.

    Attributes:
      documents: how many have the same text as one before them.
      sha256: the list's SHA-256, in hexadecimal.
      near_documents: how many others are near copies of one before them.
      num_tokens: the tokens of all of them.
    """

    documents: int
    sha256: str
    near_documents: int = 0
    num_tokens: int = 0

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class FileReceipt:
    """What is known of a file of which nothing is counted: its SHA-256."""

    sha256: str

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class VocabularyReceipt:
    """What is known of a vocabulary: all that determines its content, and its SHA-256."""

    plan: dict[str, Any]
    sha256: str

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class ExtensionReceipt(VocabularyReceipt):
    """What is known of a vocabulary that extends another.

    Attributes:
      figures: those of `pipeline.vocabulary_extension.extend_vocabulary`.
    """

    figures: dict[str, int]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


R = TypeVar("R", bound=Receipt)


def read_receipt(path: Location, kind: type[R]) -> R | None:
    """Reads the receipt of the file that is, or was first, at `path`; None if it has no receipt."""
    try:
        return read_json(path_of_receipt(path), kind)
    except (FileNotFoundError, DamagedFileError):
        return None


def read_receipt_of_whole(path: Location, kind: type[R], file: Location | None = None) -> R | None:
    """Reads a file's receipt if the file has its SHA-256; None if the file must be made again.

    Args:
      path: where the file was first.
      kind: the receipt's type.
      file: where the file is now, if it is not at `path` any more.
    """
    with suppress(DamagedFileError):
        try:
            receipt = read_json(path_of_receipt(path), kind)
        except FileNotFoundError:
            return None
        if has_sha256(file or path, receipt.sha256):
            return receipt
    logging.warning("%s or its receipt is damaged: it is made again", file or path)
    return None


def write_receipt(path: Location, receipt: Receipt) -> None:
    """Writes the receipt of a finished file atomically."""
    write_json(path_of_receipt(path), vars(receipt))


def files_with_receipt(folder: Location, pattern: str) -> list[str]:
    """Returns the names of the finished files whose receipts are in a folder and match a glob."""
    return [receipt.stem for receipt in folder.glob(pattern + _SUFFIX)]


def path_of_receipt(path: Location) -> Location:
    """The receipt of the file that is, or was first, at `path`."""
    return path.with_name(path.name + _SUFFIX)


def differences(found: Plan, wanted: Plan) -> list[str]:
    """How a plan that was read from a file differs from the plan of this run, in words."""
    wanted = json.loads(json.dumps(wanted))  # plain values, as in the file
    return [
        _OTHER_FILES.get(name) or _difference(name, value, other)
        for name, value, other in _different_values(found, wanted)
    ]


def _difference(name: str, value: Any, other: Any) -> str:
    if isinstance(value, dict):  # which may be long
        return name
    return f"no {name}" if isinstance(other, dict) else f"{name} {value!r}, not {other!r}"


def _different_values(found: Plan, wanted: Plan) -> Iterator[tuple[str, Any, Any]]:
    """The name and both values of what differs; of an object in both plans, of what is in it."""
    for name in sorted(found.keys() | wanted.keys()):
        value, other = found.get(name), wanted.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            for part, *values in _different_values(value, other):
                yield f"{name}.{part}", *values
        elif value != other:
            yield name, value, other
