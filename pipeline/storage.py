"""Where bytes are: paths on a disk, and objects of a store, behind the same methods.

`location` turns what a user gives into one or the other: a `Path`, or a `StoredPath` for `s3://`,
`gs://` and `az://`. Both have the methods that this project needs of a path. An object appears
whole or not at all, so it is written once, under its final name.

Folders do not exist on a store: a name has files below it, or it is nothing.

Input may also lie where only Beam can read: `hdfs://`, `azfs://`. `match_with_beam` finds such
files, and `open_input` opens them.
"""

import errno
import fnmatch
import hashlib
import io
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar, cast

from pipeline.errors import UserError, in_one_line, listed

SCHEMES = ("s3", "gs", "az")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PACKAGES_OF_BEAM = {"hdfs": "apache-beam[hadoop]", "azfs": "apache-beam[azure]"}
_BLOCK_BYTES = 8 << 20  # what one request reads
_PAGE = 1000  # the objects of a list that one request brings
# Larger objects are sent in parts, so that memory does not hold them. One request is faster.
_MOST_BYTES_AT_ONCE = 32 << 20
_PART_BYTES = 8 << 20
_PARTS_AT_A_TIME = 4
_MOST_PARTS = 10_000  # of S3

LOCK_NAME = ".clozemill.lock"
"""The object in a folder that tells who works there (`store_locks`); no part of its content."""

T = TypeVar("T")


class Stamp(NamedTuple):
    """What tells one version of a file from another.

    Attributes:
      size: its size in bytes.
      modified: the time of its last change, in seconds since 1970, whole ones on a store; 0 if
        unknown.
      tag: the entity tag of an object.
    """

    size: int
    modified: float
    tag: str = ""


