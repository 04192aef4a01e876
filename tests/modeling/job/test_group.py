import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modeling.job import connection, coordinator, group
from modeling.job.group import ProcessGroup
from modeling.job.place import JobPlace
from pipeline.errors import UserError

ROOT = Path(__file__).parents[3]
HOST = socket.gethostname()
SECONDS = 30
TOKEN = "0123456789abcdef" * 4
pytestmark = pytest.mark.no_backend


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _no_waiting_for_exits(monkeypatch):
    """The members are threads here, which never exit as processes do."""
    monkeypatch.setattr(coordinator, "_SECONDS_TO_EXIT", 0.0)


@pytest.fixture
def quick_heartbeats(monkeypatch):
    """A heartbeat also tells a request to stop, so that is heard sooner."""
    for module in (coordinator, group):
        monkeypatch.setattr(module, "SECONDS_BETWEEN_HEARTBEATS", 0.05)


@pytest.fixture
def together(address):
    """A function that calls `work(group)` in each of several processes, which are threads here."""

    def run(work, num_processes=3):
        def member(process_id):
            with ProcessGroup(JobPlace(address, num_processes, process_id), SECONDS) as group:
                return work(group)

        with ThreadPoolExecutor(num_processes) as threads:
            futures = [threads.submit(member, i) for i in range(num_processes)]
            return [future.exception() or future.result() for future in futures]

    return run


def test_a_single_process_needs_no_network():
    with ProcessGroup() as group:
        assert group.is_first
        assert group.gather({"x": 1}) == [{"x": 1}]
        group.wait_for_all()
        assert group.may_begin(1)
        group.request_stop(signal.SIGTERM)
        assert not group.may_begin(2)
        assert group.stop.signal == "SIGTERM"


def test_all_know_each_other(together):
    groups = together(lambda group: group)
    assert [group.process_id for group in groups] == [0, 1, 2]
    assert [group.is_first for group in groups] == [True, False, False]
    assert [group.name for group in groups] == [f"process {i} on {HOST}" for i in range(3)]
    assert all(group.hosts == [HOST] * 3 for group in groups)
    addresses = groups[0].addresses
    assert len(set(addresses)) == 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    assert all(group.addresses == addresses for group in groups)


def test_values_are_gathered_in_the_order_of_the_processes(together):
    def work(group):
        time.sleep(0.05 * (2 - group.process_id))
        return [group.gather([number, group.process_id, 0.1]) for number in range(20)]

    expected = [[[number, i, 0.1] for i in range(3)] for number in range(20)]
    assert together(work) == [expected] * 3


@pytest.mark.usefixtures("quick_heartbeats")
@pytest.mark.parametrize("asking", [0, 1, 2])
@pytest.mark.parametrize("first_step", [1, 1001])
def test_all_stop_after_the_last_step_that_one_has_begun(together, asking, first_step):
    def work(group):
        for step in range(first_step, first_step + 10_000):
            if not group.may_begin(step):
                return step - 1, group.stop
            if group.process_id == asking and step == first_step + 5:
                group.request_stop(signal.SIGUSR1)
            time.sleep(0.002 * (group.process_id + 1))
        raise AssertionError("the group did not stop")

    stopped = together(work)
    assert len(set(stopped)) == 1
    last_step, stop = stopped[0]
    assert last_step >= first_step + 5
    assert (stop.signal, stop.process) == ("SIGUSR1", f"process {asking} on {HOST}")


def test_processes_that_wait_for_each_other_within_a_step_can_stop(together):
    """In training, no process ends a step before all have begun it."""
    barrier = threading.Barrier(3, timeout=SECONDS)

    def work(group):
        for step in range(1, 100_000):
            if not group.may_begin(step):
                return step
            if step == 40:
                group.request_stop(signal.SIGTERM)
            barrier.wait()
        raise AssertionError("the group did not stop")

    stopped = together(work)
    assert len(set(stopped)) == 1


@pytest.mark.usefixtures("quick_heartbeats")
def test_no_step_begins_after_an_early_request_to_stop(together):
    def work(group):
        if group.process_id == 1:
            group.request_stop(signal.SIGTERM)
        time.sleep(0.5)
        group.wait_for_all()
        return group.may_begin(7)

    assert together(work) == [False] * 3


@pytest.mark.parametrize(("work", "code"), [("leave", 0), ("differ", 1), ("end", 1)])
def test_the_first_process_exits_last(work, code, members):
    processes = members(work)
    exited = []
    deadline = time.monotonic() + SECONDS
    while len(exited) < 3 and time.monotonic() < deadline:
        exited += [i for i in range(3) if i not in exited and processes[i].poll() is not None]
        time.sleep(0.01)
    assert sorted(exited) == [0, 1, 2]
    assert exited[-1] == 0
    assert [process.returncode for process in processes] == [code] * 3


