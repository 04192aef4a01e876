"""Strangers reach the coordinator's port, and the job meets and ends as it would without them."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from absl import logging

from modeling.job import connection, coordinator
from modeling.job.connection import PROCESS, Connection
from modeling.job.group import ProcessGroup
from modeling.job.place import JobPlace
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend

TOKEN = "0123456789abcdef" * 4
SECONDS = 30
HELLO = {"process_id": 1, "num_processes": 3, "host": "stranger", "port": 80}
HOST = socket.gethostname()


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _no_waiting_for_exits(monkeypatch):
    """The members are threads here, which never exit as processes do."""
    monkeypatch.setattr(coordinator, "_SECONDS_TO_EXIT", 0.0)


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def says(*messages):
    """A stranger that sends these messages, then waits."""

    def run(end, is_over):
        for message in messages:
            end.sendall(json.dumps(message).encode() + b"\n")
        is_over.wait()

    return run


def repeats(data, seconds):
    """A stranger that sends the same again and again."""

    def run(end, is_over):
        while not is_over.wait(seconds):
            end.sendall(data)

    return run


STRANGERS = {
    "silent": says(),
    "gone": lambda *_: None,
    "browser": repeats(b"GET / HTTP/1.1\r\n\r\n", 1),
    "hello": says({"hello": HELLO}),
    "failure": says({"hello": HELLO}, {"failed": "end\nthe job"}),
    "proof": says({"nonce": "0" * 64}, {"proof": "0" * 64}, {"hello": HELLO}),
    "heartbeats": repeats(b"{}\n", 0.01),
    "drip": repeats(b" ", 0.01),
    "flood": repeats(b"x" * (1 << 16), 0),
}


@pytest.fixture
def visit(address):
    """A function that connects strangers to the address, whenever something listens there."""
    is_over = threading.Event()
    threads = []

    def stay(stranger):
        host, port = address.split(":")
        while not is_over.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, int(port)), 1) as end,
            ):
                stranger(end, is_over)
            time.sleep(0.005)

    def start(stranger, count):
        for _ in range(count):
            threads.append(threading.Thread(target=stay, args=(stranger,), daemon=True))
            threads[-1].start()

    yield start
    is_over.set()
    for thread in threads:
        thread.join(SECONDS)


def member(address, process_id, num_processes, timeout=SECONDS, token=TOKEN):
    """What a process of a job gathers from the others, or how it fails."""
    try:
        time.sleep(0.2 * (process_id > 0))
        place = JobPlace(address, num_processes, process_id, token=token)
        with ProcessGroup(place, timeout) as group:
            return group.gather(process_id)
    except UserError as error:
        return str(error)


def meet(address, num_processes=3, timeout=SECONDS, tokens=(TOKEN,) * 3):
    """What the first processes of a job, which are threads here, gather from each other.

    Process 0 waits for the others a little, so that strangers come first.
    """
    with ThreadPoolExecutor(len(tokens)) as threads:
        return list(
            threads.map(
                lambda i: member(address, i, num_processes, timeout, tokens[i]), range(len(tokens))
            )
        )


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_do_not_keep_a_job_from_meeting(address, visit, stranger, logged):
    visit(STRANGERS[stranger], count=5)
    assert meet(address) == [[0, 1, 2]] * 3
    assert len(logged) <= 1


def test_more_strangers_than_may_stay_do_not_keep_a_job_from_meeting(address, visit, monkeypatch):
    monkeypatch.setattr(coordinator, "_MOST_STRANGERS", 4)
    visit(STRANGERS["silent"], count=12)
    assert meet(address) == [[0, 1, 2]] * 3


def test_strangers_do_not_make_a_job_wait_longer_for_its_processes(address, visit):
    for stranger in STRANGERS.values():
        visit(stranger, count=2)
    started = time.monotonic()
    (error,) = meet(address, timeout=1.5, tokens=(TOKEN,))
    assert time.monotonic() - started < 5
    assert f"processes 1, 2 of 3 (connected: process 0 on {HOST}) did not connect" in error


def test_thousands_of_connections_leave_no_threads(address, visit):
    before = threading.active_count()
    visit(STRANGERS["gone"], count=8)
    (error,) = meet(address, timeout=1, tokens=(TOKEN,))
    assert "did not connect" in error
    assert threading.active_count() < before + 8 + coordinator._MOST_STRANGERS


@pytest.mark.parametrize("token", ["f" * 64, ""])
def test_a_process_with_another_token_is_a_stranger(address, token, logged):
    errors = meet(address, num_processes=2, timeout=0.8, tokens=(TOKEN, token))
    assert "process 1 of 2 (connected: process 0" in errors[0]
    assert "another job token" in errors[1]
    assert logged == ["refused a connection from 127.0.0.1, without the job's token"]


def test_a_stranger_at_the_coordinators_address_ends_no_process(address):
    """The process goes on to wait for the true coordinator."""
    host, port = address.split(":")
    with ThreadPoolExecutor(2) as threads:
        with socket.create_server((host, int(port))) as impostor:
            second = threads.submit(member, address, 1, 2)
            end, _ = impostor.accept()
        with end:
            for message in ({"nonce": "0" * 64}, {"proof": "0" * 64}, {"end": "all is over"}):
                end.sendall(json.dumps(message).encode() + b"\n")
        first = threads.submit(member, address, 0, 2)
        assert first.result() == second.result() == [0, 1]


@pytest.mark.parametrize(
    "messages",
    [
        [b"rubbish\n"],
        [{"hello": HELLO | {"process_id": True}}],
        [{"hello": HELLO | {"process_id": 3}}],
        [{"hello": HELLO}, b"rubbish\n"],
        [{"hello": HELLO}, {"begun": "now"}],
        [{"hello": HELLO}, b"x" * (connection.MOST_BYTES + 1)],
    ],
)
def test_a_process_that_sends_rubbish_ends_the_job_with_one_line(address, messages):
    """One with the job's token, so no stranger."""

    def send_rubbish():
        end = socket.create_connection(("127.0.0.1", int(address.split(":")[1])))
        Connection(end).prove(TOKEN, PROCESS, time.monotonic() + SECONDS)
        for message in messages:
            is_line = isinstance(message, bytes)
            end.sendall(message if is_line else json.dumps(message).encode() + b"\n")
        return end

    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(meet, address, 3, SECONDS, (TOKEN,))
        for _ in range(100):
            with contextlib.suppress(OSError):
                end = send_rubbish()
                break
            time.sleep(0.05)
        (error,) = job.result()
        end.close()
    assert "was lost (it sent an invalid message: " in error
    assert len(error.splitlines()) == 1
