"""A data set on a store, whose shards come to this machine's disk before they are read.

Shards are read group by group. When a group is opened, the one before it is given up, and threads
begin to fetch the one after it. So a step waits for the store only at the start, if the cache has
room for two groups.

The processes of a machine share the files of a cache, because a file is named by its content:

- Whoever reads a file holds a lock on it, which ends with the process. Nobody removes it meanwhile.
- A file that comes has a temporary name. Its whole size counts from the beginning, so that the
  files never exceed the size of the cache.
- A process makes room for all that it lacks of a group at once, and holds nothing while it waits
  for room. So processes do not wait for each other in a circle.
"""

import errno
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeVar

from absl import logging

from pipeline.errors import UserError
from pipeline.files import (
    alone_in,
    describe_size,
    has_sha256,
    hold,
    is_in_use,
    make_directory,
    remove_leftovers,
    sha256_of,
    whole_file,
)
from pipeline.manifest import DataSet, Shard
from pipeline.storage import Location, StoredPath

_FOLDER = "clozemill-shards"
_NAME = re.compile(r"(?P<name>[0-9a-f]{64}-(?P<bytes>\d+)\.tfrecord)(\.[0-9a-f]{32}\.tmp)?")
_FILES_AT_A_TIME = 4
_MOST_ATTEMPTS = 4
_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_WITHOUT_ROOM = 300.0
# How long another process, which may be suspended, can get nothing of what it fetches.
_SECONDS_OF_SILENCE = 300.0
# After this time, a shard of another data set is left over.
_SECONDS_UNTIL_OLD = 24 * 3600.0
_TICK = 0.01  # the seconds by which the time of a file may be behind the clock
T = TypeVar("T")


@dataclass(frozen=True)
class CachedDataSet(DataSet):
    """A data set with shards on a store, which are read from a cache.

    Attributes:
      cache: the cache.
    """

    cache: "ShardCache"

    def path_of(self, shard: Shard) -> Location:
        """The file that is read: in the cache, or where it is if that is on this machine."""
        source = self.source_of(shard)
        return self.cache.path_of(shard) if isinstance(source, StoredPath) else source

    def source_of(self, shard: Shard) -> Location:
        """Where a shard comes from."""
        return super().path_of(shard)

    def is_in_place(self, shard: Shard) -> bool:
        """Whether a shard is read where it is, rather than in the cache."""
        return not isinstance(self.source_of(shard), StoredPath)

    def open(self, shards: list[Shard], following: list[Shard]) -> None:
        """Waits until shards of a split can be read. They can until the next ones are opened.

        Args:
          shards: the shards.
          following: those that come next, which are fetched in the background.

        Raises:
          UserError: a shard is missing or damaged on the store, the cache is too small, or its
            disk is full.
        """
        now, next_ones = (
            [
                _Source(shard, source, self.cache.path_of(shard))
                for shard in each
                if isinstance(source := self.source_of(shard), StoredPath)
            ]
            for each in (shards, following)
        )
        if now:
            self.cache.open(shards[0].split, now, next_ones)

    @property
    def fault(self) -> UserError | None:
        """Why shards could not be opened, if they could not."""
        return self.cache.fault


def in_cache(data_set: DataSet, cache: "ShardCache") -> DataSet:
    """A data set whose shards are read from a cache; itself if none of them is on a store."""
    cached = CachedDataSet(data_set.directory, data_set.manifest, cache)
    cache.own = frozenset(map(cache.path_of, data_set.manifest.shards))
    return data_set if all(map(cached.is_in_place, data_set.manifest.shards)) else cached


class _Source(NamedTuple):
    """A shard, where it comes from, and the file that holds it when it has come."""

    shard: Shard
    url: StoredPath
    file: Path


