"""Receipts: records of finished files, with the counts taken while each was made.

Every finished file of the pipeline has a *receipt*, a small JSON file beside it or in a folder of
receipts. Receipts survive a killed worker or run, and a file with a receipt is not made again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import has_sha256, read_json, write_json

_SUFFIX = ".json"


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Reads the receipt of the file that is, or was first, at `path`; None if it has no receipt."""
    return read_json(_receipt(path))


def read_receipt_of_whole(path: Path) -> dict[str, Any] | None:
    """Reads a file's receipt if the file has its SHA-256; None if the file must be made again."""
    receipt = read_receipt(path)
    return receipt if receipt and has_sha256(path, receipt["sha256"]) else None


def write_receipt(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the receipt of a finished file atomically."""
    write_json(_receipt(path), content)


def files_with_receipt(folder: Path, pattern: str) -> list[str]:
    """Returns the names of the finished files whose receipts are in a folder and match a glob."""
    return [receipt.stem for receipt in folder.glob(pattern + _SUFFIX)]


def _receipt(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)
