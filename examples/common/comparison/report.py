"""The report of a comparison: a table of means over seeds, and the figures of the runs."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from examples.common import page
from examples.common.comparison.options import BASE
from examples.common.comparison.trainer import RESULT_FILE
from examples.common.errors import ConfigError
from examples.common.methods import METHODS
from examples.common.pictures import legend, styles_of, write_picture
from examples.common.records import write_json
from examples.common.settings import CONFIG_FILE

REPORT_FILE = "report.html"
_PANELS_OF_A_ROW = 3
_CAPTION = (
    "Mean ± standard error over seeds. %SAM: the share of steps with a second gradient. Time and"
    " examples/s contain no compilation and no evaluation. Speed-up over SAM; ideal:"
    " 2 / (1 + %SAM)."
)


def write(
    folder: Path,
    measures: dict[str, tuple[str, str]],
    console: Console,
    published: dict[str, dict[str, str]] | None = None,
) -> None:
    """Prints the table of a comparison. Writes it with all figures to a page, and as JSON.

    Args:
      folder: the folder of the comparison. Only finished runs count.
      measures: the measures of the task, see ``comparison.Task``.
      published: for each method, published figures by their headings.
    """
    config = _read(folder / CONFIG_FILE)
    results = {
        method: [
            _read(path)
            for seed in config["seeds"]
            if (path := folder / method / f"seed{seed}" / RESULT_FILE).exists()
        ]
        for method in config["method"]
    }
    results = {method: own for method, own in results.items() if own}
    columns = table(results, measures, published or {})
    write_json(folder / "report.json", {"config": config, "table": columns, "runs": results})

    caption = _CAPTION
    if BASE in results:
        caption += f" {BASE}: {config.get('optimizer', 'the optimizer')} alone."
    shown = RichTable(title=config["name"])
    for heading in columns:
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for row in zip(*columns.values(), strict=True):
        shown.add_row(*row)
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file has no edge
    console.print(shown)
    console.print(caption, style="italic")

    parts = [page.table(columns), page.paragraph(caption, is_faint=True)]
    if results:
        curves = _save_curves(folder, config["name"], results)
        if curves is not None:
            text = "Measures during training; the band is ± one standard error over seeds"
            parts.append(page.picture(curves, f"{curves.name}: {text}"))
        picture = _save_measures(folder, config["name"], results, measures)
        text = "a dot is a seed, a vertical line the mean"
        parts.append(page.picture(picture, f"{picture.name}: {text}"))
    for method in config["method"]:
        for seed in config["seeds"]:
            for picture in sorted((folder / method / f"seed{seed}").glob("*.png")):
                parts.append(page.picture(picture, picture.relative_to(folder).as_posix()))
    settings = {"setting": list(config), "value": [_text(value) for value in config.values()]}
    parts += [page.heading("Settings"), page.table(settings, num_left=2)]
    page.write(folder / REPORT_FILE, config["name"], parts)
    console.out(f"Report: {folder / REPORT_FILE}", highlight=False)


def table(
    results: dict[str, list[dict[str, Any]]],
    measures: dict[str, tuple[str, str]],
    published: dict[str, dict[str, str]],
) -> dict[str, list[str]]:
    """The columns by their headings, with a row for each method."""
    columns = {"method": list(results), "seeds": [str(len(own)) for own in results.values()]}
    for name, (heading, template) in measures.items():
        columns[heading] = [
            _mean([run["measures"][name] for run in own], template) for own in results.values()
        ]

    def means(name: str) -> dict[str, float]:
        return {m: float(np.mean([run[name] for run in own])) for m, own in results.items()}

    sampled, speeds = means("percent_sam"), means("examples_per_second")
    columns["%SAM"] = [f"{share:.1f}" for share in sampled.values()]
    columns["examples/s"] = [f"{speed:,.0f}" for speed in speeds.values()]
    columns["time"] = [f"{seconds:.1f} s" for seconds in means("seconds").values()]
    if "sam" in speeds:
        columns["speed-up"] = [f"{speed / speeds['sam']:.2f}" for speed in speeds.values()]
        columns["ideal"] = [
            f"{2 / (1 + share / 100):.2f}" if _costs_one_more(method) else "–"
            for method, share in sampled.items()
        ]
    headings = dict.fromkeys(heading for own in published.values() for heading in own)
    for heading in headings:
        columns[f"published {heading}"] = [published.get(m, {}).get(heading, "–") for m in results]
    return columns


def _costs_one_more(method: str) -> bool:
    """Whether a sampled step costs one gradient more than the base optimizer's."""
    return method == BASE or (method in METHODS and METHODS[method].gradients == 2)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}. Delete it to train that run again"
        ) from error


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mean(values: list[float], template: str) -> str:
    text = template.format(np.mean(values))
    if len(values) > 1:
        text += " ± " + template.format(_standard_error(np.array(values)))
    return text


