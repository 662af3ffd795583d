"""The protocol of the label-noise study: what is searched, what is run, and how."""

import dataclasses
import functools
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from benchmarks.harness import search, table
from benchmarks.harness.search import Done
from examples.classification import loop
from examples.classification.checks import check
from examples.classification.config import Config
from examples.classification.configs import digits_noise, fashion_mnist_noise
from examples.classification.data import datasets
from examples.classification.data.images import Dataset
from examples.classification.trainer import Trainer

CONFIGS = {"digits": digits_noise.config, "fashion_mnist": fashion_mnist_noise.config}
TUNING_SEEDS = (100, 101)
TUNING_NOISE, CONTROL_NOISE = 0.4, 0.8
VALIDATION = 0.2
LEARNING_RATES, WEIGHT_DECAYS, RHOS = (0.005, 0.2), (3e-4, 2e-2), (0.1, 0.8)
ALPHAS, SEGMENT_LENGTHS = (0.2, 0.4, 0.8), (4, 10)


class Variant(NamedTuple):
    """A line of the table: a method, and which of ``SEARCHES`` its settings are from."""

    method: str
    settings: str


class Search(NamedTuple):
    """Of a method, at a noise rate."""

    method: str
    noise: float


SEARCHES = {
    "sgd": Search("sgd", TUNING_NOISE),
    "sam": Search("sam", TUNING_NOISE),
    "arsam": Search("arsam", TUNING_NOISE),
    "sgd at 80 %": Search("sgd", CONTROL_NOISE),
    "sam at 80 %": Search("sam", CONTROL_NOISE),
}
VARIANTS = {
    "SGD": Variant("sgd", "sam"),
    "SGD, its own settings": Variant("sgd", "sgd"),
    "SAM": Variant("sam", "sam"),
    "ARSAM": Variant("arsam", "sam"),
    "ARSAM-A": Variant("arsam_a", "sam"),
    "SAM every 5th step": Variant("sam_every_k", "sam"),
    "budgeted_sam, 1 in 8": Variant("budgeted_sam", "sam"),
    "SGD, searched at 80 %": Variant("sgd", "sgd at 80 %"),
    "SAM, searched at 80 %": Variant("sam", "sam at 80 %"),
    "ARSAM, at that SAM's settings": Variant("arsam", "sam at 80 %"),
}
_GRADIENTS = {"sgd": 1, "sam": 2, "arsam": 1.4, "arsam_a": 1.4, "sam_every_k": 1.2}


class Setting(NamedTuple):
    """What is searched; 0 where a method has none."""

    rho: float
    learning_rate: float
    weight_decay: float
    alpha: float = 0.0
    segment_length: int = 0


class Run(NamedTuple):
    """What identifies a run; ``settings`` says whose search its settings are from."""

    stage: str
    dataset: str
    train_examples: int
    image_size: int
    width: int
    batch_size: int
    epochs: int
    method: str
    settings: str
    rho: float
    learning_rate: float
    weight_decay: float
    alpha: float
    segment_length: int
    noise: float
    seed: int


