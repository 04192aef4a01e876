"""Flags that name files: paths, URLs and globs, and files with lists of them."""

from absl import flags

from pipeline.errors import UserError
from pipeline.paths import kind_of_special_file
from pipeline.storage import location


def patterns_of(flag: flags.FlagHolder[list[str] | None]) -> list[str]:
    """The paths, URLs and globs that a flag names; those of an @FILE are read from it.

    Raises:
      UserError: such a file cannot be read, or names nothing.
    """
    patterns = []
    for value in flag.value or []:
        patterns += _read_list(flag.name, value[1:]) if value.startswith("@") else [value]
    return patterns


def _read_list(flag: str, path: str) -> list[str]:
    if kind := kind_of_special_file(path):
        raise UserError(f"--{flag}=@{path} is {kind}: give a file")
    try:
        # File names may hold bytes that are not UTF-8.
        text = location(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read --{flag}=@{path}: {error.strerror}") from error
    patterns = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not patterns:
        raise UserError(f"--{flag}=@{path} is empty: write a path or glob on each line")
    for pattern in patterns:
        if pattern.startswith("@"):
            raise UserError(
                f"--{flag}=@{path} has the line {pattern}, but cannot name another list: write "
                f"./{pattern} for a file of that name"
            )
        if "\0" in pattern:
            raise UserError(f"--{flag}=@{path} is no list of paths: it has a NUL byte")
    return patterns