@dataclass(frozen=True)
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

    def __lt__(self, other: "StoredPath") -> bool:
        return (self.root, self._pure.parts) < (other.root, other._pure.parts)

    def __truediv__(self, name: str) -> "StoredPath":
        return self._at(f"{self.key}/{name}")

    @property
    def scheme(self) -> str:
        """The kind of store: `s3`, `gs` or `az`."""
        return self.root.partition(":")[0]

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
        """The rest of the name below a folder.

        Raises:
          ValueError: it is not below that folder.
        """
        if self.root != folder.root:
            raise ValueError(f"{self} is not in {folder}")
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

    def is_absolute(self) -> bool:
        """True."""
        return True

    def is_symlink(self) -> bool:
        """False, because a store has no links."""
        return False

    def exists(self) -> bool:
        """Whether there is an object of this name, or any below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        if not self.key:
            return False
        try:
            self._head()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is any object below it."""
        lock = str(self / LOCK_NAME)

        def has_any(bucket: Any) -> bool:
            pages = bucket.list(self.key or None, chunk_size=_PAGE)
            return any(str(self._at(each["path"])) != lock for page in pages for each in page)

        return self._ask(has_any)

    def size(self) -> int:
        """The object's size in bytes."""
        return self.stamp().size

    def stamp(self) -> Stamp:
        """The object's size, the time of its last change, and its entity tag."""
        return _stamp_of(self._head())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing, because objects need no folder."""

    def iterdir(self) -> "Iterator[StoredPath]":
        """The objects and the folders directly below it, in the order of their names."""
        files, folders = self.entries()
        yield from sorted(files.keys() | folders)

    def entries(self) -> "tuple[dict[StoredPath, Stamp], set[StoredPath]]":
        """The stamps of the objects directly below it, and the folders there."""
        found = self._ask(lambda bucket: bucket.list_with_delimiter(self.key or None))
        folders = set(map(self._at, found["common_prefixes"]))
        files = {self._at(each["path"]): _stamp_of(each) for each in found["objects"]}
        for path in {self, self / LOCK_NAME, *folders} & files.keys():
            if path.name == LOCK_NAME or not files[path].size:  # see `_objects`
                del files[path]
        return files, folders

    def glob(self, pattern: str) -> "Iterator[StoredPath]":
        """Those of `iterdir` whose names match a pattern."""
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def rglob(self, pattern: str) -> "Iterator[StoredPath]":
        """The objects at any depth below it whose names match a pattern, sorted."""
        for path, _ in self._objects():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def stamps(self) -> "dict[StoredPath, Stamp]":
        """The stamps of what `rglob` finds, in one request for 1,000 objects."""
        return {path: _stamp_of(each) for path, each in self._objects()}

    def read_bytes(self) -> bytes:
        """The object's content, in one request."""
        return self.read_with_tag()[0]

    def read_with_tag(self) -> tuple[bytes, str]:
        """The object's content and its tag, in one request."""

        def read(bucket: Any) -> tuple[bytes, str]:
            result = bucket.get(self.key)
            return bytes(result.bytes()), self._tag_of(result.meta)

        return self._ask(read)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content as text, in one request."""
        return self.read_bytes().decode(encoding)

    def open(
        self, mode: str = "rb", buffering: int = -1, stamp: Stamp | None = None
    ) -> io.BufferedReader:
        """A file object that reads ranges of the object; all of them are of the same version.

        Args:
          mode: "rb".
          buffering: how many bytes a request reads; -1: 8 MB; 0: as many as each read asks for.
          stamp: what is known of the object, which is asked otherwise. A smaller size than its own
            ends the file there.
        """
        if mode != "rb":
            raise ValueError("objects are written whole: see `files.whole_file`")
        reader = _Reader(self, stamp or self.stamp())
        if not buffering:
            return cast(Any, reader)
        return io.BufferedReader(reader, _BLOCK_BYTES if buffering < 0 else buffering)

    def download(self, file: Path) -> None:
        """Writes the object's content to a file on a disk."""

        def download(bucket: Any) -> None:
            with file.open("wb") as output:
                for block in bucket.get(self.key).stream(_BLOCK_BYTES):
                    output.write(block)

        self._ask(download)

    def sha256(self) -> str:
        """The SHA-256 of the object's content, in hexadecimal, in one request."""

        def digest(bucket: Any) -> str:
            hashed = hashlib.sha256()
            for block in bucket.get(self.key).stream(_BLOCK_BYTES):
                hashed.update(block)
            return hashed.hexdigest()

        return self._ask(digest)

    def read_range(self, start: int, num_bytes: int, tag: str = "") -> Any:
        """A part of the object's content, in one request, as a buffer of bytes.

        Args:
          start: where it begins.
          num_bytes: its size, which is not 0.
          tag: the entity tag of the version to read; empty: any.

        Raises:
          OSError: the object cannot be read, or it is another version.
        """
        options: dict[str, Any] = {"range": (start, start + num_bytes)}
        if tag:
            options["if_match"] = tag if '"' in tag else f'"{tag}"'  # Azure's lists leave them out
        try:
            return self._ask(lambda bucket: bucket.get(self.key, options=options).bytes())
        except FileExistsError as error:
            raise OSError(errno.ESTALE, "it has changed meanwhile", str(self)) from error

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
        self._check_guards()
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        options: Any = {"use_multipart": False}
        if only_if is not None:
            options["mode"] = {"e_tag": only_if, "version": only_if} if only_if else "create"
        elif size > _MOST_BYTES_AT_ONCE:
            part = max(_PART_BYTES, -(-size // _MOST_PARTS))
            options = {
                "use_multipart": True,
                "chunk_size": part,
                "max_concurrency": _PARTS_AT_A_TIME,
            }
        elif isinstance(content, Path):
            # Because obstore reads a file into a buffer of up to twice its size.
            content = content.read_bytes()
        put = self._ask(
            lambda bucket: bucket.put(self.key, content, **options), options["use_multipart"]
        )
        return self._tag_of(put)

    def tag(self) -> str:
        """What changes whenever the object does."""
        return self._tag_of(self._head())

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        if not missing_ok:
            self._head()  # because a store deletes what is not there without a word
        self._check_guards()
        with suppress(FileNotFoundError):
            self._ask(lambda bucket: bucket.delete(self.key))

    def remove_below(self) -> None:
        """Removes the objects below it, up to a thousand a request."""
        self._check_guards()
        if keys := [path.key for path, _ in self._objects()]:
            self._ask(lambda bucket: bucket.delete(keys))

    def _tag_of(self, told: Any) -> str:
        """The tag in what a store tells of an object: for Google, its generation."""
        return str(told["version" if self.root.startswith("gs:") else "e_tag"] or "")

    def _check_guards(self) -> None:
        for folder, check in list(_guards.items()):
            if self.is_relative_to(folder) and self.name != LOCK_NAME:
                check()

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)

    def _at(self, key: str) -> "StoredPath":
        normal = str(PurePosixPath(key.strip("/")))
        return StoredPath(self.root, "" if normal == "." else normal)

    def _objects(self) -> "list[tuple[StoredPath, Any]]":
        """The objects below it, in the order of their names, and what the store tells of each.

        Some programs mark a folder by an empty object, `folder/`. Those of folders that have
        others in them are left out.
        """
        pages = self._ask(lambda bucket: list(bucket.list(self.key or None, chunk_size=_PAGE)))
        told = [each for page in pages for each in page]
        keys = sorted(each["path"] for each in told)

        def is_marker(key: str) -> bool:
            first_after = bisect_left(keys, f"{key}/")
            below = (each.startswith(f"{key}/") for each in keys[first_after : first_after + 1])
            return key == self.key or any(below)

        found = [
            (self._at(each["path"]), each)
            for each in told
            if each["size"] or not is_marker(each["path"])
        ]
        return sorted(
            (pair for pair in found if pair[0].name != LOCK_NAME), key=lambda pair: pair[0]
        )

    def _head(self) -> Any:
        return self._ask(lambda bucket: bucket.head(self.key))

    def _ask(self, operation: Callable[[Any], T], in_parts: bool = False) -> T:
        from pipeline.stores import ask  # noqa: PLC0415 - only URLs need it

        return ask(self.root, str(self), operation, in_parts)


Location: TypeAlias = Path | StoredPath
"""Where a file or a folder is."""


def location(text: str) -> Location:
    """The path, or the object of a store, that a user names.

    Raises:
      UserError: it is a URL of another kind, or no object can have this name.
    """
    if "://" not in text:
        if re.match(rf"({'|'.join((*SCHEMES, *PACKAGES_OF_BEAM))}):/", text):
            raise UserError(f"{in_one_line(text)} has one slash where a URL has two: add one")
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        without_password = re.sub("//[^/]*@", "//", text)
        raise UserError(
            f"Clozemill knows no URL like {without_password}: give a path, or a URL of "
            f"{listed([f'{known}://' for known in SCHEMES])} (input files may also be of "
            f"{listed([f'{known}://' for known in PACKAGES_OF_BEAM])})"
        )
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):  # a password may stand there, so the URL is not quoted
        raise UserError(f"a URL of {scheme}:// has no bucket: give {scheme}://BUCKET/FOLDER")
    if {".", ".."} & set(key.split("/")) or _CONTROL.search(key):
        raise UserError(
            f"{in_one_line(text)} is not a URL of an object: leave out its parts . and .., and "
            "control characters"
        )
    return StoredPath(f"{scheme}://{bucket}")._at(key)


