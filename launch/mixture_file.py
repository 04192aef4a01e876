"""The TOML file of --mixture: several corpora, and the share of each.

For example::

    temperature = 0.7           # or a weight for each corpus

    [[corpus]]
    name = "english"
    input_file = "en/*.txt"     # or a list; paths, URLs and globs, as --input_file

    [[corpus]]
    name = "german"
    input_file = ["de/*.jsonl.gz", "s3://bucket/de.parquet"]
    text_field = "content"      # or any other option of reading, in place of the flag
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from launch.file_lists import expand_lists
from pipeline.documents import BadRecord, Documents, ReadOptions, Sentences
from pipeline.errors import UserError, in_one_line
from pipeline.inputs import InputFormat
from pipeline.mixtures import Corpus, Mixture
from pipeline.patterns import check_not_input
from pipeline.storage import location

_ENUMS: dict[str, type[StrEnum]] = {
    "input_format": InputFormat,
    "documents": Documents,
    "sentences": Sentences,
    "on_bad_record": BadRecord,
}
_READING = [field.name for field in dataclasses.fields(ReadOptions)]
_KEYS = ["name", "input_file", "weight", "input_format", *_READING]


def read_mixture(path: str, input_format: InputFormat, reading: ReadOptions) -> Mixture:
    """Reads a mixture.

    Args:
      path: the file, or its URL.
      input_format: that of the corpora that give none.
      reading: how documents are read, as far as a corpus does not say it.

    Raises:
      UserError: the file cannot be read, something is wrong with it, or it is an input of one of
        its corpora; the message says where.
    """
    try:
        content = tomllib.loads(location(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read --mixture={path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--mixture={path} is not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"--mixture={path} is not TOML: {in_one_line(str(error))}") from error
    try:
        mixture = _mixture(content, input_format, reading)
        for corpus in mixture.corpora:
            check_not_input(corpus.input_patterns, "mixture", [location(path)])
        return mixture
    except UserError as error:
        raise UserError(f"--mixture={path}: {error}") from error


def _mixture(
    content: Mapping[str, Any], input_format: InputFormat, reading: ReadOptions
) -> Mixture:
    _check_keys(content, ["corpus", "temperature"])
    tables = content.get("corpus", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError("corpus must be tables: write [[corpus]] above the keys of each")
    corpora = [
        _corpus(table, number, input_format, reading) for number, table in enumerate(tables, 1)
    ]
    given = content.get("temperature", [])
    temperatures = given if isinstance(given, list) else [given]
    if "temperature" in content and not temperatures:
        raise UserError("temperature is empty: give a number, or one for each pass")
    return Mixture(tuple(corpora), tuple(_number(each, "temperature") for each in temperatures))


def _corpus(
    table: Mapping[str, Any], number: int, input_format: InputFormat, reading: ReadOptions
) -> Corpus:
    name = table.get("name")
    where = f"the corpus {name}" if isinstance(name, str) else f"[[corpus]] number {number}"
    try:
        _check_keys(table, _KEYS)
        for key in ("name", "input_file"):
            if key not in table:
                raise UserError(f"it has no {key}")
        options = {key: _option(table[key], key) for key in (*_ENUMS, *_READING) if key in table}
        fields: dict[str, Any] = {
            "name": _text(name, "name"),
            "input_patterns": _patterns(table["input_file"]),
            "input_format": options.pop("input_format", input_format),
            "reading": dataclasses.replace(reading, **options),
            "weight": _number(table["weight"], "weight") if "weight" in table else None,
        }
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Corpus(**fields)


def _check_keys(table: Iterable[str], known: list[str]) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = (
                f"did you mean {close[0]}?" if close else f"the known ones are {', '.join(known)}"
            )
            raise UserError(f"unknown key {in_one_line(key)}: {hint}")


def _patterns(value: Any) -> list[str]:
    values = value if isinstance(value, list) else _text(value, "input_file").split(",")
    patterns = [_text(each, "input_file") for each in values]
    if not patterns or not all(patterns):
        raise UserError("input_file is empty: give a path, a URL or a glob")
    return expand_lists(patterns, "input_file")


def _option(value: Any, key: str) -> Any:
    """The value of an option of reading."""
    if key == "min_document_characters":
        if type(value) is not int:
            raise UserError(f"{key} must be a whole number, not {value!r}")
        return value
    text = _text(value, key)
    if key not in _ENUMS:
        return text
    try:
        return _ENUMS[key](text)
    except ValueError:
        choices = ", ".join(_ENUMS[key])
        raise UserError(f"{key} = {text!r} must be one of {choices}") from None


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise UserError(f"{key} must be text, not {value!r}")
    return value


def _number(value: Any, key: str) -> float:
    if type(value) not in (int, float):
        raise UserError(f"{key} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{key} is too large") from None
