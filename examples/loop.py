"""The loop that trains, records, saves and resumes a run."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from examples import data, processes
from examples.records import Table, write_json
from examples.trainer import STEP_METRICS, Trainer, TrainState

RESULT_FILE = "result.json"
STEP_COLUMNS = ("step", "epoch", *STEP_METRICS)
EPOCH_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "test_accuracy"),
    *("percent_sam", "seconds", "images_per_second"),
)
NO_PROGRESS = {"loss": 0.0, "accuracy": 0.0, "percent_sam": 0.0, "images_per_second": 0.0}
_STEPS_PER_FETCH = 50  # metrics stay on the device in between, so that no step waits for the host


class StoppedError(Exception):
    """Stopped on request, after saving; the message says where."""


def train(
    trainer: Trainer,
    step_fn: Callable,
    method: str,
    seed: int,
    folder: Path,
    *,
    on_progress: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains one method with one seed, from the checkpoint in ``folder`` if there is one.

    Returns what is then also in RESULT_FILE, the mark of a finished run.

    Raises:
      StoppedError: if ``should_stop`` said so; everything is saved.
    """
    config, dataset = trainer.config, trainer.data
    folder.mkdir(parents=True, exist_ok=True)
    labels = data.add_symmetric_noise(
        dataset.train_labels, config.label_noise, dataset.num_classes, seed
    )
    steps = Table(folder / "steps.csv", STEP_COLUMNS)
    epochs = Table(folder / "epochs.csv", EPOCH_COLUMNS)
    state, step, seconds = trainer.new_state(method, seed), 0, 0.0

    with _checkpoints(folder) as checkpoints:
        saved = checkpoints.latest_step()
        processes.require_same(f"the step of the checkpoint in {folder}", saved)
        if saved is not None:
            state, step, seconds = _restore(checkpoints, saved, state)
            steps.load(until=step)
            epochs.load(until=step // trainer.steps_per_epoch)

        def save():
            # The tables first: whatever they hold beyond the checkpoint is dropped on resuming.
            if processes.is_main():
                steps.save()
                epochs.save()
            _save(checkpoints, step, state, seconds)

        order = data.epoch_order(len(labels), seed, step // trainer.steps_per_epoch)
        pending, last_save, started = [], time.perf_counter(), time.perf_counter()
        while step < trainer.total_steps:
            epoch, index = divmod(step, trainer.steps_per_epoch)
            if not index:
                order = data.epoch_order(len(labels), seed, epoch)
            batch = order[index * config.batch_size : (index + 1) * config.batch_size]
            state, metrics = step_fn(state, *trainer.batch(labels, batch))
            pending.append(metrics)
            step += 1

            is_epoch_end = step % trainer.steps_per_epoch == 0
            is_stopping = should_stop()
            if not (is_epoch_end or is_stopping or len(pending) == _STEPS_PER_FETCH):
                continue
            _record(steps, epoch + 1, pending)  # waits for the device
            pending = []
            seconds += time.perf_counter() - started
            if is_epoch_end:
                is_evaluated = (epoch + 1) % config.evaluate_every == 0
                accuracy = np.nan
                if is_evaluated or step == trainer.total_steps:
                    accuracy = trainer.test_accuracy(state)
                _record_epoch(epochs, steps, epoch + 1, accuracy, seconds, trainer)
            on_progress(step, _progress(steps, seconds, config.batch_size))
            is_time_over = time.perf_counter() - last_save >= config.checkpoint_seconds
            if (
                is_stopping
                or step == trainer.total_steps
                or processes.decided_by_main(is_time_over)
            ):
                save()
                last_save = time.perf_counter()
            if is_stopping and step < trainer.total_steps:
                raise StoppedError(
                    f"{method}, seed {seed}, at step {step} of {trainer.total_steps}"
                )
            started = time.perf_counter()

    result = {
        "method": method,
        "seed": seed,
        "steps": step,
        "test_accuracy": epochs.rows[-1]["test_accuracy"],
        "train_loss": epochs.rows[-1]["train_loss"],
        "percent_sam": epochs.rows[-1]["percent_sam"],
        "seconds": seconds,
        "images_per_second": step * config.batch_size / seconds,
    }
    if processes.is_main():
        write_json(folder / RESULT_FILE, result)
    return result


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


def _record(steps: Table, epoch: int, pending: list[jax.Array]) -> None:
    for values in jax.device_get(pending):
        # The shortest decimal that rounds to the float32: what the CSV file will hold.
        named = {k: float(str(v)) for k, v in zip(STEP_METRICS, values, strict=True)}
        named["sampled"] = int(named["sampled"])
        steps.append(step=len(steps.rows) + 1, epoch=epoch, **named)


def _record_epoch(
    epochs: Table, steps: Table, epoch: int, test_accuracy: float, seconds: float, trainer: Trainer
) -> None:
    rows = steps.rows[-trainer.steps_per_epoch :]
    epoch_seconds = seconds - (epochs.rows[-1]["seconds"] if epochs.rows else 0)
    epochs.append(
        epoch=epoch,
        train_loss=float(np.mean([row["loss"] for row in rows])),
        train_accuracy=float(np.mean([row["accuracy"] for row in rows])),
        test_accuracy=test_accuracy,
        percent_sam=100 * float(np.mean(steps.column("sampled"))),
        seconds=seconds,
        images_per_second=len(rows) * trainer.config.batch_size / epoch_seconds,
    )


def _progress(steps: Table, seconds: float, batch_size: int) -> dict[str, float]:
    recent = steps.rows[-_STEPS_PER_FETCH:]
    return {
        "loss": float(np.mean([row["loss"] for row in recent])),
        "accuracy": float(np.mean([row["accuracy"] for row in recent])),
        "percent_sam": 100 * float(np.mean(steps.column("sampled"))),
        "images_per_second": len(steps.rows) * batch_size / seconds,
    }


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        (folder / "checkpoint").absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
    )


def _save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, seconds: float):
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave({"seconds": seconds})
        ),
    )


def _restore(
    checkpoints: ocp.CheckpointManager, step: int, state: TrainState
) -> tuple[TrainState, int, float]:
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    restored: Any = checkpoints.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(target), clock=ocp.args.JsonRestore()
        ),
    )
    return restored.state, step, restored.clock["seconds"]