def test_no_process_leaves_before_the_last_one(together):
    ends = {}

    def work(group):
        time.sleep(0.5 * (group.process_id == 2))
        ends[group.process_id] = time.monotonic()

    together(work)
    assert max(ends, key=ends.get) == 2


def test_a_fact_that_differs_is_named_with_its_process_in_all_processes(together):
    def work(group):
        group.check_same({"--model": "tiny"})
        group.check_same({"--seed": 1, "--rate": 0.01 if group.process_id == 2 else 0.001})

    for error in together(work):
        assert isinstance(error, UserError)
        assert str(error) == (
            f"the processes differ in --rate: it is 0.01 in process 2 on {HOST}, "
            f"0.001 in process 0 on {HOST}"
        )


def test_a_single_process_has_no_differing_facts():
    ProcessGroup().check_same({"--model": "tiny"})


def test_missing_processes_are_named_by_all_that_connected(address):
    def member(process_id):
        with pytest.raises(UserError) as raised:
            ProcessGroup(JobPlace(address, 4, process_id), timeout=1.5)
        return str(raised.value)

    with ThreadPoolExecutor(2) as threads:
        messages = list(threads.map(member, [0, 2]))
    for message in messages:
        assert (
            f"waited 1.5 s, but processes 1, 3 of 4 (connected: process 0 on {HOST}, process 2 on "
            f"{HOST}) did not connect" in message
        )


def test_coordinator_that_never_answers_is_named(address):
    with pytest.raises(UserError, match=r"process 1 .*did not answer within 0.5 s") as raised:
        ProcessGroup(JobPlace(address, 2, 1), timeout=0.5)
    assert address in str(raised.value)


def test_port_in_use_is_named(address):
    host, port = address.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(UserError, match=rf"cannot listen at {address} .*in use"),
    ):
        ProcessGroup(JobPlace(address, 2, 0), timeout=1)


def test_address_of_another_host_is_named():
    with pytest.raises(UserError, match="must be an address of process 0's host"):
        ProcessGroup(JobPlace("192.0.2.1:29000", 2, 0, token=TOKEN), timeout=1)


def test_unknown_host_name_is_named(address):
    port = address.partition(":")[2]
    with pytest.raises(UserError, match=rf"no-such-host.invalid:{port} did not answer within 1 s"):
        ProcessGroup(JobPlace(f"no-such-host.invalid:{port}", 2, 0, token=TOKEN), timeout=1)


def test_processes_on_the_coordinators_host_are_reached_by_its_name(address):
    """Not by the loopback address that the name may stand for on that host."""
    place = f"localhost:{address.partition(':')[2]}"

    def member(process_id):
        with ProcessGroup(JobPlace(place, 2, process_id), timeout=SECONDS) as group:
            return group.addresses

    with ThreadPoolExecutor(2) as threads:
        (first, second) = threads.map(member, [0, 1])
    assert first == second
    assert all(address.startswith("localhost:") for address in first)


def test_two_processes_with_the_same_number_are_reported_by_all(address):
    def member(process_id):
        with pytest.raises(UserError) as raised:
            ProcessGroup(JobPlace(address, 3, process_id), timeout=SECONDS)
        return str(raised.value)

    with ThreadPoolExecutor(3) as threads:
        messages = list(threads.map(member, [0, 1, 1]))
    for message in messages:
        assert f"two processes have the number 1, on {HOST} and {HOST}" in message


def test_processes_with_different_numbers_of_processes_are_named(address):
    def member(place):
        with pytest.raises(UserError) as raised:
            ProcessGroup(place, timeout=SECONDS)
        return str(raised.value)

    with ThreadPoolExecutor(2) as threads:
        messages = list(threads.map(member, [JobPlace(address, 2, 0), JobPlace(address, 3, 1)]))
    expected = "has --num_processes=3, but process 0 has --num_processes=2"
    assert all(expected in message for message in messages)


MEMBER = """
import atexit, os, sys, time
from launch.banners import native_banners_hidden
from modeling.job import connection, coordinator, group
from modeling.job.place import JobPlace
from modeling.job.group import ProcessGroup
from pipeline.errors import UserError

process_id, address, work = int(sys.argv[1]), sys.argv[2], sys.argv[3]
connection.SECONDS_OF_SILENCE = 3
coordinator.SECONDS_BETWEEN_HEARTBEATS = group.SECONDS_BETWEEN_HEARTBEATS = 0.1

def member():
    with ProcessGroup(JobPlace(address, 3, process_id), timeout=30) as members:
        print("met", flush=True)
        members.wait_for_all()
        if work == "differ":
            members.check_same({"number": process_id})
        if work == "end" and process_id == 0:
            time.sleep(0.5)
            raise UserError("cannot draw")
        if work == "end":
            sys.exit(0)
        if process_id == 1 and work == "fail":
            raise UserError("the data are damaged")
        if work == "hidden":
            with native_banners_hidden():
                os.write(2, b"a banner")
                time.sleep(60)
        if work == "notice" and process_id != 1:
            # A step fails like this if its exchange breaks off before the group has noticed.
            raise RuntimeError("connection reset")
        if work != "leave":
            time.sleep(60)

if process_id == 2:
    # Backends also take time to exit.
    atexit.register(time.sleep, 0.5)
try:
    member()
except (UserError, RuntimeError) as error:
    print(repr(error), file=sys.stderr)
    code = 1
else:
    code = 0
sys.exit(code)
"""


