"""The pictures of several runs: accuracy, curves, and a setting in which they differ."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from examples.classification import plots
from examples.classification.plots import Tables
from examples.classification.runs import value_text
from examples.common.pictures import Styles, legend, point, styles_of

_ZERO_IS_NO_NUMBER = (
    *("train_examples", "image_size", "width", "depth", "patience", "devices", "input_workers"),
)


def save_plots(
    folder: Path, epochs: dict[str, Tables], rows: list[dict[str, Any]], title: str
) -> list[Path]:
    """Draws ``comparison.png``, ``curves.png`` and, against a numeric setting, ``setting.png``.

    Args:
      epochs: for each run, the tables that it has.
      rows: of the report's table, one for each run and method.
    """
    labels, setting = {row["run"]: _label(row, rows) for row in rows}, numeric_setting(rows)
    styles = styles_of(list(dict.fromkeys(row["method"] for row in rows)))
    figures = {}
    with plt.rc_context(plots.STYLE):
        figures["comparison"] = _comparison(rows, styles, labels)
        if any(epochs.values()):
            figures["curves"] = _curves(epochs, _styles_of_runs(list(labels)), labels)
        if setting:
            figures["setting"] = _against_setting(rows, styles, setting)
        return plots.save(figures, folder, title)


def numeric_setting(rows: list[dict[str, Any]]) -> str | None:
    """The one in which the runs differ, if it is a number and they were evaluated alike."""
    if len(rows[0]["settings"]) != 1 or len({row["evaluated_on"] for row in rows}) > 1:
        return None
    (name,) = rows[0]["settings"]
    values = [row["settings"][name] for row in rows]
    is_number = all(type(value) in (int, float) for value in values)
    return name if is_number and not (name in _ZERO_IS_NO_NUMBER and 0 in values) else None


def _styles_of_runs(names: list[str]) -> Styles:
    """From dark to light in their order: no colour that stands for a method elsewhere."""
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names)))
    return {name: {"color": color} for name, color in zip(names, colors, strict=True)}


def _label(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Of a run: its name, what is different about it, and what it is of."""
    parts = [f"{name} {value_text(value)}" for name, value in row["settings"].items()]
    parts = parts if len(parts) <= 2 else [*parts[:2], "..."]
    if len({other["evaluated_on"] for other in rows}) > 1:
        parts.append(row["evaluated_on"])
    return "\n".join([row["run"], *parts])


def _comparison(rows: list[dict[str, Any]], styles: Styles, labels: dict[str, str]) -> Figure:
    """Accuracy (± one standard deviation) of every run and method; hollow: as published."""
    of_runs = {run: [row for row in rows if row["run"] == run] for run in labels}
    lines = {run: max(len(own), labels[run].count("\n") + 1) for run, own in of_runs.items()}
    height = sum(lines.values()) + len(lines)
    figure, ax = plt.subplots(figsize=(9.5, 1.4 + 0.24 * height))
    top, centers = 0.0, []
    for run, own in of_runs.items():
        centers.append(top + (lines[run] + 1) / 2)
        for i, row in enumerate(own):
            at = centers[-1] + i - (len(own) - 1) / 2
            style = {"linestyle": "none", "elinewidth": 1.2, "markersize": 7, "zorder": 4}
            style |= point(row["method"], styles)
            std, published_std = row["accuracy_std"] or 0, row["published_accuracy_std"] or 0
            ax.errorbar(100 * row["accuracy"], at, xerr=100 * std, **style)
            if row["published_accuracy"] is not None:
                style |= {"markersize": 9, "markerfacecolor": "white", "zorder": 3}
                ax.errorbar(100 * row["published_accuracy"], at, xerr=100 * published_std, **style)
        top += lines[run] + 1
        ax.axhline(top, color="black", alpha=0.15, lw=0.8)
    for method in styles:
        ax.plot([], [], linestyle="none", markersize=7, **point(method, styles), label=method)
    if any(row["published_accuracy"] is not None for row in rows):
        style = {"linestyle": "none", "marker": "o", "markersize": 9, "color": "grey"}
        ax.plot([], [], **style, markerfacecolor="white", label="published")
    ax.set_yticks(centers, list(labels.values()))
    ax.set_ylim(top, 0)
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="accuracy (%)")
    legend(figure, ax)
    return figure


