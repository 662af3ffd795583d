"""Table and figure of an application, and the table of its search."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.applications.study import APPLICATIONS, Options, Run
from benchmarks.harness.search import Done
from benchmarks.harness.statistics import Estimate, markdown_table, mean_and_error
from examples.common.comparison import BASE


def write(options: Options, runs: Mapping[str, Sequence[Run]], done: Done) -> list[Path]:
    """The files beside the CSV file.

    Args:
      runs: the reported ones of each method, in the order of the table; all are done.
    """
    csv = options.results.csv
    figure, markdown = csv.with_suffix(".png"), csv.with_suffix(".md")
    plot(options, runs, done, figure)
    parts = [
        f"# {options.application}\n",
        f"Mean ± standard error over {len(options.seeds)} seeds. Difference: from base, by pairs of"
        " one seed. %SAM: share of steps with a second gradient. Time: of the training on one core,"
        " in units of base's.\n",
        results(options, runs, done),
        f"![each seed]({figure.name})\n",
        f"The search, mean ± standard error over {len(options.tuning_seeds)} seeds of its own, on"
        " held-out training examples:\n",
        searched(options, done),
    ]
    markdown.write_text("\n".join(parts))
    return [figure, markdown]


def results(options: Options, runs: Mapping[str, Sequence[Run]], done: Done) -> str:
    """The table of the reported runs."""
    shown = APPLICATIONS[options.application].task.measures
    first = next(iter(shown))
    headings = [heading for heading, _ in shown.values()]
    header = ["method", "learning rate", "ρ", headings[0], "difference", *headings[1:]]
    body = []
    for method, own in runs.items():

        def values(name, own=own):
            return [done[run][name] for run in own]

        estimates = {name: mean_and_error(values(name)) for name in shown}
        cells = [_format(estimates[name], template) for name, (_, template) in shown.items()]
        cells.insert(1, "")
        if BASE in runs and method != BASE:
            base = [done[run][first] for run in runs[BASE]]
            pairs = zip(values(first), base, strict=True)
            cells[1] = _format(mean_and_error([a - b for a, b in pairs]), shown[first][1], "+")
        unit = statistics.median(done[run]["seconds"] for run in runs.get(BASE, own))
        share = statistics.fmean(values("percent_sam"))
        time = statistics.median(values("seconds")) / unit
        rho = "" if method == BASE else f"{own[0].rho:g}"
        setting = [method, f"{own[0].learning_rate:g}", rho]
        body.append([*setting, *cells, f"{share:.1f}", f"{time:.2f}"])
    return markdown_table([*header, "%SAM", "time"], body)


def searched(options: Options, done: Done) -> str:
    """The table of the search, best settings first."""
    application = APPLICATIONS[options.application]
    first, (heading, template) = next(iter(application.task.measures.items()))
    groups: dict[tuple, list[float]] = defaultdict(list)
    for run, row in done.items():
        if run.stage == "search" and run.seed in options.tuning_seeds:
            groups[run.method, run.learning_rate, run.rho].append(row[first])
    body = []
    for method in dict.fromkeys(method for method, *_ in groups):
        own = {key: mean_and_error(values) for key, values in groups.items() if key[0] == method}
        order = sorted(own, key=lambda key: own[key].mean, reverse=application.goal is max)
        for _, rate, rho in order:
            estimate = _format(own[method, rate, rho], template)
            body.append([method, f"{rate:g}", "" if method == BASE else f"{rho:g}", estimate])
    return markdown_table(["method", "learning rate", "ρ", heading], body)


def plot(options: Options, runs: Mapping[str, Sequence[Run]], done: Done, path: Path) -> None:
    """Each seed as a dot, and the mean with its standard error; a panel a measure."""
    from matplotlib.figure import Figure

    shown = APPLICATIONS[options.application].task.measures
    figure = Figure(figsize=(3 * len(shown), 0.5 + 0.4 * len(runs)), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, (name, (heading, _)) in zip(panels, shown.items(), strict=True):
        for height, own in enumerate(runs.values()):
            values = [done[run][name] for run in own]
            mean, error = mean_and_error(values)
            axes.plot(values, [height] * len(values), ".", color="0.6")
            axes.errorbar(mean, height, xerr=error, fmt="o", color="C0", capsize=3)
        axes.set_xlabel(heading)
        axes.set_yticks(range(len(runs)), list(runs))
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def _format(estimate: Estimate, template: str, sign: str = "") -> str:
    template = template.replace("{:", "{:" + sign)
    mean = template.format(estimate.mean)
    return f"{mean} ± {template.format(estimate.error).lstrip('+')}"
