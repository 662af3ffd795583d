"""The training loop of all tasks: it trains, records, saves and resumes a run."""

import abc
import contextlib
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import arsam_jax
from examples.common import checkpoints, devices, methods, processes
from examples.common.comparison.options import Options
from examples.common.errors import CheckpointError, ConfigError, StoppedError
from examples.common.methods import METHODS
from examples.common.optimizers import make_optimizer, make_schedule, pull_back
from examples.common.pipeline import Order
from examples.common.records import Events, Table, write_json

RESULT_FILE = "result.json"
CHECKPOINT_FILE = "checkpoint"
_STEP_COLUMNS = ("step", "loss", "sampled")
_STEPS_PER_FETCH = 50  # losses stay on the device in between, so that no step waits for the host
_BATCHES_AHEAD = 2  # of each thread that reads


class Task(abc.ABC):
    """What is trained.

    Attributes:
      num_examples: the number of training examples.
      measures: what ``finish`` returns and the table shows: for each name the heading, and the
        format of a number. The first measure decides which method is best.
      description: a sentence on the data and the network, which the program prints.
    """

    num_examples: int
    measures: dict[str, tuple[str, str]]
    description = ""

    @abc.abstractmethod
    def new_state(self, tx: optax.GradientTransformation, seed: int) -> Any:
        """A Flax ``TrainState`` before the first step.

        Its ``tx`` is the given one, or a chain of that and ``optimizers.multiply_rates``.
        """

    def prepare(self, state: Any, method: str) -> Any:
        """Adds to a new state what the task needs for a particular method."""
        del method
        return state

    @abc.abstractmethod
    def batch(self, index: np.ndarray, step: int, seed: int) -> Any:
        """Arrays of the training examples ``index``, a tree with one row for each.

        They are a function of the arguments: augmentation draws from ``step`` and ``seed``.
        """

    @abc.abstractmethod
    def train_step(self, state: Any, batch: Any, previous: Any) -> tuple[Any, jax.Array]:
        """Returns the next state and the loss. ``previous`` is the batch of the step before.

        The optimizer takes ``pull_back`` among its extra arguments, see ``optimizers.pull_back``.
        """

    @abc.abstractmethod
    def evaluate(self, state: Any) -> dict[str, float]:
        """Quick measures for the curves during training."""

    @abc.abstractmethod
    def finish(self, state: Any, folder: Path) -> dict[str, float]:
        """All ``measures`` at the end. Figures are written to ``folder``."""


