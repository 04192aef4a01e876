"""The local files that paths and globs name.

`*`, `?` and `[…]` match within a name, `**` matches folders at any depth, as in bash. A folder
means all files below it. Hidden files and folders match only where the pattern spells their dot.
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from absl import logging

from pipeline.errors import UserError
from pipeline.json_files import DIGEST_KEY
from pipeline.storage import Location

_ANY_DEPTH = "**"
_MOST_PARTIAL_STARS = 4  # because each doubles the alternatives
_RECORDS = ("manifest.json", "plan.json", "export.json")
_IN_RECORDS = re.compile(rf'"(?:{DIGEST_KEY}|input_stamps_sha256|max_predictions_per_seq)"')


def find_files(pattern: str) -> list[str]:
    """The absolute paths of the files that a local path or glob names.

    A glob that matches folders and no file means the files below these folders.

    Raises:
      UserError: a folder cannot be searched.
    """
    found = {path for parts in _alternatives(pattern) for path in _walk("/", parts)}
    folders = sorted(filter(os.path.isdir, found))
    files = found.difference(folders)
    if folders and not files:
        return sorted({path for folder in folders for path in _walk(folder, [_ANY_DEPTH])})
    # `**` has read the files of folders, but not those of links to folders.
    if _ANY_DEPTH in pattern or os.path.isdir(pattern):  # noqa: PTH112 - of any text
        folders = list(filter(os.path.islink, folders))
    if folders:
        logging.warning(
            "%s also matches folders whose files are not read (%d, first: %s); give them as well "
            "if they belong to the corpus",
            pattern,
            len(folders),
            folders[0],
        )
    return sorted(files)


def check_not_input(
    patterns: list[str], flag: str, files: Sequence[Location], folder: Location | None = None
) -> None:
    """Checks that no pattern matches a file that this run writes.

    Args:
      patterns: the paths and globs of the input.
      flag: the flag that names what is written.
      files: files that are written, whether they exist already or not.
      folder: the folder that they are written to, if it is written as a whole.

    Raises:
      UserError: a pattern matches one.
    """
    files = [file for file in files if isinstance(file, Path)]
    local = {pattern: _alternatives(pattern) for pattern in patterns if "://" not in pattern}
    for pattern, alternatives in local.items():
        read = [file for file in files if _fits_any(alternatives, file)]
        if (
            isinstance(folder, Path)
            and _fits_any(alternatives, folder)
            and _means_folders(alternatives)
        ):
            read.append(folder)
        if read:
            raise UserError(
                f"--input_file={pattern} also matches {read[0]}, of --{flag}: keep that outside of "
                "the corpus"
            )


def check_not_made_here(paths: Iterable[str]) -> None:
    """Checks that no input file is a part of a data set, a run, an export or a vocabulary.

    Raises:
      UserError: one is; the message names it.
    """
    is_made_here = cache(_is_made_here)
    for path in paths:
        for folder in Path(path).parents:
            if is_made_here(folder):
                raise UserError(
                    f"the input {path} lies in {folder}, which Clozemill has made: it is no text; "
                    "leave it out of --input_file"
                )
        if _is_record(Path(f"{path}.json")):
            raise UserError(
                f"the input {path} is a vocabulary that Clozemill has made: it is no text; leave "
                "it out of --input_file"
            )


def _is_made_here(folder: Path) -> bool:
    return (folder / "clozemill_in_progress").exists() or any(
        _is_record(folder / name) for name in _RECORDS
    )


def _is_record(path: Path) -> bool:
    try:
        return bool(_IN_RECORDS.search(path.read_bytes().decode("utf-8", "ignore")))
    except OSError:
        return False


def _fits_any(alternatives: list[list[str]], path: Path) -> bool:
    names = os.path.abspath(path).split("/")[1:]  # noqa: PTH100 - keeps symbolic links
    return any(_fits_path(parts, names) for parts in alternatives)


def _means_folders(alternatives: list[list[str]]) -> bool:
    """Whether a glob matches folders and no file, so that it means the files below them."""
    found = [path for parts in alternatives for path in _walk("/", parts)]
    return bool(found) and all(map(os.path.isdir, found))


def _alternatives(pattern: str) -> list[list[str]]:
    """The names and globs between the slashes of a pattern, from the root on.

    There are several alternatives if `**` is only a part of a name. In `a**b`, it stands for any
    text, slashes included.
    """
    means_folder = pattern.endswith("/") or os.path.isdir(pattern)  # noqa: PTH112 - of any text
    path = re.sub(r"\*{3,}", _ANY_DEPTH, os.path.abspath(pattern))  # noqa: PTH100
    names = [name for name in path.split("/") if name]
    if means_folder and names[-1:] != [_ANY_DEPTH]:
        names.append(_ANY_DEPTH)
    if sum(name.count(_ANY_DEPTH) for name in names if name != _ANY_DEPTH) > _MOST_PARTIAL_STARS:
        raise UserError(f"{pattern} has too many ** beside other characters: put them between /")
    alternatives: list[list[str]] = [[]]
    for name in names:
        alternatives = [parts + each for parts in alternatives for each in _split_stars(name)]
    return [_without_repeated_stars(parts) for parts in alternatives]


def _without_repeated_stars(parts: list[str]) -> list[str]:
    """The parts, with one `**` in place of several in a row, which mean the same."""
    return [part for before, part in pairwise(["", *parts]) if not before == part == _ANY_DEPTH]


def _split_stars(name: str) -> list[list[str]]:
    before, stars, after = name.partition(_ANY_DEPTH)
    if not stars or name == _ANY_DEPTH:
        return [[name]]
    rests = _split_stars(f"*{after}")
    if not before:
        return [[_ANY_DEPTH, *rest] for rest in rests]
    return [
        *([f"{before}{rest[0]}", *rest[1:]] for rest in rests),
        *([f"{before}*", _ANY_DEPTH, *rest] for rest in rests),
    ]


def _walk(folder: str, parts: list[str]) -> Iterator[str]:
    """The paths below a folder that match the parts of a pattern; `**` follows no links."""
    part, rest = parts[0], parts[1:]
    if part == _ANY_DEPTH:
        if rest:
            yield from _walk(folder, rest)
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, parts)
            elif not rest:
                yield entry.path
        return
    if _is_literal(folder, part):
        found = [os.path.join(folder, part)]  # noqa: PTH118 - of any text
    else:
        found = [entry.path for entry in _entries(folder) if _fits(part, entry.name)]
    for path in found:
        if not rest:
            if os.path.lexists(path):
                yield path
        elif os.path.isdir(path):  # noqa: PTH112 - of any text
            yield from _walk(path, rest)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot search the folder {folder}: {error.strerror}") from error


def _is_literal(folder: str, part: str) -> bool:
    """Whether a part of a pattern is a name; one with brackets is, if there is such a file."""
    if "*" in part or "?" in part:
        return False
    return "[" not in part or os.path.lexists(os.path.join(folder, part))  # noqa: PTH118


def _fits(part: str, name: str) -> bool:
    is_hidden = name.startswith(".") and not part.startswith(".")
    return not is_hidden and fnmatch.fnmatchcase(name, part)


def _fits_path(parts: list[str], names: list[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts == [_ANY_DEPTH]:
        return not any(name.startswith(".") for name in names)
    if parts[0] == _ANY_DEPTH:
        is_below = not names[0].startswith(".") and _fits_path(parts, names[1:])
        return is_below or _fits_path(parts[1:], names)
    return (parts[0] == names[0] or _fits(parts[0], names[0])) and _fits_path(parts[1:], names[1:])
