"""Errors as lines on stderr."""

import sys


def print_error(command: str, problem: str) -> None:
    """Prints what is wrong, in one line, whatever it holds: a file's name may have line ends.

    Args:
      command: the command that fails, such as `clozemill verify`.
      problem: the message.
    """
    print(in_one_line(f"{command}: {problem}"), file=sys.stderr)


def in_one_line(text: str) -> str:
    """The text with escapes for line ends, control characters and what has no UTF-8 encoding."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
