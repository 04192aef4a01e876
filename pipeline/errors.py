"""The exception for errors that a user can fix, and helpers for messages."""

from collections.abc import Sequence

_MOST_NAMES = 8


class UserError(Exception):
    """A wrong input or option. The message says what is wrong, where, and what to do.

    The command line prints the message as one line and exits with 1; any other exception is a bug
    and keeps its traceback.
    """


def listed(names: Sequence[str]) -> str:
    """The names joined by commas, with at most 8 of them spelled out."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def reason_of(error: Exception) -> str:
    """What an exception says, without the number and the file name of an `OSError`."""
    return getattr(error, "strerror", None) or str(error)


def in_one_line(text: str) -> str:
    """The text with escapes for line ends, control characters and what has no UTF-8 encoding."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
