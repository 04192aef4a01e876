"""The files that paths, URLs of stores, and globs of both name.

`*`, `?` and `[…]` match within a name, `**` matches folders at any depth, as in bash. A folder
means all files below it. Hidden files and folders match only where the pattern spells their dot.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise, takewhile

from absl import logging

from pipeline.errors import UserError
from pipeline.json_files import DIGEST_KEY
from pipeline.storage import Location, Stamp, is_for_beam
from pipeline.trees import Tree, Trees, joined, split

_ANY_DEPTH = "**"
_MOST_PARTIAL_STARS = 4  # because each doubles the alternatives
_RECORDS = ("manifest.json", "plan.json", "export.json")
_IN_RECORDS = re.compile(rf'"(?:{DIGEST_KEY}|input_stamps_sha256|max_predictions_per_seq)"')


def find_files(pattern: str, trees: Trees | None = None) -> dict[str, Stamp]:
    """The absolute paths or the URLs of the files that a pattern names, sorted, and their stamps.

    A glob that matches folders and no file means the files below these folders.

    Args:
      pattern: a path, a URL of a store, or a glob of either.
      trees: what is known of stores already.

    Raises:
      UserError: a folder cannot be searched, or a file cannot be read.
    """
    wanted = _Glob(pattern, Trees() if trees is None else trees)
    tree, found = wanted.tree, wanted.found()
    folders = sorted(filter(tree.is_folder, found))
    # On a store, a file may have the name of a folder.
    files = found.difference(folders) | set(filter(tree.is_file, folders))
    if folders and not files:
        tree.expect(wanted.start, deep=True)
        files = {path for folder in folders for path in _walk(tree, folder, [_ANY_DEPTH])}
        folders = []
    # `**` has read the files of folders, but not those of links to folders.
    if _ANY_DEPTH in pattern or wanted.means_folder():
        folders = list(filter(tree.is_link, folders))
    if folders:
        logging.warning(
            "%s also matches folders whose files are not read (%d, first: %s); give them as well "
            "if they belong to the corpus",
            pattern,
            len(folders),
            folders[0],
        )
    return {path: tree.stamp(path) for path in sorted(files)}


def check_not_input(
    patterns: list[str], flag: str, files: Sequence[Location], folder: Location | None = None
) -> None:
    """Checks that no pattern matches a file that this run writes.

    Args:
      patterns: the paths, URLs and globs of the input.
      flag: the flag that names what is written.
      files: files that are written, whether they exist already or not.
      folder: the folder that they are written to, if it is written as a whole.

    Raises:
      UserError: a pattern matches one.
    """
    trees = Trees()
    for pattern in patterns:
        if is_for_beam(pattern):
            continue  # nothing is written there
        wanted = _Glob(pattern, trees)
        read: list[Location] = list(filter(wanted.fits, files))
        if folder and not read and wanted.fits(folder) and wanted.matches_only_folders():
            read.append(folder)
        if read:
            raise UserError(
                f"--input_file={pattern} also matches {read[0]}, of --{flag}: keep that outside of "
                "the corpus"
            )


def check_not_made_here(paths: Iterable[str], trees: Trees) -> None:
    """Checks that no input file is a part of a data set, a run, an export or a vocabulary.

    Args:
      paths: absolute paths, and URLs of stores.
      trees: what is known of stores already.

    Raises:
      UserError: one is; the message names it.
    """
    is_made_here = cache(_is_made_here)
    for path in paths:
        root, names = split(path)
        for end in reversed(range(len(names))):
            folder = joined(root, names[:end])
            if is_made_here(folder, trees[root]):
                raise UserError(
                    f"the input {path} lies in {folder}, which Clozemill has made: it is no text; "
                    "leave it out of --input_file"
                )
        if _is_record(f"{path}.json", trees[root]):
            raise UserError(
                f"the input {path} is a vocabulary that Clozemill has made: it is no text; leave "
                "it out of --input_file"
            )


def _is_made_here(folder: str, tree: Tree) -> bool:
    if any(_is_record(f"{folder}/{name}", tree) for name in _RECORDS):
        return True
    try:
        return tree.is_folder(f"{folder}/clozemill_in_progress")
    except UserError:  # of a bucket that can be read in parts only
        return False


def _is_record(path: str, tree: Tree) -> bool:
    return bool(_IN_RECORDS.search(tree.read(path).decode("utf-8", "ignore")))


class _Glob:
    """A pattern, taken apart.

    There are several alternatives if `**` is only a part of a name. In `a**b`, it stands for any
    text, slashes included.

    Attributes:
      tree: where it searches.
      start: the folder below which it does, whose names are all fixed.
    """

    def __init__(self, pattern: str, trees: Trees):
        self._root, self._names = split(re.sub(r"\*{3,}", _ANY_DEPTH, pattern))
        self.tree = trees[self._root]
        self._fixed = list(takewhile(_is_fixed, self._names))
        self.start = joined(self._root, self._fixed)
        self._ends_with_slash = pattern.endswith("/")
        partial_stars = [name for name in self._names if name != _ANY_DEPTH]
        if sum(name.count(_ANY_DEPTH) for name in partial_stars) > _MOST_PARTIAL_STARS:
            raise UserError(
                f"{pattern} has too many ** beside other characters: put them between /"
            )

    def means_folder(self) -> bool:
        """Whether it is the name of a folder, so that it means all below it."""
        if not self._may_mean_folder():
            return False
        path = joined(self._root, self._names)
        # The file first, which is the usual case, and takes a store one request.
        return self._ends_with_slash or (not self.tree.is_file(path) and self.tree.is_folder(path))

    def found(self) -> set[str]:
        """The paths that it matches."""
        if rest := self._names[len(self._fixed) :]:
            is_deep = self._ends_with_slash or len(rest) > 1 or _ANY_DEPTH in rest[0]
            self.tree.expect(self.start, deep=is_deep)
        return {
            path
            for parts in self._alternatives(self.means_folder())
            for path in _walk(self.tree, self.start, parts[len(self._fixed) :])
        }

    def matches_only_folders(self) -> bool:
        """Whether it matches folders and no file, so that it means the files below them."""
        found = self.found()
        return bool(found) and all(map(self.tree.is_folder, found))

    def fits(self, path: Location) -> bool:
        """Whether it would match a file or folder, if there were one; without asking the store."""
        root, names = split(path)
        variants = {self._ends_with_slash, self._may_mean_folder()}
        return root == self._root and any(
            _fits_path(parts, names)
            for means_folder in variants
            for parts in self._alternatives(means_folder)
        )

    def _may_mean_folder(self) -> bool:
        last = self._names[-1:]
        return self._ends_with_slash or not last or not {"*", "?"} & set(last[0])

    def _alternatives(self, means_folder: bool) -> list[list[str]]:
        """The names and globs between its slashes, from the root on."""
        names = self._names
        if means_folder and names[-1:] != [_ANY_DEPTH]:
            names = [*names, _ANY_DEPTH]
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


def _walk(tree: Tree, folder: str, parts: list[str]) -> Iterator[str]:
    """The paths below a folder that match the parts of a pattern; `**` follows no links."""
    if not parts:
        if tree.exists(folder):
            yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == _ANY_DEPTH:
        if rest:
            yield from _walk(tree, folder, rest)
        for entry in tree.entries(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_folder:
                yield from _walk(tree, entry.path, parts)
            elif not rest:
                yield entry.path
        return
    name = joined(folder, [part])
    if _is_fixed(part) or ("*" not in part and "?" not in part and tree.exists(name)):
        found = {name}  # one with brackets is a name, if there is such a file
    else:
        found = {entry.path for entry in tree.entries(folder) if _fits(part, entry.name)}
    for path in found:
        if not rest or tree.is_folder(path):
            yield from _walk(tree, path, rest)


def _is_fixed(part: str) -> bool:
    """Whether a part of a pattern is a name."""
    return not {"*", "?", "["} & set(part)


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
