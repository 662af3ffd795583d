"""Tables and figure of the paper benchmark, written from its CSV files."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.statistics import Estimate, mean_and_error

SMALL = "paper_in_small.csv"  # in the folder of the CSV file
Rows = Sequence[dict[str, Any]]
TITLES = {
    "digits": "Label noise (table 5): digits, a CNN, 620 steps",
    "fashion_mnist": "Label noise (table 5): 1,000 images of Fashion-MNIST, a CNN, 744 steps",
    "segmentation": "Segmentation (table 7)",
    "pose": "Pose estimation (table 4)",
    "quantization": "Quantization-aware training (table 8), ε applied to the quantized weights",
    "quantization_of_weights": "Quantization-aware training (table 8), ε applied to the weights",
    "language": "Language model (not in the paper)",
}
FIRST_MEASURE = {
    "segmentation": "mean IoU, %",
    "pose": "PCKh@0.5, %",
    "quantization": "accuracy, %",
    "quantization_of_weights": "accuracy, %",
    "language": "bits per byte (lower is better)",
}
COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#F0E442")


def write(csv: Path) -> list[Path]:
    """Writes the tables and the figure beside the CSV file."""
    long = [row for row in table.read(csv) if row["stage"] == "run"]
    small = table.read(csv.with_name(SMALL))
    if not long and not small:
        raise SystemExit(f"--csv {csv} has no finished runs, and there is no {SMALL} beside it.")
    figure, text = csv.with_suffix(".png"), csv.with_suffix(".md")
    parts = [
        "# The paper's results, repeated",
        "Means over seeds with standard errors, on the test set. %SAM is the share of steps with a"
        " second gradient. A step costs 1 + %SAM / 100 gradients.",
        f"![accuracy against gradients per step]({figure.name})",
    ]
    panels: dict[str, dict[str, list[tuple[float, Estimate]]]] = {}
    if long:
        parts += _long(long, table.read(csv), panels)
    if small:
        parts += _small(small, panels)
    plot(panels, figure)
    text.write_text("\n\n".join(part.rstrip() for part in parts) + "\n")
    return [text, figure]


def _groups(rows: Rows, *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """The rows with equal values in these columns, in the order of the rows."""
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def _mean(rows: Rows, name: str) -> Estimate:
    return mean_and_error([row[name] for row in rows])


def _long(rows: Rows, searched: Rows, panels: dict) -> list[str]:
    """The sections of the runs at the paper's length."""
    parts = []
    for (data, epochs), own in _groups(rows, "data", "epochs").items():
        settings = _groups(own, "noise", "method", "rho", "learning_rate", "weight_decay")
        parts += [
            f"## ARSAM at the paper's length: {data}, {epochs} epochs",
            "All methods but SGD have SAM's learning rate and ρ. Measured at the commits"
            f" {table.counted_commits(own)}. Differences are to SAM, paired by seed.",
        ]
        for (noise,), at_noise in _groups(own, "noise").items():
            sam = {r["seed"]: r["accuracy"] for r in at_noise if r["method"] == "sam"}
            body, panel = [], {}
            for (method, value), runs in _groups(at_noise, "method", "value").items():
                name = _name(method, value)
                differences = [r["accuracy"] - sam[r["seed"]] for r in runs if r["seed"] in sam]
                cost = statistics.fmean(r["gradients_per_step"] for r in runs)
                panel.setdefault(method, []).append((cost, _mean(runs, "accuracy")))
                cells = [
                    f"{_mean(runs, 'accuracy'):.2f}",
                    f"{_mean(runs, 'accuracy_of_last_5'):.2f}",
                    f"{mean_and_error(differences):+.2f}" if method != "sam" else "",
                    f"{_mean(runs, 'percent_sam'):.1f}",
                    f"{cost:.3f}",
                    f"{_mean(runs, 'train_loss').mean:.3f}",
                    f"{statistics.median(r['cpu_seconds'] for r in runs):.0f}",
                    f"{len(runs)}",
                ]
                body.append([name, *cells])
            panels[f"{data}, {100 * noise:g} % label noise,\n{epochs} epochs"] = panel
            header = ["method", "accuracy, %", "mean of the last 5 epochs", "difference"]
            header += ["%SAM", "gradients per step", "training loss", "CPU seconds", "seeds"]
            parts += [f"### {100 * noise:g} % label noise", table.markdown(header, body)]
        body = [
            [method, f"{100 * noise:g} %", *(f"{x:g}" for x in setting)]
            for noise, method, *setting in settings
            if method in ("base", "sam")
        ]
        tried = len([r for r in searched if r["stage"] == "search" and r["data"] == data])
        header = ["method", "label noise", "ρ", "learning rate", "weight decay"]
        parts += [f"The settings found by a search of {tried} runs:", table.markdown(header, body)]
    return parts


