"""The batches of a run, read in this process or ahead of it in others.

The order of the examples is a function of the seed and the step, so a resumed run starts at any
step. Nothing here uses a device, and the worker processes never start JAX's backends.
"""

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, Protocol

import numpy as np

from examples.common.errors import DataError

_ORDER_STREAM, _AUGMENTATION_STREAM = 2, 3  # keep the streams of one seed apart; label noise has 1
_BATCHES_AHEAD = 2  # of each worker, in its memory and in the pipe
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch."""
    return np.random.default_rng((seed, _ORDER_STREAM, epoch)).permutation(num_examples)


def augmentation_rng(seed: int, step: int) -> np.random.Generator:
    """What is random in the augmentation of a step."""
    return np.random.default_rng((seed, _AUGMENTATION_STREAM, step))


class Examples(Protocol):
    """What examples are read from: a NumPy array, or what reads them as they are asked for."""

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Order(NamedTuple):
    """Which examples a step takes: each epoch a new order, less an incomplete last batch.

    ``own`` are the rows of each batch that this process takes, one of several.
    """

    num_examples: int
    batch_size: int
    seed: int
    own: slice = slice(None)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _cached_epoch_order(self.num_examples, self.seed, epoch)
        return order[place * self.batch_size :][: self.batch_size][self.own]


class InOrder(NamedTuple):
    """All examples, as they come; the last batch may be incomplete, or this process's empty."""

    num_examples: int
    batch_size: int
    own: slice = slice(None)

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step, counted from 0."""
        return np.arange(self.num_examples)[step * self.batch_size :][: self.batch_size][self.own]


def batches(
    examples: Examples,
    index_of_step: Callable[[int], np.ndarray],
    start: int,
    stop: int,
    num_workers: int = 0,
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yields each step's positions, (k,), and the examples that are there, (k, ...).

    Args:
      examples: can be pickled, if other processes read them.
      index_of_step: the positions of the examples of a step, such as ``Order``; can be pickled.
      start, stop: the first step and the one after the last.
      num_workers: processes that read ahead, each the batches of every so many-th step; 0 to read
        in this process. Closing the iterator ends them. They leave Ctrl-C and SIGTERM to this
        process, and end when it does, however it does.

    Raises:
      DataError: if an example cannot be read, or a worker process ends unexpectedly.
    """
    read = _Read(examples, index_of_step)
    if not num_workers or start >= stop:
        yield from map(read, range(start, stop))
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for its flags, which only absl's programs parse
    # As bytes they come through a pipe. Arrays would take shared memory, of which containers have
    # little.
    steps = grain.MapDataset.range(start, stop).map(read).map(pickle.dumps)
    ahead = steps.to_iter_dataset(
        # No threads and no buffer within a worker: by default each would hold 500 batches.
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    ).mp_prefetch(
        grain.MultiprocessingOptions(min(num_workers, stop - start), _BATCHES_AHEAD),
        worker_init_fn=_end_with_parent,
    )
    with contextlib.closing(iter(ahead)) as iterator:
        try:
            with _starting_processes():
                first = next(iterator)
            yield pickle.loads(first)
            yield from map(pickle.loads, iterator)
        except RuntimeError as error:  # a worker was killed, by lack of memory for example
            raise DataError(f"A process that reads examples failed: {error}") from error


class _Read(NamedTuple):
    examples: Examples
    index_of_step: Callable[[int], np.ndarray]

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        index = self.index_of_step(step)
        return index, self.examples[index]


@functools.lru_cache(maxsize=2)
def _cached_epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = epoch_order(num_examples, seed, epoch)
    order.flags.writeable = False
    return order


@contextlib.contextmanager
def _starting_processes() -> Iterator[None]:
    """Processes started meanwhile block the signals, and do not import the program they are of.

    Its main module would bring the trainer, which takes seconds and much memory. They need none of
    it: what they run comes pickled.
    """
    resource_tracker.ensure_running()  # or its start, meanwhile, would end the blocking
    main, blocked = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _end_with_parent(worker: int, num_workers: int) -> None:
    """Ends this worker process when its parent is killed, too."""

    def wait():
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
