"""Tables and figure of ``benchmarks.held_out``: the share of SAM's gain that a method keeps."""

import functools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import optax

from benchmarks.harness.search import Done
from benchmarks.harness.statistics import (
    FLOOR,
    Estimate,
    gap_closed,
    markdown_table,
    mean_and_error,
    mean_of,
)
from benchmarks.harness.training import initial
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import Workload, make_data
from benchmarks.held_out.study import REFERENCES, Options
from benchmarks.held_out.workloads import FIRST, SECOND, WORKLOADS

SETS = {"second": SECOND, "first": FIRST}
SHOWN = ("sam", "budgeted_sam", "budgeted_m_sam", "sam_of_weights", "budgeted_m_sam_of_weights")
LEAST_GAIN = 2  # standard errors of SAM's gain, below which a share of it says nothing


class Line(NamedTuple):
    """One method at one value of its price knob."""

    method: str
    share: float
    seeds: int
    gradients: float
    scores: dict[str, Estimate]  # of each workload
    gaps: dict[str, Estimate]  # of the workloads where SAM gains


def gains(runs: Sequence[Run], done: Done) -> dict[str, Estimate]:
    """SAM's score less SGD's, by pairs of one seed, of each workload."""
    scores = _scores(runs, done)
    found = {}
    for workload in dict.fromkeys(run.workload for run in runs):
        sgd, sam = (scores[name, share][workload] for name, share in REFERENCES.items())
        found[workload] = mean_and_error([sam[seed] - sgd[seed] for seed in sgd])
    return found


def lines(runs: Sequence[Run], done: Done) -> list[Line]:
    """Each with the seeds it has, SGD and SAM of the same."""
    scores = _scores(runs, done)
    counted = [name for name, gain in gains(runs, done).items() if is_gain(gain)]
    sgd, sam = (scores[reference] for reference in REFERENCES.items())
    prices = defaultdict(lambda: defaultdict(list))
    for run in runs:
        price = done[run]["gradients_per_step"]
        prices[run.method, run.share][run.workload].append(price)

    def gap(own, name):
        return gap_closed(*([x[name][seed] for seed in own[name]] for x in (own, sgd, sam)))

    return [
        Line(
            method,
            share,
            max(map(len, own.values())),
            statistics.fmean(map(statistics.fmean, prices[method, share].values())),
            {name: mean_and_error([*values.values()]) for name, values in own.items()},
            {name: gap(own, name) for name in counted},
        )
        for (method, share), own in scores.items()
    ]


def is_gain(gain: Estimate) -> bool:
    return gain.mean > LEAST_GAIN * gain.error


def mean_gap(gaps: dict[str, Estimate]) -> tuple[float, float, float]:
    """The mean over workloads, its error from the seeds, and its error from the workloads.

    A collapse counts as ``FLOOR``, a score that is no number, too.
    """
    mean, of_seeds = mean_of([*gaps.values()])
    return mean, of_seeds, mean_and_error(floored(gaps)).error


def summary(gaps: dict[str, Estimate]) -> list[float]:
    """``mean_gap``, and the median and the worst of the workloads."""
    values = floored(gaps)
    return [*mean_gap(gaps), statistics.median(values), min(values)]


def floored(gaps: dict[str, Estimate]) -> list[float]:
    return [gap.mean if gap.mean > FLOOR else FLOOR for gap in gaps.values()]


def _scores(
    runs: Sequence[Run], done: Done
) -> dict[tuple[str, float], dict[str, dict[int, float]]]:
    """Of method and share, workload, and seed."""
    scores: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        scores[run.method, run.share][run.workload][run.seed] = done[run]["accuracy"]
    return scores


