"""What the PSF of a mini-batch is: how much of it other mini-batches share, how soon that is out of
date, and how it grows with the radius.

Along trainings with SAM, at parameters that are held still, the gradient g and the PSF ∇L(w + m ρ
g/‖g‖) − g of many independent mini-batches are taken. What mini-batches have in common is the mean
μ: it adds up over the steps of a training, the rest averages out. With x_i and y_i those of n
mini-batches,

    (⟨Σ x_i, Σ y_i⟩ − Σ ⟨x_i, y_i⟩) / (n (n − 1))

estimates ⟨E x, E y⟩ without bias. Reported are:

- common: ‖μ‖² / E‖x‖², which is also the coefficient of the regression of the PSF of one
  mini-batch on that of another;
- force: ⟨μ at m ρ, μ at ρ⟩ / ‖μ at ρ‖², how much of SAM's mean force a PSF from further away has;
- kept: the cosine of μ with that after some more steps of training.

Of these follows what ``budgeted_sam`` at a share s does to the sum over the steps, in units of
SAM's. A period has one PSF from m ρ, and it again in 1/s − 1 steps, shortened by a = κ ‖g‖/‖PSF‖:

- its mean force is s (1 + (1/s − 1) a) times the force at m ρ;
- its noise, which one PSF keeps through a period while SAM's is a new one on each step, is
  √s (1 + (1/s − 1) a) times that of the PSF at m ρ, in units of that at ρ.

The seeds serve nothing else, the settings are those of SAM in benchmarks/frontier.csv, the test set
is not read. The whole takes a quarter of an hour on one core.
"""

import csv
import dataclasses
import functools
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
from arsam_jax._xla_cpu import fast_convolutions
from benchmarks import frontier
from benchmarks.frontier_report import Estimate, markdown_table
from benchmarks.workloads import (
    WORKLOADS,
    Workload,
    example_losses,
    make_data,
    num_steps,
    snapshots,
)

SHARES = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
MULTIPLIERS = tuple(round(share ** (-2 / 3), 3) for share in SHARES)  # of ρ, as budgeted_sam has it
PROGRESS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the training, where it is measured
LAGS = (8, 64)  # steps of training between two measurements


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    seeds: tuple[int, ...] = (300, 301)
    batches: int = 256
    """Mini-batches of each measurement."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/psf.csv")
    """Results; a training that it has is not done again. Figure and tables go beside it."""
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
    seen, result = {}, []

    def sam(rho, share, steps, seed):
        return arsam_jax.sam(rho)

    for step, variables in zip(
        steps, snapshots(workload, sam, setting, seed, data, steps), strict=True
    ):
        order = np.stack(
            [rng.choice(len(data.x), workload.batch_size, replace=False) for _ in range(n)]
        )
        found = moments(workload, variables, setting.rho, data.x, data.labels, order)
        seen[step] = Moments(*(np.asarray(values, np.float64) for values in found))
        on_point()
    for start, progress in zip(starts, PROGRESS, strict=True):
        found, means = seen[start], products_of_means(seen[start], n)
        squares = np.diag(found.products) / n
        for i, multiplier in enumerate((0, *MULTIPLIERS)):  # 0 is the gradient itself
            row: dict[str, Any] = {"workload": name, "seed": seed, "batches": n}
            row |= {"progress": progress, "multiplier": multiplier}
            row["norm"] = math.sqrt(squares[i] / squares[0])
            row["common"] = means[i, i] / squares[i]
            row["force"] = means[i, 1] / means[1, 1]
            for lag in LAGS:
                later = seen[start + lag]
                product = found.sums[i] @ later.sums[i] / n**2
                both = means[i, i] * products_of_means(later, n)[i, i]
                row[f"kept_{lag}"] = product / math.sqrt(both) if both > 0 else math.nan
            if multiplier:
                share, noise = SHARES[i - 1], squares[i] - means[i, i]
                reuse = min(1, min(0.1, 0.8 * share) / row["norm"]) if share < 1 else 0
                length = 1 + (1 / share - 1) * reuse
                row["budgeted_force"] = share * length * row["force"]
                row["budgeted_noise"] = math.sqrt(share * noise / (squares[1] - means[1, 1]))
                row["budgeted_noise"] *= length
            else:
                row["budgeted_force"] = row["budgeted_noise"] = math.nan
            row["device"] = jax.devices()[0].device_kind
            row["versions"] = f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}"
            result.append(row)
    return result


def estimate(values: list[float]) -> Estimate:
    """Mean and standard error over trainings and points; what noise left undefined is left out."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return Estimate(finite[0] if finite else math.nan, math.nan)
    return Estimate(statistics.fmean(finite), statistics.stdev(finite) / math.sqrt(len(finite)))


