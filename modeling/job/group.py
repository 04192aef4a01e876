"""The group of a job's processes, which meet, agree on what must be the same, and end together.

Every process keeps a connection to the coordinator, which process 0 runs. The group knows which
processes have connected, whether all have the same settings, at which step all stop, and which one
is lost. The backends handle the exchange of data between devices.
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

from modeling.job.connection import (
    CLOSED,
    MOST_BYTES,
    PROCESS,
    SECONDS_OF_SILENCE_IN_DOUBT,
    SECONDS_TO_PROVE,
    Connection,
    reason_of,
)
from modeling.job.coordinator import (
    JOB_ENDS,
    SECONDS_BETWEEN_HEARTBEATS,
    SECONDS_BETWEEN_TRIES,
    Coordinator,
    name_of,
)
from modeling.job.messages import FromCoordinator, Welcome, printable
from modeling.job.place import JobPlace
from pipeline.errors import UserError

# How long a failing process waits for the coordinator to end the job.
_SECONDS_TO_FAIL = SECONDS_OF_SILENCE_IN_DOUBT + 2.0
# How long process 0 waits for an error of its own after another process has failed.
_SECONDS_TO_RAISE = 1.0
# The live display of metrics hides the cursor.
_SHOW_CURSOR = "\n\x1b[?25h"


@dataclass(frozen=True)
class Stop:
    """The signal that stopped training before its last step.

    Attributes:
      signal: the signal's name.
      process_id, host: the number and the host of the process that received the signal first.
    """

    signal: str
    process_id: int
    host: str

    @property
    def process(self) -> str:
        """The process's name in messages."""
        return name_of(self.process_id, self.host)


