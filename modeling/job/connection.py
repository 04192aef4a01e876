"""A connection between a process and the coordinator of its job, whose two sides prove themselves.

Anyone may reach the coordinator's port, and anyone may listen at its address. So each side first
proves that it knows the job's token. The token itself never crosses the network.
"""

import contextlib
import hmac
import json
import secrets
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from modeling.job.messages import Message, Nonce, Proof, parse

# A process is lost if no message comes from it for this long; it sends a heartbeat twice a second.
SECONDS_OF_SILENCE = 30.0
# Enough to find out which process is lost when a backend has failed.
SECONDS_OF_SILENCE_IN_DOUBT = 5.0
# A connection whose other side does not prove itself in this time is dropped.
SECONDS_TO_PROVE = 5.0
# What one process may send in one message: all flags, or the facts of a data set.
MOST_BYTES = 1 << 20
CLOSED = "its connection was closed"
PROCESS, COORDINATOR = "process", "coordinator"
_SECONDS_TO_SEND = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5
_MOST_BYTES_OF_STRANGERS = 256


class Connection:
    """Sends and receives messages as lines of JSON.

    Args:
      connected: the socket.
      most_bytes: how long a received line may be.

    Attributes:
      silence_limit: the seconds without a message after which the other side is lost.
    """

    def __init__(self, connected: socket.socket, most_bytes: int = MOST_BYTES):
        connected.settimeout(_SECONDS_TO_SEND)
        self.silence_limit = SECONDS_OF_SILENCE
        self._most_bytes = most_bytes
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._received = b""
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ends the connection for both sides, even while other threads use it."""
        with contextlib.suppress(OSError):  # the other side may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def prove(self, token: str, role: str, deadline: float) -> None:
        """Proves to the other side that this one knows the job's token, and has it do the same.

        The process goes first, so a stranger gets nothing from the coordinator but a nonce.

        Args:
          token: the job's token.
          role: PROCESS or COORDINATOR, whichever this side is.
          deadline: the time, of `time.monotonic`, by which the other side must have proved itself.

        Raises:
          OSError: the connection broke, or the time is over.
          ValueError: the other side does not know the token.
        """
        nonces = {role: secrets.token_hex(32)}
        self.send({"nonce": nonces[role]})
        other = COORDINATOR if role == PROCESS else PROCESS
        nonces[other] = self._receive(Nonce, deadline)["nonce"]
        for prover in (PROCESS, COORDINATOR):
            text = " ".join((prover, nonces[PROCESS], nonces[COORDINATOR]))
            proof = hmac.digest(token.encode(), text.encode(), "sha256").hex()
            if prover == role:
                self.send({"proof": proof})
            elif not hmac.compare_digest(self._receive(Proof, deadline)["proof"], proof):
                raise ValueError("it does not know the job's token")

    def _receive(self, kind: type[Message], deadline: float) -> Message:
        line = self._next_line(_MOST_BYTES_OF_STRANGERS, deadline)
        if line is None:
            raise ConnectionError("it closed the connection: it may have another job token")
        return parse(line, kind)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message; an empty one is a heartbeat.

        Raises:
          OSError: the connection broke, or the other side reads nothing. The connection is closed
            then, because a part of the message may have been sent.
        """
        with self._sending:
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self.close()
                raise

    def messages(self, kind: type[Message]) -> Iterator[Message]:
        """Yields the received messages until the other side closes the connection.

        Raises:
          OSError: the connection broke, or no whole message came for `silence_limit` seconds.
          ValueError: what came is no message of this kind.
        """
        while (line := self._next_line(self._most_bytes, float("inf"))) is not None:
            yield parse(line, kind)

    def _next_line(self, most_bytes: int, deadline: float) -> bytes | None:
        """Waits for a whole line; returns None if the other side has closed the connection."""
        begun = time.monotonic()
        while b"\n" not in self._received:
            if len(self._received) > most_bytes:
                raise ValueError(f"a line has more than {most_bytes} bytes")
            silent = time.monotonic() - begun
            left = min(self.silence_limit - silent, deadline - begun - silent)
            if left <= 0:
                raise TimeoutError(f"no message for {silent:.0f} s")
            if self._poll.poll(1000 * min(left, _SECONDS_BETWEEN_LOOKS)):
                try:
                    data = self._socket.recv(min(most_bytes + 1 - len(self._received), 1 << 16))
                except ConnectionResetError:
                    data = b""
                if not data:
                    return None
                self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line


def reason_of(error: Exception) -> str:
    """Says in messages why a connection ended."""
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"it sent an invalid message: {' '.join(str(error).split())}"
