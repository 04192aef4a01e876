"""The flags of the cache through which the shards of a store are read."""

import os
import re
from pathlib import Path

from absl import flags

from modeling.shard_cache import ShardCache
from pipeline.errors import UserError

_SIZE = re.compile(r"(\d{1,15})(|kB|MB|GB|TB)", re.ASCII)
_BYTES = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    None,
    "With a --data_dir on a store: the directory of this machine in which its shards are read "
    "(default: clozemill in XDG_CACHE_HOME or ~/.cache). The processes of a machine share them. "
    "Only its folder clozemill-shards is written.",
)
_CACHE_SIZE = flags.DEFINE_string(
    "cache_size",
    None,
    "The most that the cache holds, such as 200GB. By default two groups of 64 to 127 train "
    "shards, and the eval shards: one group is read, and the next one comes. With room for all "
    "shards, each comes only once.",
)
CACHE_FLAGS = ("cache_dir", "cache_size")


@flags.validator("cache_size")
def _is_size(size: str | None) -> bool:
    """Checks that the size is one.

    Raises:
      flags.ValidationError: it is not.
    """
    found = _SIZE.fullmatch("1" if size is None else size)
    if not (found and int(found[1])):
        raise flags.ValidationError("give a number of bytes, or one of kB, MB, GB or TB: 200GB")
    return True


def shard_cache(directory: Path | None = None) -> ShardCache:
    """The cache of the flags.

    Args:
      directory: the directory to take instead of theirs.

    Raises:
      UserError: the directory is not on this machine.
    """
    if "://" in (_CACHE_DIR.value or ""):
        raise UserError(f"--cache_dir={_CACHE_DIR.value} must be a directory of this machine")
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    size = _SIZE.fullmatch(_CACHE_SIZE.value or "")
    return ShardCache(
        directory or Path(_CACHE_DIR.value or user / "clozemill"),
        int(size[1]) * _BYTES[size[2]] if size else None,
    )
