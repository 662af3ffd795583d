"""Histograms of the weights of each layer and their bins."""

from pathlib import Path
from typing import Any

import numpy as np

from examples.common.pictures import write_picture
from examples.quantization.network import weight_levels, with_weights
from examples.quantization.quantizer import positive

_COLUMNS = 4
_BARS_OF_A_BIN = 4


def draw(params: dict[str, Any], bits: int, path: Path) -> None:
    """Draw a histogram of w / s for each layer, with the borders of bins that hold 99.9 % of it."""
    from matplotlib.figure import Figure

    layers = with_weights(params)
    rows = -(-len(layers) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.2 * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, _COLUMNS, squeeze=False))
    for axes, (name, layer) in zip(panels, layers.items(), strict=False):
        ratio = np.ravel(layer["kernel"] / positive(layer["weight_step"]))
        low, high = weight_levels(name, bits)
        first, last = np.round(np.clip(np.quantile(ratio, (5e-4, 1 - 5e-4)), low, high))
        borders = np.arange(first, last + 2) - 0.5
        edges = np.linspace(borders[0], borders[-1], _BARS_OF_A_BIN * (len(borders) - 1) + 1)
        axes.hist(ratio, edges, color="tab:blue")
        for border in borders:
            axes.axvline(border, color="black", linewidth=0.4)
        axes.set_title(f"{name}: {low} to {high}, s = {positive(layer['weight_step']):.3g}")
        axes.set_yticks([])
    for axes in panels[len(layers) :]:
        axes.set_axis_off()
    figure.supxlabel("weight / step size")
    write_picture(path, figure.savefig, dpi=100)
