"""The report of a run folder, and the comparison of several.

python -m examples.classification.report digits            the report of runs/digits again
python -m examples.classification.report noise20 noise40   compares; to runs/report
"""

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from examples.classification import plots, plots_comparison
from examples.classification.methods import OTHER_PRICES, perturbation_size
from examples.classification.runs import (
    ENVIRONMENT_FILE,
    RUNS,
    Run,
    RunError,
    accuracy_name,
    find,
    read_run,
    tables,
    title,
    value_text,
)
from examples.common import page
from examples.common.errors import ConfigError
from examples.common.records import write_json
from examples.common.settings import to_dict

HTML_FILE = "report.html"
JSON_FILE = "report.json"

_DECIDE_SPEED = (
    *("dataset", "image_size", "augment", "input_workers", "model", "width", "depth", "dtype"),
    *("batch_size", "accumulate", "seeds_at_once", "devices"),
)

_CAPTION = (
    "Mean ± standard deviation over seeds; accuracy after the last epoch. Images/s and time"
    " include data loading, not compilation, evaluation and saving. Speed-up over SAM;"
    " ideal = 2 / (1 + %SAM), where a sampled step costs one gradient more. Memory: of a step, by"
    " the compiler's analysis."
)
_PUBLISHED_CAPTION = (
    " Published: the figures of arXiv 2510.03763, measured on other hardware (one RTX 3090)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    about = "Reports what is finished of a run, or compares several runs."
    prog = "python -m examples.classification.report"
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("run", nargs="+", metavar="RUN", help=f"run folder, or its name in {RUNS}")
    where = f"folder to write to (default: of one RUN, its own; of several, {RUNS / 'report'})"
    parser.add_argument("--output", type=Path, help=where)
    options = parser.parse_args(arguments)
    try:
        folders = [find(run) for run in options.run]
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise RunError("a run is named twice")
        write(folders, Console(), options.output)
    except (RunError, ConfigError, OSError) as error:
        console = Console(stderr=True)
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    return 0


def write(folders: Sequence[Path], console: Console, output: Path | None = None) -> None:
    """Prints the table of one or several run folders; writes a page with it and plots, and JSON.

    Args:
      output: where to; by default one run's own folder, and RUNS/report for several.

    Raises:
      RunError: if a folder is none of a run, no run in it is finished, or a file is damaged.
      ConfigError: if the file with a run's settings is damaged.
    """
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    runs = [r if names.count(r.name) == 1 else r._replace(name=str(r.folder)) for r in runs]
    rows, notes, is_one = table_rows(runs), table_notes(runs), len(runs) == 1
    epochs = {run.name: tables(run, "epochs") for run in runs}
    steps = tables(runs[0], "steps") if is_one else {}

    output = output or (folders[0] if is_one else RUNS / "report")
    output.mkdir(parents=True, exist_ok=True)
    if is_one:
        heading, numbers = title(runs[0].config), _numbers(runs[0])
        descriptions = [_describe(runs[0])]
        paths = plots.save_plots(output, steps, epochs[runs[0].name], rows, heading)
    else:
        heading = textwrap.shorten(", ".join(epochs), 70, placeholder=" ...")
        numbers = {"runs": {run.name: _numbers(run) for run in runs}}
        descriptions = [f"{run.name}: {_describe(run)}" for run in runs]
        paths = plots_comparison.save_plots(output, epochs, rows, heading)
    _remove_others(output, paths)
    pictures = {"pictures": [path.name for path in paths]}
    text = json.dumps({"table": rows, "notes": notes} | pictures | numbers, default=str)
    write_json(output / JSON_FILE, json.loads(text, parse_constant=lambda nan: None))

    columns, caption = table_columns(rows), _CAPTION
    if any(row["published_accuracy"] is not None for row in rows):
        caption += _PUBLISHED_CAPTION
    differing = rows[0]["settings"]
    same = {n: value_text(v) for n, v in runs[0].settings.items() if n not in differing}
    parts = [
        *map(page.paragraph, descriptions),
        page.table(columns, num_left=sum(_is_left(columns))),
        page.paragraph(caption, is_faint=True),
        *([page.bullets(notes)] if notes else []),
        *(page.picture(path, plots.CAPTIONS[path.stem]) for path in paths),
        page.heading("Settings"),
        page.table({"setting": [*same], "value": [*same.values()]}, num_left=2),
    ]
    page.write(output / HTML_FILE, heading, parts)

    if not console.is_terminal:
        console.width = max(console.width, 200)  # a file has no edge
    console.print(_rich_table(columns, heading))
    console.print(caption, highlight=False, style="italic")
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.out(f"Plots: {', '.join(map(str, paths))}", highlight=False)
    console.out(f"Report: {output / HTML_FILE}", highlight=False)
    places = ", ".join(f"{run.folder}/METHOD/SEED/" for run in runs)
    console.out(f"Records and checkpoints: {places}", highlight=False)


def table_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each run and method, of means over its seeds; None for what is not known.

    Accuracies are shares, also the published ones.
    """
    differing = _differing_settings(runs)
    rows = []
    for run in runs:
        sam_run = _sam_run(run, runs)
        for method, results in run.results.items():
            values = {name: [result[name] for result in results] for name in results[0]}
            percent_sam = float(np.mean(values["percent_sam"]))
            speed = float(np.mean(values["images_per_second"]))
            row = {
                "run": run.name,
                "settings": {name: run.settings.get(name) for name in differing},
                "dataset": run.config.dataset,
                "evaluated_on": accuracy_name(run.config),
                "device": run.device,
                "method": method,
                "seeds": len(results),
            }
            for name in ("accuracy", "best_accuracy", "test_accuracy"):
                is_known = None not in values[name]  # for all seeds; else the mean is of others
                row[name] = float(np.mean(values[name])) if is_known else None
                has_std = is_known and len(results) > 1
                row[f"{name}_std"] = float(np.std(values[name], ddof=1)) if has_std else None
            published, ideal = run.published.get(method), 2 / (1 + percent_sam / 100)
            rows.append(
                row
                | {
                    "percent_sam": percent_sam,
                    "images_per_second": speed,
                    "speed_up": _speed_up(results, sam_run),
                    "speed_up_over": sam_run and sam_run.name,
                    "ideal_speed_up": None if method in OTHER_PRICES else ideal,
                    "seconds": float(np.mean(values["seconds"])),
                    "peak_bytes": max(peak or 0 for peak in values["peak_bytes"]) or None,
                    "published_accuracy": published and published.accuracy / 100,
                    "published_accuracy_std": published and published.std and published.std / 100,
                    "published_percent_sam": published and published.percent_sam,
                    "published_images_per_second": published and published.images_per_second,
                    "published_speed_up": published and published.speed_up,
                    "published_settings": run.published_settings if published else {},
                }
            )
    return rows


def table_columns(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The table as text, by its headers: what the terminal and the page show.

    Columns that are the same for all runs, or that no run has, are left out.
    """

    def numbers(name: str, template: str, unit: float = 1) -> list[str]:
        values = [row[name] for row in rows]
        return ["–" if value is None else template.format(value / unit) for value in values]

    def shares(name: str) -> list[str]:
        stds = [row[f"{name}_std"] for row in rows]
        deviations = ["" if std is None else f" ± {100 * std:.1f}" for std in stds]
        means = numbers(name, "{:.1f}{{}} %", 0.01)
        return [mean.format(std) for mean, std in zip(means, deviations, strict=True)]

    evaluated_on = {row["evaluated_on"] for row in rows}
    accuracy = "accuracy" if len(evaluated_on) > 1 else f"{min(evaluated_on)} accuracy"
    about = {"run": [row["run"] for row in rows]}
    for name in rows[0]["settings"]:
        about[name] = [value_text(row["settings"][name]) for row in rows]
    about["evaluated on"] = [row["evaluated_on"] for row in rows]
    about["device"] = [row["device"] or "–" for row in rows]
    borrowed = [row["speed_up_over"] not in (None, row["run"]) for row in rows]
    speed_ups = zip(numbers("speed_up", "{:.2f}"), borrowed, strict=True)
    measured = {
        "method": [row["method"] for row in rows],
        "seeds": [str(row["seeds"]) for row in rows],
        accuracy: shares("accuracy"),
        "best validation accuracy": shares("best_accuracy"),
        # Of runs without validation images, the accuracy is this one.
        **({"test accuracy": shares("test_accuracy")} if "validation" in evaluated_on else {}),
        "%SAM": numbers("percent_sam", "{:.1f}"),
        "images/s": numbers("images_per_second", "{:,.0f}"),
        "speed-up": [text + "†" * mark for text, mark in speed_ups],
        "ideal": numbers("ideal_speed_up", "{:.2f}"),
        "time": numbers("seconds", "{:,.1f} s"),
        "memory": numbers("peak_bytes", "{:,.0f} MB", 1e6),
        "published test accuracy": shares("published_accuracy"),
        "published %SAM": numbers("published_percent_sam", "{:.1f}"),
        "published images/s": numbers("published_images_per_second", "{:,.0f}"),
        "published speed-up": numbers("published_speed_up", "{:.2f}"),
    }
    return {header: cells for header, cells in about.items() if len({*cells}) > 1} | {
        header: cells for header, cells in measured.items() if {*cells} != {"–"}
    }


def table_notes(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know besides the numbers."""
    notes = []
    for run in runs:
        of_run = f"{run.name}: " if len(runs) > 1 else ""
        results = [result for own in run.results.values() for result in own]
        total, together = len(run.unfinished) + len(results), run.config.seeds_at_once
        diverged = [r for r in results if not math.isfinite(r["train_loss"])]
        seeds = {tuple(r["seed"] for r in own) for own in run.results.values()}
        diverged_names = "; ".join(f"{r['method']}, seed {r['seed']}" for r in diverged)
        own_notes = {
            f"{len(run.unfinished)} of {total} runs not finished, and left out:"
            f" {'; '.join(run.unfinished)}.": run.unfinished,
            f"Diverged (the loss is no number): {diverged_names}.": diverged,
            "Not all methods have the same seeds.": len(seeds) > 1,
            f"{together} seeds were trained together: memory is that of all, time is divided by"
            " their number.": together > 1,
            "Trained on more than one machine or with several versions: see"
            f" {ENVIRONMENT_FILE}. Compare speeds with care.": run.environment.get("earlier"),
            run.published_note: run.published_note,
        }
        notes += [of_run + note for note, is_needed in own_notes.items() if is_needed]
    if {"dataset", "data_files"} & {*_differing_settings(runs)}:
        notes.append("The runs are on different data sets: their accuracies do not compare.")
    if len({accuracy_name(run.config) for run in runs}) > 1:
        notes.append(
            "Some accuracies are of the validation images, others of the test images: see the"
            " column evaluated on."
        )
    if len({run.device for run in runs} - {None}) > 1:
        notes.append("The runs were on different devices: their speeds do not compare.")
    for run in runs:
        sam_run = _sam_run(run, runs)
        if sam_run and sam_run is not run:
            notes.append(f"† {run.name}: speed-up over the SAM of {sam_run.name}.")
    return notes


def _sam_run(run: Run, runs: Sequence[Run]) -> Run | None:
    """Whose SAM the speed-ups are over: the run's own, or one's of the same work and device."""

    def work(other: Run) -> tuple:
        shape = other.environment.get("data", {}).get("image_shape")
        return *(other.settings[name] for name in _DECIDE_SPEED), other.device, shape

    same = (other for other in (run, *runs) if work(other) == work(run))
    return next((other for other in same if "sam" in other.results), None)


def _speed_up(results: Sequence[dict[str, Any]], run: Run | None) -> float | None:
    """Images a second over those of this run's SAM, with the seeds that both have, if any."""
    if run is None or len({each["device"]["kind"] for each in _environments(run)}) > 1:
        return None
    speeds, sam_speeds = (
        {result["seed"]: result["images_per_second"] for result in each}
        for each in (results, run.results["sam"])
    )
    common = speeds.keys() & sam_speeds.keys()
    speed, sam_speed = (
        np.mean([each[seed] for seed in common or each]) for each in (speeds, sam_speeds)
    )
    return float(speed / sam_speed)


def _environments(run: Run) -> list[dict[str, Any]]:
    return [run.environment, *run.environment.get("earlier", [])] if run.environment else []


def _differing_settings(runs: Sequence[Run]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [n for n in names if any(r.settings.get(n) != runs[0].settings.get(n) for r in runs)]


def _describe(run: Run) -> str:
    """The setting in one sentence."""
    config, environment = run.config, run.environment
    training = f"{config.epochs} epochs with batches of {config.batch_size}"
    if not environment:
        return f"{config.model}, {training}."
    data = environment["data"]
    return (
        f"{data['training_images']:,} training and {data['evaluation_images']:,}"
        f" {data['evaluated_on']} images of {'×'.join(map(str, data['image_shape']))},"
        f" {data['classes']} classes; {config.model} with {environment['parameters']:,} parameters,"
        f" {training}; on {run.device}."
    )


def _numbers(run: Run) -> dict[str, Any]:
    """All that is known of a run, for JSON."""
    return {
        "runs": [result for results in run.results.values() for result in results],
        "unfinished": run.unfinished,
        "settings": to_dict(run.config),
        "examples_a_perturbation": {m: perturbation_size(m, run.config) for m in run.results},
        **run.environment,
    }


def _remove_others(folder: Path, pictures: Sequence[Path]) -> None:
    """Deletes the pictures of the report that was in the folder before, but for these."""
    try:
        earlier = {*json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))["pictures"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in earlier & {f"{stem}.png" for stem in plots.CAPTIONS}:
        if folder / name not in pictures:
            (folder / name).unlink(missing_ok=True)


def _rich_table(columns: dict[str, list[str]], heading: str) -> RichTable:
    table = RichTable(title=escape(heading), padding=(0, 0, 0, 1))
    for header, is_left in zip(columns, _is_left(columns), strict=True):
        justify = "left" if is_left else "right"
        table.add_column(header.replace(" ", "\n"), overflow="fold", justify=justify)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, cells))
    return table


def _is_left(columns: dict[str, list[str]]) -> list[bool]:
    """Whether a column, up to the method, says what a row is about."""
    last = list(columns).index("method")
    return [index <= last for index in range(len(columns))]


if __name__ == "__main__":
    sys.exit(main())
