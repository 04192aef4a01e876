"""The processes of a job: they meet, agree where they must, and end together.

Every process keeps a connection to the coordinator, which process 0 runs. What the devices exchange in a
step is the backends' own business; this is about the processes: who has come, whether all were told the
same, at which step all stop, and who is lost.
"""

import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from absl import logging

from modeling.job.coordinator import (
    CLOSED,
    GO_ON,
    SECONDS_BETWEEN_SIGNS_OF_LIFE,
    SECONDS_BETWEEN_TRIES,
    Connection,
    Coordinator,
    name_of,
    reason_of,
)
from modeling.job.place import JobPlace
from pipeline.errors import UserError

# How long a process that fails waits for the coordinator's word, and process 0, told that another one has
# failed, for an error of its own.
_SECONDS_TO_FAIL = 5.0
_SECONDS_TO_RAISE = 1.0
# What draws the metrics has hidden it.
_SHOW_CURSOR = "\n\x1b[?25h"


@dataclass(frozen=True)
class Stop:
    """What ended training before its last step.

    Attributes:
      signal: the signal's name.
      process_id, host: the process that received it first.
    """

    signal: str
    process_id: int
    host: str

    @property
    def process(self) -> str:
        """The process, for people."""
        return name_of(self.process_id, self.host)


