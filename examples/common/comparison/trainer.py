"""Trains the methods of a comparison: records, saves and resumes."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from examples.common import checkpoints, devices, methods
from examples.common.comparison.options import BASE, Options
from examples.common.errors import CheckpointError, ConfigError, StoppedError
from examples.common.optimizers import make_optimizer, make_schedule, pull_back
from examples.common.pipeline import Order
from examples.common.records import Table, write_json

RESULT_FILE = "result.json"
_STEP_COLUMNS = ("step", "loss", "sampled")
_STEPS_PER_FETCH = 50  # losses stay on the device in between, so that no step waits for the host


class Task(Protocol):
    """What is trained.

    Attributes:
      num_examples: for training.
      measures: what ``finish`` returns and a table shows: its heading, and the format of a number.
        The first decides which method is best.
    """

    num_examples: int
    measures: dict[str, tuple[str, str]]

    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        """A Flax ``TrainState`` before the first step.

        Its ``tx`` is the one given, or a chain of that and ``optimizers.multiply_rates``.
        """
        ...

    def batch(self, index: np.ndarray, step: int, seed: int) -> Any:
        """Arrays of the training examples ``index``, a tree with one row for each.

        They are a function of the arguments: augmentation draws from ``step`` and ``seed``.
        """
        ...

    def train_step(self, state: Any, batch: Any, previous: Any) -> tuple[Any, jax.Array]:
        """The next state, and the loss. ``previous`` is the batch of the step before.

        The optimizer takes ``pull_back`` among its extra arguments, see ``optimizers.pull_back``.
        """
        ...

    def evaluate(self, state: Any) -> dict[str, float]:
        """Quick measures, for the curves during the training."""
        ...

    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        """All ``measures`` at the end. Pictures go into ``folder``."""
        ...


class Trainer:
    """Trains any method with any seed; what is compiled for a method serves all seeds."""

    def __init__(self, options: Options, task: Task):
        self.options, self.task = options, task
        if options.batch_size > task.num_examples:
            raise ConfigError(
                f"--batch-size {options.batch_size} is more than the {task.num_examples} examples"
            )
        self.mesh = devices.make_mesh(options.devices)
        if options.batch_size % self.mesh.size:
            raise ConfigError(
                f"--batch-size {options.batch_size} is no multiple of the {self.mesh.size} devices"
            )
        self.steps_per_epoch = task.num_examples // options.batch_size
        self.total_steps = options.epochs * self.steps_per_epoch
        try:
            self.schedule = make_schedule(
                options.schedule,
                options.learning_rate,
                self.total_steps,
                warmup_steps=round(options.warmup * self.total_steps),
                decay_at=options.decay_at,
            )
        except ValueError as error:
            raise ConfigError(f"--warmup {options.warmup:g}: {error}") from error
        self._optimizers: dict[str, optax.GradientTransformation] = {}
        self._steps: dict[str, Any] = {}
        self.compile_seconds: dict[str, float] = {}
        """Of each method that is compiled."""

    def make_optimizer(self, method: str, seed: int) -> optax.GradientTransformation:
        options = self.options
        base = make_optimizer(
            options.optimizer,
            self.schedule,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
        )
        training = methods.Training(
            *(options, self.total_steps, self.steps_per_epoch, self.task.num_examples),
            *(self.schedule, seed),
        )
        return methods.make_method(method, training, optax.chain(pull_back(), base))

    def new_state(self, method: str, seed: int) -> Any:
        """The seed is in the arrays alone: the optimizer's functions are the first seed's."""
        tx = self.make_optimizer(method, seed)
        state = self.task.new_state(tx, seed)
        state = state.replace(
            step=jnp.zeros([], jnp.int32), tx=self._optimizers.setdefault(method, state.tx)
        )
        return devices.replicate(self.mesh, state)

    def step_fn(self, method: str, state: Any, batch: Any) -> Any:
        """The compiled step, so that no compilation falls into the measured time."""
        if method not in self._steps:

            def step(state, batch, previous):
                state, loss = self.task.train_step(state, batch, previous)
                sampled = 0.0
                if method != BASE:
                    sampled = arsam_jax.get_metrics(state.opt_state).sampled
                return state, jnp.stack([jnp.asarray(x, jnp.float32) for x in (loss, sampled)])

            started = time.perf_counter()
            whole, split = devices.whole(self.mesh), devices.split(self.mesh)
            jitted = jax.jit(
                step,
                in_shardings=(whole, split, split),
                out_shardings=whole,
                donate_argnums=0,
            )
            self._steps[method] = jitted.lower(state, batch, batch).compile()
            self.compile_seconds[method] = time.perf_counter() - started
        return self._steps[method]

    def train(
        self,
        method: str,
        seed: int,
        folder: Path,
        on_progress: Callable[[int, float, float], None] = lambda step, loss, percent_sam: None,
        should_stop: Callable[[], bool] = lambda: False,
        on_start: Callable[[int], None] = lambda step: None,
    ) -> dict[str, Any]:
        """Trains from the checkpoint if there is one; returns what is then in RESULT_FILE.

        Args:
          on_progress: called now and then, with the step, the loss of the last ones and the %SAM.
          should_stop: called after every step.
          on_start: called with the step to start from, when all is compiled.

        Raises:
          StoppedError: if ``should_stop`` said so; everything is saved.
          CheckpointError: if a checkpoint cannot be written or read, or is another run's.
        """
        options, task = self.options, self.task
        folder.mkdir(parents=True, exist_ok=True)
        order = Order(task.num_examples, options.batch_size, seed)
        state, step, seconds = self.new_state(method, seed), 0, 0.0
        steps, evaluations = Table(folder / "steps.csv", _STEP_COLUMNS), list[dict[str, float]]()
        with checkpoints.open_in(folder / "checkpoint") as saved:
            latest = saved.latest_step()
            if latest is not None:
                step = latest
                state, seconds = checkpoints.restore(saved, step, state)
                steps, evaluations = _load(folder, step)
            before = max(0, step - 1)
            previous = batch = task.batch(order(before), before, seed)
            run = self.step_fn(method, state, batch)
            on_start(step)
            pending, last_save, started = [], time.perf_counter(), time.perf_counter()
            while step < self.total_steps:
                batch = task.batch(order(step), step, seed)
                state, values = run(state, batch, previous)
                previous = batch
                pending.append(values)
                step += 1
                is_end, is_stopping = step == self.total_steps, should_stop()
                is_evaluation = bool(options.evaluate_every) and (
                    step % (options.evaluate_every * self.steps_per_epoch) == 0
                )
                is_full = len(pending) == _STEPS_PER_FETCH
                if not (is_end or is_stopping or is_evaluation or is_full):
                    continue
                for loss, sampled in np.stack(jax.device_get(pending)):  # waits for the device
                    count = len(steps.rows) + 1
                    steps.append(step=count, loss=float(str(loss)), sampled=int(sampled))
                pending = []
                seconds += time.perf_counter() - started
                if is_evaluation:
                    evaluations.append({"step": step, "seconds": seconds} | task.evaluate(state))
                percent_sam = 100 * float(np.mean(steps.column("sampled")))
                on_progress(
                    step, float(np.mean(steps.column("loss")[-_STEPS_PER_FETCH:])), percent_sam
                )
                is_time_over = time.perf_counter() - last_save >= options.checkpoint_seconds
                if is_end or is_stopping or is_time_over:
                    steps.save()  # first: what it holds beyond the checkpoint is dropped
                    write_json(folder / "evaluations.json", evaluations)
                    checkpoints.save(saved, step, state, seconds)
                    last_save = time.perf_counter()
                if is_stopping and not is_end:
                    raise StoppedError(f"{method}, seed {seed}, at step {step}")
                started = time.perf_counter()
        result = {
            "method": method,
            "seed": seed,
            "steps": step,
            "train_loss": float(np.mean(steps.column("loss")[-self.steps_per_epoch :])),
            "percent_sam": 100 * float(np.mean(steps.column("sampled"))),
            "seconds": seconds,
            "examples_per_second": step * options.batch_size / seconds,
            "measures": task.finish(state, folder),
            "evaluations": evaluations,
        }
        write_json(folder / RESULT_FILE, result)
        return result


def _load(folder: Path, step: int) -> tuple[Table, list[dict[str, float]]]:
    """The records up to a step."""
    steps = Table(folder / "steps.csv", _STEP_COLUMNS)
    try:
        steps.load(until=step)
        evaluations = json.loads((folder / "evaluations.json").read_text())
    except (OSError, ValueError, KeyError, TypeError):
        steps.rows, evaluations = [], []
    if len(steps.rows) != step:
        raise CheckpointError(
            f"{steps.path} is damaged: not the {step} steps of the checkpoint. To train it anew,"
            f" delete {folder}."
        )
    return steps, [row for row in evaluations if row["step"] <= step]
