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
COLORS = {  # of the methods of the long runs, in the order of tables and legend
    "base": "#000000",
    "sam": "#0072B2",
    "arsam": "#009E73",
    "sam_every_k": "#CC79A7",
    "budgeted_sam": "#D55E00",
}


def write(csv: Path) -> list[Path]:
    """Writes the tables and the figure beside the CSV file."""
    long = [row for row in table.read(csv) if row["stage"] == "run"]
    small = table.read(csv.with_name(SMALL))
    if not long:
        raise SystemExit(f"--csv {csv} has no finished runs to report.")
    figure, text = csv.with_suffix(".png"), csv.with_suffix(".md")
    parts = [
        "# The paper's results, repeated",
        "Means over seeds with standard errors, on the test set. %SAM is the share of steps with a"
        " second gradient. A step costs 1 + %SAM / 100 gradients.",
    ]
    parts += _long(long, table.read(csv), figure.name)
    if small:
        parts += _small(small)
    plot(long, figure)
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


def _difference(runs: Rows, reference: Rows) -> Estimate:
    """The mean difference in accuracy between runs with the same seed."""
    accuracy = {row["seed"]: row["accuracy"] for row in reference}
    return mean_and_error(
        [row["accuracy"] - accuracy[row["seed"]] for row in runs if row["seed"] in accuracy]
    )


def _by_method(rows: Rows) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """The rows of each method and value, in the order of the tables."""
    order = list(COLORS)
    groups = _groups(rows, "method", "value")
    ordered = sorted(groups, key=lambda name: (order.index(name[0]), name[1]))
    return {(method, value): groups[method, value] for method, value in ordered}


def _by_noise(rows: Rows) -> dict[float, list[dict[str, Any]]]:
    return {noise: own for (noise,), own in sorted(_groups(rows, "noise").items())}


def _long(rows: Rows, all_rows: Rows, figure: str) -> list[str]:
    """The sections of the runs at the paper's length."""
    searched = [row for row in all_rows if row["stage"] == "search"]
    (data, epochs) = rows[0]["data"], rows[0]["epochs"]
    parts = [
        f"## ARSAM at the paper's length: {data}, {epochs} epochs",
        "All methods but SGD have SAM's learning rate and ρ. Differences are in points of accuracy,"
        f" paired by seed. Measured at the commits {table.counted_commits(rows)}.",
        f"![accuracy against gradients per step]({figure})",
    ]
    for noise, at_noise in _by_noise(rows).items():
        methods = _by_method(at_noise)
        body = []
        for (method, value), runs in methods.items():
            cells = [_name(method, value), f"{_mean(runs, 'accuracy'):.2f}"]
            for reference in ("base", "sam"):
                difference = _difference(runs, methods.get((reference, 0), []))
                cells.append(f"{difference:+.2f}" if method != reference else "")
            body.append(
                [
                    *cells,
                    f"{_mean(runs, 'accuracy_of_last_5'):.2f}",
                    f"{_mean(runs, 'percent_sam'):.1f}",
                    f"{_mean(runs, 'gradients_per_step').mean:.3f}",
                    f"{_mean(runs, 'train_loss').mean:.3f}",
                    f"{statistics.median(row['cpu_seconds'] for row in runs):.0f}",
                    f"{len(runs)}",
                ]
            )
        header = ["method", "accuracy, %", "difference from SGD", "difference from SAM"]
        header += ["mean of the last 5 epochs", "%SAM", "gradients per step", "training loss"]
        header += ["CPU seconds", "seeds"]
        parts += [f"### {100 * noise:g} % label noise", table.markdown(header, body)]
    setting = ("noise", "method", "rho", "learning_rate", "weight_decay")
    used = _groups(rows, *setting)
    body = [
        [
            _name(method, 0),
            f"{100 * noise:g} %",
            *(f"{number:g}" for number in numbers),
            f"{_mean(tried, 'accuracy'):.2f}",
            "yes" if (noise, method, *numbers) in used else "",
        ]
        for (noise, method, *numbers), tried in sorted(_groups(searched, *setting).items())
    ]
    header = ["method", "label noise", "ρ", "learning rate", "weight decay"]
    header += ["held-out accuracy, %", "used"]
    parts += ["The search, on held-out training images:", table.markdown(header, body)]
    return parts


def _name(method: str, value: float) -> str:
    if method == "arsam":
        return f"`arsam`, α = {value:g}"
    title = {"base": "SGD", "sam": "`sam`"}.get(method, f"`{method}`")
    return f"{title}, 1 step in {1 / value:g}" if value else title


def _small(rows: Rows) -> list[str]:
    """The sections of the short runs."""
    parts = [
        "## The paper's tables in small",
        "Small data and networks on a CPU. Learning rate and ρ were searched on held-out training"
        f" examples. Measured at the commits {table.counted_commits(rows)}. Random draws changed"
        " after these commits, because each random stream got a separate key (see CHANGELOG). The"
        " code of the two label-noise tables is at commit 0254d29. The differences are to the base"
        " optimizer, or in the label-noise tables to SAM, paired by seed.",
    ]
    for (experiment,), own in _groups(rows, "experiment").items():
        parts.append(f"### {TITLES[experiment]}")
        if own[0]["measure"] == "accuracy" and experiment in ("digits", "fashion_mnist"):
            parts += _noise_tables(own)
        else:
            parts.append(_application(experiment, own))
    return parts


def _noise_tables(rows: Rows) -> list[str]:
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


def plot(rows: Rows, path: Path) -> None:
    """The accuracy of each method against its gradients per step, a panel for each noise level."""
    from matplotlib.figure import Figure

    panels = _by_noise(rows)
    figure = Figure(figsize=(max(6.5, 3.2 * len(panels)), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axis, (noise, at_noise) in zip(axes, panels.items(), strict=True):
        points: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
        for (method, _), runs in _by_method(at_noise).items():
            cost = _mean(runs, "gradients_per_step").mean
            points[method].append((cost, _mean(runs, "accuracy")))
        for method, own in points.items():
            own.sort()
            handles[method] = axis.errorbar(
                [cost for cost, _ in own],
                [estimate.mean for _, estimate in own],
                [estimate.error for _, estimate in own],
                fmt="o-",
                color=COLORS[method],
                markersize=4,
                capsize=2,
            )
        axis.set_title(f"{100 * noise:g} % label noise", fontsize=9)
        axis.set_xlabel("gradients per step")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy, %")
    labels = {"base": "SGD", "arsam": "arsam, several α"}
    figure.legend(
        list(handles.values()),
        [labels.get(name, name) for name in handles],
        loc="outside lower center",
        ncols=5 if len(panels) > 2 else 3,
        frameon=False,
    )
    figure.savefig(path, dpi=90)
