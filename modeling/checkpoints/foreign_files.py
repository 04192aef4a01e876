"""Files of trained weights that anybody may have written: what is checked before they are read.

An export holds `export.json`, with the SHA-256 of each of its files, so that no damage to it goes
unnoticed. Downloads have no such file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.json_files import NO_OTHER_KEYS, DamagedFileError, read_json
from pipeline.storage import Location, is_within, resolved

EXPORT_NAME = "export.json"


@dataclass(frozen=True)
class Description:
    """The content of export.json: what an export was made from and what it holds.

    Attributes:
      sources: the SHA-256 of each file that was read, by its path in the directory of the weights.
      averaged: the number of checkpoints whose mean the weights are.
      format: the name of the export's format.
      heads: whether heads were asked for.
      files: the SHA-256 of each other file of the export, by its path in it.
    """

    sources: dict[str, str]
    averaged: int
    format: str
    heads: bool
    files: dict[str, str]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


def read_description(directory: Location) -> Description | None:
    """The description of an export; None if the directory holds none.

    Raises:
      UserError: it is damaged.
    """
    path = directory / EXPORT_NAME
    if not path.is_file():
        return None
    try:
        return read_json(path, Description)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error}; export again, or remove it to have the other files read unchecked"
        ) from error


def checked_sha256s(directory: Location, names: Iterable[str]) -> dict[str, str]:
    """Checks those of the named files that exist, and returns the SHA-256 of each by its name.

    Raises:
      UserError: one is not a regular file, is a link that leads out of the directory, or is not
        what the directory's export.json describes.
    """
    description = read_description(directory)
    exported = description.files if description else {}
    sha256s = {}
    for name in names:
        path = directory / name
        if path.exists() or path.is_symlink():
            check_regular(path)
            sha256s[name] = sha256_of(path)
        if name in exported and sha256s.get(name) != exported[name]:
            raise DamagedFileError(
                f"{path} {'is not what was exported' if name in sha256s else 'is missing'}: export "
                f"again, or, if the change was meant, remove {directory / EXPORT_NAME}"
            )
    return sha256s


def check_regular(path: Location) -> None:
    """Checks that a path is a regular file of its own directory.

    In Hugging Face's cache, models--NAME/snapshots/HASH/FILE is a link to models--NAME/blobs/HASH.
    So a link from a snapshot may lead anywhere in models--NAME.

    Raises:
      UserError: it is something else, or a link that leads out of the directory.
    """
    own = resolved(path.parent)
    if own.parent.name == "snapshots" and (own.parent.parent / "blobs").is_dir():
        own = own.parent.parent
    if not is_within(path, own):
        raise UserError(
            f"{path} is a link out of its directory, to {resolved(path)}: copy that file there"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
