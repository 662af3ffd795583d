"""The batches of a run: their order, from any step, read here or by other processes."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from examples.common import pipeline
from examples.common.errors import DataError


def test_the_order_is_a_function_of_the_seed_and_the_epoch():
    def order(seed, epoch):
        return pipeline.epoch_order(1000, seed, epoch)

    np.testing.assert_array_equal(order(1, 5), order(1, 5))
    np.testing.assert_array_equal(np.sort(order(1, 5)), np.arange(1000))
    assert (order(1, 5) != order(1, 6)).any()
    assert (order(1, 5) != order(2, 5)).any()


def test_an_epoch_has_every_example_but_those_of_an_incomplete_batch():
    order = pipeline.Order(103, 10, seed=1)
    assert order.steps_per_epoch == 10
    for epoch in (0, 3):
        index = np.concatenate([order(10 * epoch + step) for step in range(10)])
        np.testing.assert_array_equal(index, pipeline.epoch_order(103, 1, epoch)[:100])


def test_processes_share_each_batch():
    whole = pipeline.Order(100, 12, seed=1)
    parts = [whole._replace(own=slice(4 * i, 4 * (i + 1))) for i in range(3)]
    for step in (0, 7, 8, 30):
        np.testing.assert_array_equal(np.concatenate([p(step) for p in parts]), whole(step))


@hypothesis.given(
    num_examples=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    start=st.integers(0, 40),
    length=st.integers(0, 40),
)
@hypothesis.settings(deadline=None)
def test_batches_from_any_step_are_the_tail_of_the_whole(num_examples, batch_size, start, length):
    hypothesis.assume(batch_size <= num_examples)
    pixels = np.arange(num_examples, dtype=np.uint8).reshape(-1, 1, 1, 1)
    order = pipeline.Order(num_examples, batch_size, seed=0)
    whole = list(pipeline.batches(pixels, order, 0, start + length))
    tail = list(pipeline.batches(pixels, order, start, start + length))
    assert len(whole) == start + length
    assert_same_batches(tail, whole[start:])
    for index, batch in whole:
        np.testing.assert_array_equal(batch, pixels[index])


def assert_same_batches(batches, expected):
    for got, want in zip(batches, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_closing_the_batches_ends_the_workers_and_a_killed_worker_is_an_error():
    order = pipeline.Order(10, 2, seed=0)
    pixels = np.zeros((10, 1, 1, 1), np.uint8)
    with contextlib.closing(pipeline.batches(pixels, order, 0, 10**6, num_workers=2)) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    batches = pipeline.batches(pixels, order, 0, 10**6, num_workers=1)
    next(batches)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(DataError, match="process that reads examples failed"):
        for _ in batches:
            pass
    assert not multiprocessing.active_children()


_PROGRAM = """
import contextlib, faulthandler, multiprocessing, signal, sys, time
import numpy as np
from examples.common import pipeline

faulthandler.dump_traceback_later(50, exit=True)  # says where it hangs, if it does
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

assert __name__ == "__main__", "a worker process imports the program"

def examples(step):
    assert "flax" not in sys.modules
    return np.array([step % 2])

batches = pipeline.batches(np.zeros((2, 1, 1, 1), np.uint8), examples, 0, 10**9, num_workers=2)
with contextlib.closing(batches):
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for _ in batches:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_program_and_start_no_device(number, tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "no_such_device"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = list(map(int, process.stdout.readline().split()))
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to all of them
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number, errors
    assert number != signal.SIGINT or errors.count("Traceback") == 1  # the program's alone
    deadline = time.perf_counter() + 20
    while any(map(is_alive, workers)) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
