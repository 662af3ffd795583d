"""ARSAM at the paper's length: label noise on all of Fashion-MNIST over 78,156 steps.

The paper trains for 200 epochs of CIFAR, 78,200 steps at batch size 128, with segments of 50 steps.
In shorter runs ARSAM's sampling probability moves too few times to do what the paper describes.
Here 167 epochs of Fashion-MNIST at batch size 128 are 78,156 steps.
"""

import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from benchmarks import search, table
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.networks import MLP
from benchmarks.accuracy.tasks import Setting, Source, Task
from benchmarks.accuracy.training import train
from examples.common import image_sets
from examples.common.errors import DataError

SHARES = {"sam_every_k": (1 / 4,), "budgeted_sam": (1 / 4,)}
SEARCHED = {"base": ("learning_rate",), "sam": ("learning_rate", "rho")}
TUNING_SEEDS = (100,)
START = Setting(rho=0.2, learning_rate=0.05, weight_decay=5e-4)
LAST_EPOCHS = 5  # over which the accuracy is also averaged
NETWORK = MLP((128, 128))  # 43,018 parameters


class DataSet(NamedTuple):
    """A data set of small images of about mean 0 and variance 1."""

    read: Any  # (part, folder) -> images and labels
    num_train: int
    num_validation: int
    batch_size: int


def pooled_fashion_mnist(part: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images of 14 x 14 pixels, the means of 2 x 2 pixels of Fashion-MNIST."""
    images, labels = image_sets.fashion_mnist(part, folder)
    pooled = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32)
    return (pooled - 72.9) / 84.0, labels


def digits(part: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 x 8 pixels, which are part of scikit-learn."""
    del folder
    images, labels = image_sets.digits(part)
    return (images.astype(np.float32) - 4.9) / 6.0, labels


DATA = {
    "fashion_mnist": DataSet(pooled_fashion_mnist, 60_000, 10_000, 128),
    "digits": DataSet(digits, 1000, 200, 32),
}


class Run(NamedTuple):
    """What identifies a run. ``value`` is α of ARSAM or the share of sampled steps."""

    stage: str
    data: str
    epochs: int
    noise: float
    method: str
    value: float
    seed: int
    rho: float
    learning_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "paper.csv"
    """File of the results. The tables and the figure are written beside it."""
    stage: Literal["search", "run"] = "run"
    """`search` only searches the settings of SGD and SAM. `run` also trains all methods."""
    noise: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    """Shares of training labels that are wrong."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = (
        "base",
        "sam",
        "arsam",
        "sam_every_k",
        "budgeted_sam",
    )
    """Methods to train. base is SGD with momentum."""
    alphas: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    """The values of ARSAM's α."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the reported runs."""
    epochs: int = 167
    """Epochs of a run. The search uses as many, because memorization comes late."""
    data: Literal["fashion_mnist", "digits"] = "fashion_mnist"
    """digits is a small data set, to try the program."""
    data_files: Path = image_sets.FASHION_MNIST_FOLDER
    """Folder of the four files of Fashion-MNIST."""
    smoke: bool = False
    """Only try the program, in seconds: digits, 5 epochs, one noise level and one seed. The results
    are in runs/benchmarks/smoke."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, methods=("base", "sam", "arsam", *SHARES))
        search.check_seeds(self.seeds, TUNING_SEEDS)
        if self.epochs < LAST_EPOCHS or not self.seeds:
            raise SystemExit(
                f"--epochs {self.epochs}, --seeds {self.seeds}: at least {LAST_EPOCHS} and 1."
            )


@functools.cache  # one task for equal arguments, so that a program is compiled once
def make_task(data: str, folder: Path, epochs: int, noise: float) -> Task:
    """A classification task on small images."""
    own = DATA[data]

    @functools.cache
    def read(part):
        images, labels = own.read(part, folder)
        return images, labels.astype(np.int32)

    return Task(
        description="",
        source=Source(lambda: read("train"), lambda: read("test")),
        network=NETWORK,
        num_train=own.num_train,
        num_validation=own.num_validation,
        epochs=epochs,
        setting=START,
        seconds=0,
        noise=noise,
        batch_size=own.batch_size,
    )


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    task = make_task(run.data, folder, run.epochs, run.noise)
    setting = Setting(run.rho, run.learning_rate, run.weight_decay)
    held_out = "validation" if run.stage == "search" else "test"
    start = time.process_time()
    result = train(task, run.method, run.value, setting, run.seed, held_out, LAST_EPOCHS)
    measured = {
        "accuracy": result.scores[-1],
        "accuracy_of_last_5": float(np.mean(result.scores)),
        "percent_sam": 100 * result.sampled_share,
        "gradients_per_step": METHODS[run.method].cost(result.sampled_share, run.value),
        "train_loss": result.train_loss,
        "cpu_seconds": time.process_time() - start,
    }
    return run._asdict() | measured | table.provenance()


def seconds(run: Run) -> float:
    """On one core, roughly."""
    per_epoch = 0.15 if run.data == "fashion_mnist" else 0.01
    sampled = 0.3 if run.method == "arsam" else run.value or 1.0
    gradients = 1.0 if run.method == "base" else METHODS[run.method].cost(sampled, 1)
    return 3 + per_epoch * run.epochs * gradients


def check_files(folder: Path) -> None:
    """Ends the program with a remedy if a file of Fashion-MNIST is missing."""
    try:
        image_sets.fashion_mnist_files(folder)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None


def study(options: Options) -> search.Study:
    if options.data == "fashion_mnist":
        check_files(options.data_files)
    return search.Study(
        run=Run,
        execute=functools.partial(execute, folder=options.data_files),
        group=lambda run: run[:6],
        seconds=seconds,
        score="accuracy",
    )


def make_runs(
    options: Options, stage: str, noise: float, method: str, value: float, setting: Setting
) -> list[Run]:
    """The runs of one setting: reported ones, or those of the search."""
    is_search = stage == "search"
    return [
        Run(stage, options.data, options.epochs, noise, method, value, seed, *setting)
        for seed in (TUNING_SEEDS if is_search else options.seeds)
    ]


def find(
    options: Options, own: search.Study, method: str, starts: dict[str, Setting]
) -> dict[str, Setting]:
    """The best setting of base or SAM for each noise level, by doubling and halving."""

    def scores_of(tried):
        runs = [make_runs(options, "search", float(n), method, 0, s) for n, s in tried]
        done = search.run_all(itertools.chain(*runs), own, options)
        return [search.mean_score(of_setting, done, own) for of_setting in runs]

    return search.climb(starts, lambda at: search.scaled(at, SEARCHED[method]), scores_of)


def run(options: Options) -> None:
    """Searches the settings where rows are missing, then trains all methods."""
    own = study(options)
    starts = {f"{noise:g}": START._replace(rho=0.0) for noise in options.noise}
    base = find(options, own, "base", starts)
    starts = {name: base[name]._replace(rho=START.rho) for name in base}
    sam = find(options, own, "sam", starts)
    if options.stage == "search":
        return
    values = SHARES | {"arsam": options.alphas}
    runs = [
        run
        for noise in options.noise
        for method in options.methods
        for value in values.get(method, (0,))
        for run in make_runs(
            options,
            "run",
            noise,
            method,
            value,
            (base if method == "base" else sam)[f"{noise:g}"],
        )
    ]
    search.run_all(runs, own, options)
