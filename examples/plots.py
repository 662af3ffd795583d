"""The pictures of a comparison: accuracy, sampling, and the norms of the ARSAM paper's figure 2."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.ndimage import gaussian_filter1d

from examples.records import Table

Tables = dict[str, list[Table]]
"""For each method, one table for each seed."""
Styles = dict[str, dict[str, Any]]
"""For each method, how matplotlib draws it."""

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 13,
    "figure.constrained_layout.use": True,
    "figure.dpi": 130,
    "font.size": 11.5,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
}
# Okabe and Ito's colours, which people with colour blindness can tell apart.
_COLORS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":")
_MARKERS = "osD^vP*X"
_MOST_DOTS = 2000  # of a curve
_MOST_PANELS = 4  # in a row


def save_plots(
    folder: Path, steps: Tables, epochs: Tables, rows: list[dict[str, Any]], title: str
) -> list[Path]:
    """Draws ``accuracy.png``, ``cost.png``, and ``sampling.png`` and ``norms.png`` of samplers.

    Methods that do not take the plain gradient have a norm of 0 for it, and no part in the last.
    """
    styles = {
        method: {
            "color": _COLORS[i % len(_COLORS)],
            "linestyle": _LINES[i // len(_COLORS) % len(_LINES)],
        }
        for i, method in enumerate(steps)
    }
    sampled = {m: tables for m, tables in steps.items() if _stack(tables, "sampled").any()}
    decomposed = {m: tables for m, tables in sampled.items() if _stack(tables, "grad_norm").any()}
    paths = []
    with plt.rc_context(_STYLE):
        figures = {"accuracy": _accuracy(epochs, styles), "cost": _cost(rows, styles)}
        if sampled:
            figures["sampling"] = _sampling(sampled, styles)
        if decomposed:
            figures["norms"] = _norms(decomposed)
        for name, figure in figures.items():
            figure.suptitle(title)
            paths.append(folder / f"{name}.png")
            temporary = paths[-1].with_suffix(".tmp")
            figure.savefig(temporary, format="png")
            temporary.replace(paths[-1])
            plt.close(figure)
    return paths


def _accuracy(epochs: Tables, styles: Styles) -> Figure:
    """Test accuracy against epochs and against seconds; the band is ± one standard deviation."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for method, tables in epochs.items():
        evaluated = ~np.isnan(tables[0].column("test_accuracy"))
        accuracy = _stack(tables, "test_accuracy")[:, evaluated] * 100
        mean, std = accuracy.mean(0), accuracy.std(0, ddof=min(1, len(accuracy) - 1))
        style, color = styles[method], styles[method]["color"]
        for ax, x in zip(axes, ("epoch", "seconds"), strict=True):
            at = _stack(tables, x).mean(0)[evaluated]
            ax.plot(at, mean, **style, label=f"{method}  {mean[-1]:.1f} %")
            ax.plot(at[-1], mean[-1], "o", color=color, markersize=6)
            ax.fill_between(at, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    axes[0].set(xlabel="epoch", ylabel="accuracy (%)")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].set(xlabel="training time (s, without compilation)")
    _legend(figure, axes[0], title="at the end")
    return figure