def _name(method: str, value: float) -> str:
    if method == "arsam":
        return f"`arsam`, α = {value:g}"
    title = {"base": "SGD", "sam": "`sam`"}.get(method, f"`{method}`")
    return f"{title}, 1 step in {1 / value:g}" if value else title


def _small(rows: Rows, panels: dict) -> list[str]:
    """The sections of the short runs."""
    parts = [
        "## The paper's tables in small",
        "Small data and networks on a CPU. Learning rate and ρ were searched on held-out training"
        f" examples. Measured at the commits {table.counted_commits(rows)}. Random draws changed"
        " after these commits, because each random stream got a key of its own (see CHANGELOG). The"
        " code of the two label-noise tables is at commit 0254d29. The differences are to the base"
        " optimizer, or in the label-noise tables to SAM, paired by seed.",
    ]
    for (experiment,), own in _groups(rows, "experiment").items():
        parts.append(f"### {TITLES[experiment]}")
        if own[0]["measure"] == "accuracy" and experiment in ("digits", "fashion_mnist"):
            parts += _noise_tables(experiment, own, panels)
        else:
            parts.append(_application(experiment, own))
    return parts


def _noise_tables(experiment: str, rows: Rows, panels: dict) -> list[str]:
    levels = sorted({row["noise"] for row in rows})
    reference = {(r["noise"], r["seed"]): r["value"] for r in rows if r["method"] == "SAM"}
    accuracies, differences = [], []
    for (method,), own in _groups(rows, "method").items():
        by_noise = {noise: of for (noise,), of in _groups(own, "noise").items()}
        for cells, of in ((accuracies, _mean), (differences, None)):
            cells.append([method])
            for noise in levels:
                runs = by_noise.get(noise, [])
                paired = [r["value"] - reference[noise, r["seed"]] for r in runs]
                estimate = of(runs, "value") if of else mean_and_error(paired)
                sampled = f" ({_mean(runs, 'percent_sam').mean:.0f})" if of and runs else ""
                cells[-1].append(f"{estimate:.1f}{sampled}")
        for noise, runs in by_noise.items():
            title = f"{experiment}, {100 * noise:g} % label noise,\nshort runs"
            cost = 1 + _mean(runs, "percent_sam").mean / 100
            panels.setdefault(title, {})[method] = [(cost, _mean(runs, "value"))]
    header = ["method", *(f"{100 * noise:g} %" for noise in levels)]
    return [
        "Test accuracy in %, with %SAM in parentheses:",
        table.markdown(header, accuracies),
        "Difference from SAM in points:",
        table.markdown(header, differences),
    ]


def _application(experiment: str, rows: Rows) -> str:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    first = measures[0]
    base = {r["seed"]: r["value"] for r in rows if (r["method"], r["measure"]) == ("base", first)}
    body = []
    for (method,), own in _groups(rows, "method").items():
        by_measure = {name: of for (name,), of in _groups(own, "measure").items()}
        paired = [row["value"] - base[row["seed"]] for row in by_measure[first]]
        cells = [f"{own[0]['learning_rate']:g}", f"{own[0]['rho']:g}" if own[0]["rho"] else ""]
        cells += [f"{_mean(by_measure[first], 'value'):.3g}"]
        cells += [f"{mean_and_error(paired):+.3g}" if method != "base" else ""]
        cells += [f"{_mean(by_measure[name], 'value'):.3g}" for name in measures[1:]]
        body.append([method, *cells, f"{_mean(own, 'percent_sam').mean:.1f}"])
    header = ["method", "learning rate", "ρ", FIRST_MEASURE[experiment], "difference"]
    header += [*(name.replace("_", " ") for name in measures[1:]), "%SAM"]
    return table.markdown(header, body)


def plot(panels: dict[str, dict[str, list[tuple[float, Estimate]]]], path: Path) -> None:
    """The accuracy of each method against its gradients per step, a panel for each noise level."""
    from matplotlib.figure import Figure

    rows = max(1, (len(panels) + 3) // 4)
    figure = Figure(figsize=(13, 3.2 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    methods = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    handles: dict[str, Any] = {}
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        for method, points in panel.items():
            points = sorted(points)
            number = methods.index(method)
            handles[method] = axis.errorbar(
                [cost for cost, _ in points],
                [estimate.mean for _, estimate in points],
                [estimate.error for _, estimate in points],
                fmt="o-" if number < len(COLORS) else "s-",
                color=COLORS[number % len(COLORS)],
                markersize=4,
                capsize=2,
            )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("gradients per step")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for row in axes:
        row[0].set_ylabel("accuracy, %")
    names = {"base": "SGD"}
    figure.legend(
        list(handles.values()),
        [names.get(name, name) for name in handles],
        loc="outside lower center",
        ncols=6,
        frameon=False,
    )
    figure.savefig(path, dpi=90)
