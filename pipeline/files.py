"""Files and directories that are complete or absent, even after a crash; checksums; locks.

A file is written under a temporary name, flushed to disk and renamed. A writer holds a lock on its
temporary file. So a temporary file without a lock was left by a process that was killed, and the
next run in that directory removes it.
"""

import fcntl
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import logging

from pipeline.errors import UserError

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")


def write_whole(path: Path, text: str) -> None:
    """Writes a text file atomically: no reader ever sees it half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextmanager
def whole_file(path: Path, temporary_dir: Path | None = None) -> Iterator[Path]:
    """Yields a temporary file name; the file is renamed to `path` at the end, or removed on error.

    The file exists already and is empty: write to it, but do not replace it by another file.

    Args:
      path: name of the complete file.
      temporary_dir: directory for the temporary file, on the same file system as `path`; None means
        the directory of `path`.
    """
    temporary = temporary_name((temporary_dir or path.parent) / path.name)
    try:
        with temporary.open("xb") as file:
            _lock(file.fileno())
            yield temporary
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory, which is renamed to `path` at the end, or removed on error.

    An existing directory at `path` is replaced: unless it is empty, it is renamed first and removed
    last. So whoever looks finds all of the old directory, none, or all of the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.mkdir()
        with _opened(temporary) as handle:
            _lock(handle)
            yield temporary
            for written in (*temporary.rglob("*"), temporary):
                _flush(written)
            if path.exists() and any(path.iterdir()):
                remove_directory(path, after=lambda: temporary.rename(path))
            else:
                temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(path.parent)


def make_directory(path: Path) -> None:
    """Creates a directory and its missing parents, unless they exist, and makes sure they last."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush(each.parent)


def remove_directory(path: Path, after: Callable[[], object] = lambda: None) -> None:
    """Removes a directory, which first gets a temporary name, so that no part of it counts.

    Args:
      path: the directory.
      after: what to do between the renaming and the removing.
    """
    unwanted = path.rename(temporary_name(path))
    after()
    shutil.rmtree(unwanted)


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Removes the temporary files and directories of killed processes from a directory.

    Args:
      directory: the directory; it may be missing.
      name: the name of the complete file, whose receipt may follow it; by default, any.
    """
    for path in directory.glob(f"{glob.escape(name) or '*'}.*.tmp"):
        if _TEMPORARY.search(path.name) and not _is_in_use(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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

    A missing directory is created. It is removed again if it is still empty at the end. What killed
    runs have left there under temporary names is removed.

    Raises:
      UserError: another run uses the directory, or it cannot be created.
    """
    is_new = not directory.exists()
    try:
        make_directory(directory)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or directory}: {error.strerror}; "
            "choose another directory"
        ) from error
    try:
        _lock_for_this_run(handle, directory)
        remove_leftovers(directory)
        yield
    finally:
        os.close(handle)
        if is_new and not any(directory.iterdir()):
            directory.rmdir()


def _lock_for_this_run(handle: int, directory: Path) -> None:
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


def _lock(handle: int) -> None:
    """Locks a temporary file until it is closed, if the file system can."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_in_use(temporary: Path) -> bool:
    """Whether a process still writes a temporary file, or nobody can know."""
    try:
        with _opened(temporary) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also where it was renamed or removed just now
        return True
    return False


def _flush(path: Path) -> None:
    """Makes sure that a file's content, or a directory's list of names, is on disk."""
    with _opened(path) as handle:
        os.fsync(handle)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def describe_size(num_bytes: int) -> str:
    """A size in the largest unit that keeps the number at 1 or above."""
    size, unit = float(num_bytes), "bytes"
    for larger_unit in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger_unit
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
