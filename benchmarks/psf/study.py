"""What the PSF of a mini-batch is: how much of it other mini-batches share, how soon that is out of
date, and how it grows with the radius.

Along trainings with SAM, at parameters that are held still, the gradient g and the PSF ∇L(w + m ρ
g/‖g‖) − g of many independent mini-batches are taken. What mini-batches have in common is the mean
μ: it adds up over the steps of a training; the rest, the noise, averages out. With x_i and y_i
those of n mini-batches,

    (⟨Σ x_i, Σ y_i⟩ − Σ ⟨x_i, y_i⟩) / (n (n − 1))

estimates ⟨E x, E y⟩ without bias. Reported are:

- common: ‖μ‖² / E‖x‖², which is also the coefficient of the regression of the PSF of one
  mini-batch on that of another;
- force: ⟨μ at m ρ, μ at ρ⟩ / ‖μ at ρ‖², how much of SAM's mean force a PSF from further away has;
- noise: √(E‖x‖² − ‖μ‖²), in units of that of the PSF at ρ;
- kept: the cosine of μ with that after some more steps of training; where μ is small, noise can
  take it above 1.

The seeds serve nothing else, the settings are those of SAM in benchmarks/frontier.csv, the test set
is not read. The whole takes half an hour on one core; a training that is done is not done again.
"""

import csv
import dataclasses
import functools
import io
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from jax.flatten_util import ravel_pytree
from rich.progress import Progress

import arsam_jax
from arsam_jax.convolutions import fast_convolutions
from benchmarks import frontier
from benchmarks.frontier.report import Estimate, markdown_table
from benchmarks.harness.methods import METHODS
from benchmarks.harness.workloads import (
    WORKLOADS,
    Workload,
    example_losses,
    make_data,
    num_steps,
    snapshots,
)
from examples.common.records import write_text

SHARES = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
MULTIPLIERS = tuple(round(share ** (-2 / 3), 3) for share in SHARES)  # of ρ, as budgeted_sam has it
PROGRESS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the training, where it is measured
LAGS = (8, 64)  # steps of training between two measurements


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    seeds: tuple[int, ...] = (300, 301, 302, 303)
    batches: int = 256
    """Mini-batches of each measurement."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/psf.csv")
    """Results; figure and tables are written beside it."""
    settings: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/frontier.csv")
    """Where the search for SAM's settings is."""

    def __post_init__(self):
        frontier.check_names(self, workloads=WORKLOADS)
        if self.batches < 2:
            raise SystemExit("--batches must be at least 2")


class Moments(NamedTuple):
    """Of the gradient and the PSF at each radius, over n mini-batches.

    Attributes:
      sums: of the vectors, (1 + radii, parameters).
      products: sums of the products of each two of one mini-batch, (1 + radii, 1 + radii).
    """

    sums: Any
    products: Any


def products_of_means(found: Moments, n: int) -> np.ndarray:
    """⟨E x, E y⟩ of each two, without the bias of the product of the means."""
    return (found.sums @ found.sums.T - found.products) / (n * (n - 1))


@functools.partial(jax.jit, static_argnums=0)
def moments(workload: Workload, variables, rho, x, labels, order) -> Moments:
    """The moments over the mini-batches whose examples are in ``order``, (batches, batch)."""
    params, batch_stats = variables
    flat, unravel = ravel_pytree(params)

    @fast_convolutions
    def add(carry):
        (sums, products), indices = carry
        batch = x[indices], labels[indices]

        def grad(flat):
            def loss_fn(flat):
                losses = example_losses(workload.network, unravel(flat), batch_stats, batch)
                return losses[0].mean()

            return jax.grad(loss_fn)(flat)

        g = grad(flat)
        direction = rho * g / jnp.linalg.norm(g)
        psfs = [grad(flat + m * direction) - g for m in MULTIPLIERS]
        vectors = jnp.stack([g, *psfs])
        return Moments(sums + vectors, products + vectors @ vectors.T)

    size = 1 + len(MULTIPLIERS)
    zeros = Moments(jnp.zeros((size, flat.size)), jnp.zeros((size, size)))
    total, _ = jax.lax.scan(lambda total, indices: (add((total, indices)), None), zeros, order)
    return total


def measure(
    name: str, seed: int, n: int, rows: dict[frontier.Run, dict], on_point: Callable[[], None]
) -> list[dict[str, Any]]:
    """The rows of one training, from n mini-batches at each point."""
    workload = WORKLOADS[name]
    setting = frontier.best_setting((name, "sam", 1), 8, rows)
    data = make_data(workload, seed, "validation")
    total = num_steps(workload, len(data.x))
    starts = [round(progress * total) for progress in PROGRESS]
    steps = sorted(start + lag for start in starts for lag in (0, *LAGS))
    if steps[-1] > total:
        raise ValueError(
            f"{name} has {total} steps, and the last measurement is after {steps[-1]}."
        )
    rng = np.random.default_rng([seed, 3])
    seen = {}

    trained = snapshots(workload, METHODS["sam"].make, setting, seed, data, steps)
    for step, variables in zip(steps, trained, strict=True):
        order = np.stack(
            [rng.choice(len(data.x), workload.batch_size, replace=False) for _ in range(n)]
        )
        found = moments(workload, variables, setting.rho, data.x, data.labels, order)
        seen[step] = Moments(*(np.asarray(values, np.float64) for values in found))
        on_point()
    versions = f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}"
    return [
        {"workload": name, "seed": seed, "batches": n, "progress": progress}
        | row
        | {"device": jax.devices()[0].device_kind, "versions": versions}
        for start, progress in zip(starts, PROGRESS, strict=True)
        for row in describe(seen[start], {lag: seen[start + lag] for lag in LAGS}, n)
    ]