class ShardCache:
    """Shards in a directory of their own, within the one that is given.

    Args:
      directory: the directory, in which nothing else is touched. It need not exist.
      size: the largest number of bytes of all files of the cache. None: what `require` says, of the
        data set's own shards, and more rather than wait for another run that uses them.

    Attributes:
      own: the files of the shards of the data set.
      fault: why shards could not be opened, if they could not.
    """

    def __init__(self, directory: Path, size: int | None = None):
        self.own: frozenset[Path] = frozenset()
        self.fault: UserError | None = None
        self._directory = directory / _FOLDER
        self._size = size
        self._is_given = size is not None
        self._kept: set[Path] = set()
        self._verified: set[Path] = set()
        self._readers: dict[str, _Reader] = {}

    def path_of(self, shard: Shard) -> Path:
        """The file that holds a shard when it has come."""
        return self._directory / f"{shard.sha256}-{shard.bytes}.tfrecord"

    def require(self, needed: int, wanted: int, kept: Iterable[Shard] = ()) -> None:
        """Checks the size, or sets it if none was given.

        Args:
          needed: the bytes of the shards that are read side by side.
          wanted: the bytes with which training waits for the store only at the start.
          kept: the shards among them that stay when they have come.

        Raises:
          UserError: the cache is too small.
        """
        self._kept = set(map(self.path_of, kept))
        self._size = wanted if self._size is None else self._size
        self._check_size(needed)

    def open(self, split: str, sources: list[_Source], following: list[_Source]) -> None:
        """Opens shards of a split, see `CachedDataSet.open`."""
        num_bytes = sum(source.shard.bytes for source in sources)
        if not self._readers:
            most = (
                "" if self._size is None else f", which holds at most {describe_size(self._size)}"
            )
            logging.info(
                "fetching shards from %s to %s%s: first %d of them, %s",
                sources[0].url.parent,
                self._directory,
                most,
                len(sources),
                describe_size(num_bytes),
            )
        try:
            self._check_size(num_bytes)
            make_directory(self._directory)
            self._readers.setdefault(split, _Reader(self)).open(sources, following)
        except UserError as error:
            self.fault = error
            raise
        except OSError as error:
            self.fault = UserError(f"cannot use the cache {self._directory}: {error.strerror}")
            raise self.fault from error

    def close(self) -> None:
        """Fetches no more of what comes next, and waits for the files that are still coming."""
        for reader in self._readers.values():
            reader.close()

    def find(
        self, sources: list[_Source], unused_since: float | None = None
    ) -> "tuple[dict[Path, BufferedReader], list[_Fetch]] | None":
        """Holds the files that are here, and makes room for those that nobody fetches.

        Args:
          sources: the shards.
          unused_since: remove only what nobody has asked for since this time.

        Returns:
          What is held, and what is to be fetched; None if there is no room.
        """
        with alone_in(self._directory):
            remove_leftovers(self._directory)
            files = self._files()
            held: dict[Path, BufferedReader] = {}
            for source in sources:
                if source.file not in held and (file := hold(source.file)):
                    source.file.touch()
                    held[source.file] = file
            here = held.keys() | files.keys()
            lacking = {each.file: each for each in sources if each.file not in here}.values()
            if self._make_room(files, sum(each.shard.bytes for each in lacking), unused_since):
                return held, [_Fetch(each) for each in lacking]
        _close(held)
        return None

    def release(self, held: dict[Path, BufferedReader], wanted: Iterable[Path]) -> None:
        """Gives files up, except for those that are wanted and those that stay."""
        for path in held.keys() - {*wanted} - self._kept:
            held.pop(path).close()

    def fetch(self, fetches: "list[_Fetch]") -> None:
        """Fetches shards, some at a time.

        Raises:
          UserError: see `CachedDataSet.open`.
        """
        try:
            _in_parallel(_Fetch.run, fetches)
        finally:
            for each in fetches:
                each.abandon()
        self._verified |= {each.source.file for each in fetches}

    def verify(self, held: dict[Path, BufferedReader]) -> None:
        """Removes those files that have become damaged since another run fetched them."""

        def verify_file(path: Path) -> None:
            sha256 = path.name.partition("-")[0]
            if file_digest(held[path], "sha256").hexdigest() == sha256:
                self._verified.add(path)
                return
            logging.warning("%s is damaged: it is fetched again", path)
            with alone_in(self._directory):
                if not has_sha256(path, sha256):  # others may have fetched it again meanwhile
                    path.unlink(missing_ok=True)
            held.pop(path).close()

        _in_parallel(verify_file, held.keys() - self._verified)

    def check_arrivals(self) -> None:
        """Checks that the files that others fetch grow.

        Raises:
          UserError: they do not.
        """
        newest = max(map(_time_of, self._directory.iterdir()), default=0.0)
        if newest < time.time() - _SECONDS_OF_SILENCE:
            raise UserError(
                f"another process fetches shards to {self._directory}, but has got nothing for "
                f"{_SECONDS_OF_SILENCE:.0f} s: end it if it is suspended, or give another "
                "--cache_dir"
            )

    def _files(self) -> dict[Path, int]:
        """The files that are here or coming, under their last names, with their whole sizes."""
        # Listed twice, because one that gets its last name meanwhile may be missing in a list.
        listed = [
            _NAME.fullmatch(path.name) for _ in range(2) for path in self._directory.iterdir()
        ]
        return {self._directory / name["name"]: int(name["bytes"]) for name in listed if name}

    def _make_room(
        self, files: dict[Path, int], num_bytes: int, unused_since: float | None
    ) -> bool:
        """Removes the files that nobody has asked for the longest; none if that does not do.

        If no size was given, it leaves those of other data sets that may be in use.
        """
        if self._size is None:
            return True
        if not self._is_given:
            old = time.time() - _SECONDS_UNTIL_OLD
            files = {
                path: size
                for path, size in files.items()
                if path in self.own or _time_of(path) < old
            }
        excess = sum(files.values()) + num_bytes - self._size
        unused = []
        for path in sorted(files, key=_time_of):
            if excess <= 0 or (unused_since is not None and _time_of(path) >= unused_since):
                break
            if not is_in_use(path):
                unused.append(path)
                excess -= files[path]
        if excess > 0 and (self._is_given or unused_since is not None):
            return False
        for path in unused:
            path.unlink(missing_ok=True)
        return True

    def _check_size(self, needed: int) -> None:
        if self._size is not None and self._size < needed:
            raise UserError(
                f"--cache_size={describe_size(self._size)} is less than the shards that are read "
                f"side by side on this machine: give --cache_size={_rounded_up(needed)} or more"
            )


