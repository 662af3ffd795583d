"""Tables of the peers."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.search import Done
from benchmarks.harness.statistics import FLOOR, markdown_table
from benchmarks.harness.tuning import Run
from benchmarks.held_out import report
from benchmarks.held_out import study as held_out
from benchmarks.held_out.workloads import SECOND
from benchmarks.peers.methods import PEERS
from benchmarks.peers.study import Options

SEARCHED = -1.0  # stands for the dial where it differs between trainings


def write(options: Options, runs: Sequence[Run], done: Done) -> list[Path]:
    """The figure and the tables beside the CSV file."""
    # Each method is one line, whatever its dial is on a training.
    points = {
        run: run._replace(share=held_out.REFERENCES.get(run.method, SEARCHED)) for run in runs
    }
    rows = {points[run]: done[run] for run in runs}
    found = report.lines([*rows], rows)
    names = list(found[0].gaps)
    second = [name for name in names if name in SECOND]
    header = ["method", "gradients", "mean", "± seeds", "± workloads", "median", "worst"]
    header += [f"of the {len(second)} unseen: median", "worst"] if second else []
    body = []
    for line in found:
        shown = report.summary(line.gaps)
        if second:
            shown += report.summary({name: line.gaps[name] for name in second})[-2:]
        body.append([line.method, f"{line.gradients:.3f}", *(f"{x:.0f}" for x in shown)])
    sam = {run.workload: run for run in runs if run.method == "sam"}
    settings = {(run.workload, run.method): run for run in runs}
    chosen = []
    for line in found:
        of_method = [settings[name, line.method] for name in names]
        dials = PEERS[line.method]
        if len(dials.method.shares) * len(dials.factors) > 1:
            cells = [f"{run.share:g}, {run.rho / sam[run.workload].rho:g} ρ" for run in of_method]
            chosen.append([line.method, *cells])
    figure, markdown = options.csv.with_suffix(".png"), options.csv.with_suffix(".md")
    plot(found, figure)
    parts = [
        "# Peers, with dials of their own\n",
        f"Seeds: {len(options.seeds)}. Share of the gain of tuned SAM over the best SGD, in %, over"
        f" the trainings where that gain is above {report.LEAST_GAIN} of its standard errors in"
        " these seeds, too. Two errors of the mean: between seeds, and between trainings.\n",
        f"![each training, and the median]({figure.name})\n",
        markdown_table(header, body),
        "Each workload, ± the standard error between seeds:\n",
        report.workload_table(found, is_shared=False),
        "What the search chose, the dial and the multiple of SAM's ρ:\n",
        markdown_table(["method", *names], chosen),
        "Scores on the test set, in %:\n",
        report.score_table(found, is_shared=False),
    ]
    markdown.write_text("\n".join(parts))
    return [figure, markdown]


def plot(found: Sequence[report.Line], path: Path) -> None:
    """Each method as a row: a dot for each training, a line at the median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    medians = [statistics.median(report.floored(line.gaps)) for line in found]
    order = sorted(range(len(found)), key=medians.__getitem__)
    for row, number in enumerate(order):
        line = found[number]
        for name, value in zip(line.gaps, report.floored(line.gaps), strict=True):
            axes.plot(value, row, "o", color="C1" if name in SECOND else "C0", alpha=0.5)
        axes.plot(medians[number], row, "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(
        range(len(order)), [f"{found[n].method}, {found[n].gradients:.2f}" for n in order]
    )
    axes.axvline(0, color="0.8", zorder=0)
    axes.axvline(100, color="0.8", zorder=0)
    axes.set_xlim(FLOOR - 10, 270)
    axes.set_xlabel(
        "share of tuned SAM's gain over the best SGD, %\norange: nothing was chosen there"
    )
    axes.set_title("method and gradients a step; each training, and the median")
    figure.savefig(path, dpi=120)
