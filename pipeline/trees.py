"""Files and folders by their absolute paths or their URLs, on a disk or on a store."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pipeline.errors import UserError
from pipeline.storage import Location, Stamp, StoredPath, location

ROOT_OF_DISK = "/"


class Entry(NamedTuple):
    """A name in a folder.

    Attributes:
      name: the name.
      path: the folder's path, and the name.
      is_folder: whether it is a folder, and not a link to one.
    """

    name: str
    path: str
    is_folder: bool


class Disk:
    """The files and folders of this machine."""

    def expect(self, folder: str, deep: bool) -> None:
        """Says that questions about what is below a folder will follow, which changes nothing."""

    def entries(self, folder: str) -> Iterable[Entry]:
        """What is in a folder; nothing if it does not exist.

        Raises:
          UserError: it cannot be searched.
        """
        try:
            with os.scandir(folder) as found:
                return [
                    Entry(each.name, each.path, each.is_dir(follow_symlinks=False))
                    for each in found
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"cannot search the folder {folder}: {error.strerror}") from error

    def exists(self, path: str) -> bool:
        """Whether there is anything of this name, and be it a link to nothing."""
        return os.path.lexists(path)

    def is_file(self, path: str) -> bool:
        """Whether it is a file, or a link to one."""
        return os.path.isfile(path)  # noqa: PTH113 - of any text

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder, or a link to one."""
        return os.path.isdir(path)  # noqa: PTH112 - of any text

    def is_link(self, path: str) -> bool:
        """Whether it is a link."""
        return os.path.islink(path)  # noqa: PTH114 - of any text

    def read(self, path: str) -> bytes:
        """The content of a small file; nothing if it cannot be read."""
        try:
            return Path(path).read_bytes()
        except OSError:
            return b""

    def stamp(self, path: str) -> Stamp:
        """The size of a file and the time of its last change.

        Raises:
          UserError: it cannot be read.
        """
        try:
            status = os.stat(path)  # noqa: PTH116 - of any text
        except OSError as error:
            link = ", a link" if self.is_link(path) else ""
            raise UserError(f"cannot read {path}{link}: {error.strerror}") from error
        return Stamp(status.st_size, status.st_mtime)


class Store:
    """The objects of a bucket, with the methods of `Disk`.

    A name is a folder if there are objects below it. A list takes a request for 1,000 objects, and
    answers all questions about them. Answers stay the same: whoever looks again makes another
    `Store`.
    """

    def __init__(self) -> None:
        # The folders of which all is known, and those of which what is directly in them is.
        self._known: set[str] = set()
        self._seen: set[str] = set()
        self._stamps: dict[str, Stamp] = {}
        # Of each folder, what is directly in it, as far as it was listed.
        self._paths_in: dict[str, set[str]] = {}

    def expect(self, folder: str, deep: bool) -> None:
        """Says that questions about what is below a folder will follow, so that one list does.

        Args:
          folder: the folder.
          deep: whether they are about all that is below it, and not only directly.
        """
        if deep:
            self._list(folder)
        elif not self._is_known(folder):
            with _searching(folder):
                files, folders = _stored(folder).entries()
            self._seen.add(folder)
            self._add(folder, files)
            for path in map(str, folders):
                self._paths_in.setdefault(folder, set()).add(path)
                self._paths_in.setdefault(path, set())

    def entries(self, folder: str) -> Iterable[Entry]:
        """What is in a folder; an object's name that is also a folder's comes twice."""
        if folder not in self._seen:
            self._list(folder)
        for path in self._paths_in.get(folder, ()):
            name = path.rpartition("/")[2]
            if path in self._paths_in:
                yield Entry(name, path, is_folder=True)
            if path in self._stamps:
                yield Entry(name, path, is_folder=False)

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name, or any below it."""
        return self.is_file(path) or self.is_folder(path)

    def is_file(self, path: str) -> bool:
        """Whether there is an object of this name."""
        if path not in self._stamps and not self._is_answered(path):
            try:
                self._stamps[path] = _stored(path).stamp()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
        return path in self._stamps

    def is_folder(self, path: str) -> bool:
        """Whether there are objects below it; not asked where `is_file` has found an object."""
        if path not in self._stamps and not self._is_answered(path):
            self._list(path)
        return path in self._paths_in

    def is_link(self, _: str) -> bool:
        """False: a store has none."""
        return False

    def read(self, path: str) -> bytes:
        """The content of a small object; nothing if it cannot be read."""
        if path not in self._stamps and self._is_answered(path):
            return b""
        try:
            return _stored(path).read_bytes()
        except OSError:
            return b""

    def stamp(self, path: str) -> Stamp:
        """The stamp of an object that was found."""
        return self._stamps[path]

    def _is_known(self, folder: str) -> bool:
        while "/" in folder and folder not in self._known:
            folder = folder.rpartition("/")[0]
        return folder in self._known

    def _is_answered(self, path: str) -> bool:
        """Whether the lists so far tell what a path is."""
        return path.rpartition("/")[0] in self._seen or self._is_known(path)

    def _list(self, folder: str) -> None:
        if self._is_known(folder):
            return
        with _searching(folder):
            stamps = _stored(folder).stamps()
        self._known.add(folder)
        self._add(folder, stamps)

    def _add(self, folder: str, stamps: dict[StoredPath, Stamp]) -> None:
        self._stamps |= {str(path): stamp for path, stamp in stamps.items()}
        for path in map(str, stamps):
            child = path
            while child != folder:
                parent = child.rpartition("/")[0]
                self._paths_in.setdefault(parent, set()).add(child)
                child = parent


Tree: TypeAlias = Disk | Store


class Trees(dict[str, Tree]):
    """The disk and the buckets that have been asked for, by the first element of `split`."""

    def __missing__(self, root: str) -> Tree:
        self[root] = Disk() if root == ROOT_OF_DISK else Store()
        return self[root]


def split(path: str | Location) -> tuple[str, list[str]]:
    """Where an absolute path begins, and the names from there on; links stay as they are.

    Returns:
      `/` or the URL of a bucket; and the names.

    Raises:
      UserError: it is a URL that `location` does not know.
    """
    where = location(str(path))
    if isinstance(where, StoredPath):
        root, rest = where.root, os.path.normpath(f"/{where.key}")
    else:
        root, rest = ROOT_OF_DISK, os.path.abspath(where)  # noqa: PTH100 - see above
    return root, [name for name in rest.split("/") if name]


def absolute(path: Location) -> Location:
    """The same place, by its whole name without `..`; links stay as they are."""
    return location(joined(*split(path)))


def joined(folder: str, names: list[str]) -> str:
    """The path of what the names lead to from a folder on."""
    return "/".join([folder.removesuffix("/"), *names]) or ROOT_OF_DISK


@contextmanager
def _searching(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot search {folder}: {error.strerror}") from error


def _stored(url: str) -> StoredPath:
    where = location(url)
    assert isinstance(where, StoredPath)
    return where
