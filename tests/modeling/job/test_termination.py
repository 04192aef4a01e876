import os
import signal
from contextlib import contextmanager

import pytest

from modeling.job.group import ProcessGroup
from modeling.job.termination import exit_code, noticing_termination

pytestmark = pytest.mark.no_backend


@pytest.fixture
def group():
    return ProcessGroup()


@pytest.fixture(params=[signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def number(request):
    return request.param


@pytest.fixture
def received(number):
    """The signals that reach the handler installed before the block."""
    received = []
    before = signal.signal(number, lambda number, _frame: received.append(number))
    yield received
    signal.signal(number, before)


@contextmanager
def asking(group):
    """Signals that ask a group from the start."""
    with noticing_termination() as termination:
        termination.ask(group)
        yield


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_ends_nothing_but_stops_the_group(received, group, number):
    with asking(group):
        assert group.may_begin(1)
        send(number)
        assert not group.may_begin(2)
        assert group.stop.signal == number.name
    assert received == []


def test_signals_reach_the_earlier_handler_until_there_is_a_group_to_ask(received, group, number):
    with noticing_termination() as termination:
        send(number)
        termination.ask(group)
        send(number)
        assert not group.may_begin(1)
    assert received == [number]


def test_a_process_that_ignores_sighup_goes_on(group):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with asking(group):
            send(signal.SIGHUP)
            assert group.may_begin(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_a_backend_has_taken_are_taken_back(received, group, number):
    with noticing_termination() as termination:
        signal.signal(number, lambda _number, _frame: pytest.fail("not our handler"))
        termination.ask(group)
        send(number)
        assert not group.may_begin(1)
    assert received == []


def test_sigterm_may_come_again(group):
    with asking(group):
        for _ in range(3):
            send(signal.SIGTERM)
        assert not group.may_begin(1)


def test_the_first_signal_counts(group):
    with asking(group):
        send(signal.SIGUSR1)
        send(signal.SIGINT)
        assert not group.may_begin(1)
        assert group.stop.signal == "SIGUSR1"


def test_a_second_ctrl_c_does_not_wait(group):
    with asking(group):
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_earlier_handler_is_restored(received, group, number):
    with asking(group):
        pass
    send(number)
    assert received == [number]
    assert group.may_begin(1)


def test_the_earlier_handler_is_restored_after_an_error(received, group, number):
    with pytest.raises(ValueError, match="bad batch"), asking(group):
        raise ValueError("bad batch")
    send(number)
    assert received == [number]


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGHUP", 129), ("SIGINT", 130)]
)
def test_exit_codes(name, code):
    assert exit_code(name) == code
