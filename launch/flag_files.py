"""A verb's flags as help and as a flag file."""

import textwrap
from pathlib import Path
from types import ModuleType

from absl import flags

from pipeline.manifest import FLAGS_NAME, write_whole


def describe_flags(module: ModuleType) -> str:
    """The flags that a verb's module defines, each with its help and default."""
    paragraphs = []
    for flag in flags.FLAGS.get_flags_for_module(module):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        paragraphs.append(f"  {name}")
        paragraphs.append(
            textwrap.fill(
                flag.help + default, 96, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
        )
    return "\n".join(paragraphs)


def save_flags(module_name: str, directory: Path) -> None:
    """Writes a verb's flags as given or by default, so that `--flagfile` repeats the run."""
    lines = [flag.serialize() for flag in flags.FLAGS.get_flags_for_module(module_name)]
    text = "".join(f"{line}\n" for line in lines if line)
    write_whole(directory / FLAGS_NAME, text)
