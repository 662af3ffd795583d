"""The cost on one accelerator, in a few minutes: steps, then training runs.

First the steps of SGD (or AdamW), SAM, ARSAM and budgeted_sam on ResNet-18, a ViT and ResNet-50 in
bfloat16. Then ResNet-18 trains on Fashion-MNIST with 40 % label noise, with as many seeds as the
remaining time allows.
"""

import functools
import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import rich

from benchmarks import table
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import Setting, Source
from benchmarks.accuracy.training import train
from benchmarks.cost import networks, steps
from benchmarks.cost.report import training_file
from benchmarks.paper.label_noise import check_files, make_task
from examples.common import image_sets
from examples.common.networks import ResNet18

TRAINED = {"base": 0, "sam": 0, "arsam": 0.4, "budgeted_sam": 1 / 4}  # with their values
NOISE = 0.4
SETTING = Setting(rho=0.1, learning_rate=0.1, weight_decay=5e-4)


class Classifier(nn.Module):
    """ResNet-18 with the arguments of the accuracy benchmark."""

    width: int

    @nn.compact
    def __call__(self, x, train=True):
        return ResNet18(10, width=self.width, dtype=jnp.bfloat16)(x, is_training=train)


class Plan(NamedTuple):
    """What is measured, and how much of it."""

    networks: dict[str, networks.Network]  # of which the steps are timed
    data: str  # of benchmarks.paper.label_noise
    width: int  # of ResNet-18 in the training runs
    epochs: int  # of a training run
    max_seeds: int


FULL = Plan(networks.ACCELERATOR, "fashion_mnist", width=64, epochs=15, max_seeds=10)
SMOKE = Plan(networks.SMOKE, "digits", width=2, epochs=1, max_seeds=1)


class OutOfTime(Exception):  # noqa: N818 - it is not an error
    """The next part of the work might not be finished in time."""


class Clock:
    """Ends the program before its time is over, judged by the longest part of the work so far."""

    def __init__(self, minutes: float):
        self._started = time.monotonic()
        self._end = self._started + 60 * minutes
        self._longest = 0.0

    def check(self, task: str) -> None:
        """Is called before each part of the work. Raises ``OutOfTime`` if it may take too long."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._started)
        self._started = now
        if now + self._longest > self._end:
            raise OutOfTime(task)
        print(task, flush=True)


def run(csv: Path, minutes: float, folder: Path, plan: Plan) -> None:
    """Measures what the CSV files lack, and stops before the time is over."""
    if plan is FULL:  # checked before anything is measured
        if jax.default_backend() == "cpu":
            raise SystemExit(
                "--accelerator: JAX finds no accelerator. Install it for yours, for example with"
                " the extra arsam-jax[cuda12], or try the program with --smoke."
            )
        check_files(folder)
    clock = Clock(minutes)
    try:
        done = {row["network"] for row in table.read(csv)}
        for name, network in plan.networks.items():
            if name not in done:
                table.append(csv, *steps.measure(name, network, TRAINED, 0, clock.check))
        done = {(row["method"], row["seed"]) for row in table.read(training_file(csv))}
        for seed, method in itertools.product(range(plan.max_seeds), TRAINED):
            if (method, seed) not in done:
                clock.check(f"training ResNet-18 with {method}, seed {seed}")
                table.append(training_file(csv), train_once(method, seed, folder, plan))
    except OutOfTime as left:
        rich.print(f"The {minutes:g} minutes are over before: {left}. Call again to continue.")


@functools.cache
def read(data: str, part: str, folder: Path) -> tuple[Any, Any]:
    """Images with an axis of channels, in [-1, 1], and labels."""
    images, labels = (
        image_sets.digits(part) if data == "digits" else image_sets.fashion_mnist(part, folder)
    )
    images = images.reshape(len(images), *images.shape[1:3], 1)
    return 2 * images.astype("float32") / images.max() - 1, labels.astype("int32")


def train_once(method: str, seed: int, folder: Path, plan: Plan) -> dict[str, Any]:
    """Trains ResNet-18 and returns its row."""
    value = TRAINED[method]
    network: Any = Classifier(plan.width)
    task = make_task(plan.data, folder, plan.epochs, NOISE)
    parts = (functools.partial(read, plan.data, part, folder) for part in ("train", "test"))
    task = task._replace(network=network, source=Source(*parts))
    setting = SETTING if method != "base" else SETTING._replace(rho=0.0)
    start = time.perf_counter()
    result = train(task, method, value, setting, seed, "test")
    return {
        "method": method,
        "value": value,
        "seed": seed,
        "noise": NOISE,
        "epochs": plan.epochs,
        "accuracy": result.scores[-1],
        "gradients_per_step": METHODS[method].cost(result.sampled_share, value),
        "train_loss": result.train_loss,
        "seconds": round(time.perf_counter() - start, 2),
    } | table.provenance()
