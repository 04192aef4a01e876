import os
import signal

import pytest

from modeling.termination import EXIT_CODE, noticing_termination


@pytest.fixture
def received():
    """The signals that the handler from before the block gets."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_exit_code_is_that_of_a_process_ended_by_sigterm():
    assert EXIT_CODE == 143


def test_sigterm_ends_nothing_but_is_noticed(received):
    with noticing_termination() as termination:
        assert not termination.is_requested
        for _ in range(2):
            terminate()
            assert termination.is_requested
    assert received == []


def test_the_handler_from_before_is_back_afterwards(received):
    with noticing_termination() as termination:
        pass
    terminate()
    assert received == [signal.SIGTERM]
    assert not termination.is_requested


def test_the_handler_from_before_is_back_after_an_error(received):
    with pytest.raises(ValueError, match="bad batch"), noticing_termination():
        raise ValueError("bad batch")
    terminate()
    assert received == [signal.SIGTERM]


def test_what_was_noticed_once_does_not_count_the_next_time():
    with noticing_termination():
        terminate()
    with noticing_termination() as termination:
        assert not termination.is_requested