def describe(found: Moments, later: dict[int, Moments], n: int) -> list[dict[str, float]]:
    """What is reported of the gradient, as multiplier 0, and of the PSF at each radius."""
    means = products_of_means(found, n)
    later_means = {lag: products_of_means(other, n) for lag, other in later.items()}
    squares = np.diag(found.products) / n
    noise = squares - np.diag(means)
    rows = []
    for i, multiplier in enumerate((0, *MULTIPLIERS)):
        row = {
            "multiplier": multiplier,
            "norm": math.sqrt(squares[i] / squares[0]),
            "common": means[i, i] / squares[i],
            "force": means[i, 1] / means[1, 1],
            "noise": math.sqrt(noise[i] / noise[1]),
        }
        for lag, other in later.items():
            product = found.sums[i] @ other.sums[i] / n**2
            lengths = means[i, i], later_means[lag][i, i]
            row[f"kept_{lag}"] = (
                product / math.sqrt(math.prod(lengths)) if min(lengths) > 0 else math.nan
            )
        rows.append(row)
    return rows


def estimate(rows: list[dict[str, Any]], column: str) -> Estimate:
    """Mean of trainings and its standard error, from the mean of each over its points.

    Values that noise left undefined are left out.
    """
    of_training: dict[float, list[float]] = {}
    for row in rows:
        if math.isfinite(row[column]):
            of_training.setdefault(row["seed"], []).append(row[column])
    values = [statistics.fmean(points) for points in of_training.values()]
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan)
    return Estimate(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def report(rows: list[dict[str, Any]], path: Path) -> list[Path]:
    """Writes the tables and the figure beside ``path``."""
    measured = {row["workload"] for row in rows}
    workloads = [name for name in WORKLOADS if name in measured]

    def table(column, multipliers, spec=".2f"):
        def cell(workload, multiplier):
            chosen = [r for r in rows if (r["workload"], r["multiplier"]) == (workload, multiplier)]
            return f"{estimate(chosen, column):{spec}}"

        header = ["workload", *(f"PSF at {m:.3g} ρ" if m else "gradient" for m in multipliers)]
        body = [[f"`{w}`", *(cell(w, m) for m in multipliers)] for w in workloads]
        return markdown_table(header, body)

    markdown, figure = path.with_suffix(".md"), path.with_suffix(".png")
    parts = [
        "# The PSF of a mini-batch\n",
        "Along trainings with SAM: mean over five points of each, ± its standard error over the"
        " trainings. What is estimated, and how, is said at the head of psf.py.\n",
        f"![common part and force]({figure.name})\n",
        "Norm, in units of the gradient's (root mean squares).\n",
        table("norm", MULTIPLIERS),
        "Common: the part of E‖x‖² that mini-batches share.\n",
        table("common", (0, *MULTIPLIERS), ".3f"),
        "Force: what the mean PSF has of that at ρ.\n",
        table("force", MULTIPLIERS),
        "Noise: what is not shared, in units of that of the PSF at ρ.\n",
        table("noise", MULTIPLIERS),
    ]
    for lag in LAGS:
        parts.append(f"Kept: the cosine of the mean with that {lag} steps of training later.\n")
        parts.append(table(f"kept_{lag}", (0, *MULTIPLIERS)))
    markdown.write_text("\n".join(parts))
    plot(rows, workloads, figure)
    return [markdown, figure]


def plot(rows: list[dict[str, Any]], workloads: list[str], path: Path) -> None:
    """The common part along the training, and the force against the radius."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")

    def means(workload, column, by, **fixed):
        chosen = [row for row in rows if row.items() >= ({"workload": workload} | fixed).items()]
        places = [x for x in dict.fromkeys(row[by] for row in chosen) if x]
        found = [estimate([row for row in chosen if row[by] == x], column) for x in places]
        return places, [e.mean for e in found], [e.error for e in found]

    for i, workload in enumerate(workloads):
        color = f"C{i}"
        x, mean, error = means(workload, "common", "progress", multiplier=1)
        left.errorbar(x, mean, error, color=color, marker="o", capsize=2, label=workload)
        x, mean, error = means(workload, "force", "multiplier")
        right.errorbar(x, mean, error, color=color, marker="o", capsize=2)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set_xlabel("part of the training done")
    left.set_ylabel("part of a PSF that mini-batches share")
    left.legend(frameon=False)
    right.plot(MULTIPLIERS, MULTIPLIERS, color="0.6", linestyle="--", label="in proportion")
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    right.set_xlabel("radius, in units of SAM's")
    right.set_ylabel("mean force of the PSF, in units of that at ρ")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)


WORDS = ("workload", "device", "versions")


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Replaces the file: it never has a part of a training."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {k: f"{v:.7g}" for k, v in row.items() if k not in WORDS})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def main(options: Options) -> None:
    settings, rows = frontier.read_rows(options.settings), frontier.read_table(options.csv, WORDS)
    done = {(row["workload"], row["seed"], row["batches"]) for row in rows}
    points = len(PROGRESS) * (1 + len(LAGS))
    with Progress() as progress:
        for name, seed in itertools.product(options.workloads, options.seeds):
            if (name, seed, options.batches) not in done:
                task = progress.add_task(f"{name}, seed {seed}", total=points)
                on_point = functools.partial(progress.advance, task)
                rows += measure(name, seed, options.batches, settings, on_point)
                write_rows(rows, options.csv)
    of_size = [row for row in rows if row["batches"] == options.batches]
    for path in report(of_size, options.csv):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    frontier.run_resumable(main, Options, __doc__)
