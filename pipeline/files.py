"""Files that are whole or not there, and whether they are still the same."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextmanager
def whole_file(path: Path, temporary_dir: Path | None = None) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` at the end and is removed after an error.

    Args:
      path: the file's name when it is whole.
      temporary_dir: where it is written, in the same file system; None: beside `path`.
    """
    temporary = temporary_name((temporary_dir or path.parent) / path.name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other writer has, not even one that outlives a killed run."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this SHA-256, in hexadecimal."""
    return path.exists() and sha256_of(path) == sha256


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
