"""The loop that trains, records, saves and resumes a run."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.classification import processes
from examples.classification.data import noise
from examples.classification.history import History
from examples.classification.trainer import STEP_METRICS, Trainer
from examples.common import checkpoints, devices, pipeline
from examples.common.errors import StoppedError
from examples.common.records import write_json

RESULT_FILE = "result.json"
_STEPS_PER_FETCH = 50  # metrics stay on the device in between, so that no step waits for the host


def train(
    trainer: Trainer,
    step_fn: Callable,
    method: str,
    seeds: Sequence[int],
    folder: Path,
    *,
    on_progress: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Trains one method with one seed, or several at once, from the checkpoint if there is one.

    Returns, for each seed, what is then also in RESULT_FILE of its folder, the mark of a finished
    run.

    Args:
      folder: of the method; see ``seed_folder`` and ``checkpoint_folder``.
      on_progress: takes the step and what is known there, first before any step is taken.

    Raises:
      StoppedError: if ``should_stop`` said so; everything is saved.
      CheckpointError: if a checkpoint cannot be written, cannot be read or is another run's.
      DataError: if images that are read on the way cannot be.
    """
    with contextlib.ExitStack() as stack:
        run = _Run(trainer, method, seeds, folder, stack)
        batches = stack.enter_context(contextlib.closing(run.batches()))
        on_progress(run.step, run.progress())
        run.start_clock()
        while not run.is_over():
            pending, is_stopping = [run.take_step(step_fn, next(batches))], should_stop()
            while not (is_stopping or run.is_epoch_end() or len(pending) == _STEPS_PER_FETCH):
                pending.append(run.take_step(step_fn, next(batches)))
                is_stopping = should_stop()
            run.record(pending)
            is_best = run.is_epoch_end() and run.end_epoch()
            on_progress(run.step, run.progress())
            run.save_if_due(is_best=is_best, is_stopping=is_stopping)
            if is_stopping and not run.is_over():
                raise StoppedError(
                    f"{method}, {names(seeds)}, at step {run.step} of {trainer.total_steps}"
                )
            run.start_clock()
        results = run.results()
    if processes.is_main():
        for seed, result in zip(seeds, results, strict=True):
            write_json(seed_folder(folder, seed) / RESULT_FILE, result)
    return results


def seed_folder(folder: Path, seed: int) -> Path:
    """The records of a run, in the folder of its method."""
    return folder / f"seed{seed}"


def checkpoint_folder(folder: Path, seeds: Sequence[int]) -> Path:
    """The checkpoints of one seed, or of several that are trained together."""
    if len(seeds) == 1:
        return seed_folder(folder, seeds[0])
    return folder / ("seeds" + "-".join(map(str, seeds)))


