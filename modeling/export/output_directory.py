"""The directory of an export: complete, absent or as it was before, even after a crash."""

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from modeling.checkpoints.foreign_files import EXPORT_NAME, Description, read_description
from modeling.checkpoints.huggingface import WEIGHTS_NAME
from modeling.export.formats import KERAS_NAME, ONNX_NAME, ORIGINAL_NAME
from pipeline.errors import UserError
from pipeline.files import (
    has_sha256,
    remove_directory,
    remove_leftovers,
    scratch_directory,
    sha256_of,
    whole_directory,
)
from pipeline.storage import Location, StoredPath, name_within

# What makes readers open an export: an index or graph, or all there is. Each format has one.
_OPENED_BY = (WEIGHTS_NAME, f"{ORIGINAL_NAME}.index", ONNX_NAME, "saved_model.pb", KERAS_NAME)
L = TypeVar("L", Path, StoredPath)
# All files that an export of any format may hold.
_EXPORTED_FILES = frozenset(
    f"""
    {" ".join(_OPENED_BY)} README.md assets/vocab.txt bert_config.json config.json {EXPORT_NAME}
    fingerprint.pb tokenizer.json tokenizer_config.json variables/variables.index
    variables/variables.data-00000-of-00001 vocab.txt {ORIGINAL_NAME}.data-00000-of-00001
    """.split()
)
# The folder, in an output directory that cannot be replaced, whose files are moved there at last.
_UNFINISHED = "unfinished_export"
# What killed exports leave in such a directory; those of earlier builds left export.….tmp.
_LEFTOVER = re.compile(rf"(export|{_UNFINISHED})\.[0-9a-f]+\.tmp")


def check_directory(output_dir: Location, overwrite: bool) -> None:
    """Checks that an export may be written to a directory, as far as its names of files tell.

    Raises:
      UserError: it holds something that must not be replaced.
    """
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file: give another --output_dir")
    found = list(_files_in(output_dir))
    for name in found:
        if name.removeprefix(f"{_UNFINISHED}/") not in _EXPORTED_FILES:
            raise UserError(
                f"{output_dir} holds {name}, which is not part of an export: give another "
                "--output_dir"
            )
    # An export with a description may be the wanted one: `holds` tells.
    if found and not (overwrite or EXPORT_NAME in found or _is_unfinished(output_dir)):
        raise _is_not_empty(output_dir)


def holds(output_dir: Location, description: Description) -> bool:
    """Whether a directory holds an export, complete and undamaged.

    Args:
      output_dir: the directory, which may be missing.
      description: the description of the export, without files.

    Raises:
      UserError: it holds another export, or one of its files was changed.
    """
    found = read_description(output_dir)
    if found is None or _is_unfinished(output_dir):
        return False
    if dataclasses.replace(found, files={}) != description:
        raise _is_not_empty(output_dir)
    for name, sha256 in found.files.items():
        if not has_sha256(output_dir / name, sha256):
            raise UserError(
                f"{output_dir / name} is not what was exported: give --overwrite to export again"
            )
    return True


def write_directory(output_dir: Location, write: Callable[[Path], None]) -> None:
    """Writes a directory, in place of an existing one if there is one.

    Args:
      output_dir: the directory, not a link.
      write: writes all files to an empty directory.

    Raises:
      OSError: it cannot be written; an existing directory is unchanged.
    """
    if isinstance(output_dir, StoredPath):
        _send(output_dir, write)
        return
    if output_dir.exists() and not _can_be_replaced(output_dir):
        _write_into(output_dir, write)
        return
    try:
        with whole_directory(output_dir, EXPORT_NAME) as directory:
            if output_dir.exists():
                shutil.copymode(output_dir, directory)
            write(directory)
    except OSError as error:
        # Only when they are renamed do bind mounts, and directories of a container's image, show
        # that they cannot be.
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        _write_into(output_dir, write)


def remove_leftovers_of(output_dir: Location) -> None:
    """Removes what killed exports to a directory have left beside it and in it."""
    remove_leftovers(output_dir.parent, output_dir.name)
    remove_leftovers(output_dir, _UNFINISHED)
    unfinished = output_dir / _UNFINISHED
    if unfinished.is_dir() and not _is_unfinished(output_dir):
        remove_directory(unfinished, EXPORT_NAME)


def sha256s_of(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file of an export, by its path in it."""
    return {name: sha256_of(directory / name) for name in sorted(_files_in(directory))}


def _files_in(directory: Location) -> Iterator[str]:
    """All files below a directory, except those that killed exports have left."""
    for path in directory.rglob("*"):
        name = name_within(path, directory)
        is_leftover = _LEFTOVER.fullmatch(name.partition("/")[0])
        if not is_leftover and (path.is_symlink() or not path.is_dir()):
            yield name


def _is_unfinished(output_dir: Location) -> bool:
    """Whether an export was killed while it replaced the files of a directory."""
    is_opened = any((output_dir / name).exists() for name in _OPENED_BY)
    return (output_dir / _UNFINISHED).is_dir() and not is_opened


def _is_not_empty(output_dir: Location) -> UserError:
    return UserError(
        f"{output_dir} is not empty: give another --output_dir, or --overwrite to replace it"
    )


def _can_be_replaced(directory: Path) -> bool:
    """Whether another directory can take the place of this one.

    None can take the place of a mount point. In place of a working directory, or of one above it,
    none should: the user's shell would be left in a removed directory.
    """
    return not (
        directory.is_mount()
        or Path.cwd().is_relative_to(directory)
        or not os.access(directory.parent, os.W_OK)
    )


def _write_into(output_dir: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder within a directory, and then moves its files to the directory one by one.

    What makes readers open an export is removed first and comes last. So whoever looks finds all of
    the earlier export, nothing that opens, or all of the new one.
    """
    unfinished = output_dir / _UNFINISHED
    with whole_directory(unfinished, EXPORT_NAME) as directory:
        write(directory)
    for path in _opened_first(set(output_dir.iterdir()) - {unfinished}):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in reversed(_opened_first(unfinished.iterdir())):
        path.rename(output_dir / path.name)
    unfinished.rmdir()


def _send(output_dir: StoredPath, write: Callable[[Path], None]) -> None:
    """Writes a directory on this machine, and sends its files one by one to one of a store.

    What makes readers open an export is removed first and comes last, as in `_write_into`. What is
    in the folder of unfinished exports meanwhile tells that other files are none of the user's.
    """
    mark = output_dir / _UNFINISHED / EXPORT_NAME
    with scratch_directory() as directory:
        write(directory)
        mark.upload(directory / EXPORT_NAME)
        for old in _opened_first(set(output_dir.rglob("*")) - {mark}):
            old.unlink(missing_ok=True)
        for path in reversed(_opened_first(directory.rglob("*"))):
            if path.is_file():
                (output_dir / name_within(path, directory)).upload(path)
    mark.unlink()


def _opened_first(paths: Iterable[L]) -> list[L]:
    return sorted(paths, key=lambda path: path.name not in _OPENED_BY)
