"""What a path is, for those that are no files."""

import os
import stat

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of_special_file(path: str | os.PathLike[str]) -> str | None:
    """Names what a path is if it is a pipe, a socket or a device; otherwise returns None.

    Reading such a file could take forever, and replacing it could harm the system.
    """
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))  # noqa: PTH116 - of any text
    except OSError:
        return None
