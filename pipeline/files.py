"""Files that are whole or not there, whether they are still the same, and directories of one writer."""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import logging

from pipeline.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is never seen half-written."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file of the project; None when there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove the folder {path.parent}") from error


@contextmanager
def whole_file(path: Path, temporary_dir: Path | None = None) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` at the end and is removed after an error.

    Args:
      path: the file's name when it is whole.
      temporary_dir: where it is written, in the same file system; None: beside `path`.
    """
    temporary = temporary_name((temporary_dir or path.parent) / path.name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other writer has, not even one that outlives a killed run."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this SHA-256, in hexadecimal."""
    return path.exists() and sha256_of(path) == sha256


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Within, no other run can work in the directory, not even while this one is stopped.

    It is made where it is missing, and removed again if nothing has come into it.

    Raises:
      UserError: another run works there, or there can be no such directory.
    """
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or directory}: {error.strerror}; give another directory"
        ) from error
    try:
        _lock(handle, directory)
        yield
    finally:
        os.close(handle)
        if is_new and not any(directory.iterdir()):
            directory.rmdir()


def _lock(handle: int, directory: Path) -> None:
    """Locks an open directory until it is closed; some network file systems cannot, which is said."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another run works in {directory}: wait for it or end it") from error
    except OSError as error:
        logging.warning(
            "cannot lock %s (%s): see to it yourself that no other run works there",
            directory,
            error.strerror,
        )
