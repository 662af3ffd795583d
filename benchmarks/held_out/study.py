"""The protocol of the held-out workloads: what is searched, what is run, and how."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import jax
import optax
import tyro

import arsam_jax
from arsam_jax import radius, sampling
from benchmarks.harness import search, table, tuning
from benchmarks.harness.methods import METHODS as KNOWN
from benchmarks.harness.methods import Method, arsam
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import CLASSES, Setting, Workload
from benchmarks.held_out.workloads import WORKLOADS

TUNING_SEEDS = (100, 101, 102)
SEARCHED = {
    "sgd": ("learning_rate", "weight_decay"),
    "sam": ("learning_rate", "rho", "weight_decay"),
}
FINER = ("learning_rate",)  # by √2
REFERENCES = {"sgd": 0, "sam": 1}  # and their shares
MICROBATCHES = 2
FEWER_SEEDS = 10
CLAIMED = (  # what carries a claim is run with all seeds, the others with fewer
    *("sgd", "sam", "sam_of_weights", "budgeted_sam", "budgeted_m_sam"),
    *("budgeted_m_sam_of_weights", "arsam_segments_of_8", "momentum_sam_5", "m_sam"),
)


def held_ratio(make: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose radius holds ‖PSF‖ / ‖g‖ at 0.5 / √share; ρ is not read."""
    return lambda rho, share, steps, seed: make(radius.hold_ratio(0.5 / share**0.5), share)


def sam_of_share(rho, share):
    return arsam_jax.sharpness_aware(rho, sampling=sampling.budgeted(share))


def of_weights(make: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose radius is a part of ‖w₀‖; ρ is not read."""
    return lambda rho, share, steps, seed: make(radius.proportional_to_params(), share)


def budgeted_m_sam(rho, share):
    return arsam_jax.budgeted_sam(rho, share=share, num_microbatches=MICROBATCHES)


def in_microbatches(workload: Workload, share: float) -> Workload:
    del share
    return workload._replace(num_microbatches=MICROBATCHES)


@functools.cache  # one loss function, so that it is compiled once
def smoothed(workload: Workload, share: float) -> Workload:
    """The same with this part of each label spread over all classes, where there are classes."""
    if workload.objective is not CLASSES:
        return workload

    def losses(logits, labels):
        one_hot = jax.nn.one_hot(labels, workload.num_classes)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, share))

    return workload._replace(objective=CLASSES._replace(losses=losses))


def free(shares: tuple[float, ...], change, cost=lambda sampled, share: 1) -> Method:
    """The base optimizer in a changed training; ``share`` is how much it is changed."""
    return Method(KNOWN["sgd"].make, shares, cost, change)


BASELINES = {  # that need no second gradient, and have SGD's setting
    "sgd_epochs": free(  # what early stopping would find, and what SAM's price would buy
        (1 / 4, 1 / 2, 5 / 4, 2),
        lambda workload, share: workload._replace(epochs=round(share * workload.epochs)),
        cost=lambda sampled, share: share,
    ),
    "sgd_averaged": free(
        (1 / 16, 1 / 4), lambda workload, share: workload._replace(averaged=share)
    ),
    "sgd_label_smoothing": free((0.1, 0.3), smoothed),
    "sgd_microbatches": free((1,), in_microbatches),
}
BASES = ("sgd", *BASELINES)
METHODS = {
    "sgd": KNOWN["sgd"],
    **BASELINES,
    "sam": KNOWN["sam"],
    "budgeted_sam": KNOWN["budgeted_sam"]._replace(shares=(1 / 4, 1 / 8, 1 / 16)),
    "budgeted_m_sam": Method(
        lambda rho, share, steps, seed: budgeted_m_sam(rho, share),
        shares=(1 / 4, 1 / 8, 1 / 16),
        change=in_microbatches,
    ),
    "budgeted_sam_rising": KNOWN["budgeted_sam_rising"]._replace(shares=(1 / 4, 1 / 8)),
    "sam_every_k_wide": KNOWN["sam_every_k_wide"]._replace(shares=(1 / 4, 1 / 8)),
    "sam_every_k": KNOWN["sam_every_k"]._replace(shares=(1 / 8,)),
    "final_phase_sam": KNOWN["final_phase_sam"]._replace(shares=(1 / 4, 1 / 8)),
    "arsam": Method(arsam(), shares=(0.4,)),
    "arsam_segments_of_8": KNOWN["arsam_segments_of_8"]._replace(shares=(0.4,)),
    "held_budgeted_sam": Method(
        held_ratio(lambda rho, share: arsam_jax.budgeted_sam(rho, share=share)),
        shares=(1 / 4, 1 / 8, 1 / 16),
    ),
    "held_sam": Method(held_ratio(sam_of_share), shares=(1, 1 / 4)),
    "sam_of_weights": Method(of_weights(sam_of_share), shares=(1,)),
    "budgeted_m_sam_of_weights": Method(
        of_weights(budgeted_m_sam), shares=(1 / 4, 1 / 8, 1 / 16), change=in_microbatches
    ),
    "budgeted_m_sam_of_0.2": Method(  # one ρ for everything
        lambda rho, share, steps, seed: budgeted_m_sam(0.2, share),
        shares=(1 / 4, 1 / 8),
        change=in_microbatches,
    ),
    "momentum_sam_5": Method(
        lambda rho, share, steps, seed: arsam_jax.momentum_sam(5 * rho),
        shares=(0,),
        cost=lambda sampled, share: 1,
    ),
    "m_sam": KNOWN["m_sam"],
}


@dataclasses.dataclass(frozen=True)
class Options(search.Options):
    """Options of the benchmark."""

    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = table.RESULTS / "held_out/held_out.csv"
    """Results; figure and tables are written beside it."""
    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(WORKLOADS)
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAMES")] = tuple(METHODS)
    """SGD and SAM are always among them."""
    seeds: tuple[int, ...] = tuple(range(20))
    """Reporting seeds. What carries no claim takes the first ten alone."""

    def __post_init__(self):
        super().__post_init__()
        search.check_names(self, workloads=WORKLOADS, methods=METHODS)
        check_seeds(self.seeds)


def check_seeds(seeds: tuple[int, ...]) -> None:
    if set(seeds) & set(TUNING_SEEDS):
        raise SystemExit(f"--seeds must differ from the tuning seeds {TUNING_SEEDS}")
    if len(set(seeds)) < 2:
        raise SystemExit(f"--seeds: {seeds} are too few to tell an error")


def row_of(run: Run, method: Method) -> dict[str, Any]:
    """Trains and returns the row of a run."""
    held_out = "validation" if run.stage == "tune" else "test"
    workload = method.change(WORKLOADS[run.workload], run.share)
    return tuning.train_row(run, workload, method.make, method.cost, held_out)


def seconds_of(run: Run, method: Method) -> float:
    return 2 + WORKLOADS[run.workload].seconds * method.cost(run.share, run.share)


def execute(run: Run) -> dict[str, Any]:
    return row_of(run, METHODS[run.method])


def seconds(run: Run) -> float:
    return seconds_of(run, METHODS[run.method])


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


def reporting_runs(
    options: Options, methods: Collection[str], sgd: dict[str, Setting], sam: dict[str, Setting]
) -> list[Run]:
    """Each method with SAM's setting, SGD and what is free with SGD's."""
    return [
        Run("run", workload, name, share, seed, *(sgd if name in BASES else sam)[workload])
        for workload in options.workloads
        for name, method in METHODS.items()
        if name in methods
        for share in method.shares
        for seed in options.seeds[: None if name in CLAIMED else FEWER_SEEDS]
    ]