class _Run:
    """One method with its seeds, from the checkpoint on: the state, the clock and the records."""

    def __init__(
        self,
        trainer: Trainer,
        method: str,
        seeds: Sequence[int],
        folder: Path,
        stack: contextlib.ExitStack,
    ):
        self._trainer, self._config = trainer, trainer.config
        self._method, self._seeds = method, seeds
        self._labels = np.stack(
            [
                noise.training_labels(
                    trainer.data, self._config.noise, self._config.label_noise, seed
                )
                for seed in seeds
            ]
        )
        self.state, self.step, self._seconds = trainer.new_state(method, *seeds), 0, 0.0
        place = checkpoint_folder(folder, seeds)
        self._last = stack.enter_context(checkpoints.open_in(place / "checkpoint"))
        self._best = None
        if self._config.keep_best:
            self._best = stack.enter_context(checkpoints.open_in(place / "best"))
        saved = self._last.latest_step()
        if self._best and (self._best.latest_step() or 0) > (saved or 0):  # of a lost future
            self._best.delete(self._best.latest_step())
        processes.require_same(f"the step of the checkpoint in {place}", saved)
        if saved is not None:
            self.state, self._seconds = checkpoints.restore(self._last, saved, self.state)
            self.step = saved
        self._histories = [
            stack.enter_context(
                History(
                    *(seed_folder(folder, seed), self.step, trainer.steps_per_epoch, self._config)
                )
            )
            for seed in seeds
        ]
        self._last_save = time.perf_counter()
        self.start_clock()

    def batches(self) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """The examples of each step to take, and their images."""
        return pipeline.batches(
            *(self._trainer.data.train_images, order_of(self._trainer, self._seeds)),
            *(self.step, self._trainer.total_steps, self._config.input_workers),
        )

    def is_over(self) -> bool:
        return self.step == self._trainer.total_steps or self._histories[0].is_out_of_patience()

    def is_epoch_end(self) -> bool:
        return self.step % self._trainer.steps_per_epoch == 0

    def start_clock(self) -> None:
        self._started = time.perf_counter()

    def take_step(self, step_fn: Callable, batch: tuple[np.ndarray, np.ndarray]) -> jax.Array:
        """The metrics of the step, still on the device."""
        index, images = batch
        labels = np.take_along_axis(self._labels, np.atleast_2d(index), 1).reshape(index.shape)
        self.state, metrics = step_fn(self.state, *self._trainer.batch(images, labels, index))
        self.step += 1
        return metrics

    def record(self, metrics: list[jax.Array]) -> None:
        """Waits for the device, and stops the clock."""
        values = np.stack(jax.device_get(metrics), -2)
        values = values.reshape(len(self._histories), -1, len(STEP_METRICS))
        for history, of_seed in zip(self._histories, values, strict=True):
            history.record_steps(of_seed)
        self._seconds += time.perf_counter() - self._started

    def end_epoch(self) -> bool:
        """Evaluates, if it is time to. Returns whether this is the best accuracy, to be kept."""
        accuracies, is_best = [np.nan] * len(self._histories), False
        epoch, is_last = (
            self.step // self._trainer.steps_per_epoch,
            self.step == self._trainer.total_steps,
        )
        if epoch % self._config.evaluate_every == 0 or is_last:
            evaluation = self._trainer.data.evaluation
            accuracies = np.atleast_1d(self._trainer.accuracy(self.state, *evaluation))
            is_best = bool(self._best and accuracies[0] > self._histories[0].best()[0])
        for history, accuracy in zip(self._histories, accuracies, strict=True):
            history.record_epoch(float(accuracy), self._seconds / len(self._histories))
        return is_best

    def progress(self) -> dict[str, float]:
        return self._histories[0].progress(self._seconds / len(self._histories))

    def save_if_due(self, *, is_best: bool, is_stopping: bool) -> None:
        is_late = time.perf_counter() - self._last_save >= self._config.checkpoint_seconds
        if self._best and is_best:
            checkpoints.save(self._best, self.step, self.state, self._seconds)
        if is_best or is_stopping or self.is_over() or processes.decided_by_main(is_late):
            # After the best one, which is not looked for again before this step; after the
            # tables: whatever they hold beyond the checkpoint is dropped on resuming.
            if processes.is_main():
                for history in self._histories:
                    history.save()
            checkpoints.save(self._last, self.step, self.state, self._seconds)
            self._last_save = time.perf_counter()

    def results(self) -> list[dict[str, Any]]:
        """What is to say of each seed at the end."""
        seeds = self._seeds
        tests: Sequence[float | None] = [None] * len(seeds)
        if self._config.final_test:
            chosen, data = self.state, self._trainer.data
            if self._best:
                chosen, _ = checkpoints.restore(self._best, self._best.latest_step(), chosen)
            accuracies = self._trainer.accuracy(chosen, data.test_images, data.test_labels)
            tests = np.atleast_1d(accuracies).tolist()
        return [
            history.result(test)
            | {"method": self._method, "seed": seed, "seeds_at_once": len(seeds)}
            | {"peak_bytes": self._trainer.peak_bytes.get((self._method, len(seeds)))}
            for seed, history, test in zip(seeds, self._histories, tests, strict=True)
        ]


def order_of(trainer: Trainer, seeds: Sequence[int]) -> Callable[[int], np.ndarray]:
    """Which examples a step takes: (batch,), or (seeds, batch); this process's share of them."""
    batch_size = trainer.config.batch_size
    own = devices.own_rows(batch_size)
    orders = [
        pipeline.Order(len(trainer.data.train_labels), batch_size, seed, own) for seed in seeds
    ]
    if len(orders) == 1:
        return orders[0]
    return lambda step: np.stack([order(step) for order in orders])


def names(seeds: Sequence[int]) -> str:
    """What to call one seed, or several at once."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
