"""Writes a verb's flags as help text and as a flag file."""

import textwrap
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from absl import flags

from pipeline.files import write_whole
from pipeline.manifest import FLAGS_NAME


def describe_flags(verb: ModuleType) -> str:
    """Lists a verb's flags, each with its help and default."""
    paragraphs = []
    for flag in flags_of(verb):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        paragraphs.append(f"  {name}")
        paragraphs.append(
            textwrap.fill(
                flag.help + default, 96, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
        )
    return "\n".join(paragraphs)


def save_flags(verb: ModuleType, directory: Path) -> None:
    """Writes `flags_as_text` to a data set's flags.txt."""
    write_whole(directory / FLAGS_NAME, flags_as_text(verb))


def flags_as_text(verb: ModuleType, without: Collection[str] = ()) -> str:
    """Lists a verb's flags with their values, defaults included; `--flagfile` reads the result.

    Args:
      verb: the verb's module.
      without: names of flags to leave out.
    """
    lines = [flag.serialize() for flag in flags_of(verb) if flag.name not in without]
    return "".join(f"{line}\n" for line in lines if line)


def flags_of(verb: ModuleType) -> list[flags.Flag]:
    """Returns the flags that a verb shares with other verbs, then those that its module defines."""
    return [
        flag
        for module in (*getattr(verb, "SHARED_FLAGS", ()), verb)
        for flag in flags.FLAGS.get_flags_for_module(module)
    ]
