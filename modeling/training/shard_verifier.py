"""The SHA-256 of shards, compared with the manifest while training reads on."""

import queue
import threading
from collections.abc import Iterable

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.manifest import DataSet, Shard


class ShardVerifier:
    """Reads shards in the background, each once, in the order in which they are given.

    Shards that come from a store are verified when they do.

    Args:
      data_set: the data set of the shards.
      skip: whether to verify nothing.
    """

    def __init__(self, data_set: DataSet, skip: bool = False):
        self._data_set = data_set
        self._skip = skip
        self._opened: queue.Queue[Shard] = queue.Queue()
        self._fault: UserError | None = None
        if not skip:
            # A daemon, because a process does not wait for daemons when it ends.
            threading.Thread(target=self._verify_opened, daemon=True).start()

    def open(self, shards: Iterable[Shard]) -> None:
        """Gives shards to verify, without waiting for it."""
        if not self._skip:
            for shard in filter(self._data_set.is_in_place, shards):
                self._opened.put(shard)

    def check(self) -> None:
        """Checks the shards that have been verified so far.

        Raises:
          UserError: a shard cannot be read or has another content than the manifest says.
        """
        if self._fault:
            raise self._fault

    def wait(self) -> None:
        """Waits until all shards that were given are verified, and checks them.

        Raises:
          UserError: as `check`.
        """
        self._opened.join()
        self.check()

    def _verify_opened(self) -> None:
        verified = set()
        while True:
            shard = self._opened.get()
            if shard not in verified and not self._fault:
                self._fault = self._fault_of(shard)
                verified.add(shard)
            self._opened.task_done()

    def _fault_of(self, shard: Shard) -> UserError | None:
        path = self._data_set.path_of(shard)
        try:
            if sha256_of(path) == shard.sha256:
                return None
        except OSError as error:
            return UserError(f"cannot read the shard {path}: {error.strerror}")
        return UserError(
            f"the shard {path} is damaged: its SHA-256 is not the one in the manifest; `clozemill "
            "verify` lists the damaged shards; generate the data set again"
        )
