"""What is recorded while a run trains: its tables, and its TensorBoard events."""

from pathlib import Path
from typing import Any

import numpy as np

from examples.classification import processes
from examples.classification.config import Config
from examples.classification.trainer import STEP_METRICS
from examples.common.errors import CheckpointError
from examples.common.records import Events, Table

STEP_COLUMNS = ("step", "epoch", *STEP_METRICS)
EPOCH_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "accuracy"),
    *("percent_sam", "seconds", "images_per_second"),
)
NO_PROGRESS = {"loss": 0.0, "accuracy": 0.0, "percent_sam": 0.0, "images_per_second": 0.0}
_RECENT_STEPS = 50  # whose mean is shown


class History:
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
        if not self.steps.rows:
            return NO_PROGRESS
        recent = self.steps.rows[-_RECENT_STEPS:]
        return {
            "loss": float(np.mean([row["loss"] for row in recent])),
            "accuracy": float(np.mean([row["accuracy"] for row in recent])),
            "percent_sam": 100 * float(np.mean(self.steps.column("sampled"))),
            "images_per_second": len(self.steps.rows) * self._config.batch_size / seconds,
        }