def write(options: Options, runs: Sequence[Run], done: Done) -> list[Path]:
    """The files beside the CSV file."""
    figure, markdown = options.csv.with_suffix(".png"), options.csv.with_suffix(".md")
    own = {name: [run for run in runs if run.workload in names] for name, names in SETS.items()}
    own = {name: runs for name, runs in own.items() if runs}
    found = {name: lines(runs, done) for name, runs in own.items()}
    if not any(of_set[0].gaps for of_set in found.values()):
        raise SystemExit("SAM gains on no workload, so there is nothing to take a share of.")
    plot({name: of_set for name, of_set in found.items() if of_set[0].gaps}, figure)
    parts = [
        "# Trainings on which no method was made\n",
        "Share of the gain of tuned SAM over the best SGD with the same seeds, in %, over the"
        f" workloads where that gain is above {LEAST_GAIN} of its standard errors. Two errors"
        " of the mean: between seeds, and between workloads. Neither has the sampling of the test"
        " set or of the search in it. Gradients: of a step, on average.\n",
        f"![share of the gain against the price]({figure.name})\n",
    ]
    if len(found) > 1:
        parts += ["## Both sets\n", gap_table(lines(runs, done))]
    for name, of_set in found.items():
        parts += [f"## {name.capitalize()} set\n"]
        if of_set[0].gaps:
            parts += [
                gap_table(of_set),
                "Each workload, ± the standard error between seeds:\n",
                workload_table(of_set),
            ]
        parts += [
            "Scores on the test set, in %: accuracy; of language models 1 − bits a byte / 8; of"
            " regressions R².\n",
            score_table(of_set),
            "SGD and SAM, and what the search found for them, SAM's last:\n",
            settings_table(own[name], done),
        ]
    markdown.write_text("\n".join(parts))
    return [figure, markdown]


def gap_table(found: Sequence[Line]) -> str:
    header = [
        "method",
        "share",
        "seeds",
        "gradients",
        "mean",
        "± seeds",
        "± workloads",
        "median",
        "worst",
    ]
    body = []
    for line in found:
        cells = [f"{value:.0f}" for value in summary(line.gaps)]
        point = [line.method, _fraction(line.share), f"{line.seeds}", f"{line.gradients:.3f}"]
        body.append([*point, *cells])
    return markdown_table(header, body)


def workload_table(found: Sequence[Line], is_shared: bool = True) -> str:
    """With the share behind the method's name, or without."""
    names = list(found[0].gaps)
    body = [
        [_name(line, is_shared), *(f"{line.gaps[name]:.0f}" for name in names)] for line in found
    ]
    return markdown_table(["method", *names], body)


def score_table(found: Sequence[Line], is_shared: bool = True) -> str:
    names = list(found[0].scores)
    body = [
        [
            _name(line, is_shared),
            *(f"{line.scores[name]:.2f}" if name in line.scores else "–" for name in names),
        ]
        for line in found
    ]
    return markdown_table(["method", *names], body)


def settings_table(runs: Sequence[Run], done: Done) -> str:
    settings = {(run.workload, run.method): run for run in runs}
    body = []
    for workload, gain in gains(runs, done).items():
        sgd, sam = (settings[workload, name] for name in REFERENCES)
        cells = [x for run in (sgd, sam) for x in (run.learning_rate, run.weight_decay)]
        shown = f"{gain:.2f}" if is_gain(gain) else f"{gain:.2f}, not counted"
        part = sam.rho / length_of_weights(WORKLOADS[workload])
        cells = [f"{x:.3g}" for x in (*cells, sam.rho)]
        body.append([workload, *cells, f"{part:.4f}", shown])
    header = ["workload", *("learning rate", "weight decay") * 2, "ρ", "ρ / ‖w₀‖", "gain"]
    return markdown_table(header, body)


@functools.cache
def length_of_weights(workload: Workload) -> float:
    """‖w₀‖ of seed 0."""
    params, _ = initial(workload, 0, make_data(workload, 0, "validation"))
    return float(optax.tree.norm(params))


def plot(found: dict[str, list[Line]], path: Path) -> None:
    """The median of the workloads against the price, and each workload as a dot, of each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found) + 2, 4), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (name, of_set) in zip(panels, found.items(), strict=True):
        for number, method in enumerate(SHOWN):
            own = [line for line in of_set if line.method == method]
            values = [floored(line.gaps) for line in own]
            axes.plot(
                [line.gradients for line in own],
                [statistics.median(x) for x in values],
                "o-",
                color=f"C{number}",
                label=method,
            )
            for line, x in zip(own, values, strict=True):
                axes.plot([line.gradients] * len(x), x, ".", color=f"C{number}", alpha=0.4)
        axes.axhline(100, color="0.8", zorder=0)
        axes.axhline(0, color="0.8", zorder=0)
        axes.set_ylim(FLOOR - 10, 270)
        axes.set_xlabel("gradients a step")
        axes.set_title(f"{name} set: median and each of {len(of_set[0].gaps)}")
    panels[0].set_ylabel("share of tuned SAM's gain over the best SGD, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=120)


def _name(line: Line, is_shared: bool) -> str:
    return f"{line.method} {_fraction(line.share)}" if is_shared else line.method


def _fraction(share: float) -> str:
    if share in (0, 1) or round(1 / share) != 1 / share:
        return f"{share:g}"
    return f"1/{round(1 / share)}"
