"""Tables and figures of ``benchmarks.frontier``: how much of SAM's gain a method keeps."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich
from rich.table import Table

from benchmarks.harness.statistics import (
    FLOOR,
    NOTHING,
    Estimate,
    gap_closed,
    markdown_table,
    mean_and_error,
    mean_of,
)

PROTOCOLS = {
    "transfer": "Every method with the ρ, learning rate and weight decay tuned for SAM",
    "tuned": "Every method with its own tuned ρ, learning rate and weight decay",
}


class Line(NamedTuple):
    """One method at one value of its price knob, over all workloads."""

    method: str
    share: float
    gradients: float
    gaps: dict[str, Estimate]
    mean_gap: Estimate
    accuracies: dict[str, Estimate]
    costs: dict[str, float]


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
            accuracies[workload] = mean_and_error(accuracy)
            costs["gradients"].append(statistics.fmean(of(by_workload, "gradients_per_step")))
            for column in ("seconds_per_step", "peak_bytes", "top_hessian_eigenvalue", "sharpness"):
                costs[column] += [_ratio(of(by_workload, column), of(sam, column))]
        if gaps:
            is_whole = len(gaps) == len(workloads)
            lines.append(
                Line(
                    method,
                    share,
                    statistics.fmean(costs.pop("gradients")),
                    gaps,
                    mean_of(list(gaps.values())) if is_whole else NOTHING,
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
        lines = _ablation_lines(of_stage, ablations)
        if lines:
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


def _ablation_lines(rows: Sequence[dict[str, Any]], ablations: Sequence[str]) -> list[Line]:
    """Those of the ablations and, if there are any, of what is ablated."""
    known = {"sgd", "sam", *_OURS, *ablations}
    lines = summarize([row for row in rows if row["method"] in known])
    if not any(x.method in ablations for x in lines):
        return []
    return [x for x in lines if x.method in ablations or (x.method in _OURS and x.share <= 1 / 8)]


_ABLATED = "budgeted_sam"  # drawn as a line across at one step in eight
_OURS = {_ABLATED: "crimson", "budgeted_sam_rising": "darkblue"}


def _workloads(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line.gaps))


def _cells(line: Line, workloads: Sequence[str], values: dict[str, Estimate]) -> list[str]:
    return [f"{values.get(name, NOTHING):.1f}" for name in workloads]


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
            " machine had other work: benchmarks.step_time compares times.\n",
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
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, lines, panel, workloads)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.supylabel("gap between SGD and SAM closed, %")
    figure.suptitle(title)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(axis: Any, lines: Sequence[Line], panel: str, workloads: Sequence[str]) -> None:
    axis.axhline(100, color="0.6", linewidth=0.8)
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.plot(1, 0, "s", color="0.3", markersize=7, label="sgd")
    axis.plot(2, 100, "D", color="0.3", markersize=7, label="sam")
    methods = [m for m in dict.fromkeys(x.method for x in lines if x.gradients < 2) if m != "sgd"]
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
            color=_OURS.get(method) or _color(i),
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


def _color(index: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["tab20"](2 * index % 20 + index // 10)


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
