"""The lock of a folder on a store: an object that only one run can make, and that it renews.

A store has no locks of its own, and does not notice when a process ends. So the owner changes the
object every few seconds, and whoever finds it watches it. If it does not change any more, its owner
is dead. Time is measured only where the watcher is, because clocks of two machines differ. An owner
that was suspended too long may have lost its lock: it checks that before it changes anything.
"""

import errno
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from pipeline.errors import UserError, in_one_line
from pipeline.storage import LOCK_NAME, StoredPath, guarded
from pipeline.stores import abort_uploads

_RENEWAL_SECONDS = 10.0
_WATCH_SECONDS = 1.0
# A lock that does not change for so long is nobody's.
_STALE_SECONDS = 60.0


@contextmanager
def locked_folder(folder: StoredPath) -> Iterator[None]:
    """Keeps other runs out of a folder until the block ends.

    Before this process changes anything below the folder, it makes sure that the lock is still its
    own. On a store that ignores the conditions of writes, there is a warning and no lock.

    Raises:
      UserError: another run uses the folder; or, at a change, another run has taken the lock.
      OSError: the store cannot be written to.
    """
    lock = _Lock(folder)
    if not lock.take():
        logging.warning(
            "cannot lock %s, because this store does not know conditional writes: make sure that "
            "no other run uses this directory",
            folder,
        )
    renewal = threading.Thread(target=lock.renew, daemon=True)
    renewal.start()
    try:
        if lock.is_inherited:
            abort_unfinished_uploads(folder)
        with guarded(folder, lock.check):
            yield
    finally:
        if os.getpid() == lock.process:  # a forked child has no part in it
            lock.ended.set()
            renewal.join()
            lock.release()


def abort_unfinished_uploads(folder: StoredPath) -> None:
    """Aborts, or names in a warning, the uploads in parts that ended runs have left in a folder.

    Those below a folder that another run has locked are left alone.
    """

    def is_in_use(key: str) -> bool:
        path = StoredPath(folder.root, key)
        below = path.parents[: path.parents.index(folder)]
        return any((each / LOCK_NAME).is_file() for each in below)

    abort_uploads(folder.root, folder.key, is_in_use)


class _Found(NamedTuple):
    """A lock: its tag, and what its owner has written."""

    tag: str
    owner: dict[str, Any]


