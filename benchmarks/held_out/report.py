"""Table and figure of ``benchmarks.held_out``: the share of SAM's gain that a method keeps."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.search import Done
from benchmarks.harness.statistics import (
    FLOOR,
    Estimate,
    gap_closed,
    markdown_table,
    mean_and_error,
    mean_of,
)
from benchmarks.harness.tuning import Run
from benchmarks.held_out.study import REFERENCES, Options

LEAST_GAIN = 2  # standard errors of SAM's gain, below which a share of it says nothing


class Line(NamedTuple):
    """One method at one value of its price knob."""

    method: str
    share: float
    gradients: float
    scores: dict[str, Estimate]  # of each workload
    gaps: dict[str, Estimate]  # of the workloads where SAM gains


def gains(runs: Sequence[Run], done: Done) -> dict[str, Estimate]:
    """SAM's score less SGD's, by pairs of one seed, of each workload."""
    scores = _scores(runs, done)
    found = {}
    for workload in dict.fromkeys(run.workload for run in runs):
        sgd, sam = (scores[name, share][workload] for name, share in REFERENCES.items())
        found[workload] = mean_and_error([b - a for a, b in zip(sgd, sam, strict=True)])
    return found


def lines(runs: Sequence[Run], done: Done) -> list[Line]:
    scores = _scores(runs, done)
    counted = [name for name, gain in gains(runs, done).items() if is_gain(gain)]
    sgd, sam = (scores[reference] for reference in REFERENCES.items())
    prices = defaultdict(lambda: defaultdict(list))
    for run in runs:
        price = done[run]["gradients_per_step"]
        prices[run.method, run.share][run.workload].append(price)
    return [
        Line(
            *point,
            statistics.fmean(map(statistics.fmean, prices[point].values())),
            {name: mean_and_error(values) for name, values in own.items()},
            {name: gap_closed(own[name], sgd[name], sam[name]) for name in counted},
        )
        for point, own in scores.items()
    ]


def is_gain(gain: Estimate) -> bool:
    return gain.mean > LEAST_GAIN * gain.error


def mean_gap(gaps: dict[str, Estimate]) -> tuple[float, float, float]:
    """The mean over workloads, its error from the seeds, and its error from the workloads.

    A collapse counts as ``FLOOR``, a score that is no number, too.
    """
    mean, of_seeds = mean_of([*gaps.values()])
    return mean, of_seeds, mean_and_error(floored(gaps)).error


def floored(gaps: dict[str, Estimate]) -> list[float]:
    return [gap.mean if gap.mean > FLOOR else FLOOR for gap in gaps.values()]


def _scores(runs: Sequence[Run], done: Done) -> dict[tuple[str, float], dict[str, list[float]]]:
    scores: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        scores[run.method, run.share][run.workload].append(done[run]["accuracy"])
    return scores


def write(options: Options, runs: Sequence[Run], done: Done) -> list[Path]:
    """The files beside the CSV file."""
    found, figure = lines(runs, done), options.csv.with_suffix(".png")
    markdown = options.csv.with_suffix(".md")
    if len(found[0].gaps) == 0:
        raise SystemExit("SAM gains on no workload, so there is nothing to take a share of.")
    plot(found, figure)
    parts = [
        "# Nine trainings on which no method was made\n",
        f"Seeds: {len(options.seeds)}. Share of the gain of tuned SAM over the best SGD, in %, over"
        f" the workloads where that gain is above {LEAST_GAIN} of its standard errors. Two errors"
        " of the mean: between seeds, and between workloads. Neither has the sampling of the test"
        " set or of the search in it. Gradients: of a step, on average.\n",
        gap_table(found),
        f"![mean and worst workload]({figure.name})\n",
        "Each workload, ± the standard error between seeds:\n",
        workload_table(found),
        "Scores on the test set, in %: accuracy; of `language` 1 − bits a byte / 8; of `regression`"
        " R².\n",
        score_table(found),
        "SGD and SAM, and what the search found for them. ρ is SAM's, the weight decay SGD's:\n",
        settings_table(runs, done),
    ]
    markdown.write_text("\n".join(parts))
    return [figure, markdown]


def gap_table(found: Sequence[Line]) -> str:
    header = ["method", "share", "gradients", "mean", "± seeds", "± workloads", "median", "worst"]
    body = []
    for line in found:
        mean, of_seeds, of_workloads = mean_gap(line.gaps)
        values = floored(line.gaps)
        shown = (mean, of_seeds, of_workloads, statistics.median(values), min(values))
        cells = [f"{value:.0f}" for value in shown]
        body.append([line.method, _fraction(line.share), f"{line.gradients:.3f}", *cells])
    return markdown_table(header, body)


def workload_table(found: Sequence[Line]) -> str:
    names = list(found[0].gaps)
    body = [
        [f"{line.method} {_fraction(line.share)}", *(f"{line.gaps[name]:.0f}" for name in names)]
        for line in found
    ]
    return markdown_table(["method", *names], body)


def score_table(found: Sequence[Line]) -> str:
    names = list(found[0].scores)
    body = [
        [f"{line.method} {_fraction(line.share)}", *(f"{line.scores[name]:.2f}" for name in names)]
        for line in found
    ]
    return markdown_table(["method", *names], body)


def settings_table(runs: Sequence[Run], done: Done) -> str:
    settings = {(run.workload, run.method): run for run in runs}
    body = []
    for workload, gain in gains(runs, done).items():
        sgd, sam = (settings[workload, name] for name in REFERENCES)
        cells = [sgd.learning_rate, sgd.weight_decay, sam.learning_rate, sam.rho]
        shown = f"{gain:.2f}" if is_gain(gain) else f"{gain:.2f}, not counted"
        body.append([workload, *(f"{cell:g}" for cell in cells), shown])
    header = ["workload", "SGD's learning rate", "weight decay", "SAM's learning rate", "ρ", "gain"]
    return markdown_table(header, body)


def plot(found: Sequence[Line], path: Path) -> None:
    """Mean and worst workload of each method against its price."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    curves = defaultdict(list)
    for line in found:
        if line.method != "sgd":
            curves[line.method].append(line)
    for axes, title in zip(panels, ("mean of the workloads", "worst workload"), strict=True):
        for number, (method, own) in enumerate(curves.items()):
            means = [mean_gap(line.gaps) for line in own]
            worst = [min(floored(line.gaps)) for line in own]
            is_mean = axes is panels[0]
            axes.errorbar(
                [line.gradients for line in own],
                [mean for mean, *_ in means] if is_mean else worst,
                yerr=[of_seeds for _, of_seeds, _ in means] if is_mean else None,
                fmt=("o", "s", "^")[number // 6] + "-",
                color=f"C{number % 10}",
                label=method,
                capsize=2,
            )
        axes.axhline(100, color="0.8", zorder=0)
        axes.set_xlabel("gradients a step")
        axes.set_title(title)
    panels[0].set_ylabel("share of tuned SAM's gain over the best SGD, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)


def _fraction(share: float) -> str:
    if share in (0, 1) or round(1 / share) != 1 / share:
        return f"{share:g}"
    return f"1/{round(1 / share)}"
