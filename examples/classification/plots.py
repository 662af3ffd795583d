"""The pictures of a run folder: accuracy, cost, sampling, norms; and what all pictures share."""

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

from examples.common.pictures import Styles, legend, point, styles_of, write_picture
from examples.common.records import Table

Tables = dict[str, list[Table]]
"""For each method, one table for each seed."""

CAPTIONS = {
    "accuracy": "Accuracy during training; the band is ± one standard deviation over seeds.",
    "cost": "Accuracy at the end against training time.",
    "sampling": "%SAM so far, the sampling probability p (thin: each seed), and c = ‖PSF‖ / ‖g‖.",
    "norms": "‖g‖ of every step and ‖PSF‖ of the sampled ones.",
    "comparison": "Accuracy of every run and method, ± one standard deviation over seeds; hollow:"
    " published.",
    "curves": "Accuracy during training: a panel for each method, a curve for each run.",
    "setting": "Accuracy and speed against the setting in which the runs differ; dashed:"
    " published.",
}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 13,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.dpi": 130,
    "font.size": 11.5,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
}
# Greys, which stand for no method.
_GRAD: dict[str, Any] = {"color": "#888888"}
_PSF: dict[str, Any] = {"color": "#222222", "linestyle": "--"}
_MOST_DOTS = 2000  # of a curve
_MOST_PANELS = 4  # in a row


def save_plots(
    folder: Path, steps: Tables, epochs: Tables, rows: list[dict[str, Any]], title: str
) -> list[Path]:
    """Draws ``accuracy.png``, ``cost.png``, and ``sampling.png`` and ``norms.png`` of samplers.

    Methods that do not take the plain gradient have a norm of 0 for it, and no part in the last.

    Args:
      rows: of the report's table, one for each method; ``steps`` and ``epochs`` may have fewer.
    """
    styles = styles_of([row["method"] for row in rows])
    sampled = {m: tables for m, tables in steps.items() if _has(tables, "sampled")}
    decomposed = {m: tables for m, tables in sampled.items() if _has(tables, "grad_norm")}
    figures = {}
    with plt.rc_context(STYLE):
        if epochs:
            figures["accuracy"] = _accuracy(epochs, styles)
        figures["cost"] = _cost(rows, styles)
        if sampled:
            figures["sampling"] = _sampling(sampled, styles)
        if decomposed:
            figures["norms"] = _norms(decomposed)
        return save(figures, folder, title)


def save(figures: dict[str, Figure], folder: Path, title: str) -> list[Path]:
    paths = []
    for name, figure in figures.items():
        figure.suptitle(title)
        paths.append(folder / f"{name}.png")
        write_picture(paths[-1], figure.savefig)
        plt.close(figure)
    return paths


def _accuracy(epochs: Tables, styles: Styles) -> Figure:
    """Accuracy against epochs and against seconds; the band is ± one standard deviation."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for method, tables in epochs.items():
        epoch, seconds, mean, std = accuracy_curve(tables)
        if not len(epoch):
            continue
        style, color = styles[method], styles[method]["color"]
        for ax, at in zip(axes, (epoch, seconds), strict=True):
            ax.plot(at, mean, **style, label=f"{method}  {mean[-1]:.1f} %")
            ax.plot(at[-1], mean[-1], "o", color=color, markersize=6)
            ax.fill_between(at, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    axes[0].set(xlabel="epoch", ylabel="accuracy (%)")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].set(xlabel="training time (s, without compilation)")
    legend(figure, axes[0], title="at the end")
    return figure


def accuracy_curve(tables: list[Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Evaluated epochs, and there the seeds' mean seconds and mean and deviation of accuracy (%).

    A seed that stopped early keeps its last values, so that the curve ends at the table's mean.
    """
    accuracy = 100 * _stack(tables, "accuracy")
    evaluated = ~np.isnan(accuracy).all(0)
    accuracy, seconds = (_carry_forward(x) for x in (accuracy, _stack(tables, "seconds")))
    return (
        np.flatnonzero(evaluated) + 1,
        seconds.mean(0)[evaluated],
        accuracy.mean(0)[evaluated],
        accuracy.std(0, ddof=min(1, len(accuracy) - 1))[evaluated],
    )


