"""Where bytes are: paths on a disk, and objects of a store, behind the same methods.

`location` turns what a user gives into one or the other: a `Path`, or a `StoredPath` for `s3://`,
`gs://` and `az://`. Both have the methods that this project needs of a path. An object appears
whole or not at all, so it is written once, under its final name.

Folders do not exist on a store: a name has files below it, or it is nothing.

Input may also lie where only Beam can read: `hdfs://`, `azfs://`. `match_with_beam` and
`open_with_beam` are for such URLs.
"""

import errno
import fnmatch
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from pipeline.errors import UserError, in_one_line, listed

SCHEMES = ("s3", "gs", "az")
_PACKAGES_OF_BEAM = {"hdfs": "apache-beam[hadoop]", "azfs": "apache-beam[azure]"}
_BLOCK_BYTES = 8 << 20  # what one request reads
# Larger objects are sent in parts, so that memory does not hold them.
_PART_BYTES = 64 << 20


@dataclass(frozen=True, order=True)
class StoredPath:
    """The name of an object, or of a folder of objects, with the methods of `pathlib.Path`.

    Failures are `OSError`s with the URL as their file name, as those of a disk.

    Attributes:
      root: the scheme and the bucket: `s3://bucket`.
      key: the rest, without slashes at its ends; empty for the bucket itself.
    """

    root: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.root}/{self.key}".removesuffix("/")

    def __truediv__(self, name: str) -> "StoredPath":
        return self._at(f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The last part of the name, without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last part of the name from its last dot on."""
        return self._pure.suffix

    @property
    def parent(self) -> "StoredPath":
        """The folder that holds it."""
        return self._at(str(self._pure.parent))

    @property
    def parents(self) -> "list[StoredPath]":
        """The folders that hold it, from the nearest to the bucket."""
        return [self._at(str(each)) for each in self._pure.parents]

    def with_name(self, name: str) -> "StoredPath":
        """The path beside this one with another name."""
        return self._at(str(self._pure.with_name(name)))

    def relative_to(self, folder: "StoredPath") -> PurePosixPath:
        """The rest of the name below a folder."""
        return self._pure.relative_to(folder._pure)

    def is_relative_to(self, folder: "Location") -> bool:
        """Whether it is a folder, or below it."""
        return (
            isinstance(folder, StoredPath)
            and self.root == folder.root
            and self._pure.is_relative_to(folder._pure)
        )

    def absolute(self) -> "StoredPath":
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether there is an object of this name, or any below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is any object below it."""
        return next(self.rglob("*"), None) is not None

    def size(self) -> int:
        """The object's size in bytes."""
        return int(self._head()["size"])

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing, because objects need no folder."""

    def iterdir(self) -> "Iterator[StoredPath]":
        """The objects and the folders directly below it, in the order of their names."""
        with _errors(self):
            listed = _obstore().list_with_delimiter(self._store, self.key or None)
        names = {each["path"] for each in listed["objects"]} | set(listed["common_prefixes"])
        for name in sorted(names):
            yield self._at(name)

    def glob(self, pattern: str) -> "Iterator[StoredPath]":
        """Those of `iterdir` whose names match a pattern."""
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def rglob(self, pattern: str) -> "Iterator[StoredPath]":
        """The objects at any depth below it whose names match a pattern, sorted."""
        for each in self._objects():
            path = self._at(each["path"])
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def stamps(self) -> "dict[StoredPath, tuple[int, float]]":
        """Size in bytes, and time of the last change since 1970, of what `rglob` finds."""
        return {
            self._at(each["path"]): (each["size"], each["last_modified"].timestamp())
            for each in self._objects()
        }

    def read_bytes(self) -> bytes:
        """The object's content, in one request."""
        with _errors(self):
            return bytes(_obstore().get(self._store, self.key).bytes())

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content as text, in one request."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """A file object that reads ranges of the object, 8 MB a request."""
        if mode != "rb":
            raise ValueError("objects are written whole: see `files.whole_file`")
        return io.BufferedReader(_Reader(self), _BLOCK_BYTES)

    def download(self, file: Path) -> None:
        """Writes the object's content to a file on a disk."""
        with _errors(self), file.open("wb") as output:
            for block in _obstore().get(self._store, self.key).stream(_BLOCK_BYTES):
                output.write(block)

    def read_range(self, start: int, num_bytes: int) -> bytes:
        """A part of the object's content, in one request."""
        with _errors(self):
            return bytes(_obstore().get_range(self._store, self.key, start=start, length=num_bytes))

    def upload(self, content: bytes | Path, *, only_if: str | None = None) -> str:
        """Makes the object appear, or replaces it; nobody ever sees a part of it.

        Args:
          content: the bytes, or the file that holds them.
          only_if: the tag of the object that may be replaced; empty: only if there is none.

        Returns:
          The new object's tag.

        Raises:
          FileExistsError: the object is there, or is another one than `only_if` tells.
        """
        mode: Any = "overwrite"
        if only_if is not None:
            mode = {"e_tag": only_if} if only_if else "create"
        with _errors(self):
            put = _obstore().put(
                self._store, self.key, content, mode=mode, chunk_size=_PART_BYTES, max_concurrency=2
            )
        return put["e_tag"] or ""

    def tag(self) -> str:
        """What changes whenever the object does."""
        return self._head()["e_tag"] or ""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        if not missing_ok:
            self._head()  # because a store deletes what is not there without a word
        with suppress(FileNotFoundError), _errors(self):
            _obstore().delete(self._store, self.key)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)

    @property
    def _store(self) -> Any:
        return _store_of(self.root)

    def _at(self, key: str) -> "StoredPath":
        return StoredPath(self.root, str(PurePosixPath(key)).strip("/").removeprefix("."))

    def _objects(self) -> list[Any]:
        """What the store tells of each object below it, in the order of their names."""
        with _errors(self):
            pages = list(_obstore().list(self._store, self.key or None))
        return sorted((each for page in pages for each in page), key=lambda each: each["path"])

    def _head(self) -> Any:
        with _errors(self):
            return _obstore().head(self._store, self.key)


