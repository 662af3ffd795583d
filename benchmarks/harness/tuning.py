"""What the studies of ``WORKLOADS`` share: what a run is, its row, and the search for settings.

Every method gets the same search: the same quasi-random draws of ρ, learning rate and weight decay,
on tuning seeds, scored on clean labels of examples held out from the training set.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.harness import search, table
from benchmarks.harness.search import Done
from benchmarks.harness.training import MakeLink, Whole, train
from benchmarks.harness.workloads import WORKLOADS, Setting, Workload

TUNING_SEEDS = (100, 101)
DRAWS = 8  # of the search whose results are kept
RANGES = Setting(rho=(1 / 3, 4), learning_rate=(1 / 4, 2), weight_decay=(1 / 2, 8))  # factors
Point = tuple[str, str, float]  # workload, method, share


class Run(NamedTuple):
    """What identifies a run. `share` is the value of the method's price knob."""

    stage: str
    workload: str
    method: str
    share: float
    seed: int
    rho: float
    learning_rate: float
    weight_decay: float


def candidates(center: Setting, draws: int) -> list[Setting]:
    """The settings every method is tried with: `center`, then Halton points around it."""
    ranges = [(x * low, x * high) for x, (low, high) in zip(center, RANGES, strict=True)]
    around = search.candidates(ranges, draws - 1, bases=(2, 3, 5), digits=4)
    return [center, *(Setting(*values) for values in around)]


def tuning_runs(point: Point, draws: int) -> list[Run]:
    """The search of one method at one share; the same settings and seeds for all of them."""
    if draws == 1:
        return []
    settings = candidates(WORKLOADS[point[0]].setting, draws)
    return [run for setting in settings for run in _tries(point, setting)]


def best_setting(point: Point, draws: int, done: Done) -> Setting:
    """The candidate of the highest mean validation accuracy; the earlier one of equals."""
    settings = candidates(WORKLOADS[point[0]].setting, draws)
    if draws == 1:
        return settings[0]
    return search.best(settings, lambda setting: _tries(point, setting), done)


def _tries(point: Point, setting: Setting) -> list[Run]:
    return [Run("tune", *point, seed, *setting) for seed in TUNING_SEEDS]


def settings_of_sam(workloads: tuple[str, ...], path: Path) -> dict[str, Setting]:
    """What the search of ``benchmarks.frontier``, whose file this is, found for SAM."""
    done = search.read_rows(path, Run)
    return {workload: best_setting((workload, "sam", 1), DRAWS, done) for workload in workloads}


def train_row(
    run: Run,
    workload: Workload,
    make: MakeLink | Whole,
    cost: Callable[[float, float], float],
    held_out: Literal["validation", "test"],
) -> dict[str, Any]:
    """Trains `workload` with the link that `make` makes and returns the row of `run`.

    Accuracy is in %, the loss the mean of the last epoch, `cost` that of a ``Method``.
    """
    setting = Setting(run.rho, run.learning_rate, run.weight_decay)
    result = train(workload, make, run.share, setting, run.seed, held_out)._asdict()
    gradients = cost(result.pop("sampled_share"), run.share)
    return run._asdict() | result | {"gradients_per_step": gradients} | table.provenance()


def group(run: Run) -> tuple[str, str, str, float]:
    """Runs that are compiled once."""
    return run[:4]


def seconds(run: Run, cost: Callable[[float, float], float]) -> float:
    """Of a run, roughly, its share of the compilation included."""
    return 3 + WORKLOADS[run.workload].seconds * cost(run.share, run.share)
