"""The protocol of the accuracy benchmark: what is searched, and what is run with which setting."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from benchmarks import search, table
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import LISTS, TASKS, Setting
from benchmarks.accuracy.training import train

TUNING_SEEDS = (100, 101, 102)
REFERENCES = ("base", "sam")
SEARCHED = {
    "base": ("learning_rate", "weight_decay"),
    "sam": ("learning_rate", "rho", "weight_decay"),
}


class Run(NamedTuple):
    """What identifies a run. ``value`` is that of the method's hyperparameter."""

    stage: str
    task: str
    method: str
    value: float
    seed: int
    rho: float
    learning_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("runs/benchmarks/accuracy.csv")
    """File of the results. The tables and the figure are written beside it. The published file is
    benchmarks/results/accuracy.csv; a new measurement starts a new file."""
    list: str = "held-out"
    """Which tasks: held-out, or development."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = ()
    """Only these tasks of the list."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(METHODS)
    """Methods to run. base and sam are always among them."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of the reported runs."""
    smoke: bool = False
    """Only try the program, in seconds: the task clusters with one epoch, three methods, two seeds,
    no search. The results are in runs/benchmarks/smoke."""

    def __post_init__(self):
        super().__post_init__()
        if self.list not in LISTS:
            raise SystemExit(f"--list: {self.list!r} is not one of {', '.join(LISTS)}.")
        search.check_names(self, tasks=LISTS[self.list], methods=METHODS)
        search.check_seeds(self.seeds, TUNING_SEEDS)
        if len(self.seeds) < 2:
            raise SystemExit(f"--seeds {self.seeds}: a standard error needs at least two seeds.")


def execute(run: Run, epochs: int | None = None) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    held_out = "validation" if run.stage == "tune" else "test"
    task = TASKS[run.task]
    if epochs is not None:
        task = task._replace(epochs=epochs)
    setting = Setting(run.rho, run.learning_rate, run.weight_decay)
    result = train(task, run.method, run.value, setting, run.seed, held_out)
    measured = {
        "score": result.scores[-1],
        "gradients_per_step": METHODS[run.method].cost(result.sampled_share, run.value),
        "train_loss": result.train_loss,
    }
    return run._asdict() | measured | table.provenance()


def seconds(run: Run) -> float:
    method = METHODS[run.method]
    return 2 + TASKS[run.task].seconds * method.cost(min(1.0, run.value or 1.0), run.value)


STUDY = search.Study(Run, execute, lambda run: run[:4], seconds)


def tune_runs(task: str, method: str, value: float, setting: Setting) -> list[Run]:
    return [Run("tune", task, method, value, seed, *setting) for seed in TUNING_SEEDS]


def find(
    options: Options, study: search.Study, method: str, starts: dict[str, Setting]
) -> dict[str, Setting]:
    """The best setting of base or SAM on each task. The learning rate is refined by √2."""

    def scores_of(tried):
        runs = [tune_runs(name, method, 0, setting) for name, setting in tried]
        done = search.run_all(itertools.chain(*runs), study, options)
        return [search.mean_score(own, done, study) for own in runs]

    found = search.climb(starts, lambda at: search.scaled(at, SEARCHED[method]), scores_of)
    return search.climb(found, lambda at: search.scaled(at, ("learning_rate",), 2**0.5), scores_of)


def reported_runs(
    options: Options,
    study: search.Study,
    methods: Collection[str],
    settings: dict[str, dict[str, Setting]],
    tasks: Collection[str],
) -> list[Run]:
    """The runs of these methods, after searching the values of those that are searched.

    Args:
      settings: of base and of SAM, by task.
    """
    candidates: dict[tuple[str, str], list[tuple[float, Setting]]] = {}
    for task, name in itertools.product(tasks, methods):
        setting = settings["base" if METHODS[name].uses_base_setting else "sam"][task]
        candidates[task, name] = [(value, setting) for value in METHODS[name].values]
    searched = {key: c for key, c in candidates.items() if METHODS[key[1]].is_searched}
    tried: Iterable[Run] = itertools.chain.from_iterable(
        tune_runs(*key, *candidate) for key, own in searched.items() for candidate in own
    )
    done = search.run_all(tried, study, options)

    def score(key, candidate):
        value = search.mean_score(tune_runs(*key, *candidate), done, study)
        return -math.inf if math.isnan(value) else value

    for key, own in searched.items():
        candidates[key] = [max(own, key=functools.partial(score, key))]
    return [
        Run("run", *key, value, seed, *setting)
        for key, own in candidates.items()
        for value, setting in own
        for seed in options.seeds
    ]
