"""Flags that name files: paths, URLs and globs, and files with lists of them."""

from collections.abc import Iterable

from absl import flags

from pipeline.errors import UserError
from pipeline.paths import kind_of_special_file
from pipeline.storage import location


def patterns_of(flag: flags.FlagHolder[list[str] | None]) -> list[str]:
    """The paths, URLs and globs that a flag names; those of an @FILE are read from it.

    Raises:
      UserError: such a file cannot be read, or names nothing.
    """
    return expand_lists(flag.value or [], f"--{flag.name}")


def expand_lists(values: Iterable[str], where: str) -> list[str]:
    """The paths, URLs and globs among some values, with those of each @FILE in its place.

    Args:
      values: paths, URLs, globs, and lists of them as @FILE.
      where: the values' place, for errors.

    Raises:
      UserError: as `patterns_of`.
    """
    patterns = []
    for value in values:
        patterns += _read_list(where, value[1:]) if value.startswith("@") else [value]
    return patterns


def _read_list(where: str, path: str) -> list[str]:
    if kind := kind_of_special_file(path):
        raise UserError(f"{where}=@{path} is {kind}: give a file")
    try:
        # File names may hold bytes that are not UTF-8.
        text = location(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {where}=@{path}: {error.strerror}") from error
    patterns = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not patterns:
        raise UserError(f"{where}=@{path} is empty: write a path or glob on each line")
    for pattern in patterns:
        if pattern.startswith("@"):
            raise UserError(
                f"{where}=@{path} has the line {pattern}, but cannot name another list: write "
                f"./{pattern} for a file of that name"
            )
        if "\0" in pattern:
            raise UserError(f"{where}=@{path} is no list of paths: it has a NUL byte")
    return patterns
