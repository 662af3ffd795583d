"""Tables and figure of the accuracy benchmark, written from its CSV file."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import table
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import LISTS, UNSEEN, Setting, Task
from benchmarks.statistics import FLOOR, Estimate, floored, mean_and_error, retained

EARLIER = "0254d29"  # has the code and data of the published rows
LEAST_GAIN = 2  # standard errors: SAM helps on a task if it improves the score by more than this
NOTES = {
    "held-out": "No method was designed or adjusted on the tasks marked with *.",
    "development": "All choices in `budgeted_sam` were made on these tasks, so they flatter it.",
}
DRAWN = {  # the methods in the figure and their colours (Okabe and Ito)
    "sam": "#000000",
    "m_sam": "#999999",
    "arsam": "#CC79A7",
    "arsam_segments_of_8": "#009E73",
    "budgeted_sam": "#D55E00",
    "budgeted_m_sam": "#E69F00",
    "sam_every_k": "#56B4E9",
    "looksam": "#0072B2",
    "momentum_sam": "#F0E442",
}
Scores = dict[str, dict[int, float]]  # by task and seed


class Line(NamedTuple):
    """A method with one value of its hyperparameter, or with a value searched on each task."""

    method: str
    value: str
    commits: str
    seeds: int
    gradients: float
    scores: dict[str, Estimate]
    differences: dict[str, Estimate]  # score − base in points, on the tasks on which SAM helps
    fractions: dict[str, Estimate]  # on the same tasks


def write(csv: Path) -> list[Path]:
    """Writes the tables and the figure beside the CSV file."""
    rows = [row for row in table.read(csv) if row.get("stage", "run") == "run"]
    if not rows:
        raise SystemExit(f"--csv {csv} has no finished runs of a method.")
    by_list = {name: [row for row in rows if row["task"] in tasks] for name, tasks in LISTS.items()}
    by_list = {name: own for name, own in by_list.items() if own}
    lines = {name: lines_of(own) for name, own in by_list.items()}
    figure, text = csv.with_suffix(".png"), csv.with_suffix(".md")
    plot(lines, figure)
    parts = [
        "# Accuracy against cost",
        "Learning rate and weight decay are searched for the base optimizer, and with ρ for SAM, on"
        " held-out training examples. All other methods take over SAM's setting. Scores are on the"
        " test set, in %: accuracy, 1 − bits per byte / 8 for language models, R² for regression."
        " An error after ± is the standard error over seeds.",
        "Methods are compared on the tasks on which SAM improves the score by more than"
        f" {LEAST_GAIN} standard errors. The score and the improvement over base are means over"
        " these tasks. The error after ± is over seeds, the one in brackets between tasks."
        " The fraction of SAM's improvement that is retained is (method − base) / (SAM − base), a"
        " ratio of means over runs paired by seed. Its median over the tasks stands with the"
        f" quartiles and the worst task. Each task counts as at least {FLOOR:.0f} %.",
        f"![fraction of SAM's improvement against gradients per step]({figure.name})",
    ]
    for name, own in by_list.items():
        parts += [
            f"## {name.capitalize()} tasks",
            f"{NOTES[name]} Measured at the commits {table.counted_commits(own)}, which precede"
            f" commit {EARLIER}. Each line is compared with base and SAM of the same commit, or of"
            " the only commit that has them. Random draws changed afterwards, because each random"
            " stream got a separate key (see CHANGELOG), so a repetition gives other numbers"
            " within the errors.",
            "The base optimizer and SAM, with the settings that the search found:",
            _tasks(own, LISTS[name]),
            "All methods. A value that differs between tasks was searched on each of them. A"
            f" method marked with † is no longer in the code; it is at commit {EARLIER}.",
            _summary(lines[name]),
            "Mean test score of each task on which SAM helps:",
            _scores(lines[name]),
        ]
        if any(line.value == "searched" for line in lines[name]):
            parts += ["The values that were found by the search:", _searched(own, lines[name])]
    text.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    return [text, figure]


def gains(base: Scores, sam: Scores) -> dict[str, Estimate]:
    """SAM's improvement on each task, from runs paired by seed."""
    return {
        task: mean_and_error([sam[task][seed] - own[seed] for seed in own])
        for task, own in base.items()
        if task in sam
    }