def _cost(rows: list[dict[str, Any]], styles: Styles) -> Figure:
    """Accuracy at the end against the time it took, in units of SGD's if SGD was run."""
    sgd = [row["seconds"] for row in rows if row["method"] == "sgd"]
    figure, ax = plt.subplots(figsize=(9, 5.5))
    methods = list(styles)
    for row in sorted(rows, key=lambda row: -row["test_accuracy"]):
        cost = row["seconds"] / sgd[0] if sgd else row["seconds"]
        accuracy, std = 100 * row["test_accuracy"], 100 * (row["test_accuracy_std"] or 0)
        ax.errorbar(
            cost,
            accuracy,
            std,
            color=styles[row["method"]]["color"],
            marker=_MARKERS[methods.index(row["method"]) // len(_COLORS) % len(_MARKERS)],
            markersize=8,
            elinewidth=1,
            linestyle="none",
            label=f"{row['method']}  {accuracy:.1f} %",
        )
    ax.set(
        xlabel="training time in units of SGD's" if sgd else "training time (s)",
        ylabel="accuracy (%)",
    )
    _legend(figure, ax, title="from the best")
    return figure


def _sampling(steps: Tables, styles: Styles) -> Figure:
    """%SAM so far, the sampling probability p (thin: each seed) if there is one, and c."""
    has_probability = {
        method: bool(np.isfinite(_stack(tables, "probability")).all())
        for method, tables in steps.items()
    }
    num_panels = 3 if any(has_probability.values()) else 2
    figure, axes = plt.subplots(num_panels, 1, figsize=(9, 3 * num_panels), sharex=True)
    for method, tables in steps.items():
        sampled = _stack(tables, "sampled")
        percent = 100 * np.cumsum(sampled, axis=1) / np.arange(1, sampled.shape[1] + 1)
        _seeds_and_mean(axes[0], percent, styles[method], method)
        if has_probability[method]:
            _seeds_and_mean(axes[1], _stack(tables, "probability"), styles[method], method)
        _smooth_curve(axes[-1], tables, _ratio, styles[method], method)
    axes[0].set(ylabel="%SAM so far", ylim=(0, 105))
    if num_panels == 3:
        axes[1].set(ylabel="sampling probability p", ylim=(0, None))
    axes[-1].set(ylabel="c = ‖PSF‖ / ‖g‖", ylim=(0, None), xlabel="step")
    _legend(figure, axes[0])
    return figure


def _norms(steps: Tables) -> Figure:
    """‖g‖ of every step and ‖PSF‖ of the sampled ones: the ARSAM paper's figure 2."""
    num_columns = min(len(steps), _MOST_PANELS)
    num_rows = math.ceil(len(steps) / num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=((5.5 if num_columns <= 2 else 3.6) * num_columns, 4.4 * num_rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[len(steps) :]:
        ax.remove()
    for ax, (method, tables) in zip(axes.flat, steps.items(), strict=False):
        _smooth_curve(ax, tables, _grad_norm, {"color": _COLORS[1]}, "‖g‖")
        _smooth_curve(ax, tables, _correction_norm, {"color": _COLORS[3]}, "‖PSF‖")
        ax.set(title=method, xlabel="step", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set(ylabel="norm")
    axes[0][0].legend()
    return figure


def _legend(figure: Figure, ax: Axes, **kwargs: Any) -> None:
    """Within ``ax``, or beside the figure if it would hide too much."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) <= 4:
        ax.legend(**kwargs)
    else:
        figure.legend(handles, labels, loc="outside right center", fontsize=9, **kwargs)


def _smooth_curve(
    ax: Axes,
    tables: list[Table],
    values: Callable[[Table], np.ndarray],
    style: dict[str, Any],
    label: str,
) -> None:
    """The values of all seeds, as faint dots, and a smooth curve through them."""
    raw = np.array([values(table) for table in tables])
    at = np.arange(1, raw.shape[1] + 1)
    shown = slice(None, None, max(1, len(at) // _MOST_DOTS))
    ax.plot(at[shown], raw[:, shown].T, ".", color=style["color"], alpha=0.13, ms=4, mew=0)
    smooth = np.array([_smooth_log(row) for row in raw])
    ax.plot(at, np.exp(smooth.mean(0)), **style, label=label)


def _smooth_log(values: np.ndarray) -> np.ndarray:
    """Gaussian average of log(values) over about 1 % of the steps. Skips missing values."""
    is_known = np.isfinite(values) & (values > 0)
    logs = np.log(np.where(is_known, values, 1))
    total, weight = (
        gaussian_filter1d(x.astype(float), max(5, len(values) / 100), mode="constant")
        for x in (logs, is_known)
    )
    return np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), np.nan)


def _seeds_and_mean(ax: Axes, values: np.ndarray, style: dict[str, Any], label: str) -> None:
    at = np.arange(1, values.shape[1] + 1)
    ax.plot(at, values.T, color=style["color"], alpha=0.3, lw=1)
    ax.plot(at, values.mean(0), **style, label=label)


def _stack(tables: list[Table], column: str) -> np.ndarray:
    return np.array([table.column(column) for table in tables])


def _grad_norm(table: Table) -> np.ndarray:
    return np.array(table.column("grad_norm"))


def _correction_norm(table: Table) -> np.ndarray:
    return np.array(table.column("correction_norm"))


def _ratio(table: Table) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # a gradient that was not taken is 0
        return _correction_norm(table) / _grad_norm(table)
