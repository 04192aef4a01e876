"""JSON Lines to the lines of its documents."""

import codecs
import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipeline.errors import UserError
from pipeline.formats.raw_document import RawDocument, Unreadable, lines_of_record, text_and_count
from pipeline.formats.wikiextractor import unescape, without_title
from pipeline.portions import FileRange

_FIRST_LINES = 1000
_WIKIEXTRACTOR_FIELDS = {"id", "url", "title", "text"}
_WIKIEXTRACTOR_FIELDS_SINCE_3 = {*_WIKIEXTRACTOR_FIELDS, "revid"}


def read_json_lines(
    file_range: FileRange, text_field: str, statistics: Counter[str]
) -> Iterator[RawDocument | Unreadable]:
    """Yields the field `text_field` of each line's object: a text, or a list of texts.

    It adds to `statistics`: lines_read, lines_with_invalid_utf8.

    Raises:
      UserError: the file is JSON, but not JSON Lines.
    """
    offset = file_range.start
    is_first = offset == 0
    for encoded in file_range.lines():
        line = text_and_count(encoded.removeprefix(codecs.BOM_UTF8), statistics)
        if line:
            if is_first:
                _check_is_not_one_value(file_range, line)
                is_first = False
            try:
                lines = _lines_of(json.loads(line), text_field)
            except (ValueError, RecursionError) as error:
                yield Unreadable(offset, str(error))
            else:
                yield RawDocument(file_range.file, offset, offset, lines)
        offset += len(encoded)


def _lines_of(record: Any, text_field: str) -> list[str]:
    """The lines of a record's text, without its title.

    Raises:
      ValueError: the record has no text.
    """
    if isinstance(record, list):
        raise ValueError("a JSON array, not one object a line as in JSON Lines")
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    texts = _field(record, text_field)
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no text in the field {text_field!r}, of {reprlib.repr(list(record))}")
    title = record.get("title")
    lines = without_title(lines_of_record(texts), title if isinstance(title, str) else "")
    is_wikiextractor = record.keys() in (_WIKIEXTRACTOR_FIELDS, _WIKIEXTRACTOR_FIELDS_SINCE_3)
    return list(map(unescape, lines)) if is_wikiextractor else lines


def _field(record: dict[str, Any], name: str) -> Any:
    """The field `name`; the name `a.b` also finds the field `b` of the object in the field `a`."""
    if name in record:
        return record[name]
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return _field(inner, rest) if rest and isinstance(inner, dict) else None


def _check_is_not_one_value(file_range: FileRange, first_line: str) -> None:
    """Checks that the file is not one array, or objects over several lines.

    Such a file would otherwise be as many bad records as it has lines.
    """
    is_whole = _begins_with_json(first_line)
    if not first_line.startswith(("[", "{")) or (is_whole and first_line.startswith("{")):
        return
    lines = [line.decode("utf-8", "ignore") for line in islice(file_range.lines(), _FIRST_LINES)]
    if first_line.startswith("["):
        if is_whole and sum(map(bool, map(str.strip, lines))) > 1:
            return  # one bad record
        problem, advice = "is a JSON array", "jq -c '.[]'"
    elif _is_one_object(lines):
        problem, advice = "has JSON objects over several lines", "jq -c ."
    else:
        return
    raise UserError(
        f"{file_range.file.path} {problem} and is not JSON Lines: write one object a line, for "
        f"example with {advice}"
    )


def _is_one_object(lines: list[str]) -> bool:
    """Whether the first lines of a file are an object together, or no object on their own."""
    are_objects = (line.lstrip().startswith("{") and _begins_with_json(line) for line in lines)
    return _begins_with_json("".join(lines)) or (len(lines) > 1 and not any(are_objects))


def _begins_with_json(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text.lstrip("\ufeff \t\r\n"))
    except (ValueError, RecursionError):
        return False
    return True
