"""The lines of a document as they stand in its file, before they become sentences."""

from collections import Counter
from dataclasses import dataclass

from pipeline.inputs import InputFile
from pipeline.portions import text_of


@dataclass(frozen=True)
class RawDocument:
    """A document's lines, without surrounding white space; no line is empty.

    Attributes:
      file: its file.
      offset, text_before: see `documents.Document`.
      lines: the lines, in order.
    """

    file: InputFile
    offset: int
    text_before: int
    lines: list[str]


@dataclass(frozen=True)
class Unreadable:
    """A record without text, at this offset, and the reason."""

    offset: int
    problem: str


def lines_of_record(texts: list[str]) -> list[str]:
    """The lines of a record's texts; a text ends a line, and empty lines are left out."""
    return [line for text in texts for line in map(str.strip, text.split("\n")) if line]


def text_and_count(line: bytes, statistics: Counter[str]) -> str:
    """The result of `text_of`; counts lines, and those from which that drops anything."""
    statistics["lines_read"] += line != b"\n"  # which also stands for the end of a range
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError:
        statistics["lines_with_invalid_utf8"] += 1
        return text_of(line)
