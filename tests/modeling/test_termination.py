import os
import signal

import pytest

from modeling.termination import noticing_termination


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request):
    return request.param


@pytest.fixture
def received(number):
    """The signals that the handler from before the block gets."""
    received = []
    before = signal.signal(number, lambda number, _frame: received.append(number))
    yield received
    signal.signal(number, before)


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_ends_nothing_but_is_noticed(received, number):
    with noticing_termination() as termination:
        assert termination.received is None
        send(number)
        assert termination.received == number
    assert received == []


def test_sigterm_may_come_again():
    with noticing_termination() as termination:
        for _ in range(3):
            send(signal.SIGTERM)
        assert termination.received == signal.SIGTERM


def test_a_second_ctrl_c_does_not_wait():
    with noticing_termination():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_handler_from_before_is_back_afterwards(received, number):
    with noticing_termination() as termination:
        pass
    send(number)
    assert received == [number]
    assert termination.received is None


def test_the_handler_from_before_is_back_after_an_error(received, number):
    with pytest.raises(ValueError, match="bad batch"), noticing_termination():
        raise ValueError("bad batch")
    send(number)
    assert received == [number]


def test_what_was_noticed_once_does_not_count_the_next_time():
    with noticing_termination():
        send(signal.SIGTERM)
    with noticing_termination() as termination:
        assert termination.received is None
