"""The training loop of all tasks: it trains, records, saves and resumes a run."""

import abc
import contextlib
import dataclasses
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
from examples.common import checkpoints, devices, methods
from examples.common.comparison.options import Options
from examples.common.errors import ConfigError, StoppedError
from examples.common.methods import METHODS
from examples.common.optimizers import make_optimizer, make_schedule, pull_back
from examples.common.pipeline import Order

RESULT_FILE = "result.json"
CHECKPOINT_FILE = "checkpoint"
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


@dataclasses.dataclass
class Record:
    """What is recorded of a run. A checkpoint holds it together with the state.

    Attributes:
      seconds: the training time, without compilation and evaluation.
      losses: the loss of each step.
      sampled: 1 for each step with a second gradient, otherwise 0.
      evaluations: the quick measures of each evaluation, with the step, epoch and seconds.
    """

    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)
    sampled: list[int] = dataclasses.field(default_factory=list)
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def percent_sam(self) -> float:
        return 100 * sum(self.sampled) / max(1, self.step)

    def mean_loss(self, num_steps: int) -> float:
        """The mean of the last steps, 0 before the first one."""
        last = self.losses[-num_steps:]
        return sum(last) / max(1, len(last))

    def add_steps(self, values: np.ndarray, events: Any = None) -> None:
        """Adds steps: values (steps, 2), the loss and whether the step was sampled."""
        for loss, sampled in values:
            # The shortest decimal that rounds to the float32 is what the CSV file will hold.
            self.losses.append(float(str(loss)))
            self.sampled.append(int(sampled))
            if events:
                events.add_scalar("step/loss", self.losses[-1], self.step)
                events.add_scalar("step/sampled", self.sampled[-1], self.step)

    def add_evaluation(self, epoch: float, measured: dict[str, float], events: Any = None) -> None:
        place = {"step": self.step, "epoch": epoch, "seconds": self.seconds}
        self.evaluations.append(place | measured)
        if events:
            for name, value in measured.items():
                events.add_scalar(f"evaluation/{name}", value, self.step)

    def write(self, folder: Path) -> None:
        """Writes the steps and the evaluations to files for other programs."""
        rows = enumerate(zip(self.losses, self.sampled, strict=True), 1)
        lines = ["step,loss,sampled", *(f"{i},{loss},{sampled}" for i, (loss, sampled) in rows)]
        checkpoints.write_bytes(folder / "steps.csv", ("\n".join(lines) + "\n").encode())
        checkpoints.write_json(folder / "evaluations.json", self.evaluations)


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
        self.schedule = make_schedule(
            options.schedule,
            options.learning_rate,
            self.total_steps,
            warmup_steps=round(options.warmup * self.total_steps),
            decay_at=options.decay_at,
        )
        self._optimizers: dict[str, optax.GradientTransformation] = {}
        self._steps: dict[str, Any] = {}

    def make_optimizer(self, method: str, seed: int) -> optax.GradientTransformation:
        options = self.options
        base = make_optimizer(
            options.optimizer, self.schedule, options.weight_decay, options.momentum
        )
        return methods.make_method(
            method,
            options,
            optax.chain(pull_back(), base),
            schedule=self.schedule,
            steps_per_epoch=self.steps_per_epoch,
            num_examples=self.task.num_examples,
            seed=seed,
        )

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
        on_progress: Callable[[Record], None] = lambda record: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Trains from the checkpoint if there is one. Returns the content of RESULT_FILE.

        Args:
          on_progress: called at the start and then now and then, with what is recorded so far.
          should_stop: called after every step.

        Raises:
          StoppedError: if ``should_stop`` returned true. Everything is saved.
          CheckpointError: if a checkpoint cannot be written or read, or belongs to another run.
        """
        options, task = self.options, self.task
        folder.mkdir(parents=True, exist_ok=True)
        state, record = self.new_state(method, seed), Record()
        checkpoint = folder / CHECKPOINT_FILE
        if checkpoint.exists():
            saved, values = checkpoints.restore(checkpoint, state)
            state, record = devices.replicate(self.mesh, saved), Record(**values)
        step = record.step
        devices.require_same(f"the step of {checkpoint}", step)
        with contextlib.ExitStack() as stack:
            events = None
            if options.tensorboard and devices.is_main():
                events = stack.enter_context(_events(folder, step + 1))
            batches = stack.enter_context(contextlib.closing(self._batches(seed, step)))
            previous = batch = next(batches)
            take_step = self.step_fn(method, state, batch)
            on_progress(record)
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
                record.add_steps(np.stack(jax.device_get(pending)), events)  # waits for the device
                pending = []
                record.seconds += time.perf_counter() - started
                if is_evaluation:
                    measured = task.evaluate(devices.local(self.mesh, state))
                    record.add_evaluation(step / self.steps_per_epoch, measured, events)
                on_progress(record)
                is_late = time.perf_counter() - last_save >= options.checkpoint_seconds
                if is_end or is_stopping or devices.decided_by_main(is_late):
                    if devices.is_main():
                        record.write(folder)
                        checkpoints.save(checkpoint, state, dataclasses.asdict(record))
                    last_save = time.perf_counter()
                if is_stopping and not is_end:
                    raise StoppedError(f"{method}, seed {seed}, at step {step}")
                started = time.perf_counter()
        with TemporaryDirectory() as unused:  # every process measures, and the main one writes
            place = folder if devices.is_main() else Path(unused)
            measures = task.finish(devices.local(self.mesh, state), place)
        result = {
            "method": method,
            "seed": seed,
            "steps": step,
            "train_loss": record.mean_loss(self.steps_per_epoch),
            "percent_sam": record.percent_sam,
            "seconds": record.seconds,
            "examples_per_second": step * options.batch_size / record.seconds,
            "measures": measures,
            "evaluations": record.evaluations,
            "environment": _environment(self.mesh.size),
        }
        if devices.is_main():
            checkpoints.write_json(folder / RESULT_FILE, result)
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


def _events(folder: Path, first_step: int) -> Any:
    """TensorBoard event files, which replace what earlier files hold from a step on."""
    from tensorboardX import SummaryWriter  # slow to import

    # The suffix separates two writers that start in the same second.
    suffix = f".from{first_step}"
    return SummaryWriter(str(folder), purge_step=first_step, filename_suffix=suffix)


def _environment(num_devices: int) -> dict[str, Any]:
    """Where a run was trained."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": num_devices,
        "processes": jax.process_count(),
        "system": platform.platform(),
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
        "arsam-jax": arsam_jax.__version__,
    }
