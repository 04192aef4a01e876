"""Kills this process at its N-th change to the files below a folder.

A change is what Python does: opening a file for writing, each part that is written to it, fsync,
rename, remove, mkdir, rmdir and links. The process dies before the change, except that
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
    root = folder.resolve()
    real_open, write, fsync = io.open, os.write, os.fsync

    def is_deadly(name: str, path: Path) -> bool:
        if not path.is_relative_to(root):
            return False
        changes.append(f"{name} {path.relative_to(root)}")
        return len(changes) == deadly

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES:
            path, parent = (arguments[place] for place in _CHANGES[event])
        elif event == "open" and not isinstance(arguments[0], int) and arguments[2] & _WRITING:
            path, parent = arguments[0], -1
        else:
            return
        base = Path.cwd() if parent == -1 else _path_of(parent)
        if is_deadly(event.removeprefix("os."), base / os.fsdecode(path)):
            _die()

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        # Files that are implemented in Python write with `os.write`.
        is_seen = set(mode) & set("wax+") and not isinstance(file, int)
        return (_pyio.open if is_seen else real_open)(file, mode, *args, **kwargs)

    def watched_write(descriptor: int, part: Any) -> int:
        if is_deadly("write to", _path_of(descriptor)):
            write(descriptor, part[: len(part) // 2])
            _die()
        return write(descriptor, part)

    def watched_fsync(descriptor: int) -> None:
        path = _path_of(descriptor)
        # To die at a folder's fsync would leave what dying at the next change leaves.
        if not path.is_dir() and is_deadly("fsync", path):
            _die()
        fsync(descriptor)

    io.open = builtins.open = watched_open
    os.write, os.fsync = watched_write, watched_fsync
    sys.addaudithook(audit)
    return changes


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _die() -> None:
    """Kills this process at once: nothing is flushed, closed or removed."""
    os.kill(os.getpid(), signal.SIGKILL)