Location: TypeAlias = Path | StoredPath
"""Where a file or a folder is."""


def location(text: str) -> Location:
    """The path, or the object of a store, that a user names.

    Raises:
      UserError: it is a URL of another kind.
    """
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        raise UserError(
            f"{text} is not on a store that Clozemill writes to: give a path, or a URL of "
            f"{listed([f'{known}://' for known in SCHEMES])}"
        )
    bucket, _, key = rest.partition("/")
    return StoredPath(f"{scheme}://{bucket}")._at(key)


def size_of(file: Location) -> int:
    """A file's size in bytes."""
    return file.size() if isinstance(file, StoredPath) else file.stat().st_size


def source_of(file: Location) -> Any:
    """What pyarrow reads a file from, in ranges: each that it asks for is one request."""
    return _Reader(file) if isinstance(file, StoredPath) else file


def match_with_beam(pattern: str) -> dict[str, tuple[int, float]]:
    """The files that a URL or a glob of URLs names, on a file system that Beam knows.

    Returns:
      For each, its size in bytes, and the time of its last change in seconds since 1970; 0 if that
      is unknown.

    Raises:
      UserError: Beam does not know such URLs, or lacks a package for them, or cannot search there.
    """
    # Imported late, because it takes as long as all else.
    from apache_beam.io.filesystem import BeamIOError  # noqa: PLC0415
    from apache_beam.io.filesystems import FileSystems  # noqa: PLC0415

    try:
        (result,) = FileSystems.match([pattern])
    except (BeamIOError, ValueError) as error:
        package = _PACKAGES_OF_BEAM.get(pattern.partition("://")[0], "apache-beam")
        raise UserError(
            f"cannot search for {pattern} with Beam, which needs the package {package} for it: "
            f"{in_one_line(str(error))}"
        ) from error
    return {
        file.path: (file.size_in_bytes, file.last_updated_in_seconds)
        for file in result.metadata_list
    }


def open_with_beam(url: str) -> BinaryIO:
    """Opens a file for reading on a file system that Beam knows, without decompressing it."""
    from apache_beam.io import filesystems as beam  # noqa: PLC0415 - see `match_with_beam`

    return beam.FileSystems.open(url, compression_type=beam.CompressionTypes.UNCOMPRESSED)


class _Reader(io.RawIOBase):
    """The content of an object, of which each read is a request."""

    def __init__(self, path: StoredPath):
        self._path = path
        self._size = path.size()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        num_bytes = min(len(buffer), self._size - self._position)
        if num_bytes <= 0:
            return 0
        buffer[:num_bytes] = self._path.read_range(self._position, num_bytes)
        self._position += num_bytes
        return num_bytes


@contextmanager
def _errors(path: StoredPath) -> Iterator[None]:
    """Turns a store's failures into those of a disk, in one line."""
    from obstore import exceptions  # noqa: PLC0415 - see `_obstore`

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise FileExistsError(errno.EEXIST, "another object is there", str(path)) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, "the store denies access", str(path)) from error
    except exceptions.BaseError as error:
        raise OSError(errno.EIO, in_one_line(str(error)), str(path)) from error


_process_of_first_use: int | None = None


def _obstore() -> Any:
    """The library of object stores, imported when it is first needed.

    Raises:
      RuntimeError: a parent of this process has used it, in whose threads it would wait for ever.
    """
    global _process_of_first_use  # noqa: PLW0603 - of this process
    _process_of_first_use = _process_of_first_use or os.getpid()
    if _process_of_first_use != os.getpid():
        raise RuntimeError("a store cannot be used in a process whose parent has used one")
    import obstore  # noqa: PLC0415 - only URLs need it

    return obstore


@cache
def _store_of(root: str) -> Any:
    """The connection to a bucket, with the options and credentials of the environment."""
    from obstore.store import from_url  # noqa: PLC0415 - see `_obstore`

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options: Any = {"allow_http": True} if endpoint.startswith("http://") else {}
    return from_url(root, client_options=options)