class _Lock:
    """The lock of a folder, as the run that wants it or has it sees it.

    Attributes:
      process: this process.
      is_inherited: whether it was that of a dead run.
      ended: ends the renewal when it is set.
    """

    def __init__(self, folder: StoredPath):
        self.process = os.getpid()
        self.is_inherited = False
        self.ended = threading.Event()
        self._folder = folder
        self._object = folder / LOCK_NAME
        self._owner = _this_process()
        self._renewals = 0  # changes the tag, which may be a checksum
        self._tag = ""
        self._renewed = 0.0
        self._loss = ""
        self._mutex = threading.Lock()

    def take(self) -> bool:
        """Makes the object, or replaces that of a dead run; returns whether that keeps others out.

        Raises:
          UserError: a living run has it.
        """
        try:
            replaced = ""
            while not self._write(replaced):
                replaced = self._tag_of_dead_run()
            self._object.upload(self._content(), only_if="")
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
        return False

    def renew(self) -> None:
        """Renews it every few seconds until it has `ended`; ends the run if it is lost.

        The command line ends on SIGTERM as it should, with its worker processes, which do not know
        of the lock. A program without such a handler learns of the loss when it changes something.
        """
        while not self._loss and not self.ended.wait(_RENEWAL_SECONDS):
            with self._mutex, suppress(OSError):  # the store may be back in time
                self._renew()
        if self._loss and callable(signal.getsignal(signal.SIGTERM)):
            logging.error("%s", self._loss)
            os.kill(self.process, signal.SIGTERM)

    def check(self) -> None:
        """Makes sure that it is not lost; sends a request only if it was not renewed in time.

        Raises:
          UserError: it is lost.
          OSError: nobody knows, because the store is out of reach.
        """
        with self._mutex:
            if _clock() > self._renewed + 3 * _RENEWAL_SECONDS:
                self._renew()
        if self._loss:
            raise UserError(self._loss)

    def release(self) -> None:
        """Removes it unless it is lost."""
        with suppress(OSError, UserError):
            self.check()
            self._object.unlink(missing_ok=True)

    def _renew(self) -> None:
        if self._loss or self._write(self._tag):
            return
        found = self._read()
        self._loss = f"this run has lost {self._folder} " + (
            f"to {_describe(found.owner)}, because it was not heard of for {_STALE_SECONDS:.0f} "
            "seconds: stop that one, then run the same command again to resume"
            if found
            else "because somebody has removed its lock: run the same command again to resume"
        )

    def _tag_of_dead_run(self) -> str:
        """Waits until the owner of the object shows whether it lives.

        Returns:
          The object's tag; empty if it is gone.

        Raises:
          UserError: the owner lives.
        """
        first, started = self._read(), _clock()
        if first is None:
            return ""
        owner, is_alive = _describe(first.owner), _is_alive(first.owner)
        if is_alive is None:
            logging.info(
                "%s was in use by %s: watching for up to %.0f seconds whether it lives",
                *(self._folder, owner, _STALE_SECONDS),
            )
        while is_alive is None and _clock() < started + _STALE_SECONDS:
            time.sleep(_WATCH_SECONDS)
            found = self._read()
            if found is None:
                return ""
            is_alive = True if found.tag != first.tag else None
        if is_alive:
            raise UserError(f"{self._folder} is in use by {owner}: wait for it or stop it")
        logging.warning("%s was in use by %s, which is dead: taking over", self._folder, owner)
        self.is_inherited = True
        return first.tag

    def _write(self, replaced: str) -> bool:
        """Makes the object, or replaces the one with a tag; returns whether it is now this run's.

        Raises:
          OSError: the store cannot be written to.
        """
        self._renewals += 1
        started = _clock()
        try:
            tag = self._object.upload(self._content(), only_if=replaced)
        except (FileExistsError, FileNotFoundError):
            found = self._read()
            # It may have been this run's request, whose answer was lost.
            if found is None or found.owner.get("token") != self._owner["token"]:
                return False
            tag = found.tag
        self._tag, self._renewed = tag, started
        return True

    def _content(self) -> bytes:
        return json.dumps({**self._owner, "renewals": self._renewals}, indent=2).encode()

    def _read(self) -> _Found | None:
        """The lock that is there, if any."""
        try:
            content, tag = self._object.read_with_tag()
        except FileNotFoundError:
            return None
        with suppress(ValueError):
            if isinstance(owner := json.loads(content), dict):
                return _Found(tag, owner)
        return _Found(tag, {})


def _this_process() -> dict[str, Any]:
    """What a lock tells of its owner."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "machine": _machine(),
        "process_started": _start_of(os.getpid()),
        "token": uuid.uuid4().hex,
    }


def _describe(owner: dict[str, Any]) -> str:
    """Names a lock's owner, in one line."""
    if not {"host", "since", "process"} <= owner.keys():
        return "another run"
    return in_one_line(
        f"a run on {owner['host']} since {owner['since']} (process {owner['process']})"
    )


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a lock's owner lives, as far as this machine can know."""
    if not _machine() or owner.get("machine") != _machine():
        return None
    started = _start_of(owner.get("process"))
    return started is not None and started == owner.get("process_started")


def _machine() -> str:
    """What only processes that see each other have in common; empty where that is not known."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    return ""


def _start_of(process: Any) -> str | None:
    """When a process of this machine has started, in ticks since its boot; None if it is dead."""
    with suppress(OSError, IndexError):
        # After the name, which may hold anything, come the state and 18 other fields.
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return None


def _clock() -> float:
    """Seconds that have passed, also while this machine was asleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