class ProcessGroup:
    """All processes of a job, as one of them sees them. A group of one needs no network.

    As a context manager, it makes the processes wait for each other at the end of the block. If the
    block fails in one of them, or one is lost, all others end with exit code 1, and process 0
    prints the reason.

    Args:
      place: this process's place in the job; by default, a job of one process.
      timeout: seconds to wait until all processes have connected.

    Attributes:
      process_id, num_processes, found_in: as in `place`.
      hosts: the host name of each process.
      addresses: a free HOST:PORT on each process's host, for the backend.
      stop: the signal that stopped training before its last step, or None.

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
        self.hosts = [printable(socket.gethostname())]
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
            # The backend often notices a lost process first; wait for the coordinator's reason,
            # which now comes after a shorter silence.
            self._connection.silence_limit = SECONDS_OF_SILENCE_IN_DOUBT
            self._send({"doubt": True})
            self._reader.join(_SECONDS_TO_FAIL)
        if error is None or isinstance(error, SystemExit):
            self._send({"leave": True})
            self._reader.join()
        else:
            self._is_failing.set()
            self._send({"failed": printable(str(error).partition("\n")[0] or repr(error))})
            self._reader.join(_SECONDS_TO_FAIL)
        self._let_others_exit()

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes the files and the log."""
        return self.process_id == 0

    @property
    def name(self) -> str:
        """The name of this process in messages."""
        return name_of(self.process_id, printable(socket.gethostname()))

    def gather(self, value: Any) -> list[Any]:
        """Collects one value from each process, in process order; waits for all processes.

        Args:
          value: this process's value, of any JSON type.
        """
        if not self._connection:
            return [value]
        self._send({"gather": value})
        return self._gathered.get()

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Checks that facts are the same in all processes; all processes must call this.

        Args:
          facts: the facts by name, of any JSON type.

        Raises:
          UserError: a fact differs. All processes raise it, with the fact and the process.
        """
        values = self.gather(facts)
        for process_id, theirs in enumerate(values):
            for name, first in values[0].items():
                if theirs.get(name) != first:
                    raise UserError(
                        f"the processes differ in {name}: it is {printable(str(theirs.get(name)))} "
                        f"in {name_of(process_id, self.hosts[process_id])}, "
                        f"{printable(str(first))} in {name_of(0, self.hosts[0])}"
                    )

    def wait_for_all(self) -> None:
        """Waits until all processes have called this."""
        self.gather(None)

    def request_stop(self, received: signal.Signals) -> None:
        """Asks all processes to stop at the same step; takes no lock, so is safe in a handler."""
        self._received = self._received or received.name

    def may_begin(self, step: int) -> bool:
        """Returns whether to begin a step: False in all processes after the step where they stop.

        They stop after the last step that any of them has begun, because all take part in it.
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
        self._welcome: queue.SimpleQueue[Welcome | str] = queue.SimpleQueue()
        self._is_member = False
        self._is_failing = threading.Event()
        # This copy is never closed, so process 0 sees the connection end only after this process
        # has exited, exit handlers included.
        os.dup(self._connection.fileno())
        # Duplicated now, because stderr is hidden while a backend starts.
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
        threading.Thread(target=self._send_heartbeats, daemon=True).start()
        welcome = self._welcome.get()
        if isinstance(welcome, str):
            raise UserError(welcome if self.is_first else f"{self.name}: {welcome}")
        self.hosts, self.addresses = welcome["hosts"], welcome["addresses"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._connection
        with contextlib.suppress(OSError):  # the reader notices as well
            self._connection.send(message)

    def _read(self) -> None:
        assert self._connection
        try:
            for message in self._connection.messages(FromCoordinator):
                if self._handle(message):
                    return
            reason = CLOSED
        except (OSError, ValueError) as error:
            reason = reason_of(error)
        if not self._is_failing.is_set():
            self._end(f"process 0 was lost ({reason}): {JOB_ENDS}", is_reported_elsewhere=False)

    def _handle(self, message: FromCoordinator) -> bool:
        """Handles a message from the coordinator; returns True if it is the last one."""
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
            case {"stop_after": stop}:
                with self._gate:
                    self._last_step, self._is_holding = stop["step"], False
                    self.stop = Stop(stop["signal"], stop["process_id"], stop["host"])
                    self._gate.notify_all()
            case {"end": reason}:
                self._end(reason, is_reported_elsewhere=not self.is_first)
                return True
            case {"bye": _}:
                return True
        return False

    def _end(self, reason: str, is_reported_elsewhere: bool) -> None:
        """Ends this process, because its other threads may wait for a lost process forever."""
        if not self._is_member:
            self._welcome.put(reason)
            return
        # A failing process reports its own error; process 0 reports an error of all processes.
        if self._is_failing.wait(_SECONDS_TO_RAISE if self.is_first else 0):
            return
        logging.flush()
        if not is_reported_elsewhere:
            line = reason if self.is_first else f"{self.name}: {reason}"
            show_cursor = _SHOW_CURSOR if os.isatty(self._stderr) else ""
            os.write(self._stderr, f"{show_cursor}{line}\n".encode())
        self._let_others_exit()
        os._exit(1)

    def _let_others_exit(self) -> None:
        """Makes process 0 exit last, because other processes abort when they lose its services."""
        if self._coordinator:
            self._coordinator.wait_until_others_have_exited()

    def _send_heartbeats(self) -> None:
        is_stop_sent = False
        while self._reader.is_alive():
            if self._received and not is_stop_sent:
                self._send({"stop": self._received})
                is_stop_sent = True
            self._send({})
            time.sleep(SECONDS_BETWEEN_HEARTBEATS)


def _connect(place: JobPlace, deadline: float, timeout: float) -> Connection:
    """Connects to the coordinator, and makes sure that it is this job's."""
    refusal: Exception | None = None
    while True:
        connection = None
        try:
            left = max(deadline - time.monotonic(), 0.001)
            connected = socket.create_connection(place.host_and_port, left)
            # What it sends may hold a value of each process.
            connection = Connection(connected, place.num_processes * MOST_BYTES)
            until = min(time.monotonic() + SECONDS_TO_PROVE, deadline)
            connection.prove(place.token, PROCESS, until)
        except (OSError, ValueError) as error:
            # Whatever answered says more than that nothing answers any longer.
            refusal = error if connection else refusal
            if time.monotonic() + SECONDS_BETWEEN_TRIES > deadline:
                raise UserError(
                    f"{name_of(place.process_id, printable(socket.gethostname()))}: the "
                    f"coordinator at {place.coordinator_address} did not answer within "
                    f"{timeout:g} s ({reason_of(refusal or error)}): check that process 0 runs "
                    "there and that this host can reach the address"
                ) from error
            time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            return connection
