"""Tables and figure of the label-noise study, beside what the paper reports."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich
from rich.table import Table

from benchmarks.harness.search import Done, score
from benchmarks.harness.statistics import (
    NOTHING,
    Estimate,
    markdown_table,
    mean_and_error,
    mean_and_std,
)
from benchmarks.label_noise.study import (
    SEARCHES,
    TUNING_SEEDS,
    VARIANTS,
    Options,
    chosen,
    reporting_runs,
    tried,
    tuning_runs,
)
from examples.classification import settings

TITLES = {"digits": "digits", "fashion_mnist": "Fashion-MNIST, 1,000 images of 14×14"}
PUBLISHED = "table5/cifar10_resnet18_noise{}_{}"


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """The mean difference of two methods with the same seeds, and its standard error."""
    return mean_and_error([a - b for a, b in zip(values, others, strict=True)])


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


def summarize(options: Options, dataset: str, done: Done) -> list[Line]:
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


def write(options: Options, done: Done) -> list[Path]:
    """Prints the tables; writes them and the figure beside the CSV file."""
    lines = {dataset: summarize(options, dataset, done) for dataset in options.datasets}
    parts = ["# Accuracy under label noise", f"![Accuracy against noise]({options.csv.stem}.png)"]
    for dataset, of_dataset in lines.items():
        accuracies = [[x.name, *_cells(options, x.accuracies)] for x in of_dataset]
        differences = [[x.name, *_cells(options, x.differences)] for x in of_dataset]
        costs = [
            [x.name, *_cells(options, x.percent_sam), f"{x.images_per_second:,.0f}", str(x.seeds)]
            for x in of_dataset
        ]
        header = ["method", *(f"{100 * rate:g} %" for rate in options.rates)]
        _print_table(TITLES[dataset], header, accuracies)
        parts += [
            f"## {TITLES[dataset]}",
            "Test accuracy after the last epoch in %, by share of wrong training labels; mean ±"
            " standard deviation over the seeds.",
            markdown_table(header, accuracies),
            "Difference to SAM in points, paired by seed; mean ± standard error.",
            markdown_table(header, differences),
            "Share of sampled steps in %, ± standard deviation; images a second, median over all"
            " runs (the machine had other work, too: a rough figure); the fewest seeds of a cell.",
            markdown_table([*header, "images/s", "seeds"], costs),
            f"The searches: validation accuracy in %, clean labels, mean of {len(TUNING_SEEDS)}"
            " tuning seeds.",
            _search_table(options, dataset, done),
        ]
    written = options.csv.with_suffix(".md")
    written.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    return [plot(lines, options.csv.with_suffix(".png")), written]


def _cells(options: Options, of_rates: dict[float, Estimate]) -> list[str]:
    return [f"{of_rates.get(rate, NOTHING):.1f}" for rate in options.rates]


def _print_table(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    table = Table(title=f"{title}: test accuracy in %, ± standard deviation")
    for column in header:
        table.add_column(column, justify="left" if column == "method" else "right")
    for cells in body:
        table.add_row(*cells)
    rich.print(table)


def _search_table(options: Options, dataset: str, done: Done) -> str:
    header = ["method", "noise", "ρ", "learning rate", "weight decay", "α", "segment length"]
    body = []
    for name, (method, noise) in SEARCHES.items():
        best = chosen(options, dataset, name, done)
        for setting in tried(options, dataset, name, done):
            cells = [f"{value:g}" if value else "–" for value in setting]
            accuracy = f"{score(tuning_runs(options, dataset, name, setting), done):.1f}"
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