class ProcessGroup:
    """All processes of a job, as one of them sees them. A group of one needs no network.

    As a context: at its end the processes wait for each other. If the block fails in one of them, or
    one is lost, all others end with exit code 1; process 0 says why.

    Args:
      place: this process's; by default that of the only one.
      timeout: seconds to wait for all to come.

    Attributes:
      process_id, num_processes, found_in: as in `place`.
      hosts: names of the processes' hosts, by process.
      addresses: a free HOST:PORT of each process, for the backend.
      stop: why training stopped before its last step, once it is known.

    Raises:
      UserError: the coordinator does not answer or cannot listen, or processes are missing.
    """

    def __init__(
        self,
        place: JobPlace | None = None,
        timeout: float = 300.0,
    ):
        place = place or JobPlace()
        self.process_id, self.num_processes = place.process_id, place.num_processes
        self.found_in = place.found_in
        self.stop: Stop | None = None
        self.hosts = [socket.gethostname()]
        self.addresses: list[str] = []
        self._begun = 0
        self._last_step: int | None = None
        self._is_holding = False
        self._gate = threading.Condition()
        self._received: str | None = None
        self._connection: Connection | None = None
        self._coordinator: Coordinator | None = None
        if self.num_processes > 1:
            self._meet(place, timeout)

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._connection:
            return
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # The backend often notices a lost process first, in words of its own.
            self._reader.join(_SECONDS_TO_FAIL)
        if error is None or isinstance(error, SystemExit):
            self._send({"leave": True})
            self._reader.join()
        else:
            self._is_failing.set()
            self._send({"failed": str(error).partition("\n")[0] or repr(error)})
            self._reader.join(_SECONDS_TO_FAIL)
        self._let_others_go()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes and tells."""
        return self.process_id == 0

    @property
    def name(self) -> str:
        """What people call this process."""
        return name_of(self.process_id, socket.gethostname())

    def gather(self, value: Any) -> list[Any]:
        """The values that all processes give, by process; waits for all.

        Args:
          value: anything that JSON has.
        """
        if not self._connection:
            return [value]
        self._send({"gather": value})
        return self._gathered.get()

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Sees that something is the same in all processes, which all ask this.

        Args:
          facts: by name, values that JSON has.

        Raises:
          UserError: in all processes alike, with the first fact that differs and where.
        """
        values = self.gather(facts)
        for process_id, theirs in enumerate(values):
            for name, first in values[0].items():
                if theirs.get(name) != first:
                    raise UserError(
                        f"the processes differ in {name}: it is {theirs.get(name)} in "
                        f"{name_of(process_id, self.hosts[process_id])}, {first} in "
                        f"{name_of(0, self.hosts[0])}"
                    )

    def wait_for_all(self) -> None:
        """Waits until all processes are here."""
        self.gather(None)

    def request_stop(self, received: signal.Signals) -> None:
        """Asks all processes to stop at the same step; as a signal handler may, takes no lock."""
        self._received = self._received or received.name

    def may_begin(self, step: int) -> bool:
        """Whether a step is to be made: False in all processes alike behind the step where they stop.

        They stop at the furthest step that any of them has begun, for the others take part in it.
        """
        with self._gate:
            if not self._connection:
                if self._received:
                    self.stop = Stop(self._received, 0, self.hosts[0])
                return not self._received
            self._gate.wait_for(lambda: not self._is_holding)
            if self._last_step is not None and step > self._last_step:
                return False
            self._begun = step
            return True

    def _meet(self, place: JobPlace, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if self.is_first:
            self._coordinator = Coordinator(place, deadline, timeout)
        self._connection = _connect(place, deadline, timeout)
        self._gathered: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._welcome: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._is_member = False
        self._is_failing = threading.Event()
        # Never closed, for its end tells process 0 that this process has gone, with all that ends at exit.
        os.dup(self._connection.fileno())
        # As it is now: while a backend starts, what it writes is hidden.
        self._stderr = os.dup(2)
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        hello = {
            "process_id": self.process_id,
            "num_processes": self.num_processes,
            "host": self.hosts[0],
            "port": port,
        }
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send({"hello": hello})
        threading.Thread(target=self._give_signs_of_life, daemon=True).start()
        welcome = self._welcome.get()
        if "end" in welcome:
            reason = welcome["end"]
            raise UserError(reason if self.is_first else f"{self.name}: {reason}")
        self.hosts, self.addresses = welcome["hosts"], welcome["addresses"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._connection
        with contextlib.suppress(OSError):  # the reader notices, too
            self._connection.send(message)

    def _read(self) -> None:
        assert self._connection
        try:
            for message in self._connection.messages():
                if self._handle(message):
                    return
            reason = CLOSED
        except OSError as error:
            reason = reason_of(error)
        if not self._is_failing.is_set():
            self._end(f"process 0 was lost ({reason}): {GO_ON}", is_told_elsewhere=False)

    def _handle(self, message: dict[str, Any]) -> bool:
        """Takes a message of the coordinator; True when nothing more is to come."""
        assert self._connection
        match message:
            case {"welcome": welcome}:
                self._is_member = True
                self._welcome.put(welcome)
            case {"gathered": values}:
                self._gathered.put(values)
            case {"hold": _}:
                with self._gate:
                    self._is_holding = True
                    begun = self._begun
                self._send({"begun": begun})
            case {"stop_after": step, "stop": stop}:
                with self._gate:
                    self._last_step, self.stop, self._is_holding = step, Stop(**stop), False
                    self._gate.notify_all()
            case {"end": reason}:
                self._end(reason, is_told_elsewhere=not self.is_first)
                return True
            case {"bye": _}:
                return True
        return False

    def _end(self, reason: str, is_told_elsewhere: bool) -> None:
        """Ends the process, whose other threads may wait for a lost one for ever."""
        if not self._is_member:
            self._welcome.put({"end": reason})
            return
        # Who fails says so itself; what fails in all processes, process 0.
        if self._is_failing.wait(_SECONDS_TO_RAISE if self.is_first else 0):
            return
        logging.flush()
        if not is_told_elsewhere:
            line = reason if self.is_first else f"{self.name}: {reason}"
            show_cursor = _SHOW_CURSOR if os.isatty(self._stderr) else ""
            os.write(self._stderr, f"{show_cursor}{line}\n".encode())
        self._let_others_go()
        os._exit(1)

    def _let_others_go(self) -> None:
        """Makes process 0 exit last: the backends' services run in it, and who loses them aborts."""
        if self._coordinator:
            self._coordinator.wait_until_others_have_gone()

    def _give_signs_of_life(self) -> None:
        is_told = False
        while self._reader.is_alive():
            if self._received and not is_told:
                self._send({"stop": self._received})
                is_told = True
            self._send({})
            time.sleep(SECONDS_BETWEEN_SIGNS_OF_LIFE)


def _connect(place: JobPlace, deadline: float, timeout: float) -> Connection:
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.001)
            return Connection(socket.create_connection(place.host_and_port, left))
        except OSError as error:
            if time.monotonic() + SECONDS_BETWEEN_TRIES > deadline:
                raise UserError(
                    f"process {place.process_id} on {socket.gethostname()}: the coordinator at "
                    f"{place.coordinator_address} did not answer within {timeout:g} s "
                    f"({error.strerror or error}): "
                    "see whether process 0 runs there, and whether the address can be reached from here"
                ) from error
            time.sleep(SECONDS_BETWEEN_TRIES)
