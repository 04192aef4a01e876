"""Writes a verb's flags as help text and as a flag file."""

import textwrap
from collections.abc import Collection
from dataclasses import fields
from types import ModuleType
from typing import Any

from absl import flags


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


def flag_values(options: type) -> dict[str, Any]:
    """The values of the flags that bear the names of a dataclass's fields, by name."""
    return {field.name: flags.FLAGS[field.name].value for field in fields(options)}


def flags_of(verb: ModuleType) -> list[flags.Flag]:
    """Returns the flags that a verb shares with other verbs, then those that its module defines."""
    return [
        flag
        for module in (*getattr(verb, "SHARED_FLAGS", ()), verb)
        for flag in flags.FLAGS.get_flags_for_module(module)
    ]
