"""Tables and figures of ``benchmarks.frontier``: how much of SAM's gain a method keeps."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich
from rich.table import Table

PROTOCOLS = {
    "transfer": "Every method with the ρ, learning rate and weight decay tuned for SAM",
    "tuned": "Every method with its own tuned ρ, learning rate and weight decay",
}


FLOOR = -100.0  # in %: what a collapse on one workload counts for in the mean


class Estimate(NamedTuple):
    """A mean and its standard error (NaN where one seed cannot tell)."""

    mean: float
    error: float

    def __format__(self, spec: str) -> str:
        if math.isnan(self.mean):
            return "–"
        error = "" if math.isnan(self.error) else f" ± {self.error:{spec}}"
        return f"{self.mean:{spec}}{error}"


class Line(NamedTuple):
    """One method at one value of its price knob, over all workloads."""

    method: str
    share: float
    gradients: float
    gaps: dict[str, Estimate]
    mean_gap: Estimate
    accuracies: dict[str, Estimate]
    costs: dict[str, float]


def gap_closed(accuracy: Sequence[float], sgd: Sequence[float], sam: Sequence[float]) -> Estimate:
    r"""The part of SAM's gain over SGD that a method keeps, in %, from runs paired by seed.

    With d_i = accuracy_i − sgd_i and D_i = sam_i − sgd_i of seed i, the gap is G = mean(d) /
    mean(D), a ratio of means, since a ratio of one seed may divide by nearly nothing. Its standard
    error is that of the mean of the residuals d_i − G D_i, divided by mean(D) (the delta method):
    the noise that a seed shares between the three methods, and that of SAM and SGD, is in it.
    """
    kept = [a - b for a, b in zip(accuracy, sgd, strict=True)]
    whole = [a - b for a, b in zip(sam, sgd, strict=True)]
    scale = statistics.fmean(whole)
    if scale == 0:
        return Estimate(math.nan, math.nan)
    gap = statistics.fmean(kept) / scale
    error = math.nan
    if len(kept) > 1:
        residuals = [d - gap * D for d, D in zip(kept, whole, strict=True)]
        error = statistics.stdev(residuals) / math.sqrt(len(kept)) / abs(scale)
    return Estimate(100 * gap, 100 * error)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each at least ``FLOOR``.

    A run that collapsed to chance would else weigh by how small SAM's gain happens to be.
    """
    error = math.sqrt(sum(e.error**2 for e in estimates if e.mean > FLOOR)) / len(estimates)
    return Estimate(statistics.fmean(max(e.mean, FLOOR) for e in estimates), error)


