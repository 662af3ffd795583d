"""Stopping on a signal after saving. Several processes stop at the same step."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Whether a signal asked the program to save and stop, and which one.

    With several processes, all get the answer yes at the same call if one of them had the signal.
    """

    signal: int | None = None
    calls: int = 0

    def __call__(self) -> bool:
        self.calls += 1
        if multihost_utils.reached_preemption_sync_point(self.calls):
            self.signal = signal.SIGTERM
        return self.signal is not None


_ACTIVE: list[StopRequest] = []


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request to stop. A second signal acts as usual.

    After ``jax.distributed.initialize()`` JAX handles SIGTERM: it tells all processes and makes
    them agree on a step to stop at. A nested context yields the request of the outer one.
    """
    if _ACTIVE:
        yield _ACTIVE[0]
        return
    request = StopRequest()
    is_shared = jax.distributed.is_initialized()
    numbers = (signal.SIGINT,) if is_shared else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        if is_shared:
            signal.raise_signal(signal.SIGTERM)
        else:
            request.signal = number
        restore()
        os.write(2, b"\nSaving after this step, then stopping (repeat to stop immediately).\n")

    for number in previous:
        signal.signal(number, on_signal)
    _ACTIVE.append(request)
    try:
        yield request
    finally:
        _ACTIVE.clear()
        restore()
