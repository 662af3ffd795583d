"""The report of a comparison: a table of means over seeds, curves, and the pictures of the runs."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from examples.common import page
from examples.common.comparison.trainer import RESULT_FILE
from examples.common.pictures import legend, styles_of, write_picture
from examples.common.records import write_json
from examples.common.settings import CONFIG_FILE

REPORT_FILE = "report.html"
_PANELS_OF_A_ROW = 3
_CAPTION = (
    "Mean ± standard error over seeds. %SAM: share of steps with a second gradient. Speed-up: of"
    " the training over SAM's, without compilation and evaluation."
)


def write(folder: Path, measures: dict[str, tuple[str, str]], console: Console) -> None:
    """Prints the table of a comparison; writes a page with it and all pictures, and JSON.

    Args:
      folder: of the comparison; what is finished in it counts.
      measures: of the task, see ``comparison.Task``.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    results = {
        method: [
            json.loads(path.read_text())
            for seed in config["seeds"]
            if (path := folder / method / f"seed{seed}" / RESULT_FILE).exists()
        ]
        for method in config["method"]
    }
    results = {method: own for method, own in results.items() if own}
    columns = table(results, measures)
    write_json(folder / "report.json", {"config": config, "table": columns, "runs": results})

    shown = RichTable(title=config["name"])
    for heading in columns:
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for row in zip(*columns.values(), strict=True):
        shown.add_row(*row)
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file has no edge
    console.print(shown)
    console.print(_CAPTION, highlight=False, style="italic")

    parts = [page.table(columns), page.paragraph(_CAPTION, is_faint=True)]
    pictures = [
        picture
        for method in config["method"]
        for seed in config["seeds"]
        for picture in sorted((folder / method / f"seed{seed}").glob("*.png"))
    ]
    if results:
        picture = _save_measures(folder, results, measures)
        parts.append(page.picture(picture, f"{picture.name}: a dot is a seed, a line the mean"))
    for picture in (_save_curves(folder, results), *pictures):
        if picture is not None:
            parts.append(page.picture(picture, picture.relative_to(folder).as_posix()))
    settings = {"setting": list(config), "value": [_text(value) for value in config.values()]}
    parts += [page.heading("Settings"), page.table(settings, num_left=2)]
    page.write(folder / REPORT_FILE, config["name"], parts)
    console.out(f"Report: {folder / REPORT_FILE}", highlight=False)


def table(
    results: dict[str, list[dict[str, Any]]], measures: dict[str, tuple[str, str]]
) -> dict[str, list[str]]:
    """Its columns by their headings; a row for each method."""
    columns = {"method": list(results), "seeds": [str(len(own)) for own in results.values()]}
    for name, (heading, template) in measures.items():
        columns[heading] = [
            _mean([run["measures"][name] for run in own], template) for own in results.values()
        ]
    speeds = {
        method: np.mean([run["examples_per_second"] for run in own])
        for method, own in results.items()
    }
    columns["%SAM"] = [
        f"{np.mean([run['percent_sam'] for run in own]):.1f}" for own in results.values()
    ]
    columns["time"] = [
        f"{np.mean([run['seconds'] for run in own]):.1f} s" for own in results.values()
    ]
    if "sam" in speeds:
        columns["speed-up"] = [f"{speed / speeds['sam']:.2f}" for speed in speeds.values()]
    return columns


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mean(values: list[float], template: str) -> str:
    text = template.format(np.mean(values))
    if len(values) > 1:
        text += " ± " + template.format(np.std(values, ddof=1) / np.sqrt(len(values)))
    return text


def _save_measures(
    folder: Path, results: dict[str, list[dict[str, Any]]], measures: dict[str, tuple[str, str]]
) -> Path:
    """A panel for each measure, with a row for each method."""
    from matplotlib.figure import Figure

    methods, columns = list(results), min(len(measures), _PANELS_OF_A_ROW)
    rows = -(-len(measures) // columns)
    size = (3 * columns + 1, rows * (0.3 * len(methods) + 1))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    grid[0, 0].set_yticks(range(len(methods)), methods)
    grid[0, 0].set_ylim(len(methods) - 0.5, -0.5)  # downwards, as in the table
    styles = styles_of(methods)
    for axes, measure in zip_longest(grid.flat, measures.items()):
        if measure is None:
            axes.set_axis_off()
            continue
        name, (heading, _) = measure
        for place, (method, own) in enumerate(results.items()):
            values, color = [run["measures"][name] for run in own], styles[method]["color"]
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.6)
            axes.plot(np.mean(values), place, "|", color=color, markersize=20)
        axes.set_xlabel(heading)
        axes.grid(axis="x", alpha=0.3)
    path = folder / "measures.png"
    write_picture(path, figure.savefig, dpi=120)
    return path


def _save_curves(folder: Path, results: dict[str, list[dict[str, Any]]]) -> Path | None:
    """Each quick measure against the time of training; None where nothing was measured on the way.

    The curve of a method is the mean over its seeds.
    """
    curves = {m: own for m, own in results.items() if all(run["evaluations"] for run in own)}
    if not curves:
        return None
    from matplotlib.figure import Figure

    names = [n for n in next(iter(curves.values()))[0]["evaluations"][0] if n not in _PLACES]
    figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    styles = styles_of(list(results))
    panels = np.ravel(figure.subplots(1, len(names)))
    for axes, name in zip(panels, names, strict=True):
        for method, own in curves.items():
            rows = [run["evaluations"] for run in own]
            seconds, values = (
                np.mean([[row[key] for row in of_run] for of_run in rows], 0)
                for key in ("seconds", name)
            )
            axes.plot(seconds, values, **styles[method], marker=".", label=method)
        axes.set_xlabel("seconds of training")
        axes.set_ylabel(name.replace("_", " "))
    legend(figure, panels[0])
    path = folder / "curves.png"
    write_picture(path, figure.savefig, dpi=120)
    return path


_PLACES = ("step", "seconds")
