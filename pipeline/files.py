"""Files and directories that are complete or absent, even after a crash; checksums; locks.

On a disk, a file is written under a temporary name, flushed and renamed. A writer holds a lock on
its temporary file. So a temporary file without a lock was left by a process that was killed, and
the next run in that directory removes it.

For a store, a file is written to this machine's own disk, under such a name in the folder for
temporary files, and sent whole.
"""

import errno
import fcntl
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path

from absl import logging

from pipeline.errors import UserError
from pipeline.storage import Location, StoredPath
from pipeline.store_locks import abort_unfinished_uploads, locked_folder

_SCRATCH_NAME = "clozemill"
_LITTLE_ROOM_BYTES = 64 << 20
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")


def write_whole(path: Location, text: str) -> None:
    """Writes a text file atomically: no reader ever sees it half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextmanager
def whole_file(path: Location, temporary_dir: Location | None = None) -> Iterator[Path]:
    """Yields a temporary file name; the file is moved to `path` at the end, or removed on error.

    The file exists already and is empty: write to it, but do not replace it by another file.

    Args:
      path: name of the complete file.
      temporary_dir: directory for the temporary file, on the same file system as `path`; None means
        the directory of `path`. On a store, it has no meaning.
    """
    if isinstance(path, StoredPath):
        with scratch_directory() as scratch:
            temporary = scratch / path.name
            temporary.touch()
            yield temporary
            path.upload(temporary)
        return
    assert not isinstance(temporary_dir, StoredPath)
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
def whole_directory(path: Location, last: str) -> Iterator[Path]:
    """Yields a temporary directory, which is moved to `path` at the end, or removed on error.

    An existing directory at `path` is replaced: unless it is empty, it is renamed first and removed
    last. So whoever looks finds all of the old directory, none, or all of the new one.

    Args:
      path: the directory.
      last: the name of the file without which the directory counts for nothing. On a store, which
        cannot rename, it is the first to go and the last to come.
    """
    if isinstance(path, StoredPath):
        with scratch_directory() as scratch:
            yield scratch
            send_directory(scratch, path, last)
        return
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
                _remove_local_directory(path, after=lambda: temporary.rename(path))
            else:
                temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(path.parent)


def send_directory(directory: Path, path: StoredPath, last: str) -> None:
    """Makes a directory of a store that holds the files of one on this machine, and no others.

    Args:
      directory: the directory on this machine.
      path: that on the store, which is replaced.
      last: the name of the file without which that counts for nothing: the last to come.
    """
    remove_directory(path, last)
    names = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    for name in (*sorted(names - {last}), last):
        (path / name).upload(directory / name)


def list_directories(path: Location, last: str) -> list[Location]:
    """What is in a directory; of a store, the directories in it that are whole.

    Args:
      path: the directory.
      last: the name of the file without which a directory of a store counts for nothing.

    Raises:
      OSError: it cannot be listed.
    """
    if isinstance(path, StoredPath):
        return [file.parent for file in path.rglob(last) if file.parent.parent == path]
    return list(path.iterdir())


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yields an empty directory on this machine's disk, which is removed at the end.

    It is in the folder for temporary files (TMPDIR). What killed processes have left there is
    removed first.

    Raises:
      UserError: TMPDIR is no folder to write to, or its disk is full.
    """
    folder = _scratch_folder()
    scratch = temporary_name(folder / _SCRATCH_NAME)
    with ExitStack() as until_end:
        try:
            # Alone, so that nobody takes it for a left one before it is locked.
            with _alone_if_possible(folder):
                _remove_left_scratch(folder)
                scratch.mkdir(mode=0o700)
                _lock(until_end.enter_context(_opened(scratch)))
        except OSError as error:
            raise UserError(
                f"TMPDIR={folder} is no directory that can be written to ({error.strerror}): set "
                "another one"
            ) from error
        until_end.callback(shutil.rmtree, scratch, ignore_errors=True)
        try:
            yield scratch
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if is_full and shutil.disk_usage(folder).free < _LITTLE_ROOM_BYTES:
                raise UserError(
                    f"the disk of {folder} is full: set TMPDIR to a directory with more room"
                ) from error
            raise


@cache
def _remove_left_scratch(folder: Path) -> None:
    """Removes what killed processes have left of such directories, once in a process."""
    remove_leftovers(folder, _SCRATCH_NAME)


@contextmanager
def _alone_if_possible(folder: Path) -> Iterator[None]:
    """Waits as `alone_in` does, unless the folder cannot be locked."""
    with ExitStack() as until_end:
        with suppress(OSError):
            until_end.enter_context(alone_in(folder))
        yield


def _scratch_folder() -> Path:
    """The folder for temporary files.

    It is not `tempfile`'s, which is of this process alone, so that nobody would look there.
    """
    return Path(os.environ.get("TMPDIR") or "/tmp")


@contextmanager
def local_copy(path: Location, names: Collection[str] | None = None) -> Iterator[Path]:
    """Yields a file or directory on this machine's disk with the content of `path`: itself there.

    A copy is removed at the end.

    Args:
      path: the file or directory.
      names: the files that are needed of a directory; by default all.
    """
    if not isinstance(path, StoredPath):
        yield path
        return
    with scratch_directory() as scratch:
        copy = scratch / (path.name or "root")
        if names is None and path.is_file():
            path.download(copy)
        else:
            files = path.rglob("*") if names is None else (path / name for name in names)
            for file in files:
                target = copy / file.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.download(target)
        yield copy


