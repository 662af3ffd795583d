"""The loop that trains, records, saves and resumes a run."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from examples.classification.config import Config
from examples.classification.data import noise, pipeline
from examples.classification.trainer import STEP_METRICS, Trainer, TrainState
from examples.common import devices, processes
from examples.common.records import Events, Table, write_json

RESULT_FILE = "result.json"
STEP_COLUMNS = ("step", "epoch", *STEP_METRICS)
EPOCH_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "accuracy"),
    *("percent_sam", "seconds", "images_per_second"),
)
NO_PROGRESS = {"loss": 0.0, "accuracy": 0.0, "percent_sam": 0.0, "images_per_second": 0.0}
_STEPS_PER_FETCH = 50  # metrics stay on the device in between, so that no step waits for the host


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says which, and what to do."""


class StoppedError(Exception):
    """Stopped on request, after saving; the message says where."""


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

    Raises:
      StoppedError: if ``should_stop`` said so; everything is saved.
      CheckpointError: if a checkpoint cannot be written, cannot be read or is another run's.
      DataError: if images that are read on the way cannot be.
    """
    config, dataset = trainer.config, trainer.data
    labels = np.stack(
        [noise.training_labels(dataset, config.noise, config.label_noise, seed) for seed in seeds]
    )
    order = _order(trainer, seeds)
    state, step, seconds = trainer.new_state(method, *seeds), 0, 0.0

    with contextlib.ExitStack() as stack:
        place = checkpoint_folder(folder, seeds)
        checkpoints = stack.enter_context(_checkpoints(place / "checkpoint"))
        best = stack.enter_context(_checkpoints(place / "best")) if config.keep_best else None
        saved = checkpoints.latest_step()
        if best and (best.latest_step() or 0) > (saved or 0):  # of a future that was lost
            best.delete(best.latest_step())
        processes.require_same(f"the step of the checkpoint in {place}", saved)
        if saved is not None:
            state, seconds = _restore(checkpoints, saved, state)
            step = saved
        runs = [
            stack.enter_context(
                _Records(seed_folder(folder, seed), step, trainer.steps_per_epoch, config)
            )
            for seed in seeds
        ]

        def save():
            # The tables first: whatever they hold beyond the checkpoint is dropped on resuming.
            if processes.is_main():
                for run in runs:
                    run.save()
            _save(checkpoints, step, state, seconds)

        batches = stack.enter_context(
            contextlib.closing(
                pipeline.batches(
                    dataset.train_images, order, step, trainer.total_steps, config.input_workers
                )
            )
        )
        pending, last_save, started = [], time.perf_counter(), time.perf_counter()
        is_over = step == trainer.total_steps or runs[0].is_out_of_patience()
        while not is_over:
            index, images = next(batches)
            its_labels = np.take_along_axis(labels, np.atleast_2d(index), 1).reshape(index.shape)
            state, metrics = step_fn(state, *trainer.batch(images, its_labels, index))
            pending.append(metrics)
            step += 1

            is_epoch_end = step % trainer.steps_per_epoch == 0
            is_stopping = should_stop()
            if not (is_epoch_end or is_stopping or len(pending) == _STEPS_PER_FETCH):
                continue
            values = np.stack(jax.device_get(pending), -2)  # waits for the device
            pending = []
            for run, of_run in zip(
                runs, values.reshape(len(runs), -1, len(STEP_METRICS)), strict=True
            ):
                run.record_steps(of_run)
            seconds += time.perf_counter() - started
            is_best = False
            if is_epoch_end:
                epoch = step // trainer.steps_per_epoch
                accuracies = [np.nan] * len(runs)
                if epoch % config.evaluate_every == 0 or step == trainer.total_steps:
                    accuracies = np.atleast_1d(trainer.accuracy(state, *dataset.evaluation))
                    is_best = config.keep_best and accuracies[0] > runs[0].best()[0]
                for run, accuracy in zip(runs, accuracies, strict=True):
                    run.record_epoch(float(accuracy), seconds / len(runs))
            on_progress(step, runs[0].progress(seconds / len(runs)))
            is_time_over = time.perf_counter() - last_save >= config.checkpoint_seconds
            is_over = step == trainer.total_steps or runs[0].is_out_of_patience()
            if best and is_best:
                _save(best, step, state, seconds)
            if is_best or is_stopping or is_over or processes.decided_by_main(is_time_over):
                save()  # after the best one, which is not looked for again before this step
                last_save = time.perf_counter()
            if is_stopping and not is_over:
                raise StoppedError(
                    f"{method}, {names(seeds)}, at step {step} of {trainer.total_steps}"
                )
            started = time.perf_counter()

        test_accuracies: Sequence[float | None] = [None] * len(seeds)
        if config.final_test:
            chosen = state
            if best:
                chosen, _ = _restore(best, best.latest_step(), state)
            test_accuracies = np.atleast_1d(
                trainer.accuracy(chosen, dataset.test_images, dataset.test_labels)
            ).tolist()

    results = [
        run.result(test)
        | {"method": method, "seed": seed, "seeds_at_once": len(seeds)}
        | {"peak_bytes": trainer.peak_bytes.get((method, len(seeds)))}
        for seed, run, test in zip(seeds, runs, test_accuracies, strict=True)
    ]
    if processes.is_main():
        for run, result in zip(runs, results, strict=True):
            write_json(run.folder / RESULT_FILE, result)
    return results


def seed_folder(folder: Path, seed: int) -> Path:
    """The records of a run, in the folder of its method."""
    return folder / f"seed{seed}"


def checkpoint_folder(folder: Path, seeds: Sequence[int]) -> Path:
    """The checkpoints of one seed, or of several that are trained together."""
    if len(seeds) == 1:
        return seed_folder(folder, seeds[0])
    return folder / ("seeds" + "-".join(map(str, seeds)))


class _Records:
    """The tables of a run, and its TensorBoard events, from a step on; a context manager."""

    def __init__(self, folder: Path, step: int, steps_per_epoch: int, config: Config):
        self.folder, self._config, self._steps_per_epoch = folder, config, steps_per_epoch
        folder.mkdir(parents=True, exist_ok=True)
        self.steps = Table(folder / "steps.csv", STEP_COLUMNS)
        self.epochs = Table(folder / "epochs.csv", EPOCH_COLUMNS)
        if step:
            num_epochs = step // steps_per_epoch
            try:
                self.steps.load(until=step)
                self.epochs.load(until=num_epochs)
                is_whole = (len(self.steps.rows), len(self.epochs.rows)) == (step, num_epochs)
            except (OSError, ValueError, KeyError, TypeError):
                is_whole = False
            if not is_whole:
                raise CheckpointError(
                    f"{self.steps.path} or {self.epochs.path} is damaged: not the {step} steps and"
                    f" {num_epochs} epochs of the checkpoint. To train it anew, delete {folder}."
                )
        has_events = config.tensorboard and processes.is_main()
        self._events = Events(folder, first_step=step + 1) if has_events else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._events:
            self._events.close()

    def save(self) -> None:
        self.steps.save()
        self.epochs.save()
        if self._events:
            self._events.flush()

    def record_steps(self, values: np.ndarray) -> None:
        """Adds steps: values (steps, len(STEP_METRICS))."""
        for row in values:
            # The shortest decimal that rounds to the float32: what the CSV file will hold.
            named = {k: float(str(v)) for k, v in zip(STEP_METRICS, row, strict=True)}
            named["sampled"] = int(named["sampled"])
            step = len(self.steps.rows) + 1
            self.steps.append(step=step, epoch=-(-step // self._steps_per_epoch), **named)
            if self._events:
                self._events.add("step", step, named)

    def record_epoch(self, accuracy: float, seconds: float) -> None:
        rows = self.steps.rows[-self._steps_per_epoch :]
        epoch_seconds = seconds - (self.epochs.rows[-1]["seconds"] if self.epochs.rows else 0)
        values = {
            "train_loss": float(np.mean([row["loss"] for row in rows])),
            "train_accuracy": float(np.mean([row["accuracy"] for row in rows])),
            "accuracy": accuracy,
            "percent_sam": 100 * float(np.mean(self.steps.column("sampled"))),
            "seconds": seconds,
            "images_per_second": len(rows) * self._config.batch_size / epoch_seconds,
        }
        self.epochs.append(epoch=len(self.epochs.rows) + 1, **values)
        if self._events:
            self._events.add("epoch", len(self.steps.rows), values)

    def best(self) -> tuple[float, int]:
        """The greatest accuracy of an evaluation so far, and its epoch; -1 and 0 before one."""
        return max(self._evaluations(), key=lambda pair: pair[0], default=(-1.0, 0))

    def is_out_of_patience(self) -> bool:
        """Whether --patience evaluations have been no better than one before."""
        _, best_epoch = self.best()
        since = sum(epoch > best_epoch for _, epoch in self._evaluations())
        return 0 < self._config.patience <= since

    def _evaluations(self) -> list[tuple[float, int]]:
        rows = self.epochs.rows
        return [(row["accuracy"], int(row["epoch"])) for row in rows if row["accuracy"] >= 0]

    def result(self, test_accuracy: float | None) -> dict[str, Any]:
        """What is to say of the run at its end."""
        config, last = self._config, self.epochs.rows[-1]
        best = self.best() if config.keep_best else (None, None)
        return {
            "steps": len(self.steps.rows),
            "epochs": len(self.epochs.rows),
            "accuracy": last["accuracy"],
            "evaluated_on": "validation" if config.validation else "test",
            **dict(zip(("best_accuracy", "best_epoch"), best, strict=True)),
            "test_accuracy": test_accuracy if config.validation else last["accuracy"],
            "train_loss": last["train_loss"],
            "percent_sam": last["percent_sam"],
            "seconds": last["seconds"],
            "images_per_second": len(self.steps.rows) * config.batch_size / last["seconds"],
        }

    def progress(self, seconds: float) -> dict[str, float]:
        recent = self.steps.rows[-_STEPS_PER_FETCH:]
        return {
            "loss": float(np.mean([row["loss"] for row in recent])),
            "accuracy": float(np.mean([row["accuracy"] for row in recent])),
            "percent_sam": 100 * float(np.mean(self.steps.column("sampled"))),
            "images_per_second": len(self.steps.rows) * self._config.batch_size / seconds,
        }


def _order(trainer: Trainer, seeds: Sequence[int]) -> Callable[[int], np.ndarray]:
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


class StopRequest:
    """Whether a signal asked the program to save and stop, and which one.

    Several processes get the answer yes at the same call, whichever of them had the signal.
    """

    signal: int | None = None
    calls: int = 0

    def __call__(self) -> bool:
        self.calls += 1
        if multihost_utils.reached_preemption_sync_point(self.calls):
            self.signal = signal.SIGTERM
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second SIGINT acts as usual.

    So does a second SIGTERM, but after ``jax.distributed.initialize()``: then SIGTERM is JAX's,
    which tells all processes and has them agree on a step to stop at.
    """
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
        os.write(2, b"\nSaving after this step, then stopping (once more: stop at once).\n")

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore()


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
    )


def _save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, seconds: float) -> None:
    """Saves, or leaves the checkpoint that there is; one of a later step is from a lost future."""
    before = checkpoints.latest_step()
    try:
        if before is not None and before >= step:
            checkpoints.delete(before)
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave({"seconds": seconds})
            ),
        )
    except Exception as error:
        kept = "There is none before it" if before is None else f"That of step {before} is kept"
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {checkpoints.directory}: {error}."
            f" {kept}. Once the cause is mended (a full disk?), go on with --resume."
        ) from error


def _restore(
    checkpoints: ocp.CheckpointManager, step: int | None, state: TrainState
) -> tuple[TrainState, float]:
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
        restored: Any = checkpoints.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), clock=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.clock["seconds"]
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint in {checkpoints.directory} is damaged, or of another model, method or"
            f" version: {error}\nIt is left as it is. To train this run anew, delete that folder."
        ) from error
