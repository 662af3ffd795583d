"""The cost on one accelerator, in a few minutes: steps, then training runs.

First the steps of ``steps`` on ResNet-18, ResNet-50 and a ViT in bfloat16. Then ResNet-18 trains on
Fashion-MNIST with 40 % label noise, with as many seeds as the remaining time allows.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import rich

from benchmarks import table
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import Setting
from benchmarks.accuracy.training import train
from benchmarks.cost import networks, steps
from benchmarks.cost.report import training_file
from benchmarks.paper.label_noise import check_files, make_task
from examples.common.networks import ResNet18

TRAINED = {"base": 0, "sam": 0, "arsam": 0.4, "budgeted_sam": 1 / 4}  # with their values
SETTING = Setting(rho=0.1, learning_rate=0.1, weight_decay=5e-4)


class Classifier(nn.Module):
    """ResNet-18 with the arguments of the accuracy benchmark."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train=True):
        return ResNet18(10, width=self.width, dtype=self.dtype)(x, is_training=train)


class Plan(NamedTuple):
    """What is measured, and how much of it.

    Attributes:
      networks: of which the steps are timed.
      rounds: interleaved steps of each.
      data: of ``benchmarks.paper.label_noise``.
      width: of ResNet-18 in the training runs.
      epochs: of a training run.
      max_seeds: the most seeds that are trained.
    """

    networks: dict[str, networks.Network]
    rounds: int
    data: str
    width: int
    epochs: int
    max_seeds: int


FULL = Plan(networks.ACCELERATOR, 30, "fashion_mnist", width=64, epochs=15, max_seeds=10)
SMOKE = Plan(networks.SMOKE, 2, "digits", width=2, epochs=1, max_seeds=1)


def run(csv: Path, minutes: float, folder: Path, plan: Plan) -> None:
    """Measures what the CSV files lack, and stops before the time is over."""
    if plan.data == "fashion_mnist":
        check_files(folder)  # before anything is measured
    deadline = time.monotonic() + 60 * minutes
    slowest = 0.0

    def has_time(left: str) -> bool:
        if time.monotonic() + slowest <= deadline:
            return True
        rich.print(f"The {minutes:g} minutes are over before {left}. Call again to continue.")
        return False

    for name, network in plan.networks.items():
        done = {(row["network"], row["step"]) for row in table.read(csv)}
        rows = steps.measure(name, network, plan.rounds, done, cores=0)
        while len([key for key in done if key[0] == name]) < len(steps.STEPS):
            if not has_time(f"all steps of {name} are timed"):
                return
            start = time.monotonic()
            row = next(rows)
            slowest = max(slowest, time.monotonic() - start)
            table.append(csv, row)
            done.add((name, row["step"]))
            print(f"{name}, {row['step']}: {row['milliseconds']} ms", flush=True)
    slowest = 0.0
    file = training_file(csv)
    for seed in range(plan.max_seeds):
        for method, value in TRAINED.items():
            done = {(row["method"], row["seed"]) for row in table.read(file)}
            if (method, seed) in done:
                continue
            if not has_time(f"{method} with seed {seed} is trained"):
                return
            start = time.monotonic()
            row = train_once(method, value, seed, folder, plan)
            slowest = max(slowest, time.monotonic() - start)
            table.append(file, row)
            print(f"{method}, seed {seed}: accuracy {row['accuracy']:.2f} %", flush=True)


def train_once(method: str, value: float, seed: int, folder: Path, plan: Plan) -> dict[str, Any]:
    """Trains ResNet-18 and returns its row."""
    network = Classifier(plan.width, jnp.bfloat16)
    task = make_task(plan.data, folder, network, plan.epochs, 0.4)
    setting = SETTING if method != "base" else SETTING._replace(rho=0.0)
    start = time.perf_counter()
    result = train(task, method, value, setting, seed, "test")
    return {
        "method": method,
        "value": value,
        "seed": seed,
        "epochs": plan.epochs,
        "accuracy": result.scores[-1],
        "gradients_per_step": METHODS[method].cost(result.sampled_share, value),
        "train_loss": result.train_loss,
        "seconds": round(time.perf_counter() - start, 2),
    } | table.provenance()