def summarize(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """Lines of one protocol, in the order of the rows; seeds that SGD or SAM lack are left out."""
    runs: dict[tuple, dict[str, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        runs[row["method"], row["share"]][row["workload"]][int(row["seed"])] = row
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    sgd, sam = runs["sgd", 0], runs["sam", 1]
    lines = []
    for (method, share), by_workload in runs.items():
        gaps, accuracies, costs = {}, {}, defaultdict(list)
        for workload in workloads:
            seeds = sorted(set(by_workload[workload]) & set(sgd[workload]) & set(sam[workload]))
            if not seeds:
                continue

            def of(runs, column, workload=workload, seeds=seeds):
                return [runs[workload][seed][column] for seed in seeds]

            accuracy = of(by_workload, "accuracy")
            gaps[workload] = gap_closed(accuracy, of(sgd, "accuracy"), of(sam, "accuracy"))
            spread = statistics.stdev(accuracy) if len(seeds) > 1 else math.nan
            accuracies[workload] = Estimate(statistics.fmean(accuracy), spread / len(seeds) ** 0.5)
            costs["gradients"].append(statistics.fmean(of(by_workload, "gradients_per_step")))
            for column in ("seconds_per_step", "peak_bytes", "top_hessian_eigenvalue", "sharpness"):
                costs[column] += [_ratio(of(by_workload, column), of(sam, column))]
        if gaps:
            is_whole = len(gaps) == len(workloads)
            missing = Estimate(math.nan, math.nan)
            lines.append(
                Line(
                    method,
                    share,
                    statistics.fmean(costs.pop("gradients")),
                    gaps,
                    mean_of(list(gaps.values())) if is_whole else missing,
                    accuracies,
                    {name: _median(values) for name, values in costs.items()},
                )
            )
    return lines


def _median(values: Sequence[float]) -> float:
    """Of the finite ones: a run that diverged has no curvature."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan


def _ratio(values: Sequence[float], unit: Sequence[float]) -> float:
    denominator = _median(unit)
    return _median(values) / denominator if denominator else math.nan


def write(rows: Sequence[dict[str, Any]], csv: Path, ablations: Sequence[str] = ()) -> list[Path]:
    """Prints the table of each protocol; writes its figure and one Markdown file of all tables."""
    written, parts = [], ["# Accuracy against cost\n"]
    for stage, title in PROTOCOLS.items():
        of_stage = [row for row in rows if row["stage"] == stage]
        lines = summarize([row for row in of_stage if row["method"] not in ablations])
        if not lines:
            continue
        rich.print(_rich_table(title, lines))
        path = csv.with_name(f"{csv.stem}{'_tuned' if stage == 'tuned' else ''}.png")
        plot(lines, title, path)
        settings = {
            (row["workload"], row["method"], row["share"]): row
            for row in of_stage
            if row["method"] not in ablations
        }
        parts.append(_markdown(title, lines, path.name, settings, stage))
        written.append(path)
        known = {"sgd", "sam", *_OURS, *ablations}
        lines = summarize([row for row in of_stage if row["method"] in known])
        lines = [
            x for x in lines if x.method in ablations or (x.method in _OURS and x.share <= 1 / 8)
        ]
        if any(x.method in ablations for x in lines):
            title = (
                "budgeted_sam with one part replaced; one step in eight where not said otherwise"
            )
            rich.print(_rich_table(title, lines))
            path = csv.with_name(f"{csv.stem}_ablations.png")
            plot_ablations(lines, title, path)
            parts += [f"## {title}\n", f"![Mean gap closed]({path.name})\n", _gaps(lines)]
            written.append(path)
    if written:
        markdown = csv.with_suffix(".md")
        markdown.write_text("\n".join(parts))
        written.append(markdown)
    return written


_ABLATED = "budgeted_sam"  # drawn as a line across at one step in eight
_OURS = {_ABLATED: "crimson", "budgeted_sam_rising": "darkblue"}


def _workloads(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line.gaps))


def _cells(line: Line, workloads: Sequence[str], values: dict[str, Estimate]) -> list[str]:
    nothing = Estimate(math.nan, math.nan)
    return [f"{values.get(name, nothing):.1f}" for name in workloads]


def _rich_table(title: str, lines: Sequence[Line]) -> Table:
    workloads = _workloads(lines)
    table = Table(title=f"{title}. Gap closed in %, ± standard error")
    for column in ("method", "share", "gradients a step", "mean", "worst", *workloads):
        table.add_column(column, justify="left" if column == "method" else "right")
    for line in lines:
        cells = _cells(line, workloads, line.gaps)
        name, share = line.method, f"{line.share:.4g}"
        worst = f"{min(gap.mean for gap in line.gaps.values()):.1f}"
        table.add_row(name, share, f"{line.gradients:.3f}", f"{line.mean_gap:.1f}", worst, *cells)
    return table


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


_PREFIX = ("method", "share", "gradients a step")


def _prefix(line: Line) -> list[str]:
    return [f"`{line.method}`", f"{line.share:.4g}", f"{line.gradients:.3f}"]


def _gaps(lines: Sequence[Line]) -> str:
    workloads = _workloads(lines)
    body = [[*_prefix(x), f"{x.mean_gap:.1f}", *_cells(x, workloads, x.gaps)] for x in lines]
    return markdown_table([*_PREFIX, "mean", *workloads], body)


def _markdown(title, lines, figure, settings, stage) -> str:
    workloads = _workloads(lines)
    accuracies = [[*_prefix(x), *_cells(x, workloads, x.accuracies)] for x in lines]
    cost_names = ("seconds_per_step", "peak_bytes", "top_hessian_eigenvalue", "sharpness")
    costs = [[*_prefix(x), *(f"{x.costs[name]:.2f}" for name in cost_names)] for x in lines]
    chosen = [
        [f"`{w}`", method, f"{share:.4g}", *(f"{row[c]:.4g}" for c in _SETTING)]
        for (w, method, share), row in settings.items()
        if stage == "tuned" or method == "sam"
    ]
    return "\n".join(
        [
            f"## {title}\n",
            f"![Gap closed against gradients a step]({figure})\n",
            "Gap closed, (accuracy − SGD) / (SAM − SGD) in %: ratio of means over seeds, ±"
            " standard error by the delta method on runs paired by seed. The mean is over the"
            f" workloads, each of which counts for at least {FLOOR:.0f} in it; its error takes them"
            " for independent. `share` is the value of a method's price knob (α for ARSAM, γ for"
            " ESAM).\n",
            _gaps(lines),
            "Test accuracy in %, ± standard error.\n",
            markdown_table([*_PREFIX, *workloads], accuracies),
            "In units of SAM's, median over the workloads: seconds a step, peak memory of the"
            " compiled run without its data, top Hessian eigenvalue and ρ-sharpness at the end. The"
            " machine had other work: step_time.csv is what compares times.\n",
            markdown_table([*_PREFIX, "time", "memory", "eigenvalue", "sharpness"], costs),
            "Settings.\n",
            markdown_table(["workload", "method", "share", "ρ", "lr", "weight decay"], chosen),
        ]
    )


_SETTING = ("rho", "learning_rate", "weight_decay")
_LOWEST, _HIGHEST = -40, 140  # in %: what is beyond is drawn there


def plot(lines: Sequence[Line], title: str, path: Path) -> None:
    """One panel for each workload and one for the mean; methods cheaper than SAM."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    workloads = _workloads(lines)
    panels = [*workloads, "mean of the workloads"]
    rows = 1 if len(panels) <= 3 else 2
    columns = math.ceil(len(panels) / rows)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(5.2 * columns, 4.2 * rows + 1),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    methods = [m for m in dict.fromkeys(x.method for x in lines if x.gradients < 2) if m != "sgd"]
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.axhline(100, color="0.6", linewidth=0.8)
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.plot(1, 0, "s", color="0.3", markersize=7, label="sgd")
        axis.plot(2, 100, "D", color="0.3", markersize=7, label="sam")
        for i, method in enumerate(methods):
            found = [
                (x.gradients, x.gaps.get(panel, x.mean_gap))
                for x in sorted(lines, key=lambda x: x.gradients)
                if x.method == method and (panel in x.gaps or panel not in workloads)
            ]
            is_ours = method in _OURS
            axis.errorbar(
                [gradients for gradients, _ in found],
                [min(max(gap.mean, _LOWEST), _HIGHEST) for _, gap in found],
                [gap.error if _LOWEST <= gap.mean <= _HIGHEST else 0 for _, gap in found],
                label=method,
                color=_OURS.get(method, plt.get_cmap("tab20")(2 * i % 20 + i // 10)),
                linewidth=2.6 if is_ours else 1.1,
                marker="o" if is_ours else "Pv^<>*Xdph8s"[i % 12],
                markersize=6 if is_ours else 5,
                capsize=2,
                zorder=5 if is_ours else 2,
            )
        axis.set_title(panel)
        axis.tick_params(labelbottom=True)
        axis.set_ylim(_LOWEST - 5, _HIGHEST + 5)
        axis.set_xlim(0.95, 2.22)
        axis.set_xlabel("gradients a step")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.supylabel("gap between SGD and SAM closed, %")
    figure.suptitle(title)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_ablations(lines: Sequence[Line], title: str, path: Path) -> None:
    """The mean gap of each, the whole method as a line across."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 1 + 0.28 * len(lines)), layout="constrained")
    for place, line in enumerate(lines):
        mean, error = line.mean_gap
        color = _OURS.get(line.method, "0.25")
        axis.errorbar(mean, place, xerr=error, fmt="o", color=color, capsize=2)
        if (line.method, line.share) == (_ABLATED, 1 / 8):
            axis.axvline(mean, color=color, linewidth=0.8)
    names = [f"{x.method}, 1/{1 / x.share:.0f}" for x in lines]
    axis.set_yticks(range(len(lines)), names)
    axis.invert_yaxis()
    axis.set_xlabel("gap between SGD and SAM closed, mean of the workloads, %")
    axis.grid(alpha=0.25, axis="x")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
