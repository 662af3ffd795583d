"""Accuracy under symmetric label noise: the shape of table 5 of arXiv 2510.03763, on a CPU.

Protocol. For each data set, one search at 40 % noise: SGD and SAM get the same quasi-random draws
of learning rate and weight decay (and ρ, for SAM), and ARSAM's α and segment length are searched at
SAM's best. The score is the accuracy, after the last epoch, on a fifth of the training set that is
held out and has clean labels, on tuning seeds. All methods then train at each noise rate with SAM's
settings, SGD also with its own, on reporting seeds, which alone read the test set. As a control,
the search of SGD and SAM is repeated at 80 % noise, and what it finds is trained there.

A run is a line of a CSV file as soon as it is finished, and is never done again: the same command
goes on where it was interrupted.
"""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import rich
import tyro
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import arsam_jax
from benchmarks.frontier import append_row, halton, read_table, run_resumable, start_worker
from benchmarks.frontier_report import Estimate, markdown_table
from examples.classification import loop, settings
from examples.classification.config import Config
from examples.classification.configs import digits_noise, fashion_mnist_noise
from examples.classification.data import datasets
from examples.classification.data.images import Dataset
from examples.classification.trainer import Trainer

CONFIGS = {"digits": digits_noise.config, "fashion_mnist": fashion_mnist_noise.config}
TITLES = {"digits": "digits", "fashion_mnist": "Fashion-MNIST, 1,000 images of 14×14"}
TUNING_SEEDS = (100, 101)
TUNING_NOISE, CONTROL_NOISE = 0.4, 0.8
VALIDATION = 0.2
LEARNING_RATES, WEIGHT_DECAYS, RHOS = (0.005, 0.2), (3e-4, 2e-2), (0.1, 0.8)
ALPHAS, SEGMENT_LENGTHS = (0.2, 0.4, 0.8), (4, 10)
PUBLISHED = "table5/cifar10_resnet18_noise{}_{}"


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


