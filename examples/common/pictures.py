"""What all figures share: the colors of methods, the position of a legend, the file."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.common.records import write_bytes

Styles = dict[str, dict[str, Any]]
"""For each method, the keyword arguments with which Matplotlib draws its line."""

# The colors of Okabe and Ito, which people with color blindness can distinguish.
COLORS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vP*X"
_LEGEND_FONT = 9
_LEGEND_LINE = 1.5 * _LEGEND_FONT / 72  # in inches


def styles_of(methods: list[str]) -> Styles:
    """Return a color and a line style for each method, for all figures of a report."""
    return {
        name: {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[i // len(COLORS) % len(LINES)],
        }
        for i, name in enumerate(methods)
    }


def point(method: str, styles: Styles) -> dict[str, Any]:
    """Return the style of a method that is drawn as points: its color, and a marker."""
    round_of_colors = list(styles).index(method) // len(COLORS)
    return {
        "color": styles[method]["color"],
        "marker": MARKERS[round_of_colors % len(MARKERS)],
    }


def legend(figure: Any, axes: Any, **kwargs: Any) -> None:
    """Draw the legend of ``axes`` to the right of all panels and widen the figure by it.

    It has as many columns as are needed. The layout of the figure must be ``"constrained"``.
    """
    handles, labels = axes.get_legend_handles_labels()
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    rows = max(1, int((figure.get_figheight() - 1.2) / (lines * _LEGEND_LINE)))
    beside = figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=_LEGEND_FONT,
        ncols=max(1, math.ceil(len(labels) / rows)),
        **kwargs,
    )
    width = beside.get_window_extent().width / figure.dpi
    figure.set_figwidth(figure.get_figwidth() + width)


def write_picture(path: Path, save: Callable[..., object], **kwargs: Any) -> None:
    """Write a PNG file atomically with ``figure.savefig`` or Pillow's ``image.save``."""
    content = io.BytesIO()
    save(content, format="png", **kwargs)
    write_bytes(path, content.getvalue())
