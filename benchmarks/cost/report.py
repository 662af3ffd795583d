"""Tables and figure of the cost benchmark, written from its CSV files."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.statistics import mean_and_error

Rows = Sequence[dict[str, Any]]
COLORS = {"plain": "#009E73", "reuse": "#56B4E9", "sampled": "#D55E00"}


def communication_file(csv: Path) -> Path:
    return csv.with_name(f"{csv.stem}_communication.csv")


def training_file(csv: Path) -> Path:
    """The file of the training runs on an accelerator, beside that of the steps."""
    return csv.with_name(f"{csv.stem}_training.csv")


def write(csv: Path) -> list[Path]:
    """Writes the tables and the figure beside the CSV file."""
    rows, communication = table.read(csv), table.read(communication_file(csv))
    if not rows:
        raise SystemExit(f"--csv {csv} has no rows.")
    figure, text = csv.with_suffix(".png"), csv.with_suffix(".md")
    parts = [
        "# What a step costs",
        "Times are medians, ratios are medians over interleaved rounds in one process, with their"
        " quartiles in parentheses. `base` is the base optimizer (SGD with momentum, or AdamW for"
        " transformers). `base again` repeats its measurement and shows the noise. Tracing and"
        " compilation were measured once. On one core these are CPU times, otherwise the time that"
        " passed. Memory is what XLA reports for the compiled step; the last column is memory"
        f" beyond base in units of the size of the parameters. Measured at {_source(rows)}.",
        f"![time of each step in units of the base optimizer's]({figure.name})",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        parts += [_title(own[0]), _steps(own)]
    if communication:
        parts += [
            "## Communication",
            "All-reduces in a compiled data-parallel step, and the bytes of their results in units"
            f" of the parameters, on {communication[0]['devices']} devices. Measured at"
            f" {_source(communication)}.",
            _communication(communication),
        ]
    training = table.read(training_file(csv))
    if training:
        parts += [
            "## Training",
            f"ResNet-18 in bfloat16, {training[0]['epochs']} epochs of images with"
            f" {100 * training[0]['noise']:g} % label noise. The settings are not tuned. Seconds"
            " include compilation in the first seed of a method. Measured at"
            f" {_source(training)}.",
            _training(training),
        ]
    plot(rows, figure)
    text.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    return [text, figure]


def _source(rows: Rows) -> str:
    """The commits, devices and versions of these rows, as a phrase."""
    devices, versions = (
        " and ".join(dict.fromkeys(row[name] for row in rows)) for name in ("device", "versions")
    )
    return f"commit {table.counted_commits(rows)} on {devices} with {versions}"


def _title(row: dict[str, Any]) -> str:
    cores = f", {row['cores']} core(s)" if row["cores"] else ""
    return (
        f"## {row['network']}: {row['parameters']:,} parameters in {row['arrays']} arrays, batch"
        f" {row['batch_size']}{cores}"
    )


def _steps(rows: Rows) -> str:
    base = next((row for row in rows if row["step"] == "base"), None)
    body = []
    for row in rows:
        beyond = "–"
        if base:
            beyond = f"{(row['memory_bytes'] - base['memory_bytes']) / 4 / row['parameters']:+.2f}"
        ratios = [_ratio(row, name) for name in ("times_base", "times_sam")]
        body.append(
            [
                row["step"],
                f"{row['milliseconds']:.2f}",
                *ratios,
                f"{row['trace_seconds']:.2f}",
                f"{row['compile_seconds']:.2f}",
                f"{row['memory_bytes'] / 1e6:.1f}",
                beyond,
            ]
        )
    header = ["step", "milliseconds", "× base", "× optax.contrib.sam", "tracing, s"]
    header += ["compilation, s", "memory, MB", "beyond base, parameters"]
    return table.markdown(header, body)


def _ratio(row: dict[str, Any], name: str) -> str:
    """A ratio with its quartiles, or a dash if the unit was not measured."""
    if math.isnan(row[name]):
        return "–"
    return f"{row[name]:.3f} ({row[name + '_low']:.3f}–{row[name + '_high']:.3f})"


def _communication(rows: Rows) -> str:
    body = [
        [
            row["method"],
            f"{row['plain_all_reduces']}",
            f"{row['plain_bytes'] / row['parameter_bytes']:.3f}",
            f"{row['sampled_all_reduces']}",
            f"{row['sampled_bytes'] / row['parameter_bytes']:.3f}",
        ]
        for row in rows
    ]
    header = ["method", "plain step: all-reduces", "bytes", "sampled step: all-reduces", "bytes"]
    return table.markdown(header, body)


def _training(rows: Rows) -> str:
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        body.append(
            [
                f"`{method}`" + f" {own[0]['value']:g}" * bool(own[0]["value"]),
                f"{mean_and_error([row['accuracy'] for row in own]):.2f}",
                f"{statistics.fmean(row['gradients_per_step'] for row in own):.3f}",
                f"{statistics.median(row['seconds'] for row in own):.1f}",
                f"{len(own)}",
            ]
        )
    return table.markdown(["method", "accuracy, %", "gradients per step", "seconds", "seeds"], body)


def plot(rows: Rows, path: Path) -> None:
    """The time of each kind of step in units of the base optimizer's, a panel a network."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(11, 3 * math.ceil(len(names) / 3)), layout="constrained")
    panels = figure.subplots(math.ceil(len(names) / 3), 3, squeeze=False, sharey=True)
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(panels.flat, names, strict=False):
        own = [row for row in rows if row["network"] == name and row["step"] != "base"]
        for place, row in enumerate(own):
            kind = next((key for key in COLORS if key in row["step"]), "")
            low, high = (abs(row["times_base"] - row[f"times_base_{x}"]) for x in ("low", "high"))
            axes.barh(
                place,
                row["times_base"],
                xerr=[[low], [high]],
                color=COLORS.get(kind, "0.6"),
                error_kw={"linewidth": 0.8},
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(own)), [row["step"] for row in own])
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("× base")
    panels[0, 0].invert_yaxis()
    figure.savefig(path, dpi=90)