def helps(gain: Estimate) -> bool:
    return gain.mean > LEAST_GAIN * gain.error


def _by_commit(rows: Sequence[dict[str, Any]], method: str) -> dict[str, Scores]:
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["method"] == method:
            found[row["commit"]][row["task"]][row["seed"]] = row["score"]
    return found


def lines_of(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """One line for each method, value and commit, in the order of the rows."""
    base, sam = _by_commit(rows, "base"), _by_commit(rows, "sam")
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    searched = _searched_methods(rows)
    for row in rows:
        commit = row["commit"] if row["commit"] in base else ""
        value = "searched" if row["method"] in searched else row["value"]
        groups[row["method"], value, commit].append(row)
    lines = []
    for (method, value, commit), own in groups.items():
        commits = dict.fromkeys(row["commit"] for row in own)
        reference = commit or next(iter(base))
        lines.append(_line(method, value, commits, own, base[reference], sam[reference]))
    merged: dict[tuple, Line] = {}
    for line in lines:  # equal scores at several commits are one line
        key = line.method, line.value, *line.scores.values()
        commits = [merged[key].commits] if key in merged else []
        merged[key] = line._replace(commits=", ".join([*commits, line.commits]))
    return [*merged.values()]


def _line(method, value, commits, rows, base: Scores, sam: Scores) -> Line:
    counted = [task for task, gain in gains(base, sam).items() if helps(gain)]
    scores: Scores = defaultdict(dict)
    gradients = defaultdict(list)
    for row in rows:
        scores[row["task"]][row["seed"]] = row["score"]
        gradients[row["task"]].append(row["gradients_per_step"])
    fractions, differences = {}, {}
    for task in counted:
        if task in scores:
            seeds = sorted(set(scores[task]) & set(base[task]) & set(sam[task]))
            own, low, high = ([x[task][seed] for seed in seeds] for x in (scores, base, sam))
            fractions[task] = retained(own, low, high)
            differences[task] = mean_and_error([a - b for a, b in zip(own, low, strict=True)])
    return Line(
        method=method,
        value=f"{value:g}" if not isinstance(value, str) else value,
        commits=", ".join(commits),
        seeds=max(map(len, scores.values())),
        gradients=statistics.fmean(statistics.fmean(x) for x in gradients.values()),
        scores={task: mean_and_error([*x.values()]) for task, x in scores.items()},
        differences=differences,
        fractions=fractions,
    )


def _searched_methods(rows: Sequence[dict[str, Any]]) -> set[str]:
    """The methods with one setting on each task, but not the same value on all tasks."""
    values = defaultdict(lambda: defaultdict(set))
    for row in rows:
        values[row["method"]][row["task"]].add(row["value"])
    return {
        method
        for method, by_task in values.items()
        if all(len(x) == 1 for x in by_task.values()) and len(set.union(*by_task.values())) > 1
    }


def _tasks(rows: Sequence[dict[str, Any]], tasks: dict[str, Task]) -> str:
    """The table of tasks, from the runs with the most seeds."""
    base, sam = (max(_by_commit(rows, m).items(), key=_count) for m in ("base", "sam"))
    settings = {(row["task"], row["method"]): row for row in rows if row["commit"] == base[0]}
    found = gains(base[1], sam[1])
    body = []
    for name in (name for name in tasks if name in found):
        cells = [
            f"{settings[name, method][field]:.3g}"
            for method in ("base", "sam")
            for field in Setting._fields
            if (method, field) != ("base", "rho")
        ]
        scores = [mean_and_error([*x[1][name].values()]) for x in (base, sam)]
        helped = "yes" if helps(found[name]) else "no"
        title = name + "*" * (name in UNSEEN)
        values = [f"{x:.2f}" for x in (*scores, found[name])]
        body.append([title, tasks[name].description, *values, helped, *cells])
    header = ["task", "data and network", "base", "SAM", "SAM − base", "SAM helps"]
    header += ["base: learning rate", "weight decay", "SAM: ρ", "learning rate", "weight decay"]
    return table.markdown(header, body)


def _count(item: tuple[str, Scores]) -> int:
    return sum(map(len, item[1].values()))


def _summary(lines: Sequence[Line]) -> str:
    """One row for each method."""
    body = []
    for line in lines:
        if not line.fractions:
            continue
        known = METHODS.get(line.method)
        hyperparameter = known.hyperparameter if known else "value"
        has_value = hyperparameter and line.value != "0"
        body.append(
            [
                f"`{line.method}`" + " †" * (known is None),
                f"{hyperparameter}: {line.value}" if has_value else "",
                f"{line.gradients:.3f}",
                _mean_over_tasks([line.scores[task] for task in line.fractions]),
                _mean_over_tasks([*line.differences.values()]),
                *_spread(floored([*line.fractions.values()])),
                f"{len(line.fractions)}",
                f"{line.seeds}",
                line.commits,
            ]
        )
    header = ["method", "hyperparameter", "gradients per step", "score", "improvement, points"]
    header += ["retained: median, %", "quartiles", "worst", "tasks", "seeds", "commit"]
    return table.markdown(header, body)


def _mean_over_tasks(values: Sequence[Estimate]) -> str:
    """The mean with its error over seeds and, in brackets, the standard error between tasks."""
    over_seeds = math.sqrt(math.fsum(x.error**2 for x in values)) / len(values)
    mean, between_tasks = mean_and_error([x.mean for x in values])
    return f"{Estimate(mean, over_seeds):.2f} [{between_tasks:.2f}]"


def _spread(values: Sequence[float]) -> list[str]:
    """Median, quartiles and worst value."""
    if len(values) < 2:
        return [f"{values[0]:.0f}", "–", f"{values[0]:.0f}"]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return [f"{median:.0f}", f"{low:.0f} to {high:.0f}", f"{min(values):.0f}"]


def _scores(lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(task for line in lines for task in line.fractions))
    body = []
    for line in lines:
        if line.fractions:
            cells = [f"{line.scores[x]:.2f}" if x in line.scores else "–" for x in names]
            name = f"`{line.method}`" + f" {line.value}" * (line.value != "0")
            body.append([name, *cells])
    return table.markdown(["method", *names], body)


def _searched(rows: Sequence[dict[str, Any]], lines: Sequence[Line]) -> str:
    """The chosen values, for methods whose value is searched on each task."""
    names = list(dict.fromkeys(task for line in lines for task in line.fractions))
    chosen = {(row["method"], row["task"]): f"{row['value']:g}" for row in rows}
    methods = [line.method for line in lines if line.value == "searched"]
    body = [
        [f"`{method}`", *(chosen.get((method, task), "–") for task in names)] for method in methods
    ]
    return table.markdown(["method", *names], body)


def plot(lines: dict[str, list[Line]], path: Path) -> None:
    """The median over tasks against the gradients per step, with each task as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(lines) + 2.6, 4.4), layout="constrained")
    panels = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, (name, own) in zip(panels, lines.items(), strict=True):
        for method, color in DRAWN.items():
            shown = [x for x in own if x.method == method and x.fractions and x.gradients < 2.1]
            shown = sorted(shown, key=lambda line: line.gradients)
            values = [floored([*line.fractions.values()]) for line in shown]
            for line, points in zip(shown, values, strict=True):
                axes.plot([line.gradients] * len(points), points, ".", color=color, alpha=0.35)
            if shown:
                (handles[method],) = axes.plot(
                    [line.gradients for line in shown],
                    [statistics.median(points) for points in values],
                    "o-",
                    color=color,
                    label=method,
                )
        for level in (0, 100):
            axes.axhline(level, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylim(FLOOR - 10, 250)
        axes.set_xlim(0.97, 2.04)
        axes.set_xlabel("gradients per step")
        axes.set_title(f"{name} tasks: median, and each task")
    panels[0].set_ylabel("SAM's improvement retained, %")
    figure.legend(handles.values(), list(handles), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)