RESULTS = (
    *("accuracy", "percent_sam", "images_per_second", "seconds", "steps", "train_loss"),
    *("date", "device", "versions"),
)
COLUMNS = (*Run._fields, *RESULTS)
_TEXT = ("stage", "dataset", "method", "settings", "date", "device", "versions")
_INTEGERS = (
    *("train_examples", "image_size", "width", "batch_size", "epochs", "segment_length"),
    *("seed", "steps"),
)
Rows = dict[Run, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    stage: Literal["tune", "run", "report"] = "run"
    """`tune` is the search alone; `run` searches first where results are missing; `report` draws
    what the CSV file has."""
    datasets: tuple[str, ...] = tuple(CONFIGS)
    """digits and fashion_mnist."""
    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of wrong training labels."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Reporting seeds."""
    draws: int = 7
    """Settings that SGD and SAM are tried with."""
    epochs: int = 0
    """In place of those of the config files, if not 0."""
    workers: int = 1
    """Processes, each pinned to one core."""
    quick: bool = False
    """Only tries the program: two epochs, draws, seeds and rates, into a CSV file of their own."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/label_noise.csv")
    """Results; figure and tables are written beside it."""

    def __post_init__(self):
        unknown = [name for name in self.datasets if name not in CONFIGS]
        if unknown:
            raise SystemExit(f"--datasets: there is no {', '.join(unknown)}")
        if set(self.seeds) & set(TUNING_SEEDS):
            raise SystemExit(f"--seeds: {TUNING_SEEDS} are for the search")
        if min(self.draws, self.workers) < 1:
            raise SystemExit("--draws and --workers must be at least 1")


def quick(options: Options) -> Options:
    file = Path("runs") / "label_noise" / "quick.csv"
    few = {"rates": options.rates[:2], "seeds": options.seeds[:2], "draws": 2, "epochs": 2}
    return dataclasses.replace(options, **few, csv=file)


def candidates(draws: int) -> list[Setting]:
    """Halton points, log-uniform in the ranges of the search; the first ones stay if more come."""
    ranges = (RHOS, LEARNING_RATES, WEIGHT_DECAYS)

    def draw(index):
        factors = (halton(index, base) for base in (5, 2, 3))
        values = (low * (high / low) ** u for (low, high), u in zip(ranges, factors, strict=True))
        rho, learning_rate, weight_decay = (float(f"{value:.2g}") for value in values)
        return Setting(rho, learning_rate, weight_decay)

    return [draw(index) for index in range(1, draws + 1)]


def tried(options: Options, dataset: str, search: str, done: Rows) -> list[Setting]:
    """The settings of a search; ARSAM's needs SAM's to be done."""
    method = SEARCHES[search].method
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


def tuning_runs(options: Options, dataset: str, search: str, setting: Setting) -> list[Run]:
    method, noise = SEARCHES[search]
    where = options, "tune", dataset, Variant(method, method), setting, noise
    return [make_run(*where, seed) for seed in TUNING_SEEDS]


def score(options: Options, dataset: str, search: str, setting: Setting, done: Rows) -> float:
    """The mean validation accuracy; NaN where a run is missing."""
    runs = tuning_runs(options, dataset, search, setting)
    return statistics.fmean(done[run]["accuracy"] if run in done else math.nan for run in runs)


def chosen(options: Options, dataset: str, search: str, done: Rows) -> Setting:
    """The best setting of a search that is done, the earlier one of equals."""
    found = {
        setting: score(options, dataset, search, setting, done)
        for setting in tried(options, dataset, search, done)
    }
    if any(math.isnan(accuracy) for accuracy in found.values()):
        raise SystemExit(f"The search of {search} on {dataset} is not done: --stage tune")
    return max(found, key=lambda setting: found[setting])


def reporting_runs(options: Options, dataset: str, name: str, done: Rows) -> list[Run]:
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
    settings.check(config)
    return config


@functools.cache
def load(dataset: str, validation: float, train_examples: int, image_size: int) -> Dataset:
    sizes: dict[str, Any] = {"train_examples": train_examples, "image_size": image_size}
    return datasets.load(dataset, validation=validation, **sizes)


def train(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Trains runs that differ in noise rate and seed alone, with one compiled step."""
    config = to_config(runs[0])
    sizes = config.train_examples, config.image_size
    trainer = Trainer(config, load(config.dataset, config.validation, *sizes))
    step = trainer.compile_step(runs[0].method)
    for run in runs:
        trainer.config = to_config(run)  # labels are data: the step does not know the rate
        with tempfile.TemporaryDirectory() as folder:
            (result,) = loop.train(trainer, step, run.method, (run.seed,), Path(folder))
        row = run._asdict() | {name: result[name] for name in RESULTS if name in result}
        row["accuracy"] *= 100
        row["date"] = time.strftime("%Y-%m-%d")
        row["device"] = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)"
        row["versions"] = f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}"
        yield row


def read_rows(path: Path) -> Rows:
    """The finished runs of a CSV file."""
    rows = read_table(path, _TEXT, _INTEGERS)
    return {Run(*(row[name] for name in Run._fields)): row for row in rows}


def run_all(runs: Sequence[Run], options: Options, title: str) -> Rows:
    """Trains what the CSV file does not have yet; returns all it then has."""
    done = read_rows(options.csv)
    missing = [run for run in runs if run not in done]
    groups = [list(of) for _, of in itertools.groupby(missing, key=lambda run: run[:-2])]
    if not groups:
        return done
    estimate = sum(map(_estimate, missing)) + _COMPILE_SECONDS * len(groups)
    rich.print(f"{title}: {len(missing)} runs, about {estimate / 60 / options.workers:.0f} minutes")
    columns = (
        *(TextColumn("{task.description}"), BarColumn()),
        *(TextColumn("{task.fields[runs]} of {task.fields[total_runs]} runs"),),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        total = sum(map(_estimate, missing))
        task = progress.add_task(title, total=total, runs=0, total_runs=len(missing))

        def show():
            found = read_rows(options.csv)
            finished = [run for run in missing if run in found]
            progress.update(task, completed=sum(map(_estimate, finished)), runs=len(finished))

        if options.workers == 1:
            for group in groups:
                for row in train(group):
                    append_row(options.csv, row, COLUMNS)
                    show()
        else:
            context = multiprocessing.get_context("spawn")
            cores: Any = context.SimpleQueue()
            available = sorted(os.sched_getaffinity(0))
            for i in range(options.workers):
                cores.put(available[i % len(available)])
            with ProcessPoolExecutor(options.workers, context, _start_worker, (cores,)) as pool:
                work = [pool.submit(_train_and_append, group, options.csv) for group in groups]
                while not all(future.done() for future in work):
                    time.sleep(1)
                    show()
                for future in work:
                    future.result()
    return read_rows(options.csv)


def _start_worker(cores: Any) -> None:
    start_worker(cores.get())


def _train_and_append(runs: Sequence[Run], path: Path) -> None:
    for row in train(runs):
        append_row(path, row, COLUMNS)


_COMPILE_SECONDS = 8


def _estimate(run: Run) -> float:
    """Seconds of a run on one core, roughly."""
    seconds, evaluation = {"digits": (1.5, 0.5), "fashion_mnist": (2.7, 1.5)}[run.dataset]
    part = run.epochs / CONFIGS[run.dataset].epochs
    return evaluation + seconds * part * _GRADIENTS.get(run.method, 1.2)


def mean_and_std(values: Sequence[float]) -> Estimate:
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values) if values else math.nan, spread)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """The mean difference of two methods with the same seeds, and its standard error."""
    mean, spread = mean_and_std([a - b for a, b in zip(values, others, strict=True)])
    return Estimate(mean, spread / math.sqrt(len(values)) if values else math.nan)