def _standard_error(values: np.ndarray) -> Any:
    """Over the first axis, the seeds; 0 for one seed."""
    if len(values) == 1:
        return np.zeros(values.shape[1:])
    return np.std(values, axis=0, ddof=1) / np.sqrt(len(values))


def _save_measures(
    folder: Path,
    name: str,
    results: dict[str, list[dict[str, Any]]],
    measures: dict[str, tuple[str, str]],
) -> Path:
    """Draws a panel for each measure, with a row for each method."""
    from matplotlib.figure import Figure

    methods, columns = list(results), min(len(measures), _PANELS_OF_A_ROW)
    rows = -(-len(measures) // columns)
    size = (3 * columns + 1, rows * (0.3 * len(methods) + 1) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(name, parse_math=False)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    grid[0, 0].set_yticks(range(len(methods)), methods)
    grid[0, 0].set_ylim(len(methods) - 0.5, -0.5)  # downwards, as in the table
    styles = styles_of(methods)
    for axes, measure in zip_longest(grid.flat, measures.items()):
        if measure is None:
            axes.set_axis_off()
            continue
        key, (heading, _) = measure
        for place, (method, own) in enumerate(results.items()):
            values, color = [run["measures"][key] for run in own], styles[method]["color"]
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.6)
            axes.plot(np.mean(values), place, "|", color=color, markersize=20)
        axes.set_xlabel(heading, parse_math=False)
        axes.grid(axis="x", alpha=0.3)
    path = folder / "measures.png"
    write_picture(path, figure.savefig, dpi=120)
    return path


def _save_curves(folder: Path, name: str, results: dict[str, list[dict[str, Any]]]) -> Path | None:
    """Draws each quick measure against the epoch and against the training time.

    The curve of a method is the mean over its seeds. Returns None if nothing was evaluated.
    """
    curves = {m: own for m, own in results.items() if all(run["evaluations"] for run in own)}
    if not curves:
        return None
    from matplotlib.figure import Figure

    places = {"epoch": "epoch", "seconds": "training time (s, without compilation)"}
    first = next(iter(curves.values()))[0]["evaluations"][0]
    measures = [key for key in first if key not in ("step", *places)]
    figure = Figure(figsize=(10, 3.8 * len(measures)), layout="constrained")
    figure.suptitle(name, parse_math=False)
    styles = styles_of(list(results))
    grid = figure.subplots(len(measures), 2, sharey="row", squeeze=False)
    for panels, measure in zip(grid, measures, strict=True):
        for method, own in curves.items():
            values = np.array([[row[measure] for row in run["evaluations"]] for run in own])
            mean, error = values.mean(0), _standard_error(values)
            for axes, place in zip(panels, places, strict=True):
                at = np.mean([[row[place] for row in run["evaluations"]] for run in own], 0)
                axes.plot(at, mean, **styles[method], label=f"{method}  {mean[-1]:.4g}")
                axes.plot(at[-1], mean[-1], "o", color=styles[method]["color"])
                axes.fill_between(
                    at, mean - error, mean + error, color=styles[method]["color"], alpha=0.15, lw=0
                )
        panels[0].set_ylabel(measure.replace("_", " "), parse_math=False)
        for axes, label in zip(panels, places.values(), strict=True):
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
    legend(figure, grid[0, 0], title="at the end")
    path = folder / "curves.png"
    write_picture(path, figure.savefig, dpi=120)
    return path