_guards: dict[StoredPath, Callable[[], None]] = {}


@contextmanager
def guarded(folder: StoredPath, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` before this process changes anything below a folder, until the block ends."""
    _guards[folder] = check
    try:
        yield
    finally:
        del _guards[folder]


def resolved(path: Location) -> Location:
    """Where a path leads, after all links; a store has none."""
    # Unlike Path.resolve, it takes links that form a circle.
    return path if isinstance(path, StoredPath) else Path(os.path.realpath(path))


def is_within(path: Location, folder: Location) -> bool:
    """Whether a path is a folder or below it, after all links."""
    path, folder = resolved(path), resolved(folder)
    if isinstance(path, StoredPath) or isinstance(folder, StoredPath):
        return isinstance(path, StoredPath) and path.is_relative_to(folder)
    return path.is_relative_to(folder)


def name_within(path: Location, folder: Location) -> str:
    """The name of a path below a folder."""
    below: Any = path
    return str(below.relative_to(folder))


def size_of(file: Location) -> int:
    """A file's size in bytes."""
    return file.size() if isinstance(file, StoredPath) else file.stat().st_size


def source_of(file: Location) -> Any:
    """What pyarrow reads a file from, in ranges: each that it asks for is one request."""
    return file.open("rb", buffering=0) if isinstance(file, StoredPath) else file


def read_range(file: Location, start: int, num_bytes: int) -> bytes:
    """A part of a file's content, of a store in one request; `num_bytes` is not 0."""
    if isinstance(file, StoredPath):
        return bytes(file.read_range(start, num_bytes))
    with file.open("rb") as handle:
        handle.seek(start)
        return handle.read(num_bytes)


def match_with_beam(pattern: str) -> dict[str, Stamp]:
    """The files that a URL or a glob of URLs names, on a file system that Beam knows.

    Raises:
      UserError: Beam lacks a package for such URLs, or cannot search there.
    """
    # Imported late, because it takes as long as all else.
    from apache_beam.io.filesystem import BeamIOError  # noqa: PLC0415
    from apache_beam.io.filesystems import FileSystems  # noqa: PLC0415

    try:
        (result,) = FileSystems.match([pattern])
    except (BeamIOError, ValueError) as error:
        package = PACKAGES_OF_BEAM[pattern.partition("://")[0]]
        raise UserError(
            f"cannot search for {pattern} with Beam, which needs the package {package} for it: "
            f"{in_one_line(str(error))}"
        ) from error
    return {
        file.path: Stamp(file.size_in_bytes, file.last_updated_in_seconds)
        for file in result.metadata_list
    }


def is_for_beam(text: str) -> bool:
    """Whether it is a URL that only Beam can read."""
    return text.startswith(tuple(f"{scheme}://" for scheme in PACKAGES_OF_BEAM))


def open_input(path: str, stamp: Stamp | None = None, buffering: int = -1) -> BinaryIO:
    """Opens a file of a disk, of a store or of Beam's for reading, without decompressing it.

    Args:
      path: its path or URL.
      stamp: see `StoredPath.open`; it only matters there, as does the next.
      buffering: see `StoredPath.open`.
    """
    if is_for_beam(path):
        from apache_beam.io import filesystems as beam  # noqa: PLC0415 - see `match_with_beam`

        return beam.FileSystems.open(path, compression_type=beam.CompressionTypes.UNCOMPRESSED)
    where = location(path)
    if isinstance(where, StoredPath):
        return where.open("rb", buffering, stamp)
    return where.open("rb")


class _Reader(io.RawIOBase):
    """The content of an object, of which each read is a request."""

    def __init__(self, path: StoredPath, stamp: Stamp):
        self._path, self._stamp = path, stamp
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stamp.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(self._path))
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        num_bytes = min(len(buffer), self._stamp.size - self._position)
        if num_bytes <= 0:
            return 0
        buffer[:num_bytes] = self._path.read_range(self._position, num_bytes, self._stamp.tag)
        self._position += num_bytes
        return num_bytes


def _stamp_of(told: Any) -> Stamp:
    """The stamp in what a store tells of an object. Some tell parts of a second in lists only."""
    return Stamp(told["size"], int(told["last_modified"].timestamp()), told["e_tag"] or "")
