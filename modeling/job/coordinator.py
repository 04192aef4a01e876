"""The coordinator of a job's processes, which process 0 runs, and the connections to it."""

import contextlib
import socket
import threading
import time
from collections import deque
from typing import Any

from absl import logging

from modeling.job.connection import (
    CLOSED,
    COORDINATOR,
    SECONDS_OF_SILENCE_IN_DOUBT,
    SECONDS_TO_PROVE,
    Connection,
    reason_of,
)
from modeling.job.messages import FromProcess, Hello, printable
from modeling.job.place import JobPlace, is_ip, is_loopback
from pipeline.errors import UserError, listed

SECONDS_BETWEEN_HEARTBEATS = 0.5
SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_BETWEEN_REPORTS = 30.0
_SECONDS_TO_EXIT = 10.0
# As many connections may be open that have not proved themselves.
_MOST_STRANGERS = 64
JOB_ENDS = "the job ends; run the same command again to resume from the newest checkpoint"


class Coordinator:
    """Passes messages between all processes and detects lost ones, in its own threads."""

    def __init__(self, place: JobPlace, deadline: float, timeout: float):
        self._num_processes = place.num_processes
        self._timeout = timeout
        self._token = place.token
        self._host = place.host_and_port[0]
        self._lock = threading.RLock()
        self._connections: dict[int, Connection] = {}
        # The oldest is dropped for the newest, so strangers keep no process out by only waiting.
        self._strangers: deque[Connection] = deque()
        self._has_refused = False
        self._hellos: dict[int, Hello] = {}
        self._ips: dict[int, str] = {}
        self._values: dict[int, Any] = {}
        self._begun: dict[int, int] = {}
        self._stop: dict[str, Any] | None = None
        self._left: set[int] = set()
        self._end: str | None = None
        self._num_connected = 0
        listener = _listen(place)
        logging.info(
            "waiting at %s for all %d processes to connect",
            place.coordinator_address,
            place.num_processes,
        )
        threading.Thread(target=self._accept, args=(listener, deadline), daemon=True).start()
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def wait_until_others_have_exited(self) -> None:
        """Waits until the other processes have exited, but only for some seconds."""
        deadline = time.monotonic() + _SECONDS_TO_EXIT
        while self._num_connected > 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    def _accept(self, listener: socket.socket, deadline: float) -> None:
        """Accepts connections until all processes have connected or the deadline has passed."""
        reported = time.monotonic()
        with listener:
            # Waits only briefly, because the last hello may come on an earlier connection.
            listener.settimeout(SECONDS_BETWEEN_TRIES)
            while len(self._hellos) < self._num_processes:
                if time.monotonic() > deadline:
                    self._end_all(
                        f"waited {self._timeout:g} s, but {self._missing()} did not connect: check "
                        "that each was started with the same coordinator address, and read its "
                        "output"
                    )
                    return
                if time.monotonic() > reported + _SECONDS_BETWEEN_REPORTS:
                    reported = time.monotonic()
                    logging.info("still waiting for %s", self._missing())
                try:
                    accepted, (ip, *_) = listener.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    # The connection broke at once, or too many files are open.
                    logging.warning("cannot accept a connection: %s", error.strerror)
                    time.sleep(SECONDS_BETWEEN_TRIES)
                    continue
                connection = Connection(accepted)
                with self._lock:
                    if len(self._strangers) == _MOST_STRANGERS:
                        self._strangers.popleft().close()
                    self._strangers.append(connection)
                threading.Thread(target=self._serve, args=(connection, ip), daemon=True).start()

    def _missing(self) -> str:
        with self._lock:
            missing = sorted(set(range(self._num_processes)) - self._hellos.keys())
            connected = [self._name(process_id) for process_id in sorted(self._hellos)]
        word = "process" if len(missing) == 1 else "processes"
        return (
            f"{word} {listed([str(number) for number in missing])} of {self._num_processes} "
            f"(connected: {listed(connected)})"
        )

    def _serve(self, connection: Connection, ip: str) -> None:
        if not self._is_of_this_job(connection, ip):
            return
        process_id, name = None, f"a process at {ip}"
        try:
            for message in connection.messages(FromProcess):
                if process_id is not None:
                    self._handle(process_id, message)
                elif hello := message.get("hello"):
                    if not self._admit(connection, hello, ip):
                        return
                    process_id = hello["process_id"]
                    name = self._name(process_id)
            reason = CLOSED
        except OSError as error:
            reason = reason_of(error)
        except ValueError as error:
            reason = reason_of(error)
            self._end_all(f"{name} was lost ({reason}): {JOB_ENDS}")
        if process_id is None:
            return  # it may connect again
        with self._lock:
            self._num_connected -= 1
            if process_id not in self._left:
                self._end_all(f"{name} was lost ({reason}): {JOB_ENDS}")

    def _is_of_this_job(self, connection: Connection, ip: str) -> bool:
        """Returns whether the other side knows the job's token; drops the connection if not."""
        try:
            connection.prove(self._token, COORDINATOR, time.monotonic() + SECONDS_TO_PROVE)
        except (OSError, ValueError):
            connection.close()
            if not self._has_refused:
                logging.warning("refused a connection from %s, without the job's token", ip)
            self._has_refused = True
            return False
        finally:
            with self._lock, contextlib.suppress(ValueError):  # it was dropped for a newer one
                self._strangers.remove(connection)
        return True

    def _admit(self, connection: Connection, hello: Hello, ip: str) -> bool:
        """Admits a process unless its number is taken; welcomes all after the last one."""
        with self._lock:
            process_id, host = hello["process_id"], hello["host"]
            if process_id >= hello["num_processes"]:
                raise ValueError(f"process_id is {process_id} of {hello['num_processes']}")
            if other := self._hellos.get(process_id):
                self._end_all(
                    f"two processes have the number {process_id}, on {other['host']} and {host}: "
                    "give each process its own --process_id, and each job its own port"
                )
                connection.send({"end": self._end})
                return False
            self._hellos[process_id], self._ips[process_id] = hello, ip
            self._connections[process_id] = connection
            self._num_connected += 1
            if self._end:
                connection.send({"end": self._end})
            elif hello["num_processes"] != self._num_processes:
                self._end_all(
                    f"{self._name(process_id)} has --num_processes={hello['num_processes']}, but "
                    f"process 0 has --num_processes={self._num_processes}"
                )
            elif len(self._hellos) == self._num_processes:
                self._welcome_all()
            return True

    def _welcome_all(self) -> None:
        logging.info("all %d processes are connected", self._num_processes)
        hellos = [self._hellos[i] for i in range(self._num_processes)]
        hosts = [hello["host"] for hello in hellos]
        addresses = [self._address(self._ips[i], hellos[i]["port"]) for i in range(len(hellos))]
        self._send_all({"welcome": {"hosts": hosts, "addresses": addresses}})

    def _handle(self, process_id: int, message: FromProcess) -> None:
        with self._lock:
            match message:
                case {"gather": value}:
                    self._values[process_id] = value
                    if len(self._values) == self._num_processes:
                        values = [self._values[i] for i in range(self._num_processes)]
                        self._values = {}
                        self._send_all({"gathered": values})
                case {"stop": name}:
                    if not self._stop:
                        host = self._hellos[process_id]["host"]
                        self._stop = {"signal": name, "process_id": process_id, "host": host}
                        self._send_all({"hold": True})
                case {"begun": step} if self._stop:
                    self._begun[process_id] = step
                    if len(self._begun) == self._num_processes:
                        last = {"step": max(self._begun.values())}
                        self._send_all({"stop_after": last | self._stop})
                case {"doubt": _}:
                    for connection in self._connections.values():
                        connection.silence_limit = SECONDS_OF_SILENCE_IN_DOUBT
                case {"failed": reason}:
                    self._left.add(process_id)
                    self._end_all(f"{self._name(process_id)} failed: {reason}")
                case {"leave": _}:
                    self._left.add(process_id)
                    if len(self._left) == self._num_processes:
                        self._send_all({"bye": True})

    def _end_all(self, reason: str) -> None:
        with self._lock:
            if not self._end:
                self._end = printable(reason)
                self._send_all({"end": self._end})

    def _send_all(self, message: dict[str, Any]) -> None:
        with self._lock:
            # Process 0 comes last, because this coordinator ends with it.
            for _, connection in sorted(self._connections.items(), reverse=True):
                with contextlib.suppress(OSError):  # the connection's own thread notices
                    connection.send(message)

    def _send_heartbeats(self) -> None:
        while len(self._left) < self._num_processes:
            self._send_all({})
            time.sleep(SECONDS_BETWEEN_HEARTBEATS)

    def _address(self, ip: str, port: int) -> str:
        """Returns an address at which other hosts reach a process, so never a loopback address."""
        # A dual-stack socket writes IPv4 addresses with this prefix.
        host = ip.removeprefix("::ffff:")
        if is_loopback(host):
            host = self._host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _name(self, process_id: int) -> str:
        return name_of(process_id, self._hellos[process_id]["host"])


def _listen(place: JobPlace) -> socket.socket:
    """Listens at the given IP address, or at all of the host's addresses if given its name.

    On many systems, a host resolves its own name to a loopback address.
    """
    host, port = place.host_and_port
    try:
        if not is_ip(host) and not is_loopback(host):
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {place.coordinator_address} ({error.strerror}): the "
            "coordinator address must be an address of process 0's host, with a free port"
        ) from error


def name_of(process_id: int, host: str) -> str:
    """Names a process in messages."""
    return f"process {process_id} on {host}"
