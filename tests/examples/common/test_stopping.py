"""A signal is a request to stop, once; the handlers before it are back afterwards."""

import os
import signal

import pytest

from examples.common.stopping import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_acts_as_usual(number, capfd):
    received = []
    before = signal.signal(number, lambda *args: received.append(number))
    try:
        with stop_on_signal() as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            assert should_stop.signal == number
            with stop_on_signal() as inner:
                assert inner is should_stop
            assert not received
            os.kill(os.getpid(), number)
            assert received == [number]
        with stop_on_signal() as should_stop:
            assert not should_stop()
        os.kill(os.getpid(), number)
        assert received == [number] * 2
    finally:
        signal.signal(number, before)
    assert "repeat to stop immediately" in capfd.readouterr().err
