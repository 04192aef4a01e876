"""Receipts: what was counted while a file was made.

Every finished file of the pipeline has a *receipt*, a small JSON file beside it or in a folder of
receipts. Receipts outlive a worker or a run that is killed: a file with a receipt is not made again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import has_sha256, read_json, write_json

_SUFFIX = ".json"


def read_receipt(path: Path) -> dict[str, Any] | None:
    """The receipt of the file that is or was made as `path`; None when there is none."""
    return read_json(_receipt(path))


def read_receipt_of_whole(path: Path) -> dict[str, Any] | None:
    """The receipt of a file that has the SHA-256 it says; None when the file has to be made."""
    receipt = read_receipt(path)
    return receipt if receipt and has_sha256(path, receipt["sha256"]) else None


def write_receipt(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the receipt of a finished file; it appears when it is whole."""
    write_json(_receipt(path), content)


def files_with_receipt(folder: Path, pattern: str) -> list[str]:
    """The names of the finished files in a folder that match a glob."""
    return [receipt.stem for receipt in folder.glob(pattern + _SUFFIX)]


def _receipt(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)
