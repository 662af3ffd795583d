"""The moments of the gradient and of the PSF over mini-batches, and what they say."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from arsam_jax._convolutions import fast_convolutions
from benchmarks.harness import table
from benchmarks.harness.methods import METHODS
from benchmarks.harness.training import example_losses, num_steps, snapshots
from benchmarks.harness.workloads import WORKLOADS, Setting, Workload, make_data

SHARES = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
MULTIPLIERS = tuple(round(share ** (-2 / 3), 3) for share in SHARES)  # of ρ, as budgeted_sam has it
PROGRESS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the training, where it is measured
LAGS = (8, 64)  # steps of training between two measurements


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
                losses = example_losses(workload, unravel(flat), batch_stats, batch)
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
    name: str, setting: Setting, seed: int, n: int, on_point: Callable[[], None]
) -> list[dict[str, Any]]:
    """The rows of one training with SAM, from n mini-batches at each point."""
    workload = WORKLOADS[name]
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

    make = METHODS["sam"].make
    trained = snapshots(workload, make, setting, seed, data, steps)
    for step, variables in zip(steps, trained, strict=True):
        order = np.stack(
            [rng.choice(len(data.x), workload.batch_size, replace=False) for _ in range(n)]
        )
        found = moments(workload, variables, setting.rho, data.x, data.labels, order)
        seen[step] = Moments(*(np.asarray(values, np.float64) for values in found))
        on_point()
    return [
        {"workload": name, "seed": seed, "batches": n, "progress": progress}
        | row
        | table.provenance()
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
