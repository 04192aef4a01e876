"""The two sides of a connection prove themselves, and nothing that is sent makes one wait."""

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from modeling.job import connection
from modeling.job.connection import COORDINATOR, PROCESS, Connection, reason_of
from modeling.job.messages import FromProcess

pytestmark = pytest.mark.no_backend

TOKEN, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
SECONDS = 20


@pytest.fixture
def ends():
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def prove(end, token, role, seconds=SECONDS):
    """Returns the error that `prove` raises, or None."""
    try:
        Connection(end).prove(token, role, time.monotonic() + seconds)
    except (OSError, ValueError) as error:
        end.close()
        return error
    return None


def prove_both(ends, *sides):
    """Returns the errors of both sides, each given as its token, its role and its seconds."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(prove, ends, *zip(*sides, strict=True)))


def test_two_sides_with_the_same_token_accept_each_other(ends):
    assert prove_both(ends, (TOKEN, COORDINATOR), (TOKEN, PROCESS)) == [None, None]


@pytest.mark.parametrize(("ours", "theirs"), [(TOKEN, OTHER), (TOKEN, ""), ("", TOKEN)])
def test_sides_with_different_tokens_refuse_each_other(ends, ours, theirs):
    errors = prove_both(ends, (ours, COORDINATOR), (theirs, PROCESS))
    assert "does not know the job's token" in str(errors[0])
    assert "another job token" in str(errors[1]) or isinstance(errors[1], ConnectionResetError)


@pytest.mark.parametrize("role", [PROCESS, COORDINATOR])
def test_two_of_the_same_role_refuse_each_other(ends, role):
    assert all(prove_both(ends, *[(TOKEN, role, 0.3)] * 2))


@pytest.mark.parametrize("role", [PROCESS, COORDINATOR])
def test_a_stranger_that_sends_everything_back_is_refused(ends, role):
    ours, theirs = ends

    def echo():
        while data := theirs.recv(4096):
            theirs.sendall(data)

    threading.Thread(target=echo, daemon=True).start()
    assert prove(ours, TOKEN, role, seconds=0.3)


def test_the_token_does_not_cross_the_network_and_no_proof_is_used_twice():
    sent = []
    for _ in range(2):
        ours, relay = socket.socketpair()
        back, theirs = socket.socketpair()

        def copy(source, target):
            while data := source.recv(4096):
                sent.append(data)
                target.sendall(data)

        for pair in ((relay, back), (back, relay)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
        assert prove_both((ours, theirs), (TOKEN, COORDINATOR), (TOKEN, PROCESS)) == [None, None]
    text = b"".join(sent).decode()
    assert TOKEN not in text
    secret = re.findall(r"[0-9a-f]{64}", text)
    assert len(set(secret)) == len(secret) == 8


def test_a_coordinator_proves_nothing_to_a_stranger(ends):
    ours, theirs = ends
    theirs.sendall(json.dumps({"nonce": "0" * 64}).encode() + b"\n")
    theirs.sendall(json.dumps({"proof": "0" * 64}).encode() + b"\n")
    assert "does not know" in str(prove(ours, TOKEN, COORDINATOR))
    assert set(json.loads(theirs.recv(4096))) == {"nonce"}


def drip(end, data, seconds=0.02):
    """Sends the data again and again, byte by byte."""

    def run():
        try:
            while True:
                for byte in data:
                    end.sendall(bytes([byte]))
                    time.sleep(seconds)
        except OSError:
            return

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize("data", [b"", b" ", b"{}\n"])
def test_a_stranger_has_a_limited_time(ends, data):
    if data:
        drip(ends[1], data)
    started = time.monotonic()
    error = prove(ends[0], TOKEN, COORDINATOR, seconds=0.5)
    assert error
    assert time.monotonic() - started < 3


def test_a_stranger_has_a_limited_line(ends):
    ends[1].sendall(b"x" * 5000)
    assert "more than 256 bytes" in str(prove(ends[0], TOKEN, COORDINATOR))


def messages(end, most_bytes=1000):
    return Connection(end, most_bytes).messages(FromProcess)


def test_messages_arrive_whole_and_in_order(ends):
    sender = Connection(ends[0])
    sent = [*({"gather": [number, "é" * 10_000]} for number in range(5)), {}]

    def send():
        for message in sent:
            sender.send(message)
        sender.close()

    threading.Thread(target=send).start()
    assert list(messages(ends[1], 1 << 20)) == sent


@pytest.mark.parametrize("data", [b"", b" "])
def test_bytes_that_make_no_message_do_not_break_a_silence(ends, data, monkeypatch):
    monkeypatch.setattr(connection, "SECONDS_OF_SILENCE", 0.6)
    if data:
        drip(ends[1], data)
    with pytest.raises(TimeoutError, match="no message for 1 s"):
        next(messages(ends[0]))


def test_a_silence_that_is_in_doubt_counts_at_once(ends):
    receiver = Connection(ends[0])
    threading.Timer(0.5, setattr, (receiver, "silence_limit", 0.2)).start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        next(receiver.messages(FromProcess))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("data", [b"x" * 5000, b'{"failed": "' + b"x" * 5000 + b'"}\n'])
def test_a_line_that_is_too_long_is_refused(ends, data):
    ends[1].sendall(data)
    with pytest.raises(ValueError, match="more than 1000 bytes") as raised:
        next(messages(ends[0]))
    assert reason_of(raised.value).startswith("it sent an invalid message: a line has more than")


def test_a_side_that_reads_nothing_is_given_up(ends, monkeypatch):
    monkeypatch.setattr(connection, "_SECONDS_TO_SEND", 0.5)
    sender = Connection(ends[0])
    with pytest.raises(TimeoutError):
        sender.send({"gather": "x" * (1 << 22)})
    # The rest of the message can never follow.
    assert ends[0].recv(1) == b""
