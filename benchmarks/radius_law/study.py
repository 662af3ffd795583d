"""How far ``budgeted_sam`` should look when it samples a share s of the steps.

It looks at ρ s^(−2/3), ρ being the radius that suits SAM, and bounds the reuse by κ = 0.1. Both
were chosen at one share. Here the radius m ρ is searched at each share for the best multiplier m,
on every workload of the frontier (two with BatchNorm, one with LayerNorm, two without), and again
at a lower learning rate and with larger batches, where SAM's own best radius is searched too. m
against s gives the exponent; what each rule loses against the best m says whether it matters.

Learning rate, weight decay and ρ are those the search of ``benchmarks.frontier`` found for SAM. The
seeds serve nothing else and accuracy is on held-out training examples: the test set is not read.

Every finished run is a line of a CSV file at once, and is never done again: a run that was
interrupted is resumed by the same command.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import rich
import tyro

import arsam_jax
from benchmarks import frontier, radius_law_report
from benchmarks.frontier.study import Run
from benchmarks.harness.workloads import WORKLOADS, Setting

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


def curves_of(variant: str, workload: str, sam: Setting, done: dict[Run, dict]) -> dict:
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
            curves[share] = radius_law_report.Curve(np.array(tried), np.array(columns).T)
    return curves


def beyond(curve: radius_law_report.Curve) -> list[float]:
    """The next multiplier where the best is the first or the last of a curve."""
    tried, top = curve.multipliers, curve.accuracy.mean(0).argmax()
    lower = [tried[0] / RATIO] if top == 0 else []
    higher = [tried[-1] * RATIO] if top == len(tried) - 1 else []
    return [m for m in lower + higher if LEAST <= m <= MOST]


def search(
    variants: Iterable[str],
    sam: dict[str, Setting],
    options: frontier.Options,
    run_one: Callable[[Run], dict],
) -> None:
    """Runs the variants on the workloads of `sam`, and goes on where a best is not bracketed."""
    pairs = [(variant, workload) for variant in variants for workload in sam]
    runs = [run for pair in pairs for run in runs_of(*pair, sam[pair[1]])]
    while runs:
        done = frontier.run_all(runs, options, run_one)
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


def execute(run: Run) -> dict:
    """Trains and returns the row of a run."""
    variant = VARIANTS[run.stage]
    workload = WORKLOADS[run.workload]._replace(batch_size=variant.batch_size)
    is_sampled = run.method == "budgeted_sam"
    make = at_radius(variant.bound) if is_sampled else frontier.METHODS[run.method].make
    return frontier.train_row(run, workload, make, held_out="validation")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    sweep: Literal["radius", "kappa", "rules", "report"] = "radius"
    """What to run; `report` draws what the CSV file has."""
    variants: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(VARIANTS)
    """Of those of the sweep."""
    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    workers: int = 1
    """Processes, each pinned to one core."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/radius_law.csv")
    """Results; figure and tables are written beside it."""
    search: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("benchmarks/frontier.csv")
    """Where the search for SAM's setting is; read only."""

    def __post_init__(self):
        frontier.check_names(self, variants=VARIANTS, workloads=WORKLOADS)
        if self.workers < 1:
            raise SystemExit("--workers must be at least 1")


def main(options: Options) -> None:
    searched = frontier.read_rows(options.search)
    draws = frontier.Options().draws
    sam = {w: frontier.best_setting((w, "sam", 1), draws, searched) for w in options.workloads}
    if options.sweep != "report":
        variants = [name for name in SWEEPS[options.sweep] if name in options.variants]
        search(variants, sam, frontier.Options(csv=options.csv, workers=options.workers), execute)
    for path in report(sam, options.csv):
        rich.print(f"wrote {path}")


def report(sam: dict[str, Setting], csv: Path) -> list[Path]:
    done = frontier.read_rows(csv)
    curves = {(v, w): curves_of(v, w, s, done) for v in VARIANTS for w, s in sam.items()}
    studies = {
        (variant, workload): radius_law_report.Study(found)
        for (variant, workload), found in curves.items()
        if 0 in found and 1 in found and len(found) > 2
    }

    def of_sweep(name):
        return {
            (VARIANTS[variant].bound, workload, share): curve
            for (variant, workload), found in curves.items()
            if variant in SWEEPS[name] and ("base", workload) in studies
            for share, curve in found.items()
        }

    return radius_law_report.write(studies, of_sweep("kappa"), of_sweep("rules"), csv)


if __name__ == "__main__":
    frontier.run_resumable(main, Options, __doc__)