class Trainer:
    """Trains any method with any seed. The compiled step of a method serves all seeds."""

    def __init__(self, options: Options, task: Task):
        self.options, self.task = options, task
        if options.batch_size > task.num_examples:
            raise ConfigError(
                f"--batch-size {options.batch_size} is more than the {task.num_examples} examples"
            )
        self.mesh = devices.make_mesh(options.devices)
        if options.batch_size % self.mesh.size:
            raise ConfigError(
                f"--batch-size {options.batch_size} must be a multiple of the {self.mesh.size}"
                " devices"
            )
        self.steps_per_epoch = task.num_examples // options.batch_size
        if options.smoke:
            self.steps_per_epoch = min(2, self.steps_per_epoch)
        self.total_steps = options.epochs * self.steps_per_epoch
        if self.total_steps >= 2**31:
            raise ConfigError(f"--epochs {options.epochs} are more than 2**31 steps")
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

    def make_optimizer(self, method: str, seed: int) -> optax.GradientTransformation:
        options = self.options
        base = make_optimizer(
            options.optimizer,
            self.schedule,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
        )
        training = methods.Training(
            options=options,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            num_examples=self.task.num_examples,
            schedule=self.schedule,
            seed=seed,
        )
        return methods.make_method(method, training, optax.chain(pull_back(), base))

    def new_state(self, method: str, seed: int) -> Any:
        """The state before the first step, on every device.

        Only the arrays depend on the seed. The functions of the optimizer are those of the first
        seed, so that one compiled step serves all.
        """
        state = self.task.new_state(self.make_optimizer(method, seed), seed)
        state = self.task.prepare(state, method)
        tx = self._optimizers.setdefault(method, state.tx)
        return devices.replicate(self.mesh, state.replace(step=jnp.zeros([], jnp.int32), tx=tx))

    def step_fn(self, method: str, state: Any, batch: Any) -> Any:
        """The compiled step, so that the measured time contains no compilation."""
        if method not in self._steps:

            def step(state, batch, previous):
                state, loss = self.task.train_step(state, batch, previous)
                sampled = 0.0
                if method in METHODS:
                    sampled = arsam_jax.get_metrics(state.opt_state).sampled
                return state, jnp.stack([jnp.asarray(x, jnp.float32) for x in (loss, sampled)])

            whole, split = devices.whole(self.mesh), devices.split(self.mesh)
            jitted = jax.jit(
                step,
                in_shardings=(whole, split, split),
                out_shardings=whole,
                donate_argnums=0,
            )
            self._steps[method] = jitted.lower(state, batch, batch).compile()
        return self._steps[method]

    def train(
        self,
        method: str,
        seed: int,
        folder: Path,
        on_progress: Callable[[int, float, float], None] = lambda step, loss, percent_sam: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Trains from the checkpoint if there is one. Returns the content of RESULT_FILE.

        Args:
          on_progress: called at the start and then now and then, with the step, the mean loss of
            the last steps and the %SAM.
          should_stop: called after every step.

        Raises:
          StoppedError: if ``should_stop`` returned true. Everything is saved.
          CheckpointError: if a checkpoint cannot be written or read, or belongs to another run.
        """
        options, task = self.options, self.task
        folder.mkdir(parents=True, exist_ok=True)
        run = _Records(folder, self.steps_per_epoch)
        state, step, seconds = self.new_state(method, seed), 0, 0.0
        checkpoint = folder / CHECKPOINT_FILE
        if checkpoint.exists():
            step, seconds, saved = checkpoints.restore(checkpoint, state)
            state = devices.replicate(self.mesh, saved)
            run.load(step)
        processes.require_same(f"the step of {checkpoint}", step)
        with contextlib.ExitStack() as stack:
            if options.tensorboard and processes.is_main():
                run.events = stack.enter_context(Events(folder, first_step=step + 1))
            batches = stack.enter_context(contextlib.closing(self._batches(seed, step)))
            previous = batch = next(batches)
            take_step = self.step_fn(method, state, batch)
            on_progress(step, run.mean_loss(_STEPS_PER_FETCH), run.percent_sam())
            pending, last_save, started = [], time.perf_counter(), time.perf_counter()
            while step < self.total_steps:
                batch = next(batches)
                state, values = take_step(state, batch, previous)
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
                run.add_steps(np.stack(jax.device_get(pending)))  # waits for the device
                pending = []
                seconds += time.perf_counter() - started
                if is_evaluation:
                    measured = task.evaluate(devices.local(self.mesh, state))
                    run.add_evaluation(step, seconds, measured)
                on_progress(step, run.mean_loss(_STEPS_PER_FETCH), run.percent_sam())
                is_late = time.perf_counter() - last_save >= options.checkpoint_seconds
                if is_end or is_stopping or processes.decided_by_main(is_late):
                    if processes.is_main():
                        run.save()  # first: what it holds beyond the checkpoint is dropped
                        checkpoints.save(checkpoint, checkpoints.Checkpoint(step, seconds, state))
                    last_save = time.perf_counter()
                if is_stopping and not is_end:
                    raise StoppedError(f"{method}, seed {seed}, at step {step}")
                started = time.perf_counter()
        result = {
            "method": method,
            "seed": seed,
            "steps": step,
            "train_loss": run.mean_loss(self.steps_per_epoch),
            "percent_sam": run.percent_sam(),
            "seconds": seconds,
            "examples_per_second": step * options.batch_size / seconds,
            "measures": self._finish(state, folder),
            "evaluations": run.evaluations,
            "environment": _environment(self.mesh.size),
        }
        if processes.is_main():
            write_json(folder / RESULT_FILE, result)
        return result

    def _batches(self, seed: int, start: int) -> Generator[Any, None, None]:
        """The batch before the step ``start``, which is its own before the first, and all others.

        With ``--input-threads`` threads read ahead.
        """
        options = self.options
        own = devices.own_rows(options.batch_size)
        order = Order(self.task.num_examples, options.batch_size, seed, own)

        def read(step: int) -> Any:
            return self.task.batch(order(step), step, seed)

        steps = deque([max(0, start - 1), *range(start, self.total_steps)])
        with ThreadPoolExecutor(max(1, options.input_threads)) as pool:
            ahead = deque()
            try:
                while steps or ahead:
                    while steps and len(ahead) < _BATCHES_AHEAD * options.input_threads:
                        ahead.append(pool.submit(read, steps.popleft()))
                    batch = ahead.popleft().result() if ahead else read(steps.popleft())
                    yield devices.join(self.mesh, batch)
            finally:
                pool.shutdown(cancel_futures=True)

    def _finish(self, state: Any, folder: Path) -> dict[str, float]:
        """All measures. Every process computes them, and the main one writes figures."""
        state = devices.local(self.mesh, state)
        if processes.is_main():
            return self.task.finish(state, folder)
        with TemporaryDirectory() as unused:
            return self.task.finish(state, Path(unused))


class _Records:
    """What is recorded during a run: the loss of each step, and the evaluations."""

    def __init__(self, folder: Path, steps_per_epoch: int):
        self.steps = Table(folder / "steps.csv", _STEP_COLUMNS)
        self.evaluations: list[dict[str, float]] = []
        self.events: Events | None = None
        self._folder, self._steps_per_epoch = folder, steps_per_epoch
        self._num_sampled = 0

    def load(self, step: int) -> None:
        """Reads what was recorded up to a step."""
        file = self._folder / "evaluations.json"
        try:
            self.steps.load(until=step)
            evaluations = json.loads(file.read_text(encoding="utf-8"))
            self.evaluations = [row for row in evaluations if row["step"] <= step]
            self._num_sampled = int(sum(self.steps.column("sampled")))
            is_whole = self.steps.column("step") == list(range(1, step + 1))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise CheckpointError(
                f"{self.steps.path} or {file} is damaged: it does not hold the {step} steps of the"
                f" checkpoint. To train this run again, delete {self._folder}."
            )

    def add_steps(self, values: np.ndarray) -> None:
        """Adds steps: values (steps, 2), the loss and whether the step was sampled."""
        for loss, sampled in values:
            step = len(self.steps.rows) + 1
            # The shortest decimal that rounds to the float32 is what the CSV file will hold.
            row = {"loss": float(str(loss)), "sampled": int(sampled)}
            self.steps.append(step=step, **row)
            self._num_sampled += row["sampled"]
            if self.events:
                self.events.add("step", step, row)

    def add_evaluation(self, step: int, seconds: float, measured: dict[str, float]) -> None:
        epoch = step / self._steps_per_epoch
        self.evaluations.append({"step": step, "epoch": epoch, "seconds": seconds} | measured)
        if self.events:
            self.events.add("evaluation", step, measured)

    def save(self) -> None:
        self.steps.save()
        write_json(self._folder / "evaluations.json", self.evaluations)
        if self.events:
            self.events.flush()

    def mean_loss(self, num_steps: int) -> float:
        """The mean of the last steps, 0 before the first one."""
        rows = self.steps.rows[-num_steps:]
        return sum(row["loss"] for row in rows) / max(1, len(rows))

    def percent_sam(self) -> float:
        return 100 * self._num_sampled / max(1, len(self.steps.rows))


def _environment(num_devices: int) -> dict[str, Any]:
    """Where a run was trained."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": num_devices,
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "arsam-jax": arsam_jax.__version__,
    }