def _curves(epochs: dict[str, Tables], styles: Styles, labels: dict[str, str]) -> Figure:
    """Accuracy against epochs: a panel for each method, a curve for each run."""
    methods = list(dict.fromkeys(method for tables in epochs.values() for method in tables))
    figure, panels = plots.panels_in_rows(len(methods), 4.0, "epoch", "accuracy (%)")
    for ax, method in zip(panels, methods, strict=True):
        for run, tables in epochs.items():
            if method not in tables:
                continue
            epoch, _, mean, std = plots.accuracy_curve(tables[method])
            if not len(epoch):
                continue
            ax.plot(epoch, mean, **styles[run])
            ax.plot(epoch[-1], mean[-1], "o", color=styles[run]["color"], markersize=5)
            ax.fill_between(
                epoch, mean - std, mean + std, color=styles[run]["color"], alpha=0.15, lw=0
            )
        ax.set(title=method)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for run in labels:
        panels[0].plot([], [], **styles[run], label=labels[run])
    legend(figure, panels[0])
    return figure


def _against_setting(rows: list[dict[str, Any]], styles: Styles, setting: str) -> Figure:
    """Accuracy, images a second and speed-up against a setting; dashed: as published."""
    quantities = {
        "accuracy": ("accuracy (%)", 100),
        "images_per_second": ("images a second", 1),
        "speed_up": ("speed-up over SAM", 1),
    }
    if all(row["speed_up"] is None for row in rows):
        del quantities["speed_up"]
    figure, axes = plt.subplots(1, len(quantities), figsize=(4.4 * len(quantities), 4.4))
    has_published = False
    for ax, (quantity, (label, scale)) in zip(axes, quantities.items(), strict=True):
        shown = []
        for method in styles:
            own = [row for row in rows if row["method"] == method]
            published = [row for row in own if setting not in row["published_settings"]]
            style = {"elinewidth": 1, **point(method, styles)}
            at, values, stds = _points(own, setting, quantity, scale)
            ax.errorbar(at, values, stds, label=method, zorder=3, **style)
            shown += values
            at, values, stds = _points(published, setting, f"published_{quantity}", scale)
            if at:
                has_published = True
                dashed = {"linestyle": "--", "lw": 1.4, "markerfacecolor": "white", "alpha": 0.8}
                ax.errorbar(at, values, stds, **style | dashed)
                shown += values
        at = {row["settings"][setting] for row in rows}
        if min(at) > 0 and max(at) >= 10 * min(at):
            ax.set_xscale("log")
        if quantity == "images_per_second" and max(shown) >= 10 * min(shown) > 0:
            ax.set_yscale("log")
        elif quantity != "accuracy" and np.isfinite(shown).all():
            ax.set_ylim(0, 1.08 * max(shown))
        ax.set_xticks(sorted(at), [f"{x:g}" for x in sorted(at)])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel=setting, ylabel=label)
    axes[1].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    if has_published:
        style = {"color": "grey", "linestyle": "--", "lw": 1.4, "marker": "o"}
        axes[0].errorbar([], [], **style, markerfacecolor="white", label="published")
    legend(figure, axes[0])
    return figure


def _points(
    rows: list[dict[str, Any]], setting: str, quantity: str, scale: float
) -> tuple[list[float], list[float], list[float]]:
    """Where it is known: the setting, the quantity and its standard deviation."""
    rows = sorted(
        (row for row in rows if row[quantity] is not None), key=lambda row: row["settings"][setting]
    )
    return (
        [row["settings"][setting] for row in rows],
        [scale * row[quantity] for row in rows],
        [scale * (row.get(f"{quantity}_std") or 0) for row in rows],
    )
