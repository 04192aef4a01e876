"""Where a run is written: on a disk in the run itself, for a store in a copy that a thread sends.

Of a run on a store, this machine's copy holds only what grows: metrics, what trackers keep, and the
checkpoint that is on its way. A checkpoint counts once its `state.json` is there, which is sent
last; before it come the lines of `metrics.jsonl` that it refers to. So a run that was killed, with
all that its host had, goes on from what is on the store.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging

from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    TrainingState,
    save_checkpoint,
    send_checkpoint,
)
from modeling.step.learner import Learner
from modeling.training.metrics import METRICS_NAME
from modeling.training.tensorboard import SUMMARIES_NAME
from modeling.training.tracking import NAMES_OF_TRACKERS
from pipeline.errors import UserError, reason_of
from pipeline.files import scratch_directory
from pipeline.storage import Location, StoredPath

# What this start goes on with, or removes.
_BROUGHT = (METRICS_NAME, SUMMARIES_NAME, *NAMES_OF_TRACKERS)
# How late metrics are on the store, between checkpoints.
_SECONDS_BETWEEN_METRICS = 60.0
# How long the end of a run waits for the store.
_SECONDS_AT_END = 600.0


class RunWriter:
    """Writes a run on a disk.

    Args:
      directory: the run.
      keep: the number of newest checkpoints to keep.

    Attributes:
      directory: where the files that grow are written.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = directory
        self._keep = keep

    def save(
        self, learner: Learner, state: TrainingState, then: Callable[[Location], None]
    ) -> None:
        """Saves a checkpoint. On a store, it arrives while training goes on.

        Args:
          learner: the variables.
          state: the state.
          then: is called with the checkpoint once it counts, at the latest by `wait`.

        Raises:
          UserError: it cannot be written; earlier checkpoints are unchanged.
        """
        then(save_checkpoint(self.directory, learner, state, self._keep))

    def check(self) -> None:
        """Notices what has arrived, without waiting.

        Raises:
          UserError: the store does not take what was sent.
        """

    def wait(self) -> None:
        """Waits until the last checkpoint counts.

        Raises:
          UserError: the store does not take what was sent.
        """


@contextmanager
def writing(run_dir: Location | None, keep: int) -> Iterator[RunWriter]:
    """Yields what writes a run, all of which is in its place when the block has ended.

    Args:
      run_dir: the run; None for a process that writes nothing.
      keep: the number of newest checkpoints to keep.

    Raises:
      UserError: the store does not take what was sent. After an error or a signal, this is only a
        warning.
    """
    if not isinstance(run_dir, StoredPath):
        yield RunWriter(run_dir or Path(), keep)
        return
    with scratch_directory() as scratch:
        writer = _StoredRunWriter(run_dir, scratch / run_dir.name, keep)
        try:
            yield writer
        except (Exception, SystemExit):
            try:
                writer.finish()
            except UserError as error:
                logging.warning("%s", error)
            raise
        writer.finish()


class _StoredRunWriter(RunWriter):
    """Writes a run on this machine, and sends it to a store in a thread.

    Args:
      run_dir: the run.
      directory: a directory of this machine, which is created.
      keep: the number of newest checkpoints to keep.
    """

    def __init__(self, run_dir: StoredPath, directory: Path, keep: int):
        super().__init__(directory, keep)
        self._run_dir = run_dir
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()
        self._error: Exception | None = None
        self._then: Callable[[], None] | None = None
        # What the store has of each file: its size and time here.
        self._sent: dict[str, tuple[int, int]] = {}
        directory.mkdir()
        self._bring()

    def save(
        self, learner: Learner, state: TrainingState, then: Callable[[Location], None]
    ) -> None:
        self.wait()
        saved = save_checkpoint(self.directory, learner, state, self._keep)
        self._then = lambda: then(self._run_dir / CHECKPOINTS_NAME / saved.name)
        self._start(saved)

    def check(self) -> None:
        self._notice()
        if not self._thread and time.monotonic() - self._started > _SECONDS_BETWEEN_METRICS:
            self._start()

    def wait(self, seconds: float | None = None) -> None:
        if self._thread:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise self._failure(f"it has not taken all within {seconds:.0f} s")
        self._notice()

    def finish(self) -> None:
        """Waits for what is on its way, and sends what is left.

        Raises:
          UserError: the store does not take it, or not in time.
        """
        self._then = None
        if not self._error:  # which has been raised
            self.wait(_SECONDS_AT_END)
            self._start(is_last=True)
            self.wait(_SECONDS_AT_END)

    def _bring(self) -> None:
        """Brings the files that grow from the store."""
        for file in self._run_dir.rglob("*"):
            name = str(file.relative_to(self._run_dir))
            if name.startswith(_BROUGHT):
                copy = self.directory / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                file.download(copy)
                self._sent[name] = _stamp(copy)

    def _start(self, checkpoint: Path | None = None, is_last: bool = False) -> None:
        """Starts to send what has changed, and then a checkpoint."""
        self._started = time.monotonic()
        # The end of the process waits for no daemon.
        self._thread = threading.Thread(
            target=self._send, args=(checkpoint, is_last), daemon=True, name="run writer"
        )
        self._thread.start()

    def _notice(self) -> None:
        """Does what is to be done once the thread has ended."""
        if self._thread and not self._thread.is_alive():
            self._thread = None
            if self._then and not self._error:
                self._then()
            self._then = None
        if isinstance(self._error, OSError):
            raise self._failure(reason_of(self._error)) from self._error
        if self._error:
            raise self._error

    def _failure(self, reason: str) -> UserError:
        return UserError(
            f"cannot write the run {self._run_dir} ({reason}): once that is fixed, the same "
            "command resumes from the newest checkpoint there"
        )

    def _send(self, checkpoint: Path | None, is_last: bool) -> None:
        try:
            self._send_files(is_last)
            if checkpoint:
                send_checkpoint(checkpoint, self._run_dir, self._keep)
        except Exception as error:  # the main thread raises it
            self._error = error

    def _send_files(self, is_last: bool) -> None:
        """Sends the files that have changed, and removes from the store those that are gone.

        What trackers keep changes at any time, so it comes when they have ended.
        """
        found = {
            str(path.relative_to(self.directory)): path
            for path in self.directory.rglob("*")
            if path.is_file() and not path.is_symlink() and not path.name.endswith(".tmp")
        }
        of_trackers = () if is_last else NAMES_OF_TRACKERS
        for name in sorted(found.keys() | self._sent.keys()):
            if name.startswith((f"{CHECKPOINTS_NAME}/", *of_trackers)):
                continue
            if name not in found:
                (self._run_dir / name).unlink(missing_ok=True)
                del self._sent[name]
            elif self._sent.get(name) != (stamp := _stamp(found[name])):
                (self._run_dir / name).upload(found[name].read_bytes())
                self._sent[name] = stamp


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