@contextmanager
def kept_on_error(path: Location) -> Iterator[Path]:
    """Yields the name of a file on this machine's disk, sent to a store if the block fails.

    On a disk, it is `path` itself.
    """
    if not isinstance(path, StoredPath):
        yield path
        return
    with scratch_directory() as scratch:
        file = scratch / path.name
        try:
            yield file
        except BaseException:
            with suppress(OSError):  # the failure says more
                path.upload(file)
            raise


def signs_of_life(path: Location) -> Iterator[None]:
    """Makes a file, and changes it at each further step, but does not make it again.

    Several processes may share it. `version_of` tells that it has changed.

    Raises:
      OSError: it was removed, or cannot be written.
    """
    if not isinstance(path, StoredPath):
        path.touch()
        while True:
            yield
            os.utime(path)
    path.upload(b"")
    while True:
        yield
        with suppress(FileExistsError):  # another process was faster
            path.upload(os.urandom(8), only_if=path.tag())


def version_of(path: Location) -> int | str | None:
    """What changes whenever a file does; None if it is not there."""
    try:
        return path.tag() if isinstance(path, StoredPath) else path.stat().st_mtime_ns
    except OSError:
        return None


def make_directory(path: Location) -> None:
    """Creates a directory and its missing parents, unless they exist, and makes sure they last."""
    if isinstance(path, StoredPath):
        return
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush(each.parent)


def can_hold_files(folder: Location) -> bool:
    """Whether files can be made in a folder: on a disk, only if it exists."""
    return isinstance(folder, StoredPath) or folder.is_dir()


def remove_directory(path: Location, first: str) -> None:
    """Removes a directory, in a way that no part of it counts if this process is killed.

    Args:
      path: the directory, which gets a temporary name first.
      first: the name of the file without which the directory counts for nothing. On a store, which
        cannot rename, it is removed first.
    """
    if not isinstance(path, StoredPath):
        _remove_local_directory(path)
        return
    (path / first).unlink(missing_ok=True)
    path.remove_below()


def rename_directory(path: Location, name: str, last: str) -> None:
    """Gives a directory another name beside it.

    Args:
      path: the directory.
      name: the name.
      last: the name of the file without which it counts for nothing. A store cannot rename: there,
        the directory is sent again under its new name.
    """
    if not isinstance(path, StoredPath):
        path.rename(path.with_name(name))
        return
    with local_copy(path) as copy:
        for file in copy.rglob("*"):
            if file.is_file():
                (path.with_name(name) / str(file.relative_to(copy))).upload(file)
    remove_directory(path, last)


def _remove_local_directory(path: Path, after: Callable[[], object] = lambda: None) -> None:
    """Removes a directory; between its renaming and its removal, it calls `after`."""
    unwanted = path.rename(temporary_name(path))
    after()
    shutil.rmtree(unwanted)


def remove_leftovers(directory: Location, name: str = "") -> None:
    """Removes the temporary files and directories of killed processes from a directory.

    Those of files for a store are in the folder for temporary files of this machine, whatever the
    directory and the name.

    Args:
      directory: the directory; it may be missing.
      name: the name of the complete file, whose receipt may follow it; by default, any.
    """
    if isinstance(directory, StoredPath):
        folder = _scratch_folder()
        with _alone_if_possible(folder):
            remove_leftovers(folder, _SCRATCH_NAME)
        return
    for path in directory.glob(f"{glob.escape(name) or '*'}.*.tmp"):
        if _TEMPORARY.search(path.name) and not is_in_use(path):
            # Another process may remove it at the same time.
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)


def remove_unfinished_uploads(directory: Location) -> None:
    """Aborts the uploads that ended runs have left below a directory of a store, or names them."""
    if isinstance(directory, StoredPath):
        abort_unfinished_uploads(directory)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other writer uses, not even a worker that outlived its run."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def has_sha256(path: Location, sha256: str) -> bool:
    """Whether a file exists and has this SHA-256 (in hexadecimal)."""
    try:
        return sha256_of(path) == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


def sha256_of(path: Location) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    if isinstance(path, StoredPath):
        return path.sha256()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked_directory(directory: Location) -> Iterator[None]:
    """Keeps other runs out of the directory until the block ends, even while this one is suspended.

    A missing directory is created. It is removed again if it is still empty at the end. What killed
    runs have left there under temporary names is removed.

    Raises:
      UserError: another run uses the directory, or it cannot be created.
    """
    if isinstance(directory, StoredPath):
        if _is_object(directory):
            raise UserError(
                f"cannot write to {directory}: it is an object; choose another directory"
            )
        with locked_folder(directory):
            yield
        return
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


def _is_object(path: StoredPath) -> bool:
    """Whether there is an object of this name, other than an empty one that marks a folder."""
    try:
        return bool(path.key and path.size())
    except FileNotFoundError:
        return False


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


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Waits until no other process or thread is in such a block about the same directory.

    Raises:
      OSError: the directory's file system cannot lock.
    """
    with _opened(directory) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def hold(path: Path) -> BufferedReader | None:
    """Opens a file, which is in use until it is closed, see `is_in_use`; None if it is missing.

    Raises:
      OSError: it cannot be opened, or its file system cannot lock.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def is_in_use(path: Path) -> bool:
    """Whether a process writes a temporary file, or holds another one, or nobody can know."""
    try:
        with _opened(path) as handle:
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