def published() -> dict[str, dict[float, float]]:
    """For each method, the accuracies of table 5 for CIFAR-10 by noise rate."""
    return {
        name: {
            percent / 100: settings.published(
                settings.parse(["--config", PUBLISHED.format(percent, method)])
            )[method].accuracy
            for percent in (20, 40, 60, 80)
        }
        for name, (method, _) in VARIANTS.items()
        if name in ("SGD", "SAM", "ARSAM")
    }


class Line(NamedTuple):
    """A method on a data set: for each noise rate, means over the seeds that SAM has, too."""

    name: str
    accuracies: dict[float, Estimate]
    differences: dict[float, Estimate]
    percent_sam: dict[float, Estimate]
    images_per_second: float
    seeds: int


def summarize(options: Options, dataset: str, done: Rows) -> list[Line]:
    sam = {(r.noise, r.seed): r for r in reporting_runs(options, dataset, "SAM", done) if r in done}
    lines = []
    for name in VARIANTS:
        runs = [
            run
            for run in reporting_runs(options, dataset, name, done)
            if run in done and (run.noise, run.seed) in sam
        ]
        by_rate = {
            rate: list(of) for rate, of in itertools.groupby(runs, key=lambda run: run.noise)
        }

        def of(column, some):
            return [done[run][column] for run in some]

        if not runs:
            continue
        lines.append(
            Line(
                name,
                {rate: mean_and_std(of("accuracy", some)) for rate, some in by_rate.items()},
                {
                    rate: paired_difference(
                        of("accuracy", some),
                        of("accuracy", [sam[run.noise, run.seed] for run in some]),
                    )
                    for rate, some in by_rate.items()
                },
                {rate: mean_and_std(of("percent_sam", some)) for rate, some in by_rate.items()},
                statistics.median(of("images_per_second", runs)),
                min(map(len, by_rate.values())),
            )
        )
    return lines


_NOTHING = Estimate(math.nan, math.nan)


def report(options: Options) -> list[Path]:
    """Prints the tables; writes them and the figure beside the CSV file."""
    done = read_rows(options.csv)
    lines = {dataset: summarize(options, dataset, done) for dataset in options.datasets}
    rates = [f"{100 * rate:g} %" for rate in options.rates]
    parts = ["# Accuracy under label noise", f"![Accuracy against noise]({options.csv.stem}.png)"]
    for dataset, of_dataset in lines.items():
        table = Table(title=f"{TITLES[dataset]}: test accuracy in %, ± standard deviation")
        for column in ("method", *rates):
            table.add_column(column, justify="left" if column == "method" else "right")
        body = {
            what: [
                [
                    line.name,
                    *(f"{getattr(line, what).get(r, _NOTHING):.1f}" for r in options.rates),
                ]
                for line in of_dataset
            ]
            for what in ("accuracies", "differences")
        }
        for cells in body["accuracies"]:
            table.add_row(*cells)
        rich.print(table)
        costs = [
            [
                line.name,
                *(f"{line.percent_sam.get(rate, _NOTHING):.1f}" for rate in options.rates),
                f"{line.images_per_second:,.0f}",
                str(line.seeds),
            ]
            for line in of_dataset
        ]
        parts += [
            f"## {TITLES[dataset]}",
            "Test accuracy after the last epoch in %, by share of wrong training labels; mean ±"
            " standard deviation over the seeds.",
            markdown_table(["method", *rates], body["accuracies"]),
            "Difference to SAM in points, paired by seed; mean ± standard error.",
            markdown_table(["method", *rates], body["differences"]),
            "Share of sampled steps in %, ± standard deviation; images a second, median over all"
            " runs (the machine had other work, too: a rough figure); the fewest seeds of a cell.",
            markdown_table(["method", *rates, "images/s", "seeds"], costs),
            f"The searches: validation accuracy in %, clean labels, mean of {len(TUNING_SEEDS)}"
            " tuning seeds.",
            _search_table(options, dataset, done),
        ]
    written = options.csv.with_suffix(".md")
    written.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    return [plot(lines, options.csv.with_suffix(".png")), written]