RESULTS = ("accuracy", "percent_sam", "images_per_second", "seconds", "steps", "train_loss")


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = (
        table.RESULTS / "label_noise" / "label_noise.csv"
    )
    """Results; figure and tables are written beside it."""
    stage: Literal["tune", "run", "report"] = "run"
    """`tune` is the search alone; `run` searches first where results are missing; `report` draws
    what the CSV file has."""
    datasets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(CONFIGS)
    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of wrong training labels."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Reporting seeds."""
    draws: int = 7
    """Settings that SGD and SAM are tried with."""
    epochs: int = 0
    """In place of those of the config files, if not 0."""
    quick: bool = False
    """Only tries the program: two epochs, draws, seeds and rates, into a CSV file of their own."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, datasets=CONFIGS)
        if set(self.seeds) & set(TUNING_SEEDS):
            raise SystemExit(f"--seeds: {TUNING_SEEDS} are for the search")
        if self.draws < 1:
            raise SystemExit(f"--draws: {self.draws} is below 1")


def candidates(draws: int) -> list[Setting]:
    """Log-uniform in the ranges of the search; the first ones stay if more come."""
    ranges = (RHOS, LEARNING_RATES, WEIGHT_DECAYS)
    drawn = search.candidates(ranges, draws, bases=(5, 2, 3), digits=2)
    return [Setting(rho, learning_rate, decay) for rho, learning_rate, decay in drawn]


def tried(options: Options, dataset: str, name: str, done: Done) -> list[Setting]:
    """The settings of a search; ARSAM's needs SAM's to be done."""
    method = SEARCHES[name].method
    if method == "arsam":
        best = chosen(options, dataset, "sam", done)
        return [
            best._replace(alpha=alpha, segment_length=length)
            for alpha in ALPHAS
            for length in SEGMENT_LENGTHS
        ]
    drawn = candidates(options.draws)
    return drawn if method == "sam" else [setting._replace(rho=0.0) for setting in drawn]


def make_run(
    options: Options,
    stage: str,
    dataset: str,
    variant: Variant,
    setting: Setting,
    noise: float,
    seed: int,
) -> Run:
    config = CONFIGS[dataset]
    sizes = (config.train_examples, config.image_size, config.width, config.batch_size)
    epochs = options.epochs or config.epochs
    return Run(stage, dataset, *sizes, epochs, *variant, *setting, noise, seed)


def tuning_runs(options: Options, dataset: str, name: str, setting: Setting) -> list[Run]:
    method, noise = SEARCHES[name]
    where = options, "tune", dataset, Variant(method, method), setting, noise
    return [make_run(*where, seed) for seed in TUNING_SEEDS]


def chosen(options: Options, dataset: str, name: str, done: Done) -> Setting:
    """The best setting of a search that is done, the earlier one of equals."""

    def runs_of(setting):
        return tuning_runs(options, dataset, name, setting)

    return search.best(tried(options, dataset, name, done), runs_of, done)


def reporting_runs(options: Options, dataset: str, name: str, done: Done) -> list[Run]:
    """The runs of a line of the table, by rate and seed; of the control at its rate alone."""
    variant = VARIANTS[name]
    setting = chosen(options, dataset, variant.settings, done)
    if variant.method == "sgd":
        setting = setting._replace(rho=0.0)
    if variant.method.startswith("arsam"):
        own = chosen(options, dataset, "arsam", done)
        setting = setting._replace(alpha=own.alpha, segment_length=own.segment_length)
    where = options, "run", dataset, variant, setting
    is_control = SEARCHES[variant.settings].noise == CONTROL_NOISE
    rates = [rate for rate in options.rates if rate == CONTROL_NOISE or not is_control]
    return [make_run(*where, rate, seed) for rate in rates for seed in options.seeds]


def to_config(run: Run) -> Config:
    """The settings of the program for a run, which evaluates once, at the end."""
    config = dataclasses.replace(
        CONFIGS[run.dataset],
        method=(run.method,),
        seeds=(run.seed,),
        label_noise=run.noise,
        validation=VALIDATION if run.stage == "tune" else 0.0,
        epochs=run.epochs,
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        rho=run.rho,
        alpha=run.alpha,
        segment_length=max(1, run.segment_length),
        evaluate_every=run.epochs,
        checkpoint_seconds=1e9,
    )
    check(config)
    return config


@functools.cache
def load(dataset: str, validation: float, train_examples: int, image_size: int) -> Dataset:
    sizes: dict[str, Any] = {"train_examples": train_examples, "image_size": image_size}
    return datasets.load(dataset, validation=validation, **sizes)


@functools.lru_cache(maxsize=1)
def _compiled(run: Run) -> tuple[Trainer, Any]:
    """The trainer and the step of runs that differ from this one in noise rate and seed alone."""
    config = to_config(run)
    sizes = config.train_examples, config.image_size
    trainer = Trainer(config, load(config.dataset, config.validation, *sizes))
    return trainer, trainer.compile_step(run.method)


def execute(run: Run) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    trainer, step = _compiled(run._replace(noise=TUNING_NOISE, seed=0))
    trainer.config = to_config(run)  # labels are data: the step does not know the rate
    with tempfile.TemporaryDirectory() as folder:
        (result,) = loop.train(trainer, step, run.method, (run.seed,), Path(folder))
    row = run._asdict() | {name: result[name] for name in RESULTS}
    row["accuracy"] *= 100
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)"
    return row | table.provenance(device=device)


def group(run: Run) -> tuple[Any, ...]:
    """Runs that are compiled once: all but noise rate and seed, and the sizes of the data set."""
    return (run.stage, run.dataset, *run[run._fields.index("epochs") : -2])


def seconds(run: Run) -> float:
    """Of a run on one core, roughly, its share of the compilation included."""
    training, evaluation = {"digits": (1.5, 0.5), "fashion_mnist": (2.7, 1.5)}[run.dataset]
    part = run.epochs / CONFIGS[run.dataset].epochs
    return 2 + evaluation + training * part * _GRADIENTS.get(run.method, 1.2)


STUDY = search.Study(Run, execute, group, seconds)
