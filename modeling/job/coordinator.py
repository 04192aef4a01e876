"""The coordinator of a job's processes, which process 0 runs, and the connections to it."""

import contextlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from modeling.job.place import JobPlace
from pipeline.errors import UserError, listed

# A process is lost if no message comes from it for this long; it sends a heartbeat twice a second.
SECONDS_OF_SILENCE = 30.0
SECONDS_BETWEEN_HEARTBEATS = 0.5
SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_BETWEEN_REPORTS = 30.0
_SECONDS_TO_EXIT = 10.0
CLOSED = "its connection was closed"
JOB_ENDS = "the job ends; run the same command again to resume from the newest checkpoint"


class Coordinator:
    """Passes messages between all processes and detects lost ones, in its own threads."""

    def __init__(self, place: JobPlace, deadline: float, timeout: float):
        self._num_processes = place.num_processes
        self._timeout = timeout
        self._host = place.host_and_port[0]
        self._lock = threading.RLock()
        self._connections: dict[int, Connection] = {}
        self._hellos: dict[int, dict[str, Any]] = {}
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
                threading.Thread(
                    target=self._serve, args=(Connection(accepted), ip), daemon=True
                ).start()

    def _missing(self) -> str:
        with self._lock:
            missing = sorted(set(range(self._num_processes)) - self._hellos.keys())
            connected = [self._name(process_id) for process_id in sorted(self._hellos)]
        word = "process" if len(missing) == 1 else "processes"
        return (
            f"{word} {listed([str(number) for number in missing])} of {self._num_processes} "
            f"(connected: {listed(connected)})"
        )

    def _serve(self, connection: "Connection", ip: str) -> None:
        process_id = None
        try:
            for message in connection.messages():
                if process_id is not None:
                    self._handle(process_id, message)
                elif hello := message.get("hello"):
                    if not self._admit(connection, hello | {"ip": ip}):
                        return
                    process_id = hello["process_id"]
            reason = CLOSED
        except OSError as error:
            reason = reason_of(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it sent an invalid message: {error!r}"
        if process_id is None:
            return  # not a process of this job
        with self._lock:
            self._num_connected -= 1
            if process_id not in self._left:
                self._end_all(f"{self._name(process_id)} was lost ({reason}): {JOB_ENDS}")

    def _admit(self, connection: "Connection", hello: dict[str, Any]) -> bool:
        """Admits a process unless its number is taken; welcomes all after the last one."""
        with self._lock:
            process_id, host = hello["process_id"], hello["host"]
            if other := self._hellos.get(process_id):
                self._end_all(
                    f"two processes have the number {process_id}, on {other['host']} and {host}: "
                    "give each process its own --process_id, and each job its own port"
                )
                connection.send({"end": self._end})
                return False
            self._hellos[process_id] = hello
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
        addresses = [self._address(hello["ip"], hello["port"]) for hello in hellos]
        self._send_all({"welcome": {"hosts": hosts, "addresses": addresses}})

    def _handle(self, process_id: int, message: dict[str, Any]) -> None:
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
                        self._stop = {
                            "signal": name,
                            "process_id": process_id,
                            "host": self._hellos[process_id]["host"],
                        }
                        self._send_all({"hold": True})
                case {"begun": step}:
                    self._begun[process_id] = step
                    if len(self._begun) == self._num_processes:
                        self._send_all(
                            {"stop_after": max(self._begun.values()), "stop": self._stop}
                        )
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
                self._end = reason
                self._send_all({"end": reason})

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
        if ipaddress.ip_address(host).is_loopback:
            host = self._host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _name(self, process_id: int) -> str:
        return name_of(process_id, self._hellos[process_id]["host"])


class Connection:
    """Sends and receives messages as lines of JSON."""

    def __init__(self, connected: socket.socket):
        connected.settimeout(SECONDS_OF_SILENCE)
        self._socket = connected
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message; an empty one is a heartbeat."""
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields the received messages until the other side closes the connection.

        Raises:
          OSError: the connection broke, or no message came for `SECONDS_OF_SILENCE`.
        """
        received = b""
        while data := self._socket.recv(1 << 16):
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _listen(place: JobPlace) -> socket.socket:
    """Listens at the given IP address, or at all of the host's addresses if given a name.

    On many systems, a host resolves its own name to a loopback address.
    """
    host, port = place.host_and_port
    try:
        if not _is_ip(host):
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


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def name_of(process_id: int, host: str) -> str:
    """Names a process in messages."""
    return f"process {process_id} on {host}"


def reason_of(error: OSError) -> str:
    """Says in messages why a connection ended."""
    if isinstance(error, TimeoutError):
        return f"no message for {SECONDS_OF_SILENCE:g} s"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return error.strerror or str(error)
