"""Files that are complete or absent, SHA-256 checks, and locks for directories with one writer."""

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
    """Writes a text file atomically: no reader ever sees it half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically: no reader ever sees it half-written."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON file written by this project; returns None if there is no such file.

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
    """Yields a temporary file name; the file is renamed to `path` at the end, or removed on error.

    Args:
      path: name of the complete file.
      temporary_dir: directory for the temporary file, on the same file system as `path`; None means
        the directory of `path`.
    """
    temporary = temporary_name((temporary_dir or path.parent) / path.name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other writer uses, not even a worker that outlived its run."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file exists and has this SHA-256 (in hexadecimal)."""
    return path.exists() and sha256_of(path) == sha256


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Keeps other runs out of the directory until the block ends, even while this one is suspended.

    A missing directory is created. It is removed again if it is still empty at the end.

    Raises:
      UserError: another run uses the directory, or it cannot be created.
    """
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or directory}: {error.strerror}; "
            "choose another directory"
        ) from error
    try:
        _lock(handle, directory)
        yield
    finally:
        os.close(handle)
        if is_new and not any(directory.iterdir()):
            directory.rmdir()


def _lock(handle: int, directory: Path) -> None:
    """Locks an open directory until it is closed; logs a warning if the file system cannot lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{directory} is in use by another run: wait for it or stop it") from error
    except OSError as error:
        logging.warning(
            "cannot lock %s (%s): make sure that no other run uses this directory",
            directory,
            error.strerror,
        )
