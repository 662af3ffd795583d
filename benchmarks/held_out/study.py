"""The protocol of the held-out workloads: what is searched, what is run, and how."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

import arsam_jax
from arsam_jax import correction, probe, radius, sampling
from benchmarks.harness import search, table, tuning
from benchmarks.harness.methods import METHODS as KNOWN
from benchmarks.harness.methods import Method, arsam
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import Setting
from benchmarks.held_out.workloads import WORKLOADS

TUNING_SEEDS = (100, 101, 102)
SEARCHED = {
    "sgd": ("learning_rate", "weight_decay"),
    "sam": ("learning_rate", "rho", "weight_decay"),
}
FINER = ("learning_rate",)  # by √2
REFERENCES = {"sgd": 0, "sam": 1}  # and their shares
MICROBATCHES = 4


def held_ratio(make: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose radius holds ‖PSF‖ / ‖g‖ at 0.5 / √share; ρ is not read."""
    return lambda rho, share, steps, seed: make(radius.hold_ratio(0.5 / share**0.5), share)


def sampled_m_sam(rho, share, steps, seed):
    """`budgeted_sam` whose samples are m-SAM's."""
    del steps, seed
    return arsam_jax.sharpness_aware(
        rho * share ** (-2 / 3),
        probe=probe.microbatched(MICROBATCHES),
        sampling=sampling.budgeted(share),
        correction=correction.reuse_psf(
            None, bound=min(0.1, 0.8 * share), sample_bound=share ** (-1 / 2)
        ),
    )


def sam_of_share(rho, share):
    return arsam_jax.sharpness_aware(rho, sampling=sampling.budgeted(share))


METHODS = {
    "sgd": KNOWN["sgd"],
    "sam": KNOWN["sam"],
    "budgeted_sam": KNOWN["budgeted_sam"]._replace(shares=(1 / 4, 1 / 8, 1 / 16)),
    "budgeted_sam_rising": KNOWN["budgeted_sam_rising"]._replace(shares=(1 / 4, 1 / 8)),
    "sam_every_k_wide": KNOWN["sam_every_k_wide"]._replace(shares=(1 / 4, 1 / 8)),
    "sam_every_k": KNOWN["sam_every_k"]._replace(shares=(1 / 8,)),
    "sampled_m_sam": Method(  # of a sample: the micro-batches' gradients and the perturbed ones
        sampled_m_sam, shares=(1 / 8, 1 / 16), cost=lambda sampled, share: 1 + 2 * sampled
    ),
    "arsam": Method(arsam(), shares=(0.4,)),
    "arsam_segments_of_8": KNOWN["arsam_segments_of_8"]._replace(shares=(0.4,)),
    "held_budgeted_sam": Method(
        held_ratio(lambda rho, share: arsam_jax.budgeted_sam(rho, share=share)),
        shares=(1 / 4, 1 / 8, 1 / 16),
    ),
    "held_sam": Method(held_ratio(sam_of_share), shares=(1, 1 / 4)),
    "momentum_sam_5": Method(
        lambda rho, share, steps, seed: arsam_jax.momentum_sam(5 * rho),
        shares=(0,),
        cost=lambda sampled, share: 1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "held_out/held_out.csv"
    """Results; figure and tables are written beside it."""
    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(METHODS)
    """SGD and SAM are always among them."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Reporting seeds."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, workloads=WORKLOADS, methods=METHODS)
        if set(self.seeds) & set(TUNING_SEEDS):
            raise SystemExit(f"--seeds must differ from the tuning seeds {TUNING_SEEDS}")
        if len(set(self.seeds)) < 2:
            raise SystemExit(f"--seeds: {self.seeds} are too few to tell an error")


def execute(run: Run) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    held_out = "validation" if run.stage == "tune" else "test"
    method = METHODS[run.method]
    return tuning.train_row(run, WORKLOADS[run.workload], method.make, method.cost, held_out)


def seconds(run: Run) -> float:
    method = METHODS[run.method]
    return 2 + WORKLOADS[run.workload].seconds * method.cost(run.share, run.share)


STUDY = search.Study(Run, execute, tuning.group, seconds)


def find(
    options: Options, study: search.Study, method: str, starts: dict[str, Setting]
) -> dict[str, Setting]:
    """The best setting of SGD or SAM on each workload, learning rates between at the end."""

    def scores_of(tried):
        runs = [
            [Run("tune", name, method, REFERENCES[method], seed, *s) for seed in TUNING_SEEDS]
            for name, s in tried
        ]
        done = search.run_all(itertools.chain(*runs), study, options)
        return [search.score(own, done) for own in runs]

    found = search.climb(starts, lambda at: search.scaled(at, SEARCHED[method]), scores_of)
    return search.climb(found, lambda at: search.scaled(at, FINER, 2**0.5), scores_of)


def reporting_runs(options: Options, sgd: dict[str, Setting], sam: dict[str, Setting]) -> list[Run]:
    """Each method with SAM's setting, SGD with its own."""
    return [
        Run("run", workload, name, share, seed, *(sgd if name == "sgd" else sam)[workload])
        for workload in options.workloads
        for name, method in METHODS.items()
        if name in (*options.methods, *REFERENCES)
        for share in method.shares
        for seed in options.seeds
    ]