class _Reader:
    """Holds the shards that are read, and fetches those that come next."""

    def __init__(self, cache: ShardCache):
        self._cache = cache
        self._held: dict[Path, BufferedReader] = {}
        self._next: list[_Source] = []
        self._opening = threading.Lock()
        self._fetching = threading.Thread()

    def open(self, sources: list[_Source], following: list[_Source]) -> None:
        """Gives up the shards of before, and waits for the new ones."""
        with self._opening:
            self._next = []
            self._cache.release(self._held, {source.file for source in sources})
            self._wait_for(sources)
            self._next = following
        self._fetching = threading.Thread(target=self._fetch_ahead, args=(following,), daemon=True)
        self._fetching.start()

    def close(self) -> None:
        """Ends the fetching of those that come next."""
        self._next = []
        if self._fetching.ident:
            self._fetching.join()

    def _wait_for(self, sources: list[_Source]) -> None:
        last_room = last_success = time.monotonic()
        while missing := [source for source in sources if source.file not in self._held]:
            if (found := self._cache.find(missing)) is None:
                self._cache.release(self._held, ())
                if time.monotonic() > last_room + _SECONDS_WITHOUT_ROOM:
                    raise UserError(
                        "other processes have been using all the room of the shard cache for "
                        f"{_SECONDS_WITHOUT_ROOM:.0f} s: give a larger --cache_size"
                    )
            else:
                held, fetches = found
                self._held |= held
                self._cache.fetch(fetches)
                self._cache.verify(self._held)
                last_room = time.monotonic()
                if held or fetches:
                    last_success = last_room
                    continue
                if last_room > last_success + _SECONDS_OF_SILENCE:
                    self._cache.check_arrivals()
            time.sleep(_SECONDS_BETWEEN_LOOKS)  # others fetch what is missing, or must make room

    def _fetch_ahead(self, sources: list[_Source]) -> None:
        """Fetches shards where there is room, until others are next. Errors can wait until then."""
        since = time.time() - _TICK

        def fetch(source: _Source) -> None:
            while self._next is sources:
                if found := self._cache.find([source], unused_since=since):
                    held, fetches = found
                    _close(held)
                    self._cache.fetch(fetches)
                    return
                time.sleep(_SECONDS_BETWEEN_LOOKS)

        with suppress(UserError, OSError):
            _in_parallel(fetch, sources)


class _Fetch:
    """The fetching of one shard, for which there is room."""

    def __init__(self, source: _Source):
        self.source = source
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(whole_file(source.file))

    def run(self) -> None:
        """Fetches it, again if it arrives damaged."""
        with self._stack:
            for _ in range(_MOST_ATTEMPTS):
                self._download()
                if sha256_of(self._temporary) == self.source.shard.sha256:
                    return
                logging.warning("%s has arrived damaged: it is fetched again", self.source.url)
            raise UserError(
                f"the shard {self.source.url} is damaged: {_MOST_ATTEMPTS} times, its SHA-256 was "
                "not the one in the manifest; generate the data set again"
            )

    def abandon(self) -> None:
        """Gives the room back, unless it was fetched."""
        with suppress(_AbandonedError), self._stack:
            raise _AbandonedError

    def _download(self) -> None:
        try:
            self.source.url.download(self._temporary)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename == str(self.source.url):
                raise UserError(
                    f"the shard {self.source.url} is missing: generate the data set again"
                ) from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space is left for the cache {self._temporary.parent}: free some, or give "
                    "a smaller --cache_size, or a --cache_dir on another disk"
                ) from error
            raise UserError(f"cannot fetch {self.source.url}: {error.strerror}") from error


class _AbandonedError(Exception):
    """Another shard could not be fetched."""


def _in_parallel(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Does some work for each item, a few at a time; raises the first error after all have ended.

    The threads are daemons, for which a process does not wait when it ends.
    """
    left, errors = deque(items), deque[Exception]()

    def work_on() -> None:
        with suppress(IndexError):
            while not errors:
                item = left.popleft()
                try:
                    work(item)
                except Exception as error:
                    errors.append(error)

    count = min(_FILES_AT_A_TIME, len(left))
    threads = [threading.Thread(target=work_on, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _close(held: dict[Path, BufferedReader]) -> None:
    for file in held.values():
        file.close()


def _time_of(path: Path) -> float:
    """When a file was last asked for; 0 if it is still coming."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _rounded_up(num_bytes: int) -> str:
    """A size of at least so many bytes, as --cache_size takes it."""
    unit, name = (1_000_000, "MB") if num_bytes > 10_000_000 else (1_000, "kB")
    return f"{-(-num_bytes // unit)}{name}"
