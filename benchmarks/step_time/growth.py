"""How what a step costs grows with the number of arrays and of parameters.

Arrays: layers of 3 small arrays, more and more of them; each pass over the parameters is then many
small operations. Parameters: three matrices, larger and larger; each pass is then memory traffic.
Both are the worst that there is, since the gradient itself costs little: batches are small.

A row is the median over interleaved pairs, as in `benchmarks.step_time`. Rows are appended to
growth.csv, of which growth.png shows the newest of each kind.
"""

import dataclasses
import math
import os
from pathlib import Path

import jax
import tyro

from benchmarks.harness import table
from benchmarks.harness.networks import MLP, ManyArrays, Network
from benchmarks.step_time import __main__ as step_time

COMPARISONS = (
    ("arsam plain step", "sgd"),
    ("arsam reuse step", "sgd"),
    ("arsam sampled step", "optax.contrib.sam"),
)
COMPILED = ("arsam sampled step", "optax.contrib.sam")
IMAGE = (28, 28, 1)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    layers: tuple[int, ...] = (1, 10, 50, 100, 200)
    """Of the networks that grow in arrays, of which each has 3, and 4 more."""
    parameters: tuple[float, ...] = (1e4, 1e5, 1e6, 1e7, 1e8)
    """Of the networks that grow in parameters, roughly."""
    batch_size: int = 16
    pairs: int = 20
    """Interleaved pairs of steps of each comparison."""
    compilations: int = 1
    """Interleaved pairs of compilations, of the networks that grow in arrays."""
    cores: int = 1
    """Cores to pin this process to; 0 leaves it as it is, which suits an accelerator."""
    folder: Path = table.RESULTS / "step_time"
    """Of growth.csv and growth.png."""


def wide(parameters: float) -> Network:
    """About so many: 784 w + w² + 10 w weights, and 2 w + 10 biases."""
    half = (28 * 28 + 12) / 2
    return Network(MLP((round(math.sqrt(half**2 + parameters) - half),) * 2), IMAGE)


def main(options: Options) -> None:
    if options.cores:  # before jax starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    common = {"cores": options.cores, "batch_size": options.batch_size} | table.provenance()
    path = options.folder / "growth.csv"
    networks = {
        "arrays": [Network(ManyArrays(layers), IMAGE) for layers in options.layers],
        "parameters": [wide(count) for count in options.parameters],
    }
    print(f"{'growth':11}{'size':>11}  {'measure':9}{'what':20}{'in units of':19}{'ratio':>8}")
    for growth, own in networks.items():
        for network in own:
            for row in measure(growth, network, options):
                table.append_row(path, common | row)
                print(
                    f"{growth:11}{row['size']:11,}  {row['measure']:9}{row['step']:20}"
                    f"{row['unit']:19}{row['ratio']:8.3f}   {row['value']}",
                    flush=True,
                )
    plot(path)


def measure(growth: str, network: Network, options: Options):
    """Yields the rows of one network; two methods are in memory at a time."""
    for pair in COMPARISONS:
        steps, params_bytes = step_time.make_steps(network, options.batch_size, 8, pair)
        params = jax.tree.leaves(next(iter(steps.values())).state()[0])
        size = len(params) if growth == "arrays" else params_bytes // 4
        runs = {name: step.run for name, step in steps.items()}
        rows = step_time.time_rows("time", [(*pair, None)], runs, options.pairs, 1)
        if growth == "arrays" and pair == COMPILED:
            rows = (*rows, *step_time.compile_rows(steps, *pair, (None, None), options))
        for row in rows:
            yield {"growth": growth, "size": size} | row


def plot(csv: Path) -> None:
    """A panel for each growth, a line for each comparison: the newest row of each size."""
    from matplotlib.figure import Figure

    newest = {
        (row["growth"], row["measure"], row["step"], row["unit"], row["size"]): row["ratio"]
        for row in table.read_table(csv, ("growth", "measure", "step", "unit", "limit", "value"))
    }
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, growth in zip(panels, ("arrays", "parameters"), strict=True):
        for line in dict.fromkeys(key[1:4] for key in newest if key[0] == growth):
            points = sorted((k[4], v) for k, v in newest.items() if k[:4] == (growth, *line))
            kind, step, unit = line
            name = f"{step} / {unit}" + ("" if kind == "time" else f", {kind}")
            axes.semilogx(*zip(*points, strict=True), marker=".", label=name)
        axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xlabel(growth)
    panels[0].set_ylabel("ratio of times")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(csv.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
