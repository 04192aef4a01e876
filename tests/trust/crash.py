"""Kills this process at its N-th change to the files below a folder.

A change is what Python does: opening a file for writing, each part that is written to it, fsync,
rename, remove, mkdir, rmdir, truncate and links. The process dies before the change, except that
the first half of a part is written. Libraries in C++ and Rust (Arrow, TensorFlow, safetensors,
tokenizers) write unseen: for these, only the changes around their calls are points to die at.
"""

import _pyio
import builtins
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# The audit events of changes, with the places of the path and of the folder that it is relative to.
_CHANGES = {
    "os.rename": (0, 2),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.truncate": (0, None),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
}


def watch(folder: Path, deadly: int | None = None) -> list[str]:
    """Begins to watch the changes below a folder, for the rest of this process's life.

    Args:
      folder: the folder.
      deadly: the number of the change, from 1, at which the process kills itself; None: never.

    Returns:
      A list to which each change is added, in words.
    """
    changes: list[str] = []
    root = f"{folder.resolve()}/"
    write, fsync = os.write, os.fsync

    def is_deadly(name: str, path: str) -> bool:
        if not path.startswith(root):
            return False
        changes.append(f"{name} {path.removeprefix(root)}")
        return len(changes) == deadly

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            is_change = not isinstance(path, int) and bool(flags & _WRITING)
            place = None
        else:
            is_change = event in _CHANGES
            if is_change:
                index, place = _CHANGES[event]
                path = arguments[index]
        if is_change:
            parent = arguments[place] if place is not None else -1
            base = os.getcwd() if parent in (-1, None) else os.readlink(f"/proc/self/fd/{parent}")
            if is_deadly(event.removeprefix("os."), os.path.join(base, os.fsdecode(path))):
                die()

    def watched_write(descriptor: int, part: Any) -> int:
        if is_deadly("write to", os.readlink(f"/proc/self/fd/{descriptor}")):
            write(descriptor, part[: len(part) // 2])
            die()
        return write(descriptor, part)

    def watched_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if is_deadly("fsync", os.readlink(f"/proc/self/fd/{number}")):
            die()
        fsync(number)

    real_open = io.open

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        # Python's own implementation of files in Python writes with `os.write`.
        is_seen = set(mode) & set("wax+") and not isinstance(file, int)
        return (_pyio.open if is_seen else real_open)(file, mode, *args, **kwargs)

    os.write, os.fsync = watched_write, watched_fsync
    io.open = builtins.open = watched_open
    sys.addaudithook(audit)
    return changes


def die() -> None:
    """Kills this process at once: nothing is flushed, closed or removed."""
    os.kill(os.getpid(), signal.SIGKILL)