def _cost(rows: list[dict[str, Any]], styles: Styles) -> Figure:
    """Accuracy at the end against the time it took, in units of SGD's if SGD was run."""
    sgd = [row["seconds"] for row in rows if row["method"] == "sgd"]
    figure, ax = plt.subplots(figsize=(9, 5.5))
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        cost = row["seconds"] / sgd[0] if sgd else row["seconds"]
        accuracy, std = 100 * row["accuracy"], 100 * (row["accuracy_std"] or 0)
        ax.errorbar(
            cost,
            accuracy,
            std,
            **point(row["method"], styles),
            markersize=8,
            elinewidth=1,
            linestyle="none",
            label=f"{row['method']}  {accuracy:.1f} %",
        )
    ax.set(
        xlabel="training time in units of SGD's" if sgd else "training time (s)",
        ylabel="accuracy (%)",
    )
    legend(figure, ax, title="from the best")
    return figure


def _sampling(steps: Tables, styles: Styles) -> Figure:
    """%SAM so far, the sampling probability p (thin: each seed) if there is one, and c."""
    has_probability = {
        method: all(np.isfinite(table.column("probability")).all() for table in tables)
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
    figure.align_ylabels(axes)
    legend(figure, axes[0])
    return figure


def _norms(steps: Tables) -> Figure:
    """‖g‖ of every step and ‖PSF‖ of the sampled ones: the ARSAM paper's figure 2."""
    figure, panels = panels_in_rows(len(steps), 3.6, "step", "norm")
    for ax, (method, tables) in zip(panels, steps.items(), strict=True):
        _smooth_curve(ax, tables, _grad_norm, _GRAD, "‖g‖")
        _smooth_curve(ax, tables, _correction_norm, _PSF, "‖PSF‖")
        ax.set(title=method, yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    legend(figure, panels[0])
    return figure


def panels_in_rows(
    number: int, width: float, xlabel: str, ylabel: str
) -> tuple[Figure, list[Axes]]:
    """Equal panels, at most four in a row."""
    num_columns = min(number, _MOST_PANELS)
    num_rows = math.ceil(number / num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=((5.5 if num_columns <= 2 else width) * num_columns, 4.4 * num_rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[number:]:
        ax.remove()
    panels = list(axes.flat[:number])
    for ax in panels[-num_columns:]:  # nothing is below
        ax.set(xlabel=xlabel)
        ax.tick_params(labelbottom=True)
    for ax in panels[::num_columns]:
        ax.set(ylabel=ylabel)
    return figure, panels


def _smooth_curve(
    ax: Axes,
    tables: list[Table],
    values: Callable[[Table], np.ndarray],
    style: dict[str, Any],
    label: str,
) -> None:
    """The values of all seeds, as faint dots, and a smooth curve through them."""
    raw = _pad([values(table) for table in tables])
    at = np.arange(1, raw.shape[1] + 1)
    shown = slice(None, None, max(1, len(at) // _MOST_DOTS))
    ax.plot(at[shown], raw[:, shown].T, ".", color=style["color"], alpha=0.13, ms=4, mew=0)
    smooth = np.array([_smooth_log(row) for row in raw])
    ax.plot(at, np.exp(_mean(smooth)), **style, label=label)


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
    ax.plot(at, _mean(values), **style, label=label)


def _has(tables: list[Table], column: str) -> bool:
    """Whether a value is not 0."""
    return any(np.any(table.column(column)) for table in tables)


def _stack(tables: list[Table], column: str) -> np.ndarray:
    return _pad([np.array(table.column(column), float) for table in tables])


def _pad(rows: list[np.ndarray]) -> np.ndarray:
    """One row for each seed, with NaN after the end of one that stopped early."""
    length = max(map(len, rows))
    return np.array([np.pad(row, (0, length - len(row)), constant_values=np.nan) for row in rows])


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the seeds that have a value."""
    count = np.sum(~np.isnan(values), axis=0)
    return np.where(count, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _carry_forward(values: np.ndarray) -> np.ndarray:
    """Each row with its last value where it has none."""
    at = np.where(np.isnan(values), 0, np.arange(values.shape[1]))
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=1), axis=1)


def _grad_norm(table: Table) -> np.ndarray:
    return np.array(table.column("grad_norm"))


def _correction_norm(table: Table) -> np.ndarray:
    return np.array(table.column("correction_norm"))


def _ratio(table: Table) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # a gradient that was not taken is 0
        return _correction_norm(table) / _grad_norm(table)
