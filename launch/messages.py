"""Errors as lines on stderr."""

import sys

from pipeline.errors import in_one_line


def print_error(command: str, problem: str) -> None:
    """Prints what is wrong, in one line, whatever it holds: a file's name may have line ends.

    Args:
      command: the command that fails, such as `clozemill verify`.
      problem: the message.
    """
    print(in_one_line(f"{command}: {problem}"), file=sys.stderr)