def report(rows: list[dict[str, Any]], path: Path) -> list[Path]:
    """Writes the tables and the figure beside ``path``."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))

    def table(column, multipliers, spec=".2f"):
        def cell(workload, multiplier):
            of_cell = [
                row[column]
                for row in rows
                if row["workload"] == workload and row["multiplier"] == multiplier
            ]
            return f"{estimate(of_cell):{spec}}"

        header = ["workload", *(f"PSF at {m:.3g} ρ" if m else "gradient" for m in multipliers)]
        body = [[f"`{w}`", *(cell(w, m) for m in multipliers)] for w in workloads]
        return markdown_table(header, body)

    markdown, figure = path.with_suffix(".md"), path.with_suffix(".png")
    parts = [
        "# The PSF of a mini-batch\n",
        "Along trainings with SAM: mean over seeds and five points of a training ± its standard"
        " error. What is estimated, and how, is said at the head of psf.py.\n",
        f"![common part and force]({figure.name})\n",
        "Norm, in units of the gradient's (root mean squares).\n",
        table("norm", MULTIPLIERS),
        "Common: the part of E‖x‖² that mini-batches share.\n",
        table("common", (0, *MULTIPLIERS), ".3f"),
        "Force: what the mean PSF has of that at ρ.\n",
        table("force", MULTIPLIERS),
    ]
    for lag in LAGS:
        parts.append(f"Kept: the cosine of the mean with that {lag} steps of training later.\n")
        parts.append(table(f"kept_{lag}", (0, *MULTIPLIERS)))
    for column, text in (
        ("force", "Mean force of `budgeted_sam` at 1, 1/2, 1/4, 1/8, 1/16, in units of SAM's.\n"),
        ("noise", "Noise of it, in the same units.\n"),
    ):
        parts += [text, table(f"budgeted_{column}", MULTIPLIERS)]
    markdown.write_text("\n".join(parts))
    plot(rows, workloads, figure)
    return [markdown, figure]


def plot(rows: list[dict[str, Any]], workloads: list[str], path: Path) -> None:
    """The common part along the training, and the force against the radius."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")

    def means(workload, column, by, multiplier=None):
        found: dict[float, list[float]] = {}
        for row in rows:
            if row["workload"] == workload and multiplier in (None, row["multiplier"]):
                found.setdefault(row[by], []).append(row[column])
        found.pop(0, None)
        estimates = [estimate(values) for values in found.values()]
        return list(found), [e.mean for e in estimates], [e.error for e in estimates]

    for i, workload in enumerate(workloads):
        color = f"C{i}"
        x, mean, error = means(workload, "common", "progress", 1)
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, numbers as such; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in WORDS else float(v) for k, v in row.items()} for row in rows]


WORDS = ("workload", "device", "versions")


def main(options: Options) -> None:
    settings = frontier.read_rows(options.settings)
    done = {(row["workload"], row["seed"], row["batches"]) for row in read_rows(options.csv)}
    points = len(PROGRESS) * (1 + len(LAGS))
    with Progress() as progress:
        for name, seed in itertools.product(options.workloads, options.seeds):
            if (name, seed, options.batches) not in done:
                task = progress.add_task(f"{name}, seed {seed}", total=points)
                on_point = functools.partial(progress.advance, task)
                rows = measure(name, seed, options.batches, settings, on_point)
                for row in rows:
                    frontier.append_row(options.csv, row, list(row))
    for path in report(read_rows(options.csv), options.csv):
        rich.print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