@pytest.fixture
def members(address):
    """A function that starts three processes of a job, which by default only wait."""
    processes = []

    def start(work="wait"):
        for process_id in range(3):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", MEMBER, str(process_id), address, work],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in processes:
            assert process.stdout.readline().strip() == "met"
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ends_of(processes):
    outputs = [process.communicate(timeout=SECONDS)[1] for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.mark.parametrize("lost", [1, 2])
def test_one_lost_process_ends_all_and_the_first_says_which(members, lost):
    processes = members()
    processes[lost].kill()
    codes, outputs = ends_of(processes)
    assert codes == [-signal.SIGKILL if i == lost else 1 for i in range(3)]
    assert f"process {lost} on {HOST} was lost (its connection was closed)" in outputs[0]
    assert "run the same command again to resume from the newest checkpoint" in outputs[0]
    assert outputs[3 - lost] == ""


def test_losing_the_first_process_ends_all_and_they_say_so(members):
    processes = members()
    processes[0].kill()
    codes, outputs = ends_of(processes)
    assert codes == [-signal.SIGKILL, 1, 1]
    for process_id in (1, 2):
        assert f"process {process_id} on {HOST}: process 0 was lost" in outputs[process_id]


def test_a_process_that_hangs_counts_as_lost(members):
    processes = members()
    processes[2].send_signal(signal.SIGSTOP)
    codes, outputs = ends_of(processes[:2])
    assert codes == [1, 1]
    assert f"process 2 on {HOST} was lost (no message for 3 s)" in outputs[0]


def test_a_process_that_fails_ends_all_with_its_reason(members):
    codes, outputs = ends_of(members("fail"))
    assert codes == [1, 1, 1]
    assert f"process 1 on {HOST} failed: the data are damaged" in outputs[0]
    assert "UserError('the data are damaged')" in outputs[1]
    assert outputs[2] == ""


def test_a_process_that_fails_when_others_are_done_fails_them_too(members):
    codes, outputs = ends_of(members("end"))
    assert codes == [1, 1, 1]
    assert "UserError('cannot draw')" in outputs[0]


def test_the_message_about_a_lost_process_is_not_hidden_with_a_backends_banner(members):
    processes = members("hidden")
    processes[1].kill()
    _, outputs = ends_of(processes)
    assert f"process 1 on {HOST} was lost" in outputs[0]
    assert "a banner" not in outputs[0]


def test_a_lost_process_is_reported_instead_of_the_backends_error_about_it(members):
    processes = members("notice")
    time.sleep(0.5)
    processes[1].kill()
    codes, outputs = ends_of(processes)
    assert codes == [1, -signal.SIGKILL, 1]
    assert f"process 1 on {HOST} was lost" in outputs[0]
    assert "connection reset" not in outputs[0] + outputs[2]


def test_many_heartbeats_must_be_missed_before_a_process_is_lost():
    assert 10 * coordinator.SECONDS_BETWEEN_HEARTBEATS < connection.SECONDS_OF_SILENCE < 60


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("", 2, 0), "--coordinator_address="),
        (("host", 2, 0), "--coordinator_address=host"),
        (("host:port", 2, 0), "host:port"),
        ((":80", 2, 0), ":80"),
        (("host:70000", 2, 0), "host:70000"),
        (("host:0", 2, 0), "host:0"),
        (("host:²", 2, 0), "host:²"),
        (("a\nb:80", 2, 0), r"^--coordinator_address=a\\nb:80 must"),
        (("host:80", 2, 1), "host:80 need a secret"),
        (("192.0.2.1:80", 2, 1), "192.0.2.1:80 need a secret"),
        (("host:80", 0, 0), "--num_processes=0"),
        (("host:80", 2, 2), "--process_id=2"),
        (("host:80", 2, -1), "--process_id=-1"),
    ],
)
def test_invalid_places_are_refused(place, named):
    with pytest.raises(UserError, match=named):
        JobPlace(*place)


@pytest.mark.parametrize(
    ("address", "host_and_port"),
    [("node1:80", ("node1", 80)), ("[::1]:8080", ("::1", 8080))],
)
def test_address_is_split_into_host_and_port(address, host_and_port):
    assert JobPlace(address, 2, 1, token=TOKEN).host_and_port == host_and_port


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "[::1]"])
def test_a_job_on_one_host_needs_no_token(host):
    JobPlace(f"{host}:80", 2, 1)


def test_a_place_does_not_show_its_token():
    assert TOKEN not in repr(JobPlace("host:80", 2, 1, token=TOKEN))
