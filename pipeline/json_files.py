"""JSON files, which are checked when they are read.

A file that this project writes holds, as its last entry, the SHA-256 of its own content. So no
change to it goes unnoticed. What a file must hold is a type, a dataclass for example. Whatever is
wrong with a file, the error is one line with its name.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from absl import logging
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError, in_one_line
from pipeline.files import write_whole
from pipeline.storage import Location

DIGEST_KEY = "content_sha256"
NO_OTHER_KEYS: Any = {"extra": "forbid"}
"""As a dataclass's `__pydantic_config__`: keys that it does not know are an error."""
T = TypeVar("T")


class DamagedFileError(UserError):
    """A file's content is not what was written, or not of the type that it must have."""


def write_json(path: Location, content: Mapping[str, Any]) -> None:
    """Writes a JSON file with its own digest, atomically: no reader ever sees it half-written.

    Args:
      path: the file.
      content: JSON values and dataclasses.
    """
    write_whole(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """The text of a JSON file with its own digest."""
    digest = hashlib.sha256(json.dumps(content, default=vars).encode()).hexdigest()
    return json.dumps({**content, DIGEST_KEY: digest}, default=vars, indent=2) + "\n"


def read_json(path: Location, content_type: type[T]) -> T:
    """Reads a JSON file that `write_json` wrote.

    Logs a warning if it has no digest, because an earlier build wrote it.

    Args:
      path: the file.
      content_type: what it must hold besides its digest. A dataclass whose `__pydantic_config__` is
        `NO_OTHER_KEYS` also refuses keys that it does not know.

    Raises:
      DamagedFileError: the file was changed, or does not hold that type.
      OSError: it cannot be read.
    """
    text, content = _read_object(path)
    digest = content.pop(DIGEST_KEY, None)
    if digest is None:
        _warn_without_digest(path.parent)
    elif text != json_text(content):
        raise DamagedFileError(f"{path} is damaged: its digest is another one")
    return _checked(path, json.dumps(content), content_type)


def read_foreign_json(path: Location, content_type: type[T]) -> T:
    """Reads a JSON file that any program may have written.

    Raises:
      DamagedFileError: the file does not hold a JSON object of that type.
      OSError: it cannot be read.
    """
    text, _ = _read_object(path)
    return _checked(path, text, content_type)


def _read_object(path: Location) -> tuple[str, dict[str, Any]]:
    """A file's text, and the JSON object in it."""
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged: it is not a JSON object")
    return text, content


def _checked(path: Location, text: str, content_type: type[T]) -> T:
    try:
        return _adapter(content_type).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        reason = in_one_line(f"{where}: {first['msg']}")
        raise DamagedFileError(f"{path} is damaged: {reason}") from error


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


@functools.cache
def _warn_without_digest(directory: Location) -> None:
    logging.warning(
        "%s was written by an earlier build of Clozemill, without digests: damage to its "
        "descriptions would go unnoticed",
        directory,
    )
