"""Which radii are tried at which share, in which variants of the training."""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

import arsam_jax
from benchmarks.harness import search, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.search import Done, Study
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import WORKLOADS, Setting
from benchmarks.radius_law import fits

RATIO = 1.6  # of neighbouring multipliers
LEAST, MOST = 0.1, 70  # of all multipliers


class Variant(NamedTuple):
    """A change of the training, and what is run with it.

    Attributes:
      shares: of sampled steps; 0 is the base optimizer and 1 is SAM.
      num_seeds: from ``FIRST_SEED`` on; four times as many where a run takes a second.
      bound: κ.
      learning_rate: a factor.
      batch_size: at the same epochs.
    """

    shares: tuple[float, ...] = (0, 1, 1 / 4, 1 / 20)
    num_seeds: int = 2
    bound: float = 0.1
    learning_rate: float = 1
    batch_size: int = 64


FIRST_SEED = 200
KAPPAS = (0.03, 0.2, 0.4)  # base has 0.1
SWEEPS = {
    "radius": {
        "base": Variant((0, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 20), num_seeds=3),
        "lr/3": Variant(learning_rate=1 / 3),
        "batch 256": Variant(batch_size=256),
    },
    "kappa": {f"kappa {k:g}": Variant((1 / 4, 1 / 20), bound=k) for k in KAPPAS},
    # Of what the two others suggest below 1/8: a radius less far out, a κ that shrinks with s.
    "rules": {f"kappa {k:g} at 1/16": Variant((1 / 16,), bound=k) for k in (0.05, 0.1)},
}
VARIANTS = SWEEPS["radius"] | SWEEPS["kappa"] | SWEEPS["rules"]


def multipliers(variant: str, share: float) -> list[float]:
    """Powers of ``RATIO`` from below s^(−1/2), in base from one further down, to above 1/s.

    Where the best of them is the first or the last, ``beyond`` goes on from there. Where rules are
    compared, what they say. Where κ is searched, the power next to s^(−2/3); for a smaller κ than
    in base, which may allow a larger radius, one power less and two more.
    """
    if share == 0:
        return [1.0]
    if variant in SWEEPS["rules"]:
        return [4.0, share**-0.6, share ** (-2 / 3)]
    step, margin = math.log(RATIO), math.log(1.15)
    if variant in SWEEPS["kappa"]:
        around = range(-1, 3) if VARIANTS[variant].bound < VARIANTS["base"].bound else (0,)
        return [RATIO ** (round(-2 / 3 * math.log(share) / step) + i) for i in around]
    low = math.floor((-math.log(share) / 2 - margin) / step) - (variant == "base")
    high = math.ceil((-math.log(share) + margin) / step) + (share == 1)
    return [RATIO**i for i in range(low, high + 1)]


def seeds(variant: str, workload: str) -> range:
    factor = 4 if WORKLOADS[workload].seconds <= 1 else 1
    return range(FIRST_SEED, FIRST_SEED + factor * VARIANTS[variant].num_seeds)


def make_run(
    variant: str, workload: str, share: float, multiplier: float, seed: int, sam: Setting
) -> Run:
    """``stage`` names the variant; ``rho`` is the radius where the gradient is sampled."""
    method = "sgd" if share == 0 else "sam" if share == 1 else "budgeted_sam"
    learning_rate = sam.learning_rate * VARIANTS[variant].learning_rate
    rho, learning_rate = (float(f"{x:.4g}") for x in (multiplier * sam.rho, learning_rate))
    return Run(variant, workload, method, share, seed, rho, learning_rate, sam.weight_decay)


def runs_of(variant: str, workload: str, sam: Setting) -> list[Run]:
    return [
        make_run(variant, workload, share, multiplier, seed, sam)
        for share in VARIANTS[variant].shares
        for multiplier in multipliers(variant, share)
        for seed in seeds(variant, workload)
    ]


def curves_of(variant: str, workload: str, sam: Setting, done: Done) -> dict:
    """The curve of each share whose runs are all done, as far as it was gone on with."""
    curves = {}

    def accuracies(share, multiplier):
        """Of each seed, or None where one is missing."""
        runs = [
            make_run(variant, workload, share, multiplier, seed, sam)
            for seed in seeds(variant, workload)
        ]
        return [done[run]["accuracy"] for run in runs] if all(r in done for r in runs) else None

    for share in VARIANTS[variant].shares:
        tried = multipliers(variant, share)
        if variant in SWEEPS["radius"] and share > 0:
            while accuracies(share, tried[0] / RATIO):
                tried.insert(0, tried[0] / RATIO)
            while accuracies(share, tried[-1] * RATIO):
                tried.append(tried[-1] * RATIO)
        columns = [accuracies(share, multiplier) for multiplier in tried]
        if all(columns):
            curves[share] = fits.Curve(np.array(tried), np.array(columns).T)
    return curves


def beyond(curve: fits.Curve) -> list[float]:
    """The next multiplier where the best is the first or the last of a curve."""
    tried, top = curve.multipliers, curve.accuracy.mean(0).argmax()
    lower = [tried[0] / RATIO] if top == 0 else []
    higher = [tried[-1] * RATIO] if top == len(tried) - 1 else []
    return [m for m in lower + higher if LEAST <= m <= MOST]


def search_all(
    variants: Iterable[str], sam: dict[str, Setting], study: Study, options: search.Options
) -> None:
    """Runs the variants on the workloads of `sam`, and goes on where a best is not bracketed."""
    pairs = [(variant, workload) for variant in variants for workload in sam]
    runs = [run for pair in pairs for run in runs_of(*pair, sam[pair[1]])]
    while runs:
        done = search.run_all(runs, study, options)
        runs = [
            make_run(variant, workload, share, multiplier, seed, sam[workload])
            for variant, workload in pairs
            if variant in SWEEPS["radius"]
            for share, curve in curves_of(variant, workload, sam[workload], done).items()
            if share > 0
            for multiplier in beyond(curve)
            for seed in seeds(variant, workload)
        ]


@functools.cache
def at_radius(bound: float):
    """``budgeted_sam`` without its rule: `rho` is where it looks."""
    return lambda rho, share, steps, seed: arsam_jax.budgeted_sam(
        rho * share ** (2 / 3), share=share, bound=bound
    )


def execute(run: Run) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    variant, method = VARIANTS[run.stage], METHODS[run.method]
    workload = WORKLOADS[run.workload]._replace(batch_size=variant.batch_size)
    make = at_radius(variant.bound) if run.method == "budgeted_sam" else method.make
    return tuning.train_row(run, workload, make, method.cost, held_out="validation")


def seconds(run: Run) -> float:
    return tuning.seconds(run, METHODS[run.method].cost)


STUDY = Study(Run, execute, tuning.group, seconds)
