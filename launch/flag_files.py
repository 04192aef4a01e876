"""Reads flag files, checks flags, and writes a verb's flags as help text and as a flag file."""

import textwrap
from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from pipeline.errors import UserError
from pipeline.paths import kind_of_special_file


def expand_flag_files(arguments: Iterable[str], files: tuple[Path, ...] = ()) -> list[str]:
    """Replaces each --flagfile by the flags in that file, which may name further files.

    In a flag file, a line is a flag, or a comment after # or //, or empty.

    Args:
      arguments: the words of a command line, or the lines of a file.
      files: the files in which they are, each named by the one before.

    Raises:
      flags.Error: a file has no name, cannot be read or includes itself, or an argument is not
        text.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if "\0" in argument or not _is_text(argument):
            raise flags.Error(f"{argument} is not text: it has a NUL, or bytes of another encoding")
        if argument == "--":
            return [*expanded, argument, *rest]
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        if not (value := value if equals or files else next(rest, "")):
            raise flags.Error("--flagfile is empty: give a file")
        path = Path(value).expanduser()
        if path.resolve() in files:
            raise flags.Error(f"the flag file {path} includes itself")
        lines = [line.strip() for line in _read_flag_file(path).splitlines()]
        lines = [line for line in lines if line and not line.startswith(("#", "//"))]
        expanded += expand_flag_files(lines, (*files, path.resolve()))
    return expanded


def _is_text(argument: str) -> bool:
    """Whether all bytes of an argument are text in this system's encoding."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_flag_file(path: Path) -> str:
    if kind := kind_of_special_file(path):
        raise flags.Error(f"--flagfile={path} is {kind}: give a file")
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise flags.Error(f"cannot read --flagfile={path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise flags.Error(f"--flagfile={path} is not UTF-8 text") from error


def check_not_empty(given: Iterable[flags.Flag]) -> None:
    """Checks that no flag got an empty text, as `--flag=$UNSET` of a shell gives.

    Raises:
      flags.Error: a flag got one.
    """
    for flag in given:
        if flag.value in ("", [], [""]) and flag.value != flag.default:
            raise flags.Error(f"--{flag.name} is empty: give it a value, or leave it out")


def check_paths(verb: ModuleType) -> None:
    """Checks that no flag of a verb names a pipe, a socket or a device.

    Raises:
      UserError: a flag names one.
    """
    for flag in flags_of(verb):
        if isinstance(flag.value, str) and (kind := kind_of_special_file(flag.value)):
            raise UserError(f"--{flag.name}={flag.value} is {kind}: give a file or a directory")


def describe_flags(verb: ModuleType) -> str:
    """Lists a verb's flags, each with its help and default."""
    paragraphs = []
    for flag in flags_of(verb):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        default = "" if flag.default is None else f" (default:\xa0{flag.default_as_str})"
        indent = " " * 6
        text = textwrap.fill(
            flag.help + default, 96, initial_indent=indent, subsequent_indent=indent
        )
        # The no-break space has kept a line from ending there.
        paragraphs += [f"  {name}", text.replace("\xa0", " ")]
    return "\n".join(paragraphs)


def flags_as_text(verb: ModuleType, without: Collection[str] = ()) -> str:
    """Lists a verb's flags with their values, defaults included; `--flagfile` reads the result.

    Args:
      verb: the verb's module.
      without: names of flags to leave out.
    """
    lines = [flag.serialize() for flag in flags_of(verb) if flag.name not in without]
    return "".join(f"{line}\n" for line in lines if line)


def flag_values(options: type, values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The values of the flags that bear the names of a dataclass's fields, by name."""
    return {field.name: values[field.name].value for field in fields(options)}


def flags_of(verb: ModuleType) -> list[flags.Flag]:
    """Returns the flags that a verb shares with other verbs, then those that its module defines."""
    return [
        flag
        for module in (*getattr(verb, "SHARED_FLAGS", ()), verb)
        for flag in flags.FLAGS.get_flags_for_module(module)
    ]
