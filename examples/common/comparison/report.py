"""The report of a comparison: a table of means over seeds, and the figures of the runs."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.common.checkpoints import write_bytes, write_json
from examples.common.comparison.options import BASE
from examples.common.comparison.trainer import RESULT_FILE
from examples.common.methods import METHODS
from examples.common.pictures import styles_of, write_picture
from examples.common.reading import reading
from examples.common.settings import CONFIG_FILE

REPORT_FILE = "report.html"
_WIDTH = 160  # characters of a table that is not shown on a terminal
_CAPTION = (
    "Mean ± standard error over seeds. %SAM: the share of steps with a second gradient. Time and"
    " examples/s contain no compilation and no evaluation. Speed-up over SAM; ideal:"
    " 2 / (1 + %SAM)."
)
Results = dict[str, list[dict[str, Any]]]
"""The results of the seeds of each method."""


def write(folder: Path, measures: dict[str, tuple[str, str]], console: Console) -> None:
    """Prints the table of a comparison. Writes it with all figures to a page, and as JSON.

    Args:
      folder: the folder of the comparison. Only finished runs count.
      measures: the measures of the task, see ``comparison.Task``.
    """
    config = _read(folder / CONFIG_FILE)
    places = {m: [folder / m / f"seed{seed}" for seed in config["seeds"]] for m in config["method"]}
    results = {
        method: [_read(place / RESULT_FILE) for place in own if (place / RESULT_FILE).exists()]
        for method, own in places.items()
    }
    results = {method: own for method, own in results.items() if own}
    columns = table(results, measures)
    write_json(folder / "report.json", {"config": config, "table": columns, "runs": results})

    shown = Table(title=config["name"])
    for heading in columns:
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for row in zip(*columns.values(), strict=True):
        shown.add_row(*row)
    caption = _CAPTION
    if BASE in results:
        caption += f" {BASE}: {config.get('optimizer', 'the optimizer')} alone."
    page = Console(
        file=io.StringIO(), record=True, width=_WIDTH, markup=False, emoji=False, highlight=False
    )
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    for output in (console, page):
        output.print(shown)
        output.print(caption, style="italic", width=min(output.width, 100))

    figures = [_save_curves(folder, config["name"], results)] if results else []
    figures += [_save_measures(folder, config["name"], results, measures)] if results else []
    for own in places.values():
        figures += [picture for place in own for picture in sorted(place.glob("*.png"))]
    images = "".join(_image(folder, path) for path in figures if path is not None)
    settings = html.escape("\n".join(f"{name}: {value}" for name, value in config.items()))
    text = page.export_html().replace("</body>", f"{images}<pre>{settings}</pre></body>")
    write_bytes(folder / REPORT_FILE, text.encode())
    console.out(f"Report: {folder / REPORT_FILE}", highlight=False)


def table(results: Results, measures: dict[str, tuple[str, str]]) -> dict[str, list[str]]:
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
    return columns


def _costs_one_more(method: str) -> bool:
    """Whether a sampled step costs one gradient more than the base optimizer's."""
    return method == BASE or (method in METHODS and METHODS[method].gradients == 2)


def _read(path: Path) -> Any:
    with reading(path, "JSON", "Delete it to train that run again."):
        return json.loads(path.read_text(encoding="utf-8"))


def _image(folder: Path, path: Path) -> str:
    """A PNG file, copied into the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.relative_to(folder).as_posix())
    return f'<p>{name}<br><img style="max-width: 100%" src="data:image/png;base64,{content}"></p>'


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
    folder: Path, name: str, results: Results, measures: dict[str, tuple[str, str]]
) -> Path:
    """Draws a panel for each measure: a row for each method, with a dot for each seed."""
    from matplotlib.figure import Figure

    size = (3 * len(measures) + 1, 0.3 * len(results) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(name, parse_math=False)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    panels[0].set_yticks(range(len(results)), list(results))
    panels[0].set_ylim(len(results) - 0.5, -0.5)  # downwards, as in the table
    styles = styles_of(results)
    for axes, (key, (heading, _)) in zip(panels, measures.items(), strict=True):
        for place, (method, own) in enumerate(results.items()):
            values, color = [run["measures"][key] for run in own], styles[method]["color"]
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.6)
            axes.plot(np.mean(values), place, "|", color=color, markersize=20)
        axes.set_xlabel(heading, parse_math=False)
        axes.grid(axis="x", alpha=0.3)
    path = folder / "measures.png"
    write_picture(path, figure.savefig, dpi=120)
    return path


def _save_curves(folder: Path, name: str, results: Results) -> Path | None:
    """Draws each quick measure against the epoch and against the training time.

    The curve of a method is the mean over its seeds, in a band of ± one standard error. Returns
    None if nothing was evaluated.
    """
    curves = {m: own for m, own in results.items() if all(run["evaluations"] for run in own)}
    if not curves:
        return None
    from matplotlib.figure import Figure

    places = {"epoch": "epoch", "seconds": "training time (s, without compilation)"}
    first = next(iter(curves.values()))[0]["evaluations"][0]
    measures = [key for key in first if key not in ("step", *places)]
    figure = Figure(figsize=(12, 3.8 * len(measures)), layout="constrained")
    figure.suptitle(name, parse_math=False)
    styles = styles_of(results)
    grid = figure.subplots(len(measures), 2, sharey="row", squeeze=False)
    for panels, measure in zip(grid, measures, strict=True):
        for axes, (place, label) in zip(panels, places.items(), strict=True):
            for method, own in curves.items():
                values = np.array([[row[measure] for row in run["evaluations"]] for run in own])
                at = np.mean([[row[place] for row in run["evaluations"]] for run in own], 0)
                mean, error = values.mean(0), _standard_error(values)
                axes.plot(at, mean, **styles[method], label=f"{method}  {mean[-1]:.4g}")
                color = styles[method]["color"]
                axes.fill_between(at, mean - error, mean + error, color=color, alpha=0.15, lw=0)
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(measure.replace("_", " "), parse_math=False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="at the end")
    path = folder / "curves.png"
    write_picture(path, figure.savefig, dpi=120)
    return path