def _search_table(options: Options, dataset: str, done: Rows) -> str:
    header = ["method", "noise", "ρ", "learning rate", "weight decay", "α", "segment length"]
    body = []
    for search, (method, noise) in SEARCHES.items():
        best = chosen(options, dataset, search, done)
        for setting in tried(options, dataset, search, done):
            cells = [f"{value:g}" if value else "–" for value in setting]
            accuracy = f"{score(options, dataset, search, setting, done):.1f}"
            accuracy = f"**{accuracy}**" if setting == best else accuracy
            body.append([f"`{method}`", f"{100 * noise:g} %", *cells, accuracy])
    return markdown_table([*header, "accuracy"], body)


# Okabe and Ito's colours, which people with colour blindness can tell apart.
_STYLES = {
    "SGD": ("#E69F00", "o"),
    "SGD, its own settings": ("#000000", "X"),
    "SAM": ("#0072B2", "s"),
    "ARSAM": ("#009E73", "D"),
    "ARSAM-A": ("#56B4E9", "^"),
    "SAM every 5th step": ("#CC79A7", "v"),
    "budgeted_sam, 1 in 8": ("#D55E00", "P"),
    "SAM, searched at 80 %": ("#0072B2", "*"),  # one point
}


def plot(lines: dict[str, list[Line]], path: Path) -> Path:
    """A panel for each data set, and one of what the paper reports."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(lines) + 1, figsize=(4.6 * (len(lines) + 1), 5), layout="constrained"
    )
    for axis, (dataset, of_dataset) in zip(axes, lines.items(), strict=False):
        drawn = [line for line in of_dataset if line.name in _STYLES]
        for i, line in enumerate(drawn):
            color, marker = _STYLES[line.name]
            rates = [100 * rate + 0.5 * (i - len(drawn) / 2) for rate in line.accuracies]
            means, errors = zip(*line.accuracies.values(), strict=True)
            size = 12 if marker == "*" else 5
            style: dict[str, Any] = {"color": color, "marker": marker, "label": line.name}
            axis.errorbar(rates, means, errors, capsize=2, linewidth=1.5, markersize=size, **style)
        axis.set_title(f"{TITLES[dataset]};\ntest accuracy, ± std of the seeds", fontsize=10)
    for name, accuracies in published().items():
        color, marker = _STYLES[name]
        rates = [100 * rate for rate in accuracies]
        axes[-1].plot(rates, list(accuracies.values()), "--", color=color, marker=marker)
    axes[-1].set_title("published, not measured here:\nCIFAR-10, ResNet-18", fontsize=10)
    for axis in axes:
        axis.set_xlabel("wrong training labels, %")
        axis.set_xticks([20, 40, 60, 80])
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def main(options: Options) -> None:
    if options.quick:
        options = quick(options)
    if options.stage != "report":
        for searches in ([name for name in SEARCHES if name != "arsam"], ["arsam"]):
            done = read_rows(options.csv)
            runs = [
                run
                for dataset in options.datasets
                for search in searches
                for setting in tried(options, dataset, search, done)
                for run in tuning_runs(options, dataset, search, setting)
            ]
            run_all(runs, options, f"search of {', '.join(searches)}")
    if options.stage == "run":
        done = read_rows(options.csv)
        runs = [
            run
            for dataset in options.datasets
            for name in VARIANTS
            for run in reporting_runs(options, dataset, name, done)
        ]
        run_all(runs, options, "all methods and rates")
    if options.stage != "tune":
        for path in report(options):
            rich.print(f"wrote {path}")


if __name__ == "__main__":
    run_resumable(main, Options, __doc__)
